"""What decides a run's numbers, and its digest."""
