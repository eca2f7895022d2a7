"""Data: from labels and image files to a `Batch` on the device."""
