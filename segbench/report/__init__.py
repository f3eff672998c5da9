"""The report: finished runs as one HTML file that needs no network and no other file."""
