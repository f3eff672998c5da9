"""Train every method for six steps on the tiny data sets and print what came out, as JSON.

Both the golden test and ``compare_commits.py`` use this script. It only calls the command line and
reads run folders, so it also works on older and newer commits:

    python tests/golden/train_all.py FOLDER [METHOD ...]
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the number of threads changes the last digits
os.environ.setdefault("MKL_NUM_THREADS", "1")

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
METHODS = (
    "supervised",
    "mean_teacher",
    "ua_mt",
    "sassnet",
    "dtc",
    "urpc",
    "mc_net",
    "ss_net",
    "bcp",
    "cps",
    "versemi",
    "fixmatch",
    "unimatch",
    "self_training",
    "ad_mt",
    "mcf",
    "sdcl",
    "crossmatch",
    "uncl",
)
SCORES = ("dice", "jaccard", "hd95_vox", "asd_vox")


def settings(method: str) -> dict[str, list[str]]:
    """Return the command-line arguments of every training of a method, by a name for each.

    The learning rate is small, so that differences in the last digits stay small over the steps.
    """
    volumes = ["--protocol", str(PLUGINS / "tiny.yaml")]
    slices = ["--protocol", str(PLUGINS / "tiny_flat.yaml")]
    chosen = {
        "3-D": ["--dataset", "tiny", *volumes],
        "3-D, three classes": ["--dataset", "tiny_classes", *volumes],
        "2-D": ["--dataset", "tiny_flat", *slices],
    }
    if method == "versemi":
        chosen["joint"] = ["--dataset", "tiny,tiny_classes", *volumes]
    small_steps = ["-o", "optim.lr=0.001"]
    if method == "versemi":
        small_steps += ["-o", "optimizer=protocol"]
    return {name: [*arguments, *small_steps] for name, arguments in chosen.items()}


def train(method: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run one training and return its loss terms, weight norms, case scores and digests."""
    from segbench.cli.main import run

    command = ["run", method, *arguments, "--plugin", str(PLUGINS / "tiny.py"), "--device", "cpu"]
    places = ["--root", str(folder / "out"), "--data-root", str(folder / "data"), "--quiet"]
    with contextlib.redirect_stdout(sys.stderr):
        code = run([*command, *places])
    if code != 0:
        raise SystemExit(f"{method} {arguments}: exit code {code}")
    newest = max(folder.glob("out/**/result.json"), key=lambda file: file.stat().st_mtime_ns)
    return read(newest.parent)


def read(run_folder: Path) -> dict[str, Any]:
    """Return the numbers of a finished run."""
    from safetensors.numpy import load_file

    result = json.loads((run_folder / "result.json").read_text())
    steps = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    for step in steps:
        del step["seconds"]
    with (run_folder / "cases.csv").open() as file:
        cases = list(csv.DictReader(file))
    weights = load_file(max(run_folder.glob("ckpt/*.st")))
    floats = [value.astype("float64") for value in weights.values() if value.dtype.kind == "f"]
    return {
        "steps": steps,
        "weight_norm": float(sum((value**2).sum() for value in floats)) ** 0.5,
        "weight_sum": float(sum(value.sum() for value in floats)),
        "cases": {
            f"{row['dataset']} {row['case']} {row['class']}": {
                score: float(row[score]) if row[score] else None for score in SCORES
            }
            for row in cases
        },
        "weights_sha256": result["weights_sha256"],
        "predictions": [row["prediction"] for row in cases],
    }


def train_all(folder: Path, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    """Run all trainings and return their numbers by "method, setting"."""
    numbers: dict[str, Any] = {}
    for method in methods:
        for name, arguments in settings(method).items():
            numbers[f"{method}, {name}"] = train(method, arguments, folder)
    return numbers


if __name__ == "__main__":
    target = Path(sys.argv[1])
    chosen = tuple(sys.argv[2:]) or METHODS
    print(json.dumps(train_all(target, chosen)))
