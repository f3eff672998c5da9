"""Measure the speed of a training step of each method: here, elsewhere and in plain torch code.

    python benchmarks/speed/step.py [METHOD ...] [--against DIR] [--plain] [--patch 32x32x32]
        [--labeled 2] [--unlabeled 2] [--backbone vnet] [-o KEY=VALUE ...]
        [--rounds 5] [--steps 2] [--out FILE.json]

Each side is one process. The sides alternate step by step, and the CPU time (user and system) of
the process is measured, because on a busy machine it varies less than wall time. Ratios can be
compared between machines, seconds cannot. ``--against`` adds another checkout of segbench,
``--plain`` the steps of plain.py, which exist for two methods: the same networks and batches in
plain torch code, whose loss of the first step is compared. The data are noise, because the time
does not depend on them.
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
Step = Callable[[], Any]  # makes a step and returns its loss
METHODS = tuple(sorted(file.stem for file in (ROOT / "methods").glob("[!_]*.py")))


# -- one side: a process that makes steps on request ----------------------------------------


def serve(settings: dict[str, Any]) -> None:
    """Read method names from standard input; make steps and print the CPU seconds per step.

    Printed is also the loss of the first step.
    """
    import torch

    torch.set_num_threads(1)
    is_plain = settings.get("plain", False)
    if not is_plain:
        _keep_freed_memory()
    make = make_plain_stepper if is_plain else make_stepper
    steppers: dict[str, Step] = {}
    losses: dict[str, float] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in steppers:
            steppers[name] = make(name, settings)
            torch.manual_seed(1)
            # The first step also prepares kernels and optimizer states.
            losses[name] = float(steppers[name]())
        started = time.process_time()
        for _ in range(settings["steps"]):
            steppers[name]()
        seconds = (time.process_time() - started) / settings["steps"]
        print(json.dumps({"seconds": seconds, "loss": losses[name]}), flush=True)


def _keep_freed_memory() -> None:
    try:
        from segbench.training.memory import keep_freed_memory
    except ImportError:  # an older checkout
        return
    keep_freed_memory()


def made_method(name: str, settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return a method with its networks, and the batch of its last phase."""
    import torch

    from segbench import Batch, registry
    from segbench.contracts.method import Setting, Source
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
    phase = method.phases()[-1]
    labeled, unlabeled = settings["labeled"], settings["unlabeled"]
    if phase.unlabeled == 0:
        labeled, unlabeled = labeled + unlabeled, 0
    batch = Batch(
        torch.randn(labeled, 1, *patch),
        torch.randint(0, 2, (labeled, *patch)),
        torch.randn(unlabeled, 1, *patch),
        torch.zeros(labeled + unlabeled, dtype=torch.int64),
    )
    return method, batch


def make_stepper(name: str, settings: dict[str, Any]) -> Step:
    """Return a function that makes one step of the last phase of a method and returns the loss."""
    import torch

    from segbench.contracts.method import Clock

    method, batch = made_method(name, settings)
    _place(method)
    method.train()
    phase = method.phases()[-1]
    method.start_phase(phase)
    optimizers = {
        player: torch.optim.SGD(method.trainable(player), lr=1e-4, momentum=0.9)
        for player in method.players
    }
    done = 0

    def step() -> Any:
        nonlocal done
        losses = []
        clock = Clock(500 + done, 1000, phase.name, 250 + done, 500)
        for number, player in enumerate(method.players):
            method.train()
            loss = method.loss if number == 0 else getattr(method, f"loss_{player}")
            total = torch.stack(list(loss(batch, clock).values())).sum()
            optimizers[player].zero_grad(set_to_none=True)
            total.backward()
            optimizers[player].step()
            losses.append(total.detach())
        with torch.no_grad():
            method.after_step(clock)
        done += 1
        return losses[0]

    return step


def make_plain_stepper(name: str, settings: dict[str, Any]) -> Step:
    """Return a function that makes the same step in plain torch code and returns the loss."""
    from plain import PLAIN

    method, batch = made_method(name, settings)
    network, make = PLAIN[name]
    step: Step = make(getattr(method, network), batch.x, batch.y, batch.u)
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

    def measure(self, method: str) -> dict[str, float]:
        """Return the CPU seconds of one step, and the loss of the first one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{method}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{method}: the process ended")
        found: dict[str, float] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def compare(methods: list[str], sides: dict[str, Side], rounds: int) -> list[dict[str, Any]]:
    """Return one row per method: seconds per step of each side, and the ratios to this checkout."""
    rows = []
    for method in methods:
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        losses: dict[str, float] = {}
        for _ in range(rounds):
            for name, side in sides.items():
                found = side.measure(method)
                seconds[name].append(found["seconds"])
                losses[name] = found["loss"]
        row: dict[str, Any] = {"method": method}
        for name, values in seconds.items():
            row[name] = round(median(values), 4)
        if "other" in sides:
            row["ratio"] = round(row["other"] / row["here"], 2)
        if "plain" in sides:
            row["plain_ratio"] = round(row["plain"] / row["here"], 2)
            difference = abs(losses["plain"] - losses["here"]) / abs(losses["plain"])
            row["loss_difference"] = float(f"{difference:.1e}")
        rows.append(row)
        print("".join(f"{value!s:>16}" for value in row.values()), flush=True)
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
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--against", type=Path, help="another checkout of segbench")
    parser.add_argument("--plain", action="store_true", help="plain torch code as another side")
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
    methods = chosen.methods or list(METHODS)
    sides = {}
    titles = []
    if chosen.against:
        sides["other"] = Side(chosen.against.resolve(), settings)
        titles += ["ratio"]
    if chosen.plain:
        from plain import PLAIN

        methods = chosen.methods or list(PLAIN)
        if not PLAIN.keys() >= set(methods):
            parser.error(f"--plain knows {', '.join(PLAIN)}")
        sides["plain"] = Side(ROOT, {**settings, "plain": True})
        titles += ["plain / here", "loss differs"]
    sides["here"] = Side(ROOT, settings)
    titles = ["method", *(f"{name}, s" for name in sides), *titles]
    print("".join(f"{title:>16}" for title in titles))
    rows = compare(methods, sides, chosen.rounds)
    for side in sides.values():
        side.close()
    if chosen.out:
        from measured import save

        note = "CPU seconds per step; ratio: other side divided by this one"
        if chosen.plain:
            note += "; loss difference: of the first step, relative"
        save(chosen.out, [{**settings, "rounds": chosen.rounds}, *rows], note, chosen.against)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
    else:
        main()
