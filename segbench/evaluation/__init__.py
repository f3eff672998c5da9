"""Prediction and scoring: test sets, new scans and folders of label files."""
