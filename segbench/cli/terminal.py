"""Text for terminals of any width and encoding."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from segbench.cli.colors import paint
from segbench.errors import Interrupted, SegbenchError
from segbench.text import safe

if TYPE_CHECKING:
    from rich.console import Console

NO_LIMIT = 10_000  # columns
LEAST_WRAPPED = 16  # columns of a text that is wrapped inside a table
MARKS = {"error": "✗", "warning": "!", "ok": "✓"}
ASCII_MARKS = {"error": "x", "warning": "!", "ok": "ok"}


def console(stderr: bool = False) -> Console:
    """Return a rich console that neither wraps nor colors its output when it is redirected."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else _columns(200),
        highlight=False,
        emoji=False,
        markup=False,
        safe_box=True,
        legacy_windows=False,
    )


def width(stream: TextIO | None = None) -> int:
    """Return the width of the terminal; without a terminal, $COLUMNS or no limit.

    Args:
        stream: standard output by default.
    """
    shown_on = sys.stdout if stream is None else stream
    if not shown_on.isatty():
        return _columns(NO_LIMIT)
    try:
        return os.get_terminal_size(shown_on.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def is_width(text: str) -> bool:
    """Return whether a value of $COLUMNS is a usable width."""
    return re.fullmatch("[1-9][0-9]{0,5}", text) is not None


def _columns(default: int) -> int:
    text = os.environ.get("COLUMNS", "")
    return int(text) if is_width(text) else default


def table(
    columns: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[object]],
    drop: Sequence[str] = (),
    strong: Collection[int] = (),
    wrap: Sequence[str] = (),
    room: int | None = None,
) -> str:
    """Return a plain table. Text is escaped, and no digit is ever cut off.

    Args:
        columns: the title and the alignment, "<" or ">", of each column.
        drop: titles of columns to leave out, in this order, until the table fits the terminal.
        strong: numbers of the rows that a terminal shows in bold.
        wrap: titles of columns of text, which take several lines, in this order, until the table
            fits the terminal; words are never broken.
        room: columns to fit, by default those of standard output.
    """
    limit = width() if room is None else room
    titles = [title for title, _ in columns]
    lines = [titles]
    for row in rows:
        lines.append([safe(value) for value in row])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    kept = list(range(len(columns)))
    for title in drop:
        if sum(widths[i] + 2 for i in kept) - 2 > limit:
            kept = [i for i in kept if titles[i] != title]

    for title in wrap:
        column = titles.index(title)
        others = sum(widths[i] + 2 for i in kept if i != column)
        widths[column] = min(widths[column], max(limit - others, LEAST_WRAPPED))

    texts = []
    for line in lines:
        cells = {i: _cell_lines(line[i], widths[i], titles[i] in wrap) for i in kept}
        height = max(map(len, cells.values()))
        shown_lines = []
        for number in range(height):
            parts = []
            for i, own in cells.items():
                text = own[number] if number < len(own) else ""
                parts.append(f"{text:{columns[i][1]}{widths[i]}}")
            shown_lines.append("  ".join(parts).rstrip())
        texts.append("\n".join(shown_lines))
    bar = "─" if _can_encode("─") else "-"
    rule = bar * max(len(part) for text in texts for part in text.splitlines())
    shown = [paint(texts[0], "bold"), paint(rule, "dim")]
    for number, text in enumerate(texts[1:]):
        shown.append(paint(text, "bold") if number in strong else text)
    return "\n".join(shown)


def _cell_lines(text: str, room: int, wraps: bool) -> list[str]:
    """Return the lines of a cell."""
    if not wraps or len(text) <= room:
        return [text]
    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)


def wrapped(text: str, indent: str = "  ", stream: TextIO | None = None) -> list[str]:
    """Return a text as lines that fit the terminal; lines after the first are indented.

    Words are never broken: a word that is longer than a line has a line of its own.

    Args:
        stream: where the text is shown, standard output by default.
    """
    lines = textwrap.wrap(
        safe(text),
        width(stream),
        subsequent_indent=indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [""]


def mark(level: str) -> str:
    """Return the mark of an "error", a "warning" or an "ok" that the terminal can show."""
    return MARKS[level] if _can_encode(MARKS[level]) else ASCII_MARKS[level]


def plural(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 case" or "2 cases"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def error_text(error: SegbenchError) -> str:
    """Return an error as one screen of text; a stop that the user wished is not called an error."""
    first = error.what if isinstance(error, Interrupted) else f"error: {error.what}"
    lines: list[str] = []
    for line in first.splitlines():
        lines += wrapped(line, "  ", sys.stderr)
    for name, value in error.details.items():
        if value is None:
            continue
        label = name
        for part in str(value).splitlines() or [""]:
            if part.strip() or label:
                lines += _detail_lines(label, part.strip())
                label = ""
    return "\n".join(lines)


def _detail_lines(label: str, text: str) -> list[str]:
    """Return one line of a detail, wrapped; a fix stays whole, so that it can be copied."""
    line = f"  {label:<9} {text}"
    if label == "fix":
        return [safe(line)]
    return wrapped(line, " " * 12, sys.stderr)


def _can_encode(text: str) -> bool:
    encoding: Any = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
