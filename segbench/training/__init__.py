"""Training: the loop, phases and players, checkpoints, signals."""
