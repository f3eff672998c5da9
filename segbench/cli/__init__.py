"""The command line, and the only part of segbench that prints.

Modules that define commands import click and little else, so that ``segbench --help`` is fast. What
a command needs beyond that is imported inside its function; the modules that commands share
(``training``, ``suites``, ``boards``, ``pages``, ``documents``) import it at the top.
"""
