"""Training batches: splits, crops and the two streams."""
