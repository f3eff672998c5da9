"""Measure how commands grow with the number of runs: CPU seconds and file-system calls.

One tiny run is trained and copied with other seeds, parameters and scores; each copy is a valid
result. Counted are calls of ``os.stat`` and ``os.scandir`` and opened files, those in the folder of
Python left out.

    python benchmarks/speed/scale.py --save benchmarks/results/speed-scale.json
    python benchmarks/speed/scale.py --code ../earlier --parts plan,ls
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = ROOT / "tests" / "plugins" / "tiny.yaml"
SEEDS = 200  # of each of the five methods in the planned suite
STATES = 10_000  # run folders whose state is read
RUNS = 2_000
SETTLING = 3  # seconds after which the index takes a result: its files might still change before
DATASET = '''
"""As many cases as the left atrium, but small."""

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset


@dataset("crowd")
class Crowd(Dataset):
    """Balls in noise."""

    title = "Balls in noise"
    modality = "none"
    classes = ("ball",)
    license = "none needed"
    labeled = 2
    embedded = True

    def split(self):
        names = [f"case{number:03d}" for number in range(100)]
        return Split(tuple(names[:90]), tuple(names[90:]), "made up")

    def find(self, source):
        return [RawCase(f"case{number:03d}", number) for number in range(100)]

    def load(self, raw):
        draw = np.random.default_rng(raw.where)
        label = np.zeros((20, 20, 20), np.uint8)
        label[5:12, 6:14, 4:13] = 1
        image = label + draw.normal(0, 0.5, size=(1, 20, 20, 20))
        return Case(raw.id, image.astype(np.float32), label, (1.0, 1.0, 1.0))
'''
SUITE = f"""
schema: 1
name: many
protocol: {PROTOCOL}
matrix:
  method: [supervised, mean_teacher, ua_mt, cps, bcp]
  dataset: [crowd]
  seed: [SEEDS]
"""
# Run in a process of its own, with the code that is measured on its path.
COUNTER = """
import json, os, resource, sys
counts = {"stat": 0, "scandir": 0, "open": 0}
installed = tuple({sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix)})
def note(name, path):
    counts[name] += not (isinstance(path, str) and path.startswith(installed))
def counted(name):
    real = getattr(os, name)
    def call(path=".", *args, **kwargs):
        note(name, os.fspath(path) if hasattr(path, "__fspath__") else path)
        return real(path, *args, **kwargs)
    setattr(os, name, call)
counted("stat")
counted("scandir")
def audit(event, args):
    if event == "open":
        note("open", args[0])
from segbench.cli.main import run
sys.addaudithook(audit)
if sys.argv[1] == "states":
    from pathlib import Path
    from segbench.results import rundir
    try:
        from segbench.results.states import state_of
    except ImportError:  # earlier versions read every result
        state_of = lambda path: rundir.RunDir(path).state
    found = [state_of(Path(line)) for line in open(sys.argv[2]).read().splitlines()]
    code = 0 if found.count("done") == len(found) // 2 else 1
else:
    code = run(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_SELF)
counts["cpu"] = usage.ru_utime + usage.ru_stime
counts["peak_mb"] = usage.ru_maxrss / 1024
counts["code"] = code
print(json.dumps(counts), file=sys.stderr)
"""


class Place:
    """A folder with a data set, a suite and the runs that are measured.

    Args:
        code: folder of the segbench that is measured.
        limit: seconds of CPU after which a command is ended.
    """

    def __init__(self, folder: Path, code: Path, limit: int) -> None:
        self.folder = folder
        self.code = code
        self.limit = limit
        (folder / "crowd.py").write_text(DATASET)
        numbers = ", ".join(map(str, range(SEEDS)))
        (folder / "many.yaml").write_text(SUITE.replace("SEEDS", numbers))

    def call(self, *words: str) -> dict[str, Any]:
        """Run a command and return what it cost."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (self.limit, self.limit))

        path = os.pathsep.join([str(self.code), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", COUNTER, *words],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=limit,
        )
        lines = done.stderr.strip().splitlines()
        try:
            found: dict[str, Any] = json.loads(lines[-1])
        except (IndexError, ValueError):
            return {"cpu": None, "note": f"not finished after {self.limit} s of CPU"}
        if found.pop("code"):
            raise SystemExit("\n".join(["segbench", *words, *lines[-20:]]))
        return found

    def segbench(self, *words: str) -> dict[str, Any]:
        """Run a command of segbench with the plug-in."""
        return self.call("--plugin", "crowd.py", *words)

    def train(self) -> Path:
        """Train one run and return its folder."""
        options = ("--dataset", "crowd", "--protocol", str(PROTOCOL), "--steps", "2")
        self.segbench("--root", "first", "run", "supervised", *options)
        (folder,) = (self.folder / "first" / "runs").glob("*/*/*")
        return folder


class Copies:
    """Valid results that are copies of one run.

    Args:
        template: the folder of the run.
        root: folder of the copies.
    """

    def __init__(self, template: Path, root: Path) -> None:
        from segbench.results.rundir import RunDir

        run = RunDir(template)
        self.result = json.loads((template / "result.json").read_bytes())
        self.config = (template / "config.yaml").read_text()
        self.manifest = template / "manifest.json"
        self.rows = run.cases()
        self.root = root

    def add(self, row: int, seed: int) -> None:
        """Write the run of one row of the table and one seed."""
        from segbench.evaluation.case_rows import cases_csv, summarize
        from segbench.identity.run_id import run_id
        from segbench.storage import json_bytes

        draw = np.random.default_rng([row, seed])
        result = json.loads(json.dumps(self.result))
        science = result["science"]
        science["params"]["row"] = row
        science["seed"] = seed
        result["seed"] = seed
        result["changed_params"] = {"row": row}
        result["run_id"] = run_id(science)
        records = []
        for record in self.rows:
            dice = min(0.99, max(0.01, 0.7 + 0.0005 * row + draw.normal(0, 0.02)))
            copy = {**record, "dice": dice, "jaccard": dice / (2 - dice), "status": "ok"}
            copy["pred_voxels"] = copy["ref_voxels"]  # which any Dice is possible with
            for name in record:
                if name.startswith(("hd95", "asd")):
                    copy[name] = 1.0 + draw.random()
            records.append(copy)
        table = cases_csv(records)
        result["metrics"] = summarize(records, result["metrics"][0]["policy"])
        result["cases_sha256"] = hashlib.sha256(table).hexdigest()

        name = f"2of90-s{seed}-{result['run_id'][:8]}"
        folder = self.root / "runs" / "crowd" / "supervised" / name
        folder.mkdir(parents=True)
        config = self.config.replace(self.result["run_id"], result["run_id"])
        (folder / "config.yaml").write_text(config)
        (folder / "cases.csv").write_bytes(table)
        (folder / "result.json").write_bytes(json_bytes(result))
        os.link(self.manifest, folder / "manifest.json")

    def add_rows(self, rows: int) -> None:
        """Write ``RUNS`` runs in so many rows of one table."""
        for row in range(rows):
            for seed in range(RUNS // rows):
                self.add(row, seed)
        time.sleep(SETTLING)


def write_states(place: Place) -> Path:
    """Write run folders, half of them finished, and return a file that lists them."""
    folders = []
    template = place.folder / "first"
    (run,) = (template / "runs").glob("*/*/*")
    for number in range(STATES):
        folder = place.folder / "states" / str(number)
        folder.mkdir(parents=True)
        os.link(run / "config.yaml", folder / "config.yaml")
        if number % 2:
            os.link(run / "result.json", folder / "result.json")
            os.link(run / "cases.csv", folder / "cases.csv")
        folders.append(str(folder))
    file = place.folder / "states.txt"
    file.write_text("\n".join(folders))
    return file


def measurements(place: Place) -> dict[str, tuple[str, Callable[[], dict[str, Any]]]]:
    """Return the description and the measurement of every part."""
    twenty = place.folder / "twenty"
    many = place.folder / "many"

    def board(root: Path, rows: int) -> dict[str, Any]:
        if not root.exists():
            (run,) = (place.folder / "first" / "runs").glob("*/*/*")
            Copies(run, root).add_rows(rows)
        return place.segbench("--root", str(root), "leaderboard")

    def listed() -> dict[str, Any]:
        if not twenty.exists():
            board(twenty, 20)
        return place.segbench("--root", str(twenty), "runs", "ls")

    return {
        "base": ("the program alone", lambda: place.segbench("--json", "list", "datasets")),
        "plan": ("bench plan, 1,000 runs", lambda: place.segbench("bench", "plan", "many.yaml")),
        "states": (
            "states of 10,000 folders",
            lambda: place.call("states", str(write_states(place))),
        ),
        "board": ("leaderboard, 2,000 runs, 20 rows", lambda: board(twenty, 20)),
        "again": ("the same once more", lambda: board(twenty, 20)),
        "rows": ("leaderboard, 2,000 runs, 200 rows", lambda: board(many, 200)),
        "ls": ("runs ls, 2,000 runs", listed),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the rows to a JSON file")
    parser.add_argument("--code", type=Path, default=ROOT, help="the segbench to measure")
    parser.add_argument("--before", type=Path, help="rows of an earlier call, shown beside")
    parser.add_argument("--parts", default="", help="base,plan,states,board,again,rows,ls")
    parser.add_argument("--limit", type=int, default=60, help="most CPU seconds of a command")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        place = Place(folder, options.code.resolve(), options.limit)
        place.train()
        parts = measurements(place)
        rows = []
        for name in options.parts.split(",") if options.parts else parts:
            title, measure = parts[name]
            rows.append({"part": name, "what": title, **measure()})
            print(_line(rows[-1]), flush=True)
    finally:
        shutil.rmtree(folder)
    code = options.code.resolve()
    other: Path | str | None = None if code == ROOT else code
    if options.before:
        before = json.loads(options.before.read_bytes())
        other = str(before.get("other_commit", before["commit"]))
        for row in before["rows"]:
            rows.append({**row, "part": f"before: {row['part']}"})
            print(_line(rows[-1]))
    if options.save:
        from measured import save

        save(
            options.save,
            rows,
            "CPU seconds of the whole process, imports included; calls outside of Python's folder",
            other,
        )


def _line(row: dict[str, Any]) -> str:
    if row["cpu"] is None:
        return f"{row['part']:16s} {row['what']:36s} {row['note']}"
    return (
        f"{row['part']:16s} {row['what']:36s} {row['cpu']:7.1f} s {row['stat']:8d} stat "
        f"{row['scandir']:7d} scandir {row['open']:8d} open {row['peak_mb']:6.0f} MB"
    )


if __name__ == "__main__":
    main()
