"""From a folder of files to a prepared store."""
