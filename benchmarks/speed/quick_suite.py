"""Measure how long one replicate of the quick suite takes at an older commit and now.

    python benchmarks/speed/quick_suite.py [METHOD ...] [--before COMMIT] [--rounds 2]
        [--steps STEPS] [--out FILE.json]

Both sides run ``segbench bench run`` with the quick suite's methods and looks, 4 labeled images and
one seed, one run at a time with one thread, from a checkout of their own; the sides alternate. The
default commit is the last one before the changes for speed. Rows without unlabeled images and the
oracle are left out, because the older code has no such rows. Data are prepared before.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from measured import checkout, save
from suite import ROOT, Cost, call, cost_of

BEFORE = "3bc78e0^"  # of "Keep freed memory in the process while training and predicting"


def one_replicate(methods: list[str], steps: int | None) -> dict[str, Any]:
    """Return the part of the quick suite that is measured, as a suite that old code can read.

    Without methods or steps, they are those of the quick suite.
    """
    suite = yaml.safe_load((ROOT / "benchmarks" / "quick.yaml").read_text(encoding="utf-8"))
    matrix = {**suite["matrix"], "labeled": [4], "seed": [0]}
    if methods:
        matrix["method"] = methods
    part = {
        "schema": 1,
        "name": "speed",
        "title": "one replicate of the quick suite",
        "protocol": suite["protocol"],
        "matrix": matrix,
    }
    if steps is not None:
        part["overrides"] = {"steps": steps}
    return part


def run_suite(tree: Path, suite: dict[str, Any], root: Path, data: Path) -> None:
    """Train all runs of a suite with the code in a folder."""
    file = root / "speed.yaml"
    file.write_text(yaml.safe_dump(suite), encoding="utf-8")
    call(["bench", "run", str(file), "-j", "1", "--device", "cpu"], root, data, tree)


def prepare(tree: Path, data: Path) -> None:
    """Make the images that a checkout trains with, by supervised training on each data set."""
    suite = one_replicate(["supervised"], None)
    with tempfile.TemporaryDirectory() as folder:
        run_suite(tree, suite, Path(folder), data)


def compare(commit: str, suite: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Return one row per side: the median of the rounds, and ratios to the older commit."""
    with checkout(commit) as old, checkout("HEAD") as new, tempfile.TemporaryDirectory() as folder:
        sides = {"before": old, "after": new}
        stores = {}
        for side, tree in sides.items():
            stores[side] = Path(folder) / side
            stores[side].mkdir()
            prepare(tree, stores[side])
        costs: dict[str, list[Cost]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, tree in sides.items():
                train = partial(run_suite, tree, suite, data=stores[side])
                costs[side].append(cost_of(train))
    rows: list[dict[str, Any]] = []
    for side, found in costs.items():
        cpu = round(median(cost.cpu for cost in found), 1)
        wall = round(median(cost.wall for cost in found), 1)
        count = len(found[0].digests)
        row: dict[str, Any] = {"side": side, "runs": count, "cpu": cpu, "wall": wall}
        reference = rows[0] if rows else row
        row["ratio_cpu"] = round(reference["cpu"] / cpu, 2)
        row["ratio_wall"] = round(reference["wall"] / wall, 2)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="[those of the quick suite]")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of each run [the protocol's]")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    suite = one_replicate(chosen.methods, chosen.steps)
    rows = compare(chosen.before, suite, chosen.rounds)
    print(f"{'':<8}{'runs':>6}{'cpu s':>9}{'wall s':>9}{'cpu ratio':>11}{'wall ratio':>12}")
    for row in rows:
        seconds = f"{row['runs']:>6}{row['cpu']:>9.1f}{row['wall']:>9.1f}"
        print(f"{row['side']:<8}{seconds}{row['ratio_cpu']:>11.2f}{row['ratio_wall']:>12.2f}")
    if chosen.out:
        note = (
            f"CPU and wall seconds of one replicate of the quick suite at {chosen.before} and at "
            "the commit above, one run at a time; ratio: before divided by the row"
        )
        save(chosen.out, rows, note)


if __name__ == "__main__":
    main()
