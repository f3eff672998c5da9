"""Measure on a GPU what is listed in benchmarks/gpu/README.md within ten minutes, trainings last.

    python benchmarks/gpu/lease.py --out DIR [--minutes 10] [--commit SHA] [--data DIR]
        [--only PATTERN ...] [--dry]

Every result is written to ``DIR`` as soon as it is had, with the command, the commit, the GPU, the
versions and the seed. A result that is there is not measured again, so the script continues where
an earlier call ended; what failed is tried again by the next call. ``--dry`` does everything on the
CPU with tiny sizes. ``--only`` takes names of measurements, such as ``1-steps-*``. ``--data`` is a
folder of prepared data sets; without it, trainings on patients are left out. The README says which
packages must be carried.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))
METHODS = tuple(sorted(file.stem for file in (ROOT / "methods").glob("[!_]*.py")))
NEEDED = ("torch", "numpy", "scipy", "pydantic", "yaml", "safetensors", "click", "rich")
VARIANTS = (
    "bf16",
    "channels_last",
    "losses_read_at_once",
    "pinned_batches",
    "plain_moving_average",
    "plain_optimizer",
    "tf32",
    "cudnn_benchmark",
    "compile",
    "cuda_graphs",
)
COMPILED = ("compile", "cuda_graphs")  # minutes at the start
SMALL = {"patch": [16, 16, 16], "backbone_params": {"width": 4, "depth": 3}}


@dataclass(frozen=True)
class Item:
    """One measurement, which is one file of the results."""

    name: str
    kind: str  # function of points.py
    arguments: dict[str, Any]
    limit: float = 60.0  # seconds after which it is given up


# -- the list ------------------------------------------------------------------------------------


def work(method: str, protocol: str, precision: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``training.Work``."""
    size = SMALL if chosen.dry else {}
    return {
        "method": method,
        "protocol": protocol,
        "precision": precision,
        "device": chosen.device,
        **size,
    }


def items(chosen: argparse.Namespace) -> list[Item]:
    """Return all measurements in order: trainings come last, because they take all the time."""
    found: list[Item] = []
    for point in (
        _it_runs,
        _what_helps,
        _resuming,
        _prediction,
        _trainings,
        _joint_trainings,
    ):
        found += point(chosen)
    if not chosen.only:
        return found
    return [item for item in found if any(fnmatch(item.name, name) for name in chosen.only)]


def _it_runs(chosen: argparse.Namespace) -> list[Item]:
    found = []
    count = 1 if chosen.dry else 20
    for precision in ("fp32", "bf16"):
        for method in METHODS:
            arguments = {"work": work(method, "la", precision, chosen), "count": count}
            found.append(Item(f"1-steps-{method}-{precision}", "steps", arguments))
    for method in METHODS:
        smaller = {**work(method, "la", "fp32", chosen), **SMALL}
        if not chosen.dry:
            smaller["patch"] = [48, 48, 48]
        smaller["backbone_params"] = {**smaller["backbone_params"], "dropout": 0.0}
        found.append(Item(f"1-agreement-{method}", "agreement", {"work": smaller}))
    tests = {"names": "supervised or sassnet or versemi", "collect_only": chosen.dry}
    found.append(Item("1-gpu-tests", "gpu_tests", tests, limit=120.0))
    return found


def _what_helps(chosen: argparse.Namespace) -> list[Item]:
    found = []
    for method, protocol in (("ua_mt", "la"), ("versemi", "versemi")):
        task = work(method, protocol, "fp32", chosen)
        arguments = {"work": task, "count": 1 if chosen.dry else 3}
        found.append(Item(f"2-profile-{method}", "profile", arguments))
        for variant in VARIANTS:
            if chosen.dry and variant in COMPILED:
                continue  # needs a compiler, and minutes
            if method == "versemi" and variant == "plain_moving_average":
                continue  # it has no teacher
            measured = {
                "work": task,
                "variant": variant,
                "rounds": 1 if chosen.dry else 3,
                "count": 1 if chosen.dry else 5,
            }
            limit = 120.0 if variant in COMPILED else 60.0
            found.append(Item(f"2-pair-{method}-{variant}", "pair", measured, limit))
    sizes: dict[str, Any] = {"shape": [180, 180, 88], "patch": [112, 112, 80], "batches": 50}
    if chosen.dry:
        sizes = {"shape": [24, 24, 24], "patch": [16, 16, 16], "batches": 4}
    for name, augment in (("2-loading", "mirror"), ("2-loading-strong", "strong")):
        measured = {"device": chosen.device, "augment": augment, **sizes}
        found.append(Item(name, "loading", measured))
    return found


def _trainings(chosen: argparse.Namespace) -> list[Item]:
    found = []
    for method in METHODS:
        found.append(_training(f"3-la-8-{method}", method, "la", chosen))
    return found


def _joint_trainings(chosen: argparse.Namespace) -> list[Item]:
    return [_training("4-joint-versemi", "versemi", "la,acdc", chosen)]


def _training(name: str, method: str, datasets: str, chosen: argparse.Namespace) -> Item:
    options = [method, "--dataset", datasets, "--labeled", "8", "--seed", "0"]
    data = chosen.data
    if chosen.dry:
        options = [method, "--dataset", "tiny", "--steps", "4"]
        options += ["--protocol", str(ROOT / "tests/plugins/tiny.yaml")]
        data = "tiny"
    if "," in datasets and not chosen.dry:
        options += ["--protocol", "versemi"]
    arguments = {
        "options": options,
        "data": data,
        "out": str(chosen.out / "runs"),
        "device": chosen.device,
    }
    return Item(name, "training", arguments, limit=60.0 * chosen.minutes)


def _resuming(chosen: argparse.Namespace) -> list[Item]:
    found = []
    for method in ("mean_teacher", "versemi"):
        count = 4 if chosen.dry else 50
        arguments = {"method": method, "device": chosen.device, "count": count}
        found.append(Item(f"5-resuming-{method}", "resuming", arguments))
    return found


def _prediction(chosen: argparse.Namespace) -> list[Item]:
    task: dict[str, Any] = {"device": chosen.device, "shape": [150, 150, 88], "width": 16}
    task.update(patch=[112, 112, 80], stride=[18, 18, 4])
    batches = [1, 4, 16]
    if chosen.dry:
        task.update(shape=[24, 24, 24], patch=[16, 16, 16], stride=[8, 8, 8], width=2)
        batches = [4]
    arguments = {"task": task, "batches": batches}
    return [Item("6-prediction", "prediction", arguments, limit=120.0)]


# -- the worker: a process that measures on request ----------------------------------------------


def serve() -> None:
    """Read items from standard input, measure them and print a line of JSON each."""
    sys.path.insert(0, str(HERE.parent))
    from points import KINDS

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints to standard error
    for line in sys.stdin:
        item = json.loads(line)
        try:
            answer = {"row": KINDS[item["kind"]](**item["arguments"])}
        except Exception as error:  # any failure is a result
            answer = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The process that measures; it is replaced when it hangs or dies."""

    def __init__(self, log: IO[bytes]) -> None:
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def measure(self, item: Item, limit: float) -> dict[str, Any]:
        """Return the answer for an item, or why there is none."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE), "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                start_new_session=True,  # its own group, which a training belongs to
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(item)).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        line = self.process.stdout.readline() if ready else b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            if "CUDA error" in answer.get("failed", ""):
                self.close()  # nothing works in a process after such an error
            return answer
        reason = f"took longer than {limit:.0f} s" if not ready else "the process died"
        self.close()
        return {"failed": reason}

    def close(self) -> None:
        """End the process and all that it started: a training would go on using the GPU."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


# -- the lease -----------------------------------------------------------------------------------


def measure_all(chosen: argparse.Namespace) -> list[str]:
    """Measure what is missing until the time is over; return the names of what is left."""
    from machine import facts, write

    ends = time.monotonic() + 60 * chosen.minutes
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "runs").mkdir(exist_ok=True)
    left = []
    with (chosen.out / "lease.log").open("ab") as log:
        worker = Worker(log)
        for item in items(chosen):
            file = chosen.out / f"{item.name}.json"
            if _is_done(file):
                continue
            if item.kind == "training" and not item.arguments["data"]:
                print(f"{item.name:<34}left out: no --data", flush=True)
                continue
            remaining = ends - time.monotonic()
            if remaining < 5:
                left.append(item.name)
                continue
            started = time.monotonic()
            answer = worker.measure(item, min(item.limit, remaining))
            content = {
                "schema": "segbench.lease/1",
                "item": item.name,
                **facts(chosen.device, seed=0, commit=chosen.commit),
                "arguments": _without_folders(item.arguments),
                "seconds": round(time.monotonic() - started, 2),
                **answer,
            }
            write(file, content)
            if "failed" in answer:
                left.append(item.name)
            note = answer.get("failed", "done").splitlines()[0][:60]
            print(f"{item.name:<34}{content['seconds']:>7.1f} s  {note}", flush=True)
        worker.close()
    return left


def _is_done(file: Path) -> bool:
    try:
        return "row" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _without_folders(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out folders of this machine, which do not belong in a stored result."""
    return {key: value for key, value in arguments.items() if key not in ("data", "out")}


def _missing_packages() -> list[str]:
    import importlib.util

    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def main() -> None:
    """Measure what is missing and say what is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--commit", default="", help="used where the folder is no git checkout")
    parser.add_argument("--data", default="", help="folder of prepared data sets")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="names, such as 1-steps-*"
    )
    parser.add_argument("--dry", action="store_true", help="on the CPU, with tiny sizes")
    chosen = parser.parse_args()
    chosen.out = chosen.out.resolve()
    chosen.device = "cpu" if chosen.dry else "cuda"
    missing = _missing_packages()
    if missing:
        raise SystemExit(
            f"missing packages: {', '.join(missing)}; "
            "benchmarks/gpu/README.md says what must be carried"
        )
    left = measure_all(chosen)
    print(f"left for another time: {', '.join(left) or 'nothing'}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    else:
        main()
