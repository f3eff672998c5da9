"""The prepared store: cases as plain arrays, with their checks."""
