"""Train every method at two commits on this machine and compare the results to the last bit.

This is the proof that a change moved code and no number:

    python tests/golden/compare_commits.py OLD NEW [METHOD ...]

``OLD`` and ``NEW`` are anything that git can check out; ``.`` is the working tree. The exit code is
0 if all digests, loss terms and case scores are equal, else 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from segbench.benchmarks.speed.measured import checkout

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("train_all.py")


def numbers_at(commit: str, methods: list[str]) -> dict[str, Any]:
    """Return what ``train_all.py`` prints when it runs on the code of a commit."""
    code = nullcontext(ROOT) if commit == "." else checkout(commit)
    with code as tree, tempfile.TemporaryDirectory() as folder:
        output = subprocess.run(
            [sys.executable, str(DRIVER), str(Path(folder) / "runs"), *methods],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    return json.loads(output.splitlines()[-1])


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one line per training and kind of number that differs."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            found.append(f"{name}: only at one of the commits")
            continue
        kinds = [kind for kind in old[name] if old[name][kind] != new[name].get(kind)]
        if kinds:
            found.append(f"{name}: different {', '.join(kinds)}")
    return found


def main() -> int:
    """Compare two commits and print the verdict."""
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    sides = [numbers_at(commit, sys.argv[3:]) for commit in sys.argv[1:3]]
    found = differences(*sides)
    for line in found:
        print(line)
    print(f"{len(sides[0])} trainings, {len(found)} differ between {sys.argv[1]} and {sys.argv[2]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
