"""Write finished runs to one JSON file under ``benchmarks/results``, and print them as a Markdown table.

    python benchmarks/results/record.py --root ROOT --command "segbench bench run benchmarks/la-mini.yaml" OUT.json

Every number is read from the runs; commit, versions and machine are recorded beside them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from segbench.config.schema import flatten
from segbench.results import export
from segbench.results.leaderboard import boards
from segbench.results.rundir import RunDir, all_runs
from segbench.storage import atomic_write, json_bytes

CASE = (
    "dataset",
    "case",
    "class",
    "status",
    "dice",
    "jaccard",
    "hd95_vox",
    "asd_vox",
    "hd95_mm",
    "asd_mm",
)


def record(run: RunDir) -> dict[str, Any] | None:
    """One finished run: what it was, what it gave, what it cost."""
    result, manifest = run.result(), run.manifest()
    if result is None:
        return None
    with (run.path / "cases.csv").open(newline="") as file:
        cases = [{k: row[k] for k in CASE if k in row} for row in csv.DictReader(file)]
    kept = {
        k: result[k]
        for k in (
            "run_id",
            "method",
            "backbone",
            "datasets",
            "labeled",
            "train",
            "seed",
            "precision",
            "selection",
            "test_evaluations",
            "protocol",
            "steps",
            "metrics",
            "weights_sha256",
        )
    }
    experiment = run.config()["experiment"]
    values = {
        **flatten(experiment["protocol"]),
        **{f"backbone.{k}": v for k, v in experiment["backbone_params"].items()},
    }
    kept |= {
        "params": experiment["params"],
        "modified": {k: values.get(k) for k in experiment["modified"]},
    }
    cost = {
        k: manifest[k]
        for k in (
            "device",
            "torch",
            "python",
            "platform",
            "threads",
            "train_seconds",
            "seconds_per_step",
            "evaluation_seconds",
            "peak_memory_bytes",
            "parameters",
        )
    }
    return {**kept, "cost": cost, "cases": cases}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("segbench-out"))
    parser.add_argument("--command", required=True, help="the command that made the runs")
    parser.add_argument("--commit", help="of the code that ran [the checkout's]")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    found = [r for r in map(record, all_runs(args.root)) if r is not None]
    content = {
        "schema": "segbench.results/1",
        "command": args.command,
        "commit": args.commit or head,
        "note": args.note,
        "cores": os.cpu_count(),
        "runs": found,
    }
    atomic_write(args.out, json_bytes(json.loads(json.dumps(content))))
    print(export.as_markdown(boards(all_runs(args.root))[0]))


if __name__ == "__main__":
    main()
