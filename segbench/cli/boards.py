"""Leaderboards as text that fits the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from segbench import registry
from segbench.cli.terminal import table, width, wrapped
from segbench.results import export
from segbench.results.board import Board
from segbench.results.export import TableColumn
from segbench.results.published import Published
from segbench.text import safe

LONG_NAME = 16  # characters; longer names move below a table that is too wide


def datasets_called(name: str | None, known: Iterable[str] = ()) -> set[str] | None:
    """Return the data sets that ``--dataset`` means: members of groups, or the data sets named.

    Args:
        name: one data set, or several as they are typed ("a,b") or shown ("a+b"); None returns
            None.
        known: names of stored runs, whose data sets need not be available here.
    """
    if name is None:
        return None
    available = set(known)
    wanted: set[str] = set()
    for part in re.split("[,+]", name):
        spelled = part.strip().replace("-", "_")
        if spelled in available:
            wanted.add(spelled)
            continue
        dataset = registry.get("dataset", part.strip()).cls
        wanted.update(dataset.members or (dataset.name,))
    return wanted


def board_text(board: Board, wide: bool = False, published: Published | None = None) -> str:
    """Return a board as text.

    If it is too wide for the terminal, notes and long names move below the table. If that is not
    enough, the least important columns are left out.
    """
    columns = export.columns(board, wide, published)
    below: list[str] = []
    if not _fits(columns, board):
        columns = _without_notes(columns)
        short_names: dict[str, str] = {}
        if not _fits(columns, board):
            short_names = _short_names([row.method for row in board.rows])
            columns = _without_notes(export.columns(board, wide, published, short_names))
        below = _text_below(board, short_names)
        columns = _dropped_to_fit(columns, board)

    titles = [column.title for column in columns]
    cells = [[column.cell(row) for column in columns] for row in board.rows]
    body = table([(column.title, column.align) for column in columns], cells)
    lines = [*wrapped(board.title), body]
    for remark in [*below, *export.footer(board, published, titles)]:
        lines += wrapped(remark)
    return "\n".join(lines)


def _fits(columns: Sequence[TableColumn], board: Board) -> bool:
    total = -2
    for column in columns:
        longest = max(len(safe(column.cell(row))) for row in board.rows)
        total += 2 + max(len(column.title), longest)
    return total <= width()


def _without_notes(columns: Sequence[TableColumn]) -> list[TableColumn]:
    """Leave out the column without a title, which holds the notes."""
    return [column for column in columns if column.title]


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Return short forms of long row names: the method and a number."""
    long_names = [name for name in names if len(safe(name)) > LONG_NAME]
    short = {}
    for count, name in enumerate(long_names, 1):
        method = re.split(r"[\[ ]", name)[0]
        short[name] = f"{method[: LONG_NAME - 4]} ({count})"
    return short


def _text_below(board: Board, short_names: dict[str, str]) -> list[str]:
    lines = [f"{short} is {name}" for name, short in short_names.items()]
    for row in board.rows:
        if row.note:
            lines.append(f"– {short_names.get(row.method, row.method)}: {row.note}")
    return lines


def _dropped_to_fit(columns: list[TableColumn], board: Board) -> list[TableColumn]:
    """Leave out columns, the least important first, until the table fits.

    The metric that ranks stays; what the user asked for goes last.
    """
    differences = [column.title for column in columns if column.title.startswith("to ")]
    endings = tuple(f" {words}" for words in export.COMPONENT_CHOICES.values())
    components = [column.title for column in columns if column.title.endswith(endings)]
    intervals = [column.title for column in columns if column.title.endswith("95% CI")]
    droppable = [
        "min",
        "h",
        "failed",
        "group",
        f"ASD {board.unit}",
        "Jaccard %",
        "ranks",
        "seeds",
        "draws",
        "missed",
        f"HD95 {board.unit}",
        *differences,
        *intervals,
        export.GAP_TITLE,
        export.GAIN_TITLE,
        "published",
        *components,
    ]
    for title in droppable:
        if title != export.sorted_title(board) and not _fits(columns, board):
            columns = [column for column in columns if column.title != title]
    return columns
