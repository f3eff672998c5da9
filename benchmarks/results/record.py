"""Write finished runs to one compact JSON file under ``benchmarks/results``.

    python benchmarks/results/record.py --root ROOT \\
        --command "segbench bench run benchmarks/la-mini.yaml" OUT.json

All numbers are read from the runs; commit, versions and machine are recorded too. There is one line
per run; the test cases of a run are stored column by column.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segbench.benchmarks.speed.measured import current_commit

from segbench.config.schema import flatten
from segbench.results.rundir import RunDir, all_runs
from segbench.storage import atomic_write

SCHEMA = "segbench.results/2"
LABELS = ("dataset", "case", "class", "status")
METRICS = ("dice", "jaccard", "hd95_vox", "asd_vox", "hd95_mm", "asd_mm")
RESULT_KEYS = (
    "run_id",
    "method",
    "changed_params",
    "backbone",
    "datasets",
    "labeled",
    "train",
    "draw",
    "unlabeled",
    "without",
    "seed",
    "precision",
    "selection",
    "test_evaluations",
    "protocol",
    "steps",
    "metrics",
    "weights_sha256",
)
COST_KEYS = (
    "device",
    "torch",
    "python",
    "platform",
    "threads",
    "train_seconds",
    "cpu_seconds",
    "seconds_per_step",
    "evaluation_seconds",
    "peak_memory_bytes",
    "parameters",
)
SECONDS = ("train_seconds", "cpu_seconds", "seconds_per_step", "evaluation_seconds")


def record(run: RunDir, metrics: Sequence[str] = METRICS) -> dict[str, Any] | None:
    """Return settings, results and cost of a finished run, or None for an unfinished run."""
    result = run.result()
    if result is None:
        return None
    experiment = run.config()["experiment"]
    values = flatten(experiment["protocol"])
    for key, value in experiment["backbone_params"].items():
        values[f"backbone.{key}"] = value
    manifest = run.manifest()
    with (run.path / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    kept = {key: result[key] for key in RESULT_KEYS if key in result}
    if len(metrics) < len(METRICS):
        del kept["metrics"]  # the means follow from the cases
    return {
        **kept,
        "params": experiment["params"],
        "modified": {key: values.get(key) for key in experiment["modified"]},
        "cost": {key: manifest[key] for key in COST_KEYS if key in manifest},
        "cases": columns(cases, metrics),
    }


def columns(cases: Sequence[dict[str, str]], metrics: Sequence[str] = METRICS) -> dict[str, Any]:
    """Return a case table by columns; numbers have six digits, undefined ones are None."""
    stored: dict[str, Any] = {}
    for name in LABELS:
        values = [case[name] for case in cases]
        same = len(set(values)) == 1
        stored[name] = values[0] if same else values
    for name in metrics:
        if name in cases[0]:
            stored[name] = [
                float(f"{float(case[name]):.6g}") if case[name] else None for case in cases
            ]
    return stored


def to_json(head: dict[str, Any], runs: Iterable[dict[str, Any]]) -> bytes:
    """Return a JSON document with one line per key of ``head`` and one line per run."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = [json.dumps(run, separators=(",", ":"), allow_nan=False) for run in runs]
    lines.append('"runs": [\n' + ",\n".join(rows) + "\n]")
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("segbench-out"))
    parser.add_argument("--command", required=True, help="command that made the runs")
    parser.add_argument("--commit", help="commit of the code that made the runs [the current one]")
    parser.add_argument("--note", default="")
    parser.add_argument(
        "--keep", action="store_true", help="keep the runs that the file has and ROOT lacks"
    )
    parser.add_argument(
        "--no-seconds",
        action="store_true",
        help="leave the seconds out: the runs were trained on another machine than the others",
    )
    parser.add_argument("--metrics", default=",".join(METRICS), help="metrics to store [all]")
    arguments = parser.parse_args()
    commit = arguments.commit or current_commit()
    head = {
        "schema": SCHEMA,
        "command": arguments.command,
        "commit": commit,
        "note": arguments.note,
        "cores": os.cpu_count(),
    }
    metrics = arguments.metrics.split(",")
    records = [record(run, metrics) for run in all_runs(arguments.root)]
    runs = {found["run_id"]: found for found in records if found is not None}
    kept = json.loads(arguments.out.read_bytes())["runs"] if arguments.keep else []
    stored = {run["run_id"]: run for run in kept}
    if arguments.no_seconds:
        for run in runs.values():
            run["cost"] = {key: value for key, value in run["cost"].items() if key not in SECONDS}
        runs |= stored  # a run that is stored already may have its seconds
    runs = stored | runs
    atomic_write(arguments.out, to_json(head, runs.values()))


if __name__ == "__main__":
    main()
