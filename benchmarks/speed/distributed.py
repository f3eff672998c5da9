"""Measure a training step in two processes: segbench's exchange of gradients beside DDP's.

    python benchmarks/speed/distributed.py [--patch 48x48x48] [--rounds 9] [--out FILE.json]

Two processes on the CPU (gloo) train the same network on the same noise in four ways, which take
turns: alone (nothing is exchanged), in one message after the backward pass, in buckets during it
(what ``segbench run --processes 2`` does), and with torch's DistributedDataParallel around a module
whose forward pass is the loss.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segbench import Batch, registry
from segbench.contracts.method import Clock, Method, Optim, Setting, Source
from segbench.training import distributed, step
from segbench.training.build import network_factory
from segbench.training.distributed import World
from segbench.training.gradients import BUCKET, averaged
from segbench.training.placement import to_device
from segbench.training.plan import stages
from segbench.training.step import StepSettings, TrainingStep

METHOD = "supervised"
TOTAL = 1_000_000  # steps of the pretended training
OPTIMIZER = Optim(name="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)
ONE_MESSAGE = 10**12  # bytes of a bucket that holds everything
WAYS = ("alone", "one message", "buckets", "ddp")

Step = Callable[[], None]


def make_method(patch: tuple[int, ...]) -> Method:
    """Return the method with the same weights in all processes."""
    method_class = registry.get("method", METHOD).cls
    setting = Setting((Source("noise", ("organ",)),), 1, patch)
    method: Method = method_class(method_class.Params(), setting)
    torch.manual_seed(0)
    params = method.backbone_defaults.get("vnet", {})
    others = method_class.backbones
    method.build(network_factory("vnet", params, setting, method.needs, others))
    return method


def make_batch(patch: tuple[int, ...], rank: int) -> Batch:
    """Return a batch of one item of noise."""
    generator = torch.Generator().manual_seed(rank)
    return Batch(
        torch.randn(1, 1, *patch, generator=generator),
        torch.randint(0, 2, (1, *patch), generator=generator),
        torch.zeros(0, 1, *patch),
        torch.zeros(1, dtype=torch.int64),
    )


def own_step(patch: tuple[int, ...], batch: Batch, world: World, most: int) -> Step:
    """Return a function that makes a step of segbench, with buckets of ``most`` bytes."""
    method = make_method(patch)
    plan = stages(method.phases(), TOTAL, 1, 0)
    train_step = TrainingStep(method, plan, StepSettings(OPTIMIZER, seed=0, world=world))
    numbers = iter(range(TOTAL))

    def make() -> None:
        vars(step)["averaged"] = partial(averaged, most=most)
        train_step(next(numbers), batch).report()

    return make


class LossModule(nn.Module):
    """A module whose forward pass is the loss of a method."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, t: Clock) -> Tensor:
        """Return the sum of the terms."""
        return torch.stack(list(self.method.loss(batch, t).values())).sum()


def ddp_step(patch: tuple[int, ...], batch: Batch) -> Step:
    """Return a function that makes a step with DistributedDataParallel."""
    method = to_device(make_method(patch), "cpu")
    method.train()
    wrapped = DistributedDataParallel(LossModule(method))
    optimizer = torch.optim.SGD(
        method.parameters(),
        OPTIMIZER.lr,
        momentum=OPTIMIZER.momentum,
        weight_decay=OPTIMIZER.weight_decay,
    )
    t = Clock(0, TOTAL, "train", 0, TOTAL)

    def make() -> None:
        torch.manual_seed(0)
        loss = wrapped(batch, t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return make


def work(rank: int, port: int, patch: tuple[int, ...], rounds: int, answers: Any) -> None:
    """Measure all ways in one process; the first one sends seconds of all rounds."""
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    world = distributed.join("cpu")
    batch = make_batch(patch, rank)
    steps = {
        "alone": own_step(patch, batch, World(), BUCKET),
        "one message": own_step(patch, batch, world, ONE_MESSAGE),
        "buckets": own_step(patch, batch, world, BUCKET),
        "ddp": ddp_step(patch, batch),
    }
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            world.gather(None)  # start together
            started = time.perf_counter()
            cpu_started = time.process_time()
            steps[way]()
            cpu_seconds = time.process_time() - cpu_started
            slowest = max(world.gather(time.perf_counter() - started))
            if number > 0:  # the first round also prepares kernels and optimizer states
                wall[way].append(slowest)
                cpu[way].append(cpu_seconds)
    if rank == 0:
        answers.send((wall, cpu))


def measure(patch: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Return a row per way, with medians over the rounds."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    processes = []
    for rank in range(2):
        place = (rank, port, patch, rounds, there)
        processes.append(context.Process(target=work, args=place))
        processes[rank].start()
    wall, cpu = here.recv()
    for process in processes:
        process.join()
    rows = []
    for way in WAYS:
        ratios = [mine / ddp for mine, ddp in zip(wall[way], wall["ddp"], strict=True)]
        rows.append(
            {
                "way": way,
                "seconds": round(median(wall[way]), 4),
                "cpu_seconds": round(median(cpu[way]), 4),
                "fastest": round(min(wall[way]), 4),
                "of_ddp": round(median(ratios), 3),
            }
        )
    return rows


def main() -> None:
    """Measure, print the rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", default="48x48x48")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    patch = tuple(int(edge) for edge in chosen.patch.split("x"))
    rows = measure(patch, chosen.rounds)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if chosen.out:
        from measured import save

        note = (
            f"a step of the slower of two processes, {METHOD} with vnet, patch {chosen.patch}, one "
            f"item per process, median of {chosen.rounds} rounds; of_ddp: median ratio to DDP in "
            "the same round"
        )
        save(chosen.out, rows, note)


if __name__ == "__main__":
    main()
