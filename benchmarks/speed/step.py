"""Measure the speed of a training step of each method, here and in another checkout of segbench.

    python benchmarks/speed/step.py [METHOD ...] [--against DIR] [--patch 32x32x32]
        [--labeled 2] [--unlabeled 2] [--backbone vnet] [-o KEY=VALUE ...]
        [--rounds 5] [--steps 2] [--out FILE.json]

Each side is one process. The sides alternate step by step, and the CPU time (user and system) of
the process is measured, because on a busy machine it varies less than wall time. Ratios can be
compared between machines, seconds cannot. Without ``--against`` there is one side. The data are
noise, because the time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch starts its threads

ROOT = Path(__file__).resolve().parents[2]
METHODS = tuple(sorted(file.stem for file in (ROOT / "methods").glob("[!_]*.py")))


# -- one side: a process that makes steps on request ----------------------------------------


def serve(settings: dict[str, Any]) -> None:
    """Read method names from standard input; make steps and print the CPU seconds per step."""
    import torch

    torch.set_num_threads(1)
    _keep_freed_memory()
    steppers: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in steppers:
            steppers[name] = make_stepper(name, settings)
            steppers[name]()  # the first step also prepares kernels and optimizer states
        started = time.process_time()
        for _ in range(settings["steps"]):
            steppers[name]()
        print((time.process_time() - started) / settings["steps"], flush=True)


def _keep_freed_memory() -> None:
    try:
        from segbench.training.memory import keep_freed_memory
    except ImportError:  # an older checkout
        return
    keep_freed_memory()


def make_stepper(name: str, settings: dict[str, Any]) -> Callable[[], None]:
    """Return a function that makes one step of the last phase of a method."""
    import torch

    from segbench import Batch, registry
    from segbench.contracts.method import Clock, Setting, Source
    from segbench.training.build import network_factory

    method_class = registry.get("method", name).cls
    patch = tuple(settings["patch"])
    setting = Setting((Source("noise", ("organ",)),), 1, patch)
    method = method_class(method_class.Params(), setting)
    params = {**method.backbone_defaults.get(settings["backbone"], {}), **settings["options"]}
    torch.manual_seed(0)
    others = getattr(method_class, "backbones", ())  # older checkouts have no such attribute,
    more = [others] if others else []  # and no parameter for it
    method.build(network_factory(settings["backbone"], params, setting, method.needs, *more))
    _place(method)
    method.train()

    phase = method.phases()[-1]
    method.start_phase(phase)
    labeled, unlabeled = settings["labeled"], settings["unlabeled"]
    if phase.unlabeled == 0:
        labeled, unlabeled = labeled + unlabeled, 0
    batch = Batch(
        torch.randn(labeled, 1, *patch),
        torch.randint(0, 2, (labeled, *patch)),
        torch.randn(unlabeled, 1, *patch),
        torch.zeros(labeled + unlabeled, dtype=torch.int64),
    )
    optimizers = {
        player: torch.optim.SGD(method.trainable(player), lr=1e-4, momentum=0.9)
        for player in method.players
    }
    done = 0

    def step() -> None:
        nonlocal done
        clock = Clock(500 + done, 1000, phase.name, 250 + done, 500)
        for number, player in enumerate(method.players):
            method.train()
            loss = method.loss if number == 0 else getattr(method, f"loss_{player}")
            total = torch.stack(list(loss(batch, clock).values())).sum()
            optimizers[player].zero_grad(set_to_none=True)
            total.backward()
            optimizers[player].step()
        with torch.no_grad():
            method.after_step(clock)
        done += 1

    return step


def _place(method: Any) -> None:
    try:
        from segbench.training.placement import to_device
    except ImportError:  # an older checkout
        return
    to_device(method, "cpu")


# -- the comparison -------------------------------------------------------------------------


class Side:
    """A process that runs the code of one checkout."""

    def __init__(self, tree: Path, settings: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, method: str) -> float:
        """Return the CPU seconds of one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{method}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{method}: the process ended")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(methods: list[str], sides: dict[str, Side], rounds: int) -> list[dict[str, Any]]:
    """Return one row per method: seconds per step of each side, and the ratio."""
    rows = []
    for method in methods:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                seconds[name].append(side.seconds(method))
        row: dict[str, Any] = {"method": method}
        for name, values in seconds.items():
            row[name] = round(median(values), 4)
        if "other" in sides:
            row["ratio"] = round(row["other"] / row["here"], 2)
        rows.append(row)
        print("".join(f"{value!s:>14}" for value in row.values()), flush=True)
    return rows


def options_of(texts: list[str]) -> dict[str, Any]:
    """Return the backbone parameters given as ``KEY=VALUE``."""
    options = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:  # plain text needs no quotes
            options[key] = value
    return options


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--against", type=Path, help="another checkout of segbench")
    parser.add_argument("--patch", default="32x32x32")
    parser.add_argument("--labeled", type=int, default=2)
    parser.add_argument("--unlabeled", type=int, default=2)
    parser.add_argument("--backbone", default="vnet")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    settings = {
        "patch": [int(edge) for edge in chosen.patch.split("x")],
        "labeled": chosen.labeled,
        "unlabeled": chosen.unlabeled,
        "backbone": chosen.backbone,
        "options": options_of(chosen.options),
        "steps": chosen.steps,
    }
    trees = {"here": ROOT}
    if chosen.against:
        trees = {"other": chosen.against.resolve(), "here": ROOT}
    sides = {name: Side(tree, settings) for name, tree in trees.items()}
    titles = ["method", *(f"{name}, s" for name in sides), *(["ratio"] if chosen.against else [])]
    print("".join(f"{title:>14}" for title in titles))
    rows = compare(chosen.methods, sides, chosen.rounds)
    for side in sides.values():
        side.close()
    if chosen.out:
        from measured import save

        note = "CPU seconds per step; ratio: other side divided by this one"
        save(chosen.out, [{**settings, "rounds": chosen.rounds}, *rows], note, chosen.against)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
    else:
        main()
