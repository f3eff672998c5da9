"""Several processes for one training, started by torchrun: each takes its share of every batch.

Gradients are averaged as in DistributedDataParallel, but without its wrapper: that cannot follow
methods that call several networks in any order, call one network twice, or need gradients of an
image. Only the first process writes, saves and evaluates.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segbench.errors import UsageError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
TIMEOUT = timedelta(days=2)  # the others wait while the first process evaluates


@dataclass(frozen=True)
class World:
    """The processes of one training, seen from one of them; with one, operations do nothing."""

    rank: int = 0  # number of this process
    size: int = 1  # number of processes

    def share(self, places: range) -> range:
        """Return this process's share of the places of a batch.

        Raises:
            UsageError: the places cannot be divided evenly.
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
        """Replace gradients by their mean over the processes; a missing gradient counts as zero."""
        if self.size == 1:
            return
        mine = list(parameters)
        if not mine:
            return
        # One message holds a flag per parameter, for whether it has a gradient, and all gradients.
        flags = [parameter.grad is not None for parameter in mine]
        message = [torch.tensor(flags, dtype=torch.float32, device=mine[0].device)]
        for parameter in mine:
            if parameter.grad is None:
                message.append(parameter.new_zeros(parameter.numel()))
            else:
                message.append(parameter.grad.flatten())
        flat = torch.cat(message)
        dist.all_reduce(flat)

        exists_anywhere = flat[: len(mine)].tolist()
        means = flat[len(mine) :] / self.size
        sizes = [parameter.numel() for parameter in mine]
        parts = torch.split(means, sizes)
        for parameter, exists, mean in zip(mine, exists_anywhere, parts, strict=True):
            parameter.grad = mean.view_as(parameter) if exists else None

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return number
        numbers: list[int] = [0] * self.size
        dist.all_gather_object(numbers, number)
        return max(numbers)

    def first_says(self, number: int) -> int:
        """Return the first process's number in all processes."""
        if self.size == 1:
            return number
        message = [number]
        dist.broadcast_object_list(message, src=0)
        return message[0]

    def follow_first(self, module: nn.Module) -> None:
        """Copy the first process's buffers and untrained parameters, such as teachers."""
        if self.size == 1:
            return
        state = list(module.buffers())
        for parameter in module.parameters():
            if not parameter.requires_grad:
                state.append(parameter.data)
        for dtype in dict.fromkeys(tensor.dtype for tensor in state):
            tensors = [tensor for tensor in state if tensor.dtype == dtype and tensor.numel()]
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def launched() -> tuple[int, int]:
    """Return (rank, number of processes) as torchrun set them; (0, 1) without torchrun."""
    if not all(name in os.environ for name in LAUNCHED):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@cache
def join(device_type: str) -> World:
    """Connect to the other processes and return the world; ``device_type`` is cpu, cuda or mps."""
    rank, size = launched()
    if size > 1:
        if device_type == "cuda":
            # nccl sends objects through the current GPU, which must not be another process's.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
        # Otherwise threads of the group may end the process with SIGABRT when it exits.
        atexit.register(dist.destroy_process_group)
    return World(rank, size)


def own_device(device: str) -> str:
    """Return the GPU of this process if there are several processes, else ``device`` itself."""
    _, size = launched()
    if size > 1 and device.startswith("cuda"):
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
