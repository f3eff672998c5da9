"""The cost of a training: processor time, memory, energy, and volumes per step.

Volumes through the networks are counted in the first step of each phase. The rest is read from the
system when a checkpoint is written, and added up over the attempts of a run. Nothing here changes a
number or slows down other steps.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from segbench.contracts.backbone import Backbone


class Cost:
    """Adds up from the moment it is made, on top of what earlier attempts used (``restore``)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self.volumes: dict[str, int] = {}  # by phase: volumes through a network in one of its steps
        self._before: dict[str, Any] = {
            "cpu_seconds": 0.0,
            "energy_joules": 0.0,
            "peak_memory_bytes": 0,
        }
        self._cpu, self._energy = _cpu_seconds(), _energy(device)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(device)

    def restore(self, stored: dict[str, Any] | None) -> None:
        """Add what earlier attempts used; None: it is unknown."""
        self._before = dict(
            stored
            or {"cpu_seconds": None, "energy_joules": None, "peak_memory_bytes": 0, "volumes": {}}
        )
        self.volumes = {**self._before.pop("volumes"), **self.volumes}

    def to_dict(self) -> dict[str, Any]:
        """Return the cost as JSON types.

        ``cpu_seconds`` of all processes, ``peak_memory_bytes`` of the GPU (or of this process),
        ``energy_joules`` of the GPU (None where it is not measured), ``volumes`` per step by phase.
        """
        peak = torch.cuda.max_memory_allocated(self.device) if self.cuda else _peak_memory()
        return {
            "cpu_seconds": _sum(self._before["cpu_seconds"], _cpu_seconds(), self._cpu),
            "energy_joules": _sum(
                self._before["energy_joules"], _energy(self.device), self._energy
            ),
            "peak_memory_bytes": max(int(peak), self._before["peak_memory_bytes"]),
            "volumes": dict(self.volumes),
        }

    @contextmanager
    def counted(self, method: nn.Module, phase: str) -> Iterator[None]:
        """Count the volumes of one step, if it is the first of its phase in this attempt.

        Classes of backbones are wrapped, because a method may copy its networks during a step.
        """
        if phase in self.volumes:
            yield
            return
        total, depth = [0], [0]
        kinds = {type(m) for m in method.modules() if isinstance(m, Backbone)}
        wrapped = [
            (kind, name, vars(kind).get(name)) for kind in kinds for name in ("forward", "encode")
        ]
        for kind, name, _ in wrapped:
            setattr(kind, name, _counting(getattr(kind, name), total, depth))
        try:
            yield
        finally:
            for kind, name, own in wrapped:
                setattr(kind, name, own) if own is not None else delattr(kind, name)
        self.volumes[phase] = total[0]


def _counting(function: Any, total: list[int], depth: list[int]) -> Any:
    @functools.wraps(function)
    def count(self: Any, image: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        total[0] += len(image) if depth[0] == 0 else 0  # forward calls encode: one pass
        depth[0] += 1
        try:
            return function(self, image, *args, **kwargs)
        finally:
            depth[0] -= 1

    return count


def _sum(before: float | None, now: float | None, start: float | None) -> float | None:
    """Return what was used before and since ``start``; None if either is unknown."""
    return (
        None if before is None or now is None or start is None else round(before + now - start, 2)
    )


def _cpu_seconds() -> float:
    """Return the processor time of this process and of loader processes that have ended."""
    import resource  # Windows does not have it

    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime)


def _peak_memory() -> int:
    """Return the most memory, in bytes, that this process has used since it started."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _energy(device: torch.device) -> float | None:
    """Return the joules that the GPU has used since its driver was loaded, from NVML.

    None without a GPU, the package ``pynvml``, or the counter.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        name = torch.cuda.get_device_properties(device).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{name}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)  # from mJ
    except (ImportError, AttributeError):
        return None
    except pynvml.NVMLError:
        return None
