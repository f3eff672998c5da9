"""Measure what a suite saves that trains several small runs from one process.

    python benchmarks/speed/suite.py [METHOD ...] [--seeds 2] [--steps 200] [--rounds 3]
        [--dataset phantom2d_a] [--protocol phantom2d] [--at-once 1] [--out FILE.json]

One side is ``segbench bench run``, which imports torch once and forks every run; the other is one
``segbench run`` after another, each in a new interpreter. Both train the same runs with one thread,
the sides alternate, and the data are prepared before. CPU seconds (user and system) are those of
all processes of a side. The digests of the weights of both sides are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
METHODS = ("supervised", "mean_teacher", "bcp")
SUITE = """
schema: 1
name: speed
title: several small runs
protocol: {protocol}
matrix:
  method: [{methods}]
  dataset: [{dataset}]
  seed: [{seeds}]
overrides:
  steps: {steps}
"""


@dataclass(frozen=True)
class Work:
    """The runs that both sides train."""

    methods: tuple[str, ...]
    seeds: int
    steps: int
    dataset: str
    protocol: str
    at_once: int  # of the suite

    @property
    def runs(self) -> int:
        """Return how many runs there are."""
        return len(self.methods) * self.seeds


@dataclass(frozen=True)
class Cost:
    """What one side used, and the digest of the weights of every run."""

    cpu: float
    wall: float
    digests: dict[str, str]


def call(words: list[str], root: Path, data: Path, tree: Path = ROOT) -> None:
    """Run ``segbench WORDS`` in a new interpreter, with the code in a folder.

    Raises:
        RuntimeError: it failed.
    """
    environment = {
        **os.environ,
        **dict.fromkeys(THREADS, "1"),
        "PYTHONPATH": os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")]),
        "SEGBENCH_ROOT": str(root),
        "SEGBENCH_DATA_ROOT": str(data),
    }
    command = [sys.executable, "-m", "segbench.cli.main", *words]
    done = subprocess.run(
        command, env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"segbench {' '.join(words)}: {(done.stderr or done.stdout)[-800:]}")


def as_suite(work: Work, data: Path, root: Path) -> None:
    """Train all runs with one command."""
    file = root / "speed.yaml"
    text = SUITE.format(
        protocol=work.protocol,
        methods=", ".join(work.methods),
        dataset=work.dataset,
        seeds=", ".join(map(str, range(work.seeds))),
        steps=work.steps,
    )
    file.write_text(text, encoding="utf-8")
    call(["bench", "run", str(file), "-j", str(work.at_once)], root, data)


def one_by_one(work: Work, data: Path, root: Path) -> None:
    """Train every run with a command of its own."""
    shared = ["--dataset", work.dataset, "--protocol", work.protocol, "--steps", str(work.steps)]
    for method in work.methods:
        for seed in range(work.seeds):
            call(["run", method, *shared, "--seed", str(seed)], root, data)


SIDES: dict[str, Callable[[Work, Path, Path], None]] = {
    "a process for every run": one_by_one,
    "a suite": as_suite,
}


def cost_of(train: Callable[[Path], None]) -> Cost:
    """Train runs in an empty folder, which is passed on, and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before = os.times()
        started = time.perf_counter()
        train(root)
        wall = time.perf_counter() - started
        after = os.times()
        user = after.children_user - before.children_user
        system = after.children_system - before.children_system
        return Cost(user + system, wall, digests_of(root))


def digests_of(root: Path) -> dict[str, str]:
    """Return the digest of the weights of every run, by data set, method and seed."""
    found = {}
    for file in sorted(root.rglob("result.json")):
        result = json.loads(file.read_bytes())
        name = f"{file.parents[2].name}, {file.parents[1].name}, seed {result['seed']}"
        found[name] = result["weights_sha256"]
    return found


def compare(work: Work, rounds: int) -> list[dict[str, Any]]:
    """Return one row per side: median seconds of the rounds, and ratios to the first side."""
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        # The first run prepares the data, and fills the caches of the file system.
        with tempfile.TemporaryDirectory() as first:
            only = Work(work.methods[:1], 1, 1, work.dataset, work.protocol, 1)
            one_by_one(only, data, Path(first))
        for _ in range(rounds):
            for side, train in SIDES.items():
                costs[side].append(cost_of(partial(train, work, data)))
    reference, *others = [one for found in costs.values() for one in found]
    if len(reference.digests) != work.runs:
        raise RuntimeError(f"{len(reference.digests)} of {work.runs} runs have a result")
    same = all(one.digests == reference.digests for one in others)
    rows: list[dict[str, Any]] = []
    for side, found in costs.items():
        cpu = round(median(one.cpu for one in found), 2)
        wall = round(median(one.wall for one in found), 2)
        rows.append({"side": side, "runs": work.runs, "cpu": cpu, "wall": wall})
        rows[-1]["ratio_cpu"] = round(rows[0]["cpu"] / cpu, 2)
        rows[-1]["ratio_wall"] = round(rows[0]["wall"] / wall, 2)
        rows[-1]["weights"] = "same bytes" if same else "other bytes"
    return rows


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=2, help="runs of each method")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", default="phantom2d_a")
    parser.add_argument("--protocol", default="phantom2d")
    parser.add_argument("--at-once", type=int, default=1, help="runs of the suite at a time")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    work = Work(
        tuple(chosen.methods),
        chosen.seeds,
        chosen.steps,
        chosen.dataset,
        chosen.protocol,
        chosen.at_once,
    )
    rows = compare(work, chosen.rounds)
    print(f"{f'{work.runs} runs':<26}{'cpu s':>9}{'wall s':>9}{'cpu ratio':>11}{'wall ratio':>12}")
    for row in rows:
        seconds = f"{row['cpu']:>9.1f}{row['wall']:>9.1f}"
        ratios = f"{row['ratio_cpu']:>11.2f}{row['ratio_wall']:>12.2f}"
        print(f"{row['side']:<26}{seconds}{ratios}  weights: {row['weights']}")
    if chosen.out:
        from measured import save

        note = (
            f"CPU and wall seconds of all runs, {', '.join(work.methods)} with {work.steps} steps "
            f"on {work.dataset}, {work.at_once} at a time in the suite; ratio: a process for every "
            "run divided by the row"
        )
        save(chosen.out, rows, note)


if __name__ == "__main__":
    main()
