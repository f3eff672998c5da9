"""Suites: many runs from one file, executed by local slots."""
