"""Train at the commit of each change for speed and at the one before it: are the bytes the same?

    python benchmarks/speed/commits.py [COMMIT ...] [--methods supervised versemi] [--out FILE.json]

The trainings are those of ``tests/golden/compare_commits.py``: a few steps on tiny data sets in two
and three dimensions, compared by loss terms, weights, predictions and scores to the last bit. The
checkout must have its history. Other changes of the same commit count, too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path.append(str(ROOT / "tests" / "golden"))

from compare_commits import differences, numbers_at  # noqa: E402

CHANGES = {
    "3bc78e0": "freed memory kept in the process",
    "905a294": "labels by a running maximum; one scoring pass",
    "ace9898": "channels last",
    "0415a3b": "instance norm as group norm",
    "6c1d61f": "VerSemi: one pass for all groups of images",
    "c5df5d2": "BCP: one pass where items are normalized alone",
    "d73392d": "Dice of many classes: one class at a time",
    "ca5a0c8": "moving average of all weights at once; resident images",
}


def engine_at(commit: str) -> int:
    """Return the number ENGINE at a commit."""
    words = ["git", "grep", "-h", "-o", "-E", "^ENGINE = [0-9]+", commit, "--", "segbench"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def numbers(commit: str, methods: list[str]) -> dict[str, Any]:
    """Return the numbers of all trainings at a commit."""
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = numbers_at(commit, Path(folder), methods)
    return found


def compare(commit: str, methods: list[str]) -> dict[str, Any]:
    """Return the row of one change."""
    before = f"{commit}^"
    old = numbers(before, methods)
    different = differences(old, numbers(commit, methods))
    return {
        "change": CHANGES.get(commit, commit),
        "commit": commit,
        "methods": ", ".join(methods),
        "trainings": len(old),
        "with_other_bytes": len(different),
        "engine_before": engine_at(before),
        "engine": engine_at(commit),
    }


def main() -> None:
    """Compare, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commits", nargs="*", metavar="COMMIT", default=list(CHANGES))
    parser.add_argument("--methods", nargs="+", default=["supervised", "mean_teacher", "versemi"])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    print(f"{'change':<58}{'trainings':>10}{'other bytes':>13}{'ENGINE':>10}")
    rows = []
    for commit in chosen.commits:
        row = compare(commit, chosen.methods)
        rows.append(row)
        engine = f"{row['engine_before']}, {row['engine']}"
        counts = f"{row['trainings']:>10}{row['with_other_bytes']:>13}"
        print(f"{row['change']:<58}{counts}{engine:>10}", flush=True)
    if chosen.out:
        from measured import save

        note = (
            "Trainings at the commit and at the one before it, with how many of them the results "
            "differ in, and the number ENGINE at both"
        )
        save(chosen.out, rows, note)


if __name__ == "__main__":
    main()
