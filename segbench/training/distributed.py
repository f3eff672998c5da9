"""Several processes for one training, started by torchrun: each takes its share of every batch.

Only the first process writes and saves; all of them train and score test cases. Gradients are
averaged by ``segbench.training.gradients``. When a process is lost, the others end with PeerLost,
and the whole job can be started again.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segbench.errors import PeerLost, UsageError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun
TIMEOUT = timedelta(minutes=30)  # the longest wait: the others wait while the first checks the data


@contextmanager
def peers_present() -> Iterator[None]:
    """Around communication: an error in it means that another process was lost.

    Raises:
        PeerLost: the communication failed.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of gloo and nccl; they have no classes for their reasons
        rank, size = launched()
        raise PeerLost(
            "another process of this training was lost",
            found=str(error).partition("\n")[0],
            where=f"process {rank} of {size}",
        ) from error


@dataclass(frozen=True)
class World:
    """The processes of one training, seen from one of them; with one, operations do nothing.

    All operations raise PeerLost if another process was lost.
    """

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
                fix="another number of processes, or -o batch.labeled= (a modified protocol)",
            )
        part = len(places) // self.size
        return places[self.rank * part : (self.rank + 1) * part]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.size > 1:
            with peers_present():
                dist.all_reduce(values)
            values /= self.size
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with peers_present():
            dist.all_gather_object(values, value)
        return values

    def first_says(self, value: Any) -> Any:
        """Return the first process's value in all processes."""
        if self.size == 1:
            return value
        message = [value]
        with peers_present():
            dist.broadcast_object_list(message, src=0)
        return message[0]

    def follow_first(self, module: nn.Module, trained: bool = False) -> None:
        """Copy the first process's buffers and untrained parameters, such as teachers.

        Args:
            trained: also copy the trained parameters.
        """
        if self.size == 1:
            return
        state = list(module.buffers())
        for parameter in module.parameters():
            if trained or not parameter.requires_grad:
                state.append(parameter.data)
        for dtype in dict.fromkeys(tensor.dtype for tensor in state):
            tensors = [tensor for tensor in state if tensor.dtype == dtype and tensor.numel()]
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            with peers_present():
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
    """Connect to the other processes and return the world; ``device_type`` is cpu, cuda or mps.

    Raises:
        PeerLost: the others did not come.
    """
    rank, size = launched()
    if size > 1:
        if device_type == "cuda":
            # nccl sends objects through the current GPU, which must not be another process's.
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device_type == "cuda" else "gloo"
        with peers_present():
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
