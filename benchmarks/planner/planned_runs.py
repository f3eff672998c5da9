"""Store finished runs of planned protocols beside stored runs of hand-made ones.

    segbench predict SLICES OUT/Dataset127_Slices/imagesTs -o PREDICTED
    python benchmarks/planner/planned_runs.py record --root ROOT --commit COMMIT --note TEXT \\
        --predicted PREDICTED --slices OUT/Dataset127_Slices/labelsTs
    python benchmarks/planner/planned_runs.py

The second writes ``benchmarks/results/planned-runs.json``: of every run its plan, its times and its
Dice, and the Dice of the pictures put together to volumes. The last prints the table of
docs/explanation/planning.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from segbench.benchmarks.planner.own_folders import CLASSES
from segbench.benchmarks.results.record import record

from segbench.results.rundir import RunDir, all_runs
from segbench.storage import atomic_write

RESULTS = Path(__file__).resolve().parents[1] / "results"
STORED = RESULTS / "planned-runs.json"
SCHEMA = "segbench.planned/1"
PLAN = ("patch", "steps", "batch", "downsample", "backbone")
COST = ("train_seconds", "cpu_seconds", "evaluation_seconds", "peak_memory_bytes", "parameters")


@dataclass(frozen=True)
class HandMade:
    """Stored runs of a protocol that was made by hand, on the volumes of a folder."""

    folder: str  # the planned data set that they stand beside
    file: str
    dataset: str
    title: str


SLICES = "dataset127_slices"
HAND_MADE = (
    HandMade("dataset027_acdc", "heart-mini-2.json", "acdc", "`heart-mini` 2, 8 patients"),
    HandMade("dataset027_acdc", "acdc-timm.json", "acdc", "`acdc`, 800 steps at 128x128"),
    HandMade("task02_heart", "la-mini-3.json", "la", "`la-mini` 1, three seeds"),
    HandMade("task02_heart", "heart-mini-2.json", "la", "`heart-mini` 2"),
)


def stored_run(run: RunDir) -> dict[str, Any] | None:
    """Return what is kept of a finished run, None if it has not finished."""
    found = record(run)
    if found is None:
        return None
    (dataset,) = found["datasets"]
    protocol = run.config()["experiment"]["protocol"]
    return {
        "dataset": dataset,
        "method": found["method"],
        "seed": found["seed"],
        "run_id": found["run_id"],
        "labeled": found["labeled"][dataset],
        "train": found["train"][dataset],
        "test": len(set(found["cases"]["case"])),
        "planned": protocol["planned"],
        "modified": found["modified"],
        "plan": {key: protocol[key] for key in PLAN},
        "cost": {key: found["cost"][key] for key in COST},
        "dice": dice(found),
        "missed": missed(found),
    }


def dice(run: dict[str, Any]) -> dict[str, float]:
    """Return the mean Dice in percent over the test cases, by class."""
    means = {}
    for metric in run["metrics"]:
        means[metric["class"]] = round(100 * metric["columns"]["dice"]["mean"], 2)
    return means


def missed(run: dict[str, Any]) -> int:
    """Return how many times a class of a test case was not found at all."""
    return sum(metric["counts"]["empty_prediction"] for metric in run["metrics"])


def dice_of_volumes(predicted: Path, references: Path) -> dict[str, float]:
    """Return the mean Dice in percent over volumes, by class, of pictures of their slices."""
    volumes = defaultdict(list)
    for file in sorted(references.iterdir()):
        volumes[file.name.partition("_slice")[0]].append(file)
    means = {}
    for value, name in enumerate(CLASSES, start=1):
        found = []
        for files in volumes.values():
            overlap = total = 0
            for file in files:
                mask = np.asarray(Image.open(file)) == value
                guess = np.asarray(Image.open(predicted / f"{file.stem}_seg.png")) == value
                overlap += int(np.sum(mask & guess))
                total += int(mask.sum() + guess.sum())
            found.append(2 * overlap / total)
        means[name] = round(100 * fmean(found), 2)
    return means


def write(root: Path, commit: str, note: str, volumes: dict[str, float]) -> None:
    """Write the file of all finished runs of a root."""
    runs = [found for found in map(stored_run, all_runs(root)) if found is not None]
    runs.sort(key=lambda run: (run["dataset"], run["method"], run["seed"]))
    for run in runs:
        if (run["dataset"], run["method"]) == (SLICES, "mean_teacher"):
            run["dice_of_volumes"] = volumes
    head = {
        "schema": SCHEMA,
        "command": "segbench run METHOD --dataset folder:PATH",
        "folders": "python benchmarks/planner/own_folders.py",
        "commit": commit,
        "cores": os.cpu_count(),
        "note": note,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    rows = ",\n".join(json.dumps(run) for run in runs)
    lines.append(f'"runs": [\n{rows}\n]')
    atomic_write(STORED, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def hand_made(chosen: HandMade, method: str) -> list[dict[str, Any]]:
    """Return the stored runs of a method, whatever their seeds."""
    runs = json.loads((RESULTS / chosen.file).read_text())["runs"]
    return [run for run in runs if run["method"] == method and run["datasets"] == [chosen.dataset]]


def table() -> str:
    """Return the table of planned and hand-made protocols in Markdown."""
    columns = ("data", "protocol", "method", "steps", "CPU min", "wall min", "Dice %", "by class")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in _rows()]
    return "\n".join(lines)


def _rows() -> Iterator[list[str]]:
    runs = json.loads(STORED.read_text())["runs"]
    for run in runs:
        plan = run["plan"]
        factors = "x".join(map(str, plan["downsample"]))
        shape = "x".join(map(str, plan["patch"]))
        row = [
            f"`{run['dataset']}`",
            f"planned: {shape}, downsampled {factors}",
            f"`{run['method']}`",
            str(plan["steps"]),
            f"{run['cost']['cpu_seconds'] / 60:.1f}",
            f"{run['cost']['train_seconds'] / 60:.1f}",
        ]
        yield row + _scores([run["dice"]])
        if "dice_of_volumes" in run:
            yield ["", "the same, whole volumes", *row[2:], *_scores([run["dice_of_volumes"]])]
    known = {(run["dataset"], run["method"]) for run in runs}
    for chosen in HAND_MADE:
        for method in sorted({name for folder, name in known if folder == chosen.folder}):
            found = hand_made(chosen, method)
            seconds = fmean(run["cost"]["train_seconds"] for run in found)
            yield [
                f"{chosen.dataset}",
                chosen.title,
                f"`{method}`",
                str(found[0]["steps"]),
                "–",
                f"{seconds / 60:.1f}",
                *_scores([dice(run) for run in found]),
            ]


def _scores(runs: Sequence[dict[str, float]]) -> list[str]:
    """Return the mean over classes and the means by class, over runs."""
    by_class = [fmean(run[name] for run in runs) for name in runs[0]]
    return [f"{fmean(by_class):.1f}", ", ".join(f"{value:.1f}" for value in by_class)]


def main() -> None:
    """Read the command line; write the file, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("record",))
    parser.add_argument("--root", type=Path, default=Path("segbench-out"))
    parser.add_argument("--commit", default="")
    parser.add_argument("--note", default="")
    parser.add_argument("--predicted", type=Path)
    parser.add_argument("--slices", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "record":
        volumes = dice_of_volumes(arguments.predicted, arguments.slices)
        write(arguments.root, arguments.commit, arguments.note, volumes)
    else:
        print(table())


if __name__ == "__main__":
    main()
