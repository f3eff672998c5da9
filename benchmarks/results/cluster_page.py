"""Write ``docs/results/cluster.md`` from what tests on a real SLURM recorded.

SEGBENCH_RECORD=benchmarks/results pytest -m slow tests/suites/test_{slurm,walk}.py
python benchmarks/results/cluster_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results" / "cluster.md"
RECORD = "SEGBENCH_RECORD=benchmarks/results pytest -m slow"


def page() -> str:
    """Return the text of the page."""
    events = json.loads((HERE / "cluster-events.json").read_text(encoding="utf-8"))
    lines = [
        "# Runs on a cluster",
        "",
        "Written by `benchmarks/results/cluster_page.py`; do not edit.",
        "",
        "## What happened to runs, and what became of them",
        "",
        f"`{RECORD} tests/suites/test_slurm.py`, on {events['slurm']} with two nodes on one "
        f"machine, in {events['seconds']:.0f} seconds beside other work (load {events['load']}).",
        "Attempts: a number is the exit code of an attempt that ended by itself (143: SIGTERM, 75: "
        "warned). The test compares weights and test cases of each run with those of a run that "
        "was never stopped: all are equal.",
        "",
        "| event | attempts | weights (SHA-256) |",
        "|---|---|---|",
    ]
    for row in events["rows"]:
        lines.append(f"| {row['event']} | {row['attempts']} | `{row['weights_sha256']}` |")
    walk = HERE / "cluster-walk.txt"
    if not walk.exists():
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "## A suite of twelve runs on two nodes, one of which is killed",
        "",
        f"`{RECORD} tests/suites/test_walk.py`, as it was typed and shown:",
        "",
        "```text",
        walk.read_text(encoding="utf-8").rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
