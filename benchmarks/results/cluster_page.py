"""Write ``docs/results/cluster.md`` from what tests on a real SLURM and a real Ray recorded.

SEGBENCH_RECORD=benchmarks/results pytest -m slow tests/suites/test_{slurm,ray,walk}.py
python benchmarks/results/cluster_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results" / "cluster.md"
RECORD = "SEGBENCH_RECORD=benchmarks/results pytest -m slow"


def events_of(engine: str) -> list[str]:
    """Return the lines of what happened to runs on one engine."""
    events = json.loads((HERE / f"cluster-events-{engine}.json").read_text(encoding="utf-8"))
    lines = [
        f"`{RECORD} tests/suites/test_{engine}.py`, on {events['engine']} with two nodes on one "
        f"machine, in {events['seconds']:.0f} seconds beside other work (load {events['load']}):",
        "",
        "| event | attempts | weights (SHA-256) |",
        "|---|---|---|",
    ]
    for row in events["rows"]:
        lines.append(f"| {row['event']} | {row['attempts']} | `{row['weights_sha256']}` |")
    return [*lines, ""]


def page() -> str:
    """Return the text of the page."""
    walk = (HERE / "cluster-walk.txt").read_text(encoding="utf-8").rstrip()
    lines = [
        "# Runs on a cluster",
        "",
        "Computed by `benchmarks/results/cluster_page.py` from what the tests recorded.",
        "",
        "## What happened to runs, and what became of them",
        "",
        "Attempts: a number is the exit code of an attempt that ended by itself (143: SIGTERM, 75: "
        "warned). The tests compare weights and test cases of each run with those of a run that "
        "was never stopped: all are equal.",
        "",
        *events_of("slurm"),
        *events_of("ray"),
        "## A suite of twelve runs on two nodes, one of which is killed",
        "",
        f"`{RECORD} tests/suites/test_walk.py`, as it was typed and shown:",
        "",
        "```text",
        walk,
        "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
