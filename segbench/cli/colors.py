"""Colors of the terminal. They repeat what the words say: nothing is said by a color alone."""

from __future__ import annotations

import os
import sys
from typing import TextIO

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
# How lines begin that report a failure, a warning or a success, and the color of that beginning.
BEGINNINGS = {
    "error:": ("bold", "red"),
    "warning:": ("yellow",),
    "outdated:": ("yellow",),
    "stopped": ("yellow",),
    "SIG": ("yellow",),
    "✗": ("red",),
    "!": ("yellow",),
    "✓": ("green",),
    "FAIL": ("bold", "red"),
    "ok ": ("green",),
}


def has_colors(stream: TextIO) -> bool:
    """Return whether a stream is shown in colors: a terminal, unless $NO_COLOR is set.

    $FORCE_COLOR asks for colors elsewhere, too.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, *styles: str, stream: TextIO | None = None) -> str:
    """Return text in the given styles where the stream, standard output by default, has colors."""
    if not text or not has_colors(stream or sys.stdout):
        return text
    codes = ";".join(CODES[style] for style in styles)
    return f"\033[{codes}m{text}\033[0m"


def painted_beginning(text: str) -> str:
    """Return a remark on standard error with the word that it begins with in its color."""
    for beginning, styles in BEGINNINGS.items():
        if text.startswith(beginning):
            return paint(beginning, *styles, stream=sys.stderr) + text[len(beginning) :]
    return text
