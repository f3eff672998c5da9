"""Measure what a command costs before it does any work, here and in another checkout of segbench.

    python benchmarks/speed/startup.py [--against DIR] [--rounds 3] [--runs 1001] [--out FILE.json]

The rows: the import of torch alone as a measure of the machine, the help, the lists, the start of a
run on a phantom up to the first loss, and the plan of a suite with many runs. Every
measurement is one process of its own; the sides alternate. CPU seconds (user and system) and peak
memory are those of the process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # of the processes that are measured

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
schema: 1
name: startup
title: a plan of many runs
protocol: phantom
matrix:
  method: [supervised, mean_teacher, ua_mt, sassnet, dtc, urpc, mc_net, ss_net, bcp, cps, versemi]
  dataset: [phantom_ct_organ]
  seed: {seeds}
"""
# Runs the command line and ends the process when the first training step has its loss.
TO_FIRST_LOSS = """
import os, sys, torch
torch.Tensor.backward = lambda *arguments, **options: os._exit(0)
from segbench.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Command:
    """One command line of Python whose start is measured."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """What a process used."""

    cpu: float  # seconds
    megabytes: float


def commands(folder: Path, runs: int) -> list[Command]:
    """Return what is measured; files are written to a folder."""
    suite = folder / "suite.yaml"
    seeds = list(range(runs // 11))
    suite.write_text(SUITE.format(seeds=seeds), encoding="utf-8")
    program = ("-m", "segbench.cli.main")
    first_loss = ("run", "supervised", "--dataset", "phantom_ct_organ")
    return [
        Command("import torch", ("-c", "import torch")),
        Command("segbench --help", (*program, "--help")),
        Command("segbench list methods", (*program, "list", "methods")),
        Command("segbench list", (*program, "list")),
        Command("segbench run, to its first loss", ("-c", TO_FIRST_LOSS, *first_loss)),
        Command(
            f"segbench bench plan, {11 * len(seeds)} runs", (*program, "bench", "plan", str(suite))
        ),
    ]


def cost_of(command: Command, tree: Path, data: Path) -> Cost:
    """Run a command with the code of a checkout, in an empty folder of results.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "SEGBENCH_ROOT": str(Path(folder) / "out"),
            "SEGBENCH_DATA_ROOT": str(data),
        }
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command.arguments],
                cwd=tree,
                env=environment,
                stdout=file,
                stderr=file,
            )
            _, process.returncode, usage = os.wait4(process.pid, 0)
        if process.returncode:
            said = output.read_text(encoding="utf-8")
            raise RuntimeError(f"{command.name}: {said[-800:]}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compare(trees: dict[str, Path], rounds: int, runs: int) -> list[dict[str, Any]]:
    """Return one row per command: CPU seconds of each side and the ratio, and our memory."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command in commands(folder, runs):
            found: dict[str, list[Cost]] = {side: [] for side in trees}
            for number in range(rounds + 1):
                for side, tree in trees.items():
                    cost = cost_of(command, tree, folder / side)
                    if number > 0:  # the first round fills caches and generates the phantoms
                        found[side].append(cost)
            row: dict[str, Any] = {"command": command.name}
            for side, costs in found.items():
                row[side] = round(median(cost.cpu for cost in costs), 3)
            if "other" in trees:
                row["ratio"] = round(row["other"] / row["here"], 2)
            row["peak_mb"] = round(max(cost.megabytes for cost in found["here"]))
            rows.append(row)
            print(
                "".join(
                    f"{value!s:<38}" if value is command.name else f"{value!s:>10}"
                    for value in row.values()
                ),
                flush=True,
            )
    return rows


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of segbench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1001, help="of the suite that is planned")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    trees = {"here": ROOT}
    if chosen.against:
        trees = {"other": chosen.against.resolve(), "here": ROOT}
    rows = compare(trees, chosen.rounds, chosen.runs)
    if chosen.out:
        from measured import save

        note = (
            "CPU seconds of whole processes, which alternate on a busy machine (contention makes "
            "all of them slower: compare with the import of torch); ratio: other checkout divided "
            "by this one; peak memory of this one"
        )
        save(chosen.out, rows, note, chosen.against)


if __name__ == "__main__":
    main()
