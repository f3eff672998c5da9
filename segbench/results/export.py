"""Leaderboards as text table, CSV, JSON, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from segbench.results.leaderboard import Board, Row
from segbench.text import safe

SCHEMA = "segbench.leaderboard/1"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where it is not defined."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def cells(row: Row) -> list[str]:
    """The cells of a row, in the order of ``columns``."""
    spread = "" if row.dice_sd != row.dice_sd else f" ± {row.dice_sd:.1f}"
    return [str(row.rank or "–"), row.method, number(row.dice, 1) + spread, number(row.jaccard, 1), number(row.hd95, 2),
            number(row.asd, 2), str(row.missed), str(row.seeds), number(row.hours * 60, 1), row.note]


def columns(board: Board) -> list[tuple[str, str]]:
    """Title and alignment of each column."""
    return [("#", ">"), ("method", "<"), ("Dice %", ">"), ("Jaccard %", ">"), (f"HD95 {board.unit}", ">"),
            (f"ASD {board.unit}", ">"), ("missed", ">"), ("seeds", ">"), ("min", ">"), ("", "<")]


def footer(board: Board) -> list[str]:
    """What a reader must know to believe the table."""
    lines = [f"± standard deviation over seeds · min: minutes of training · missed: Dice 0, distances by policy "
             f"'{board.policy}'"]
    if board.dataset.startswith("phantom"):
        lines.append("phantoms are synthetic: they show the tool and the order of methods on them, nothing clinical")
    if board.partial:
        lines.append("made on a partial copy of the data set: never comparable with the whole")
    if board.failures:
        lines.append(f"{len(board.failures)} failed: {'; '.join(board.failures)}")
    return lines


def as_csv(boards: Sequence[Board]) -> str:
    """One line a row. Cells that a spreadsheet would take for a formula are quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "labeled", "draw", "train", "cases", "backbone", "protocol", "unit", "policy", "rank",
                     "method", "dice", "dice_sd", "jaccard", "hd95", "asd", "missed", "seeds", "train_hours"])
    for b in boards:
        for r in b.rows:
            writer.writerow([_formula(v) for v in (b.dataset, b.labeled, b.draw, b.train, b.cases, b.backbone, b.protocol,
                             b.unit, b.policy, r.rank or "", r.method, r.dice, r.dice_sd if r.dice_sd == r.dice_sd else "",
                             r.jaccard, r.hd95, r.asd, r.missed, r.seeds, r.hours)])
    return out.getvalue()


def _formula(value: Any) -> Any:
    value = safe(value) if isinstance(value, str) else value
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" and value else value


def as_json(boards: Sequence[Board], published: Callable[[str, int], list[dict[str, Any]]] | None) -> dict[str, Any]:
    """One document."""
    tables = []
    for b in boards:
        table = {k: getattr(b, k) for k in ("dataset", "labeled", "draw", "train", "cases", "backbone", "protocol", "unit",
                                            "policy", "partial", "failures")}
        table["rows"] = [r.to_dict() for r in b.rows]
        if published is not None and b.standard:
            table["published"] = published(b.dataset, b.labeled)
        tables.append(table)
    return {"schema": SCHEMA, "status": "ok", "boards": tables}


def as_markdown(boards: Sequence[Board]) -> str:
    """Pipe tables."""
    parts = []
    for b in boards:
        titles = columns(b)
        lines = [f"**{_md(b.title)}**", "", "| " + " | ".join(t for t, _ in titles) + " |",
                 "|" + "|".join("---:" if a == ">" else "---" for _, a in titles) + "|"]
        lines += ["| " + " | ".join(_md(c) for c in cells(r)) + " |" for r in b.rows]
        parts.append("\n".join([*lines, "", *(f"{_md(line)}  " for line in footer(b))]))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", safe(text))


def as_latex(boards: Sequence[Board]) -> str:
    """booktabs tables, the best Dice in bold."""
    parts = []
    for b in boards:
        best = max((r.dice for r in b.rows), default=0.0)
        lines = [f"% {_tex(b.title)}", r"\begin{tabular}{llrrrrr}", r"\toprule",
                 rf"\# & Method & Dice (\%) & Jaccard (\%) & HD95 ({b.unit}) & ASD ({b.unit}) & Seeds \\", r"\midrule"]
        for r in b.rows:
            rank, name, dice, jaccard, hd95, asd, _, seeds, *_ = [_tex(c) for c in cells(r)]
            dice = rf"\textbf{{{dice}}}" if r.dice == best else dice
            lines.append(" & ".join([rank, name, dice, jaccard, hd95, asd, seeds]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {_tex(line)}" for line in footer(b))]))
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "·": r"$\cdot$", "~": r"\textasciitilde{}",
               "^": r"\textasciicircum{}", **{c: rf"\{c}" for c in "&%$#_{}"}}
    return "".join(special.get(c, c) for c in safe(text))
