"""Leaderboards as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from segbench.results.board import Board
from segbench.results.export import TIME_TITLES, columns, footer, sorted_title
from segbench.results.published import Published
from segbench.text import safe


def as_latex(boards: Sequence[Board], published: Published | None = None) -> str:
    """Return booktabs tables; the first rank is bold in the column that ranks."""
    return "\n\n".join(_latex_table(board, published) for board in boards) + "\n"


def _latex_table(board: Board, published: Published | None) -> str:
    left_out = {"failed", *TIME_TITLES}
    if not any(row.missed for row in board.rows):
        left_out.add("missed")
    shown = [c for c in columns(board, published=published) if c.title not in left_out]
    titles = [_latex(column.title) for column in shown]
    titles[titles.index("method")] = "Method"
    alignment = "".join("l" if column.align == "<" else "r" for column in shown)
    lines = [
        f"% {_latex(board.title)}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
    ]
    for row in board.rows:
        cells = []
        for column in shown:
            text = _latex(column.cell(row))
            if row.rank == 1 and column.title == sorted_title(board):
                text = rf"\textbf{{{text}}}"
            cells.append(text)
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {_latex(line)}" for line in footer(board, published)]
    return "\n".join(lines)


LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "≠": r"$\neq$",
    "–": "--",
    "·": r"$\cdot$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}
LATEX |= {character: rf"\{character}" for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in safe(text))
