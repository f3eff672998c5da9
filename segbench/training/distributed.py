"""Several processes for one training, started by torchrun: each takes its share of every batch, gradients are averaged.

The semantics of DistributedDataParallel without its wrapper, which cannot follow methods that call several networks in any
order, call one twice or ask for gradients of an image. The first process alone writes, saves and evaluates.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segbench.errors import UsageError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets


@dataclass(frozen=True)
class World:
    """The processes of one training, as one of them sees them. Of one process alone every operation is the identity."""

    rank: int = 0
    size: int = 1

    def share(self, places: range) -> range:
        """This process's part of the places of a batch.

        Raises:
            UsageError: they cannot be shared out evenly.
        """
        if len(places) % self.size:
            raise UsageError(
                f"{self.size} processes cannot share {len(places)} items of a batch",
                expected=f"a multiple of {self.size}",
                fix="another --nproc-per-node, or -o batch.labeled= (a modified protocol)",
            )
        part = len(places) // self.size
        return places[self.rank * part : (self.rank + 1) * part]

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over the processes; one that is missing here counts as zero."""
        mine = list(parameters) if self.size > 1 else []
        if not mine:
            return
        there = torch.tensor(
            [p.grad is not None for p in mine], dtype=torch.float32, device=mine[0].device
        )
        flat = torch.cat(
            [there, *(p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in mine)]
        )
        dist.all_reduce(flat)
        found, means = (
            flat[: len(mine)].tolist(),
            (flat[len(mine) :] / self.size).split([p.numel() for p in mine]),
        )
        for parameter, anywhere, mean in zip(mine, found, means, strict=True):
            parameter.grad = mean.view_as(parameter) if anywhere else None

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        numbers: list[int] = [0] * self.size
        dist.all_gather_object(numbers, number)
        return max(numbers)

    def first_says(self, number: int) -> int:
        """The first process's number."""
        if self.size == 1:
            return number
        said = [number]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def follow_first(self, module: nn.Module) -> None:
        """Take the first process's buffers and untrained parameters (running statistics, memories, teachers)."""
        if self.size == 1:
            return
        state = [*module.buffers(), *(p.data for p in module.parameters() if not p.requires_grad)]
        for kind in dict.fromkeys(t.dtype for t in state):
            tensors = [t for t in state if t.dtype == kind and t.numel()]
            flat = torch.cat([t.flatten() for t in tensors])
            dist.broadcast(flat, src=0)
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))


def launched() -> tuple[int, int]:
    """(rank, number of processes) as torchrun set them; (0, 1) without it."""
    if not all(name in os.environ for name in LAUNCHED):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@cache
def join(kind: str) -> World:
    """Meet the other processes; ``kind`` of device is cpu, cuda or mps."""
    rank, size = launched()
    if size > 1:
        if (
            kind == "cuda"
        ):  # nccl sends objects through the current GPU, which must not be that of another process
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The others wait through evaluations of the first one, which may take hours.
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(days=2))
    return World(rank, size)


def own_device(device: str) -> str:
    """The GPU of this process of its machine; any other device as it is."""
    return (
        f"cuda:{os.environ['LOCAL_RANK']}"
        if launched()[1] > 1 and device.startswith("cuda")
        else device
    )
