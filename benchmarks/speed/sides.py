"""Compare several ways to do the same work: one process per side, measured in turn.

A script that uses this module answers ``--serve JSON`` with ``serve``; see inference.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
Seconds = dict[str, float]  # "cpu" and "wall"


def serve(work: Callable[[], None]) -> None:
    """Do the work once for every line of standard input; print the seconds it took."""
    for _ in sys.stdin:
        cpu = time.process_time()
        wall = time.perf_counter()
        work()
        taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps(taken), flush=True)


class Side:
    """A process that does the work in one way."""

    def __init__(self, script: Path, settings: dict[str, Any]) -> None:
        environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, str(script), "--serve", json.dumps(settings)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self) -> Seconds:
        """Do the work once and return the seconds.

        Raises:
            RuntimeError: the process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the process of a side ended")
        seconds: Seconds = json.loads(answer)
        return seconds

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure_in_turn(
    script: Path, sides: Sequence[dict[str, Any]], rounds: int
) -> list[dict[str, Any]]:
    """Return one row per side: its settings, and the median seconds of the rounds.

    The first side is the one that ratios are relative to: ``ratio_cpu`` and ``ratio_wall`` are its
    seconds divided by the row's. The work is done once before the first round.
    """
    processes = [Side(script, settings) for settings in sides]
    taken: list[list[Seconds]] = [[] for _ in sides]
    try:
        for number in range(rounds + 1):
            for process, seconds in zip(processes, taken, strict=True):
                found = process.measure()
                if number > 0:
                    seconds.append(found)
    finally:
        for process in processes:
            process.close()
    rows = []
    for settings, seconds in zip(sides, taken, strict=True):
        row = dict(settings)
        for kind in ("cpu", "wall"):
            row[kind] = round(median(one[kind] for one in seconds), 4)
        rows.append(row)
    for row in rows:
        for kind in ("cpu", "wall"):
            row[f"ratio_{kind}"] = round(rows[0][kind] / row[kind], 2)
    return rows


def table(rows: list[dict[str, Any]], title: str) -> str:
    """Return a text table of the rows, whose key ``side`` names them."""
    lines = [f"{title:<34}{'cpu s':>10}{'wall s':>10}{'cpu ratio':>11}{'wall ratio':>12}"]
    for row in rows:
        numbers = f"{row['cpu']:>10.3f}{row['wall']:>10.3f}"
        ratios = f"{row['ratio_cpu']:>11.2f}{row['ratio_wall']:>12.2f}"
        lines.append(f"{row['side']:<34}{numbers}{ratios}")
    return "\n".join(lines)
