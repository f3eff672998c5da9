"""The report: finished runs as one HTML file that opens anywhere and asks nobody for anything."""
