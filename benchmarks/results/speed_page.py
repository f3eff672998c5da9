"""Write ``docs/results/speed.md`` from the measurements of ``benchmarks/speed``.

python benchmarks/results/speed_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results" / "speed.md"
Row = dict[str, Any]

TITLES = {
    "speed-step": "A training step in three dimensions, before and after",
    "speed-step-2d": "A training step in two dimensions, before and after",
    "speed-metrics": "Metrics against MedPy",
    "speed-metric-peers": "Metrics against other libraries",
    "speed-inference": "Sliding windows",
    "speed-loader": "Loading training patches",
    "speed-startup": "Start of the program and of a run",
    "speed-official": "A training step of the authors' code and of ours",
    "speed-half": "Predictions in bfloat16 with trained weights",
    "speed-scale": "Commands on many runs (before: commit 15c8398)",
    "speed-distributed": "A training step in two processes, beside DistributedDataParallel",
    "speed-classes": "The supervised loss of many classes",
    "speed-prepare-la": "Preparing the left atrium",
    "speed-prepare-acdc": "Preparing ACDC",
    "speed-store": "Forms of the prepared store: random crops",
}


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
            lines += section(title, json.loads(source.read_text(encoding="utf-8")))
    return "\n".join(lines).rstrip() + "\n"


def section(title: str, content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines about one measurement."""
    yield f"## {title}"
    yield ""
    load = content.get("load")
    beside = "" if load is None else f", load {load:.1f}"
    yield f"`{content['command']}` at commit `{content['commit'][:10]}`{beside}."
    if content.get("note"):
        yield f"{content['note'][0].upper()}{content['note'][1:]}."
    yield ""
    for names, rows in groupby(content["rows"], key=tuple):
        yield from table(names, list(rows))


def table(names: tuple[str, ...], rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table with one column per key, those with text first."""
    names = tuple(sorted(names, key=lambda name: not isinstance(rows[0][name], str)))
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
