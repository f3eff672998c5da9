"""The command line: one file a command, the only place that prints. Modules here import click and nothing heavy."""
