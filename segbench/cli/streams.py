"""Standard streams that are closed, full, or without a reader."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import click

from segbench.cli.colors import painted_beginning


def is_beside_first() -> bool:
    """Return whether torchrun started this process beside a first one, which alone reports."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0"


def open_missing() -> None:
    """Connect standard streams that are closed, as by ``>&-``, with the null device.

    Without this, the next file that is opened would become the standard output.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 (open until the program ends)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def replace_unknown_characters() -> None:
    """Show "?" in place of a character that the terminal does not have, and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def remark(text: str) -> None:
    """Print on stderr. A closed stderr, or a full disk behind it, must not end a training."""
    with contextlib.suppress(OSError):
        click.echo(painted_beginning(text), err=True)


def abandon_stdout() -> None:
    """Send what is still to be written to stdout to the null device.

    Python would otherwise try again at exit, and fail.
    """
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
