"""Load labels and image files, and turn them into training batches on the device."""
