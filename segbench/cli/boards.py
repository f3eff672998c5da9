"""Leaderboards as text that fits the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from segbench import registry
from segbench.cli.terminal import table, width, wrapped
from segbench.results import export
from segbench.results.board import Board
from segbench.results.export import TableColumn, number
from segbench.results.published import Published, published
from segbench.text import safe

LONG_NAME = 16  # characters; longer names move below a table that is too wide
PUBLISHED_COLUMNS = (
    ("published", "<"),
    ("Dice %", ">"),
    ("Jaccard %", ">"),
    ("HD95 vox", ">"),
    ("ASD vox", ">"),
    ("checkpoint", "<"),
    ("by", "<"),
    ("source", "<"),
)


def datasets_called(name: str | None, known: Iterable[str] = ()) -> set[str] | None:
    """Return the data sets that ``--dataset`` means: the members of a group, or the one data set.

    Args:
        name: None returns None.
        known: names of stored runs, whose data sets need not be available here.
    """
    if name is None:
        return None
    if name in known:
        return {name}
    dataset = registry.get("dataset", name).cls
    return set(dataset.members) or {dataset.name}


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
    ]
    for title in droppable:
        if title != export.sorted_title(board) and not _fits(columns, board):
            columns = [column for column in columns if column.title != title]
    return columns


def published_text(dataset: str, labeled: int) -> str:
    """Return the literature's numbers as text, with distances in voxels.

    Each number comes with its checkpoint rule, and doubtful ones are marked.
    """
    rows = published(dataset, labeled)
    if not rows:
        return f"\nno published numbers for {safe(dataset)} with {labeled} labeled cases"
    body = table(
        PUBLISHED_COLUMNS,
        [_published_cells(row) for row in rows],
        drop=("source", "by", "ASD vox", "Jaccard %", "HD95 vox", "checkpoint"),
    )
    remarks = [
        "published numbers are not ranked: each source has its own seeds, checkpoint rule and "
        f"post-processing; {rows[0]['distances']}"
    ]
    for row in rows:
        if row["doubt"]:
            remarks.append(f"! {row['method']} ({row['source']}): {row['doubt']}")
    lines = [body]
    for remark in remarks:
        lines += wrapped(remark)
    return "\n\n" + "\n".join(lines)


def _published_cells(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['method']} !" if row["doubt"] else row["method"],
        number(row["dice"], 2),
        number(row["jaccard"], 2),
        number(row["hd95"], 2),
        number(row["asd"], 2),
        _checkpoint_rule(row["selection"], row["method"]),
        row["relation"],
        row["source"],
    ]


def _checkpoint_rule(selection: str, method: str) -> str:
    """Return the checkpoint rule of one method, without remarks.

    A source with several rules has ``RULE for METHOD (remark); RULE for the rest``.
    """
    parts = selection.split("; ")
    own = [part for part in parts if f" for {method} " in f"{part} "]
    rest = [part for part in parts if part.endswith(" for the rest")]
    rule = (own or rest or parts)[0]
    return re.split(r"[;,(]| for | unless ", rule)[0].strip().replace("_", " ")
