"""Data: the prepared store, its checks, crops and augmentation, two-stream batches."""
