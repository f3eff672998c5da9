"""Write ``docs/results/speed.md`` from the measurements of ``benchmarks/speed``.

python benchmarks/results/speed_page.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from speed_remarks import REMARKS, SECTIONS  # noqa: E402

PAGE = HERE.parents[1] / "docs" / "results" / "speed.md"
Row = dict[str, Any]

COLUMNS = 130  # of the text
TITLES = {
    "speed-changes": "Each change alone: without it and with it",
    "speed-step": "A training step in three dimensions, before and after",
    "speed-step-2d": "A training step in two dimensions, before and after",
    "speed-plain": "A training step in plain torch code and in segbench",
    "speed-suite": "Several small runs: a process for each, and a suite",
    "speed-quick-suite": "One replicate of the quick suite at an older commit and now",
    "speed-metrics": "Metrics against MedPy",
    "speed-metric-peers": "Metrics against other libraries",
    "speed-inference": "Sliding windows",
    "speed-loader": "Loading training patches",
    "speed-startup": "Start of the program and of a run",
    "speed-official": "A training step of the authors' code and of ours, 48 voxels",
    "speed-official-64": "A training step of the authors' code and of ours, 64 voxels",
    "speed-official-ssl4mis": "A training step of SSL4MIS and of ours",
    "speed-official-versemi": "A training step of VerSemi's code and of ours, 48 voxels",
    "speed-official-versemi-64": "A training step of VerSemi's code and of ours, 64 voxels",
    "speed-half": "Predictions in bfloat16 with trained weights",
    "speed-scale": "Commands on many runs (before: commit 15c8398)",
    "speed-distributed": "A training step in two processes, beside DistributedDataParallel",
    "speed-classes": "The supervised loss of many classes",
    "speed-prepare-la": "Preparing the left atrium",
    "speed-prepare-acdc": "Preparing ACDC",
    "speed-store": "Forms of the prepared store: random crops",
    "speed-commits": "The commit of a change and the one before it",
}
# Columns with numbers in this order; others come after them as they are stored.
ORDER = ("before", "other", "plain", "after", "here", "ratio", "peak_mb_before", "peak_mb_after")


def page() -> str:
    """Return the text of the page."""
    lines = [
        "# Speed",
        "",
        "Computed by `benchmarks/results/speed_page.py` from stored measurements.",
        "",
        "Each table was printed by one run of one script, which measured both sides in turn on a "
        "machine with two cores and other work beside it (*load*): ratios and CPU seconds can be "
        "compared, wall seconds are upper bounds. Nothing was measured on a GPU.",
        "",
    ]
    for name, title in TITLES.items():
        source = HERE / f"{name}.json"
        if source.exists():
            lines += section(name, title, json.loads(source.read_text(encoding="utf-8")))
    for title, write in SECTIONS.items():
        lines += [f"## {title}", "", *map(wrapped, write()), ""]
    return "\n".join(lines).rstrip() + "\n"


def wrapped(line: str) -> str:
    """Return a paragraph or a list item in lines of the usual width; table rows stay."""
    if line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return fill(
        line,
        COLUMNS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def section(name: str, title: str, content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about one measurement."""
    yield f"## {title}"
    yield ""
    load = content.get("load")
    beside = "" if load is None else f", load {load:.1f}"
    yield f"`{content['command']}` at commit `{content['commit'][:10]}`{beside}."
    if content.get("note"):
        yield f"{content['note'][0].upper()}{content['note'][1:]}."
    if content.get("other_commit"):
        yield f"The other checkout was commit `{content['other_commit'][:10]}`."
    elif "--against" in content["command"]:
        yield "The commit of the other checkout was not stored."
    yield ""
    if name in REMARKS:
        yield wrapped(REMARKS[name](content["rows"]))
        yield ""
    for names, rows in groupby(content["rows"], key=tuple):
        yield from table(names, list(rows))


def table(names: tuple[str, ...], rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table with one column per key, those with text first."""

    def place(name: str) -> tuple[bool, int]:
        is_number = not isinstance(rows[0][name], str)
        return is_number, ORDER.index(name) if name in ORDER else len(ORDER)

    names = tuple(sorted(names, key=place))
    yield "| " + " | ".join(name.replace("_", " ") for name in names) + " |"
    yield "|" + "---|" * len(names)
    for row in rows:
        yield "| " + " | ".join(text(row[name]) for name in names) + " |"
    yield ""


def text(value: Any) -> str:
    """Return a value as a cell shows it; numbers with three digits."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={text(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "x".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
