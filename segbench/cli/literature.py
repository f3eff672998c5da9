"""Numbers of the literature as text that fits the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from segbench.cli.terminal import table, wrapped
from segbench.results.export import number
from segbench.results.published import LEAKS, all_published, published
from segbench.text import safe

COLUMNS = (
    ("published", "<"),
    ("Dice %", ">"),
    ("Jaccard %", ">"),
    ("HD95 vox", ">"),
    ("ASD vox", ">"),
    ("leak", "<"),
    ("checkpoint", "<"),
    ("test cases", "<"),
    ("by", "<"),
    ("source", "<"),
)
# Columns that are left out until the table fits, the least important first.
DROPPED = ("source", "by", "ASD vox", "Jaccard %", "HD95 vox", "test cases", "checkpoint")
SHORT_LEAKS = {
    "labels_of_unlabelled": "labels",
    "selection_on_test": "selection",
    "evaluated_on_validation": "validation",
}


def published_text(dataset: str, labeled: int, other_cases: bool = False) -> str:
    """Return the literature's numbers as text, with distances in voxels.

    Each number comes with its leaks and its checkpoint rule, and doubtful ones are marked.

    Args:
        other_cases: the numbers stand alone: with a title, and with those on other test cases.
    """
    rows = all_published(dataset, labeled) if other_cases else published(dataset, labeled)
    if not rows:
        return f"no published numbers for {safe(dataset)} with {labeled} labeled cases"
    shown = [column for column in COLUMNS if other_cases or column[0] != "test cases"]
    cells = []
    for row in rows:
        values = _cells(row)
        cells.append([values[title] for title, _ in shown])
    lines = [table(shown, cells, drop=DROPPED)]
    if other_cases:
        lines.insert(0, f"{safe(dataset)}, {labeled} labeled, published numbers")
    for remark in _remarks(rows, other_cases):
        lines += wrapped(remark)
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a row by the titles of their columns."""
    return {
        "published": f"{row['method']} !" if row["doubt"] else row["method"],
        "Dice %": number(row["dice"], 2),
        "Jaccard %": number(row["jaccard"], 2),
        "HD95 vox": number(row["hd95"], 2),
        "ASD vox": number(row["asd"], 2),
        "leak": ", ".join(SHORT_LEAKS[leak] for leak in row["leaks"]),
        "checkpoint": _checkpoint_rule(row["selection"], row["method"]),
        "test cases": "usual" if row["comparable"] else str(row["protocol"]).replace("_", " "),
        "by": row["relation"],
        "source": row["source"],
    }


def _remarks(rows: Sequence[dict[str, Any]], other_cases: bool) -> list[str]:
    """Return what a reader needs to know about the numbers, one line per remark."""
    remarks = [
        "published numbers are not ranked: each source has its own seeds, checkpoint rule and "
        f"post-processing; {rows[0]['distances']}"
    ]
    if other_cases and not all(row["comparable"] for row in rows):
        remarks.append("rows on other test cases than the usual ones are not comparable with them")
    for leak, why in LEAKS.items():
        if any(leak in row["leaks"] for row in rows):
            remarks.append(f"leak {SHORT_LEAKS[leak]}: {why}")
    for row in rows:
        if row["doubt"]:
            remarks.append(f"! {row['method']} ({row['source']}): {row['doubt']}")
    return remarks


def _checkpoint_rule(selection: str, method: str) -> str:
    """Return the checkpoint rule of one method, without remarks.

    A source with several rules has ``RULE for METHOD (remark); RULE for the rest``.
    """
    parts = selection.split("; ")
    own = [part for part in parts if f" for {method} " in f"{part} "]
    rest = [part for part in parts if part.endswith(" for the rest")]
    rule = (own or rest or parts)[0]
    return re.split(r"[;,(]| for | unless ", rule)[0].strip().replace("_", " ")
