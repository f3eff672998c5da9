"""Experiment trackers: the records of a training, sent to other programs while it runs."""
