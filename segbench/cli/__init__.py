"""The command line, and the only part of segbench that prints.

Modules that define commands import click and little else, so that ``segbench --help`` is fast; what a
command needs beyond that is imported inside its function. Everything else here is shared by commands.
"""
