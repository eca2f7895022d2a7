"""Training: from a `Batch` to updated weights."""
