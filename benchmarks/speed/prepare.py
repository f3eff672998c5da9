"""Measure the cost of preparing a data set: seconds, memory, and bytes read and written.

    python benchmarks/speed/prepare.py la --from ~/Downloads/LA [--jobs 1 2] [--out FILE.json]

Each row is one run of ``segbench data prepare`` in a separate process with an empty output folder.
The last row repeats the command in the same folder, where all cases are already prepared. Memory is
the peak of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measured import save


def size(folder: Path) -> int:
    """Return the total size of all files in a folder in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def prepare(name: str, source: Path, data_root: Path, jobs: int) -> dict[str, Any]:
    """Run the command once and return a row."""
    command = [
        sys.executable,
        "-m",
        "segbench.cli.main",
        "--data-root",
        str(data_root),
        "--json",
        "-q",
        "data",
        "prepare",
        name,
        "--from",
        str(source),
        "--jobs",
        str(jobs),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    answer = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    facts = json.loads(answer)["datasets"][0]
    return {
        "dataset": name,
        "jobs": jobs,
        "cases": facts["train"] + facts["test"],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6),
        "source_mb": round(size(source) / 1e6, 1),
        "store_mb": round(size(data_root) / 1e6, 1),
    }


def main() -> None:
    """Print one line per row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--folder",
        type=Path,
        help="output folder, on the disk to be measured [the system's temporary folder]",
    )
    parser.add_argument("--out", type=Path, help="write the results to this JSON file too")
    args = parser.parse_args()
    rows = []
    for jobs in args.jobs:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows.append(prepare(args.name, args.source, Path(folder), jobs))
            if jobs == args.jobs[-1]:
                rows.append(
                    {**prepare(args.name, args.source, Path(folder), jobs), "repeated": True}
                )
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.out:
        save(args.out, rows)


if __name__ == "__main__":
    main()
