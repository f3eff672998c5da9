"""Leaderboards as text that fits the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from segbench.cli.colors import paint
from segbench.cli.terminal import table, width, wrapped
from segbench.results import export
from segbench.results.board import DISTANCES, Board
from segbench.results.export import TableColumn
from segbench.results.names import ORACLE
from segbench.results.overview import Overview
from segbench.results.published import Published
from segbench.text import safe

PICTURE = 21  # columns of the picture of ranks
LONG_NAME = 16  # characters; longer names move below a table that is too wide


def boards_text(
    boards: Sequence[Board], wide: bool = False, published: Published | None = None
) -> tuple[list[str], list[str]]:
    """Return each board as text, and the remarks that all of them have in common."""
    tables = [_board_parts(board, wide, published) for board in boards]
    common: list[str] = []
    if len(tables) > 1:
        first = tables[0][1]
        common = [line for line in first if all(line in remarks for _, remarks in tables)]
    texts = []
    for lines, remarks in tables:
        shown = list(lines)
        for remark in remarks:
            if remark not in common:
                shown += wrapped(remark)
        texts.append("\n".join(shown))
    return texts, [line for remark in common for line in wrapped(remark)]


def board_text(board: Board, wide: bool = False, published: Published | None = None) -> str:
    """Return a board as text."""
    (text,), _ = boards_text([board], wide, published)
    return text


def _board_parts(
    board: Board, wide: bool, published: Published | None
) -> tuple[list[str], list[str]]:
    """Return title and table of a board as lines, and the remarks below it.

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
    best = [number for number, row in enumerate(board.rows) if row.rank == 1]
    body = table([(column.title, column.align) for column in columns], cells, strong=best)
    title = [paint(line, "bold") for line in wrapped(board.title)]
    return [*title, body], [*below, *export.footer(board, published, titles)]


def overview_text(found: Overview) -> str:
    """Return the overview as text: means by table, mean ranks, wins, and a picture of the ranks.

    Data sets are left out from the right until the table fits; ranks and wins always stay.
    """
    unit = {"dice": "Dice %", "jaccard": "Jaccard %"}.get(found.sort, found.sort.upper())
    digits = 2 if found.sort in DISTANCES else 1
    titles = list(found.columns)
    columns = [("method", "<"), *((title, ">") for title in titles)]
    columns += [("mean rank", ">"), ("wins", ">"), ("group", "<"), (_scale_title(found), "<")]
    rows = []
    for standing in found.standings:
        values = [export.number(value, digits) for value in standing.values]
        rank = export.number(standing.mean_rank, 1)
        picture = _rank_picture(found, standing.mean_rank)
        rows.append([standing.method, *values, rank, standing.wins, standing.letters, picture])
    if any(value == value for value in found.oracle):
        values = [export.number(value, digits) for value in found.oracle]
        rows.append([ORACLE, *values, "–", "", "", ""])
    best = [0] if found.ranked else []
    drop = (_scale_title(found), "group", *reversed(titles[1:]))
    lines = [paint(f"Overview: {unit} on {len(titles)} tables", "bold")]
    lines.append(table(columns, rows, drop, best))
    for remark in overview_remarks(found):
        lines += wrapped(remark)
    return "\n".join(lines)


def overview_remarks(found: Overview) -> list[str]:
    """Return how the overview is read."""
    lines = ["wins: tables in which the method has the best mean"]
    if found.ranked:
        lines.append(
            "methods that share a letter are not distinguishable over these tables: their mean "
            f"ranks differ by less than {found.critical_difference:.1f} (Nemenyi, 5 %)"
        )
    if len(found.ranked) < len(found.standings):
        lines.append("no mean rank: not in every table")
    return lines


def _scale_title(found: Overview) -> str:
    """Return the axis of the picture of ranks: 1 at the left, the last rank at the right."""
    last = str(max(len(found.ranked), 2))
    return "1" + last.rjust(PICTURE - 1)


def _rank_picture(found: Overview, mean_rank: float) -> str:
    """Return a mark at a mean rank, with a bar of the critical difference around it.

    The bars of methods that are not distinguishable overlap.
    """
    if mean_rank != mean_rank:
        return ""
    step = (PICTURE - 1) / (max(len(found.ranked), 2) - 1)
    place = round((mean_rank - 1) * step)
    reach = found.critical_difference / 2 * step
    cells = [" "] * PICTURE
    for column in range(PICTURE):
        if abs(column - (mean_rank - 1) * step) < reach:
            cells[column] = "─"
    cells[place] = "●"
    return "".join(cells)


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
        *export.TIME_TITLES,
        "failed",
        "group",
        f"ASD {board.unit}",
        "Jaccard %",
        "ranks",
        "seeds",
        "draws",
        "folds",
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
