"""What a training costs: processor time, memory, energy, and how many volumes go through the networks in a step.

Nothing here changes a number or the time of a step: volumes are counted in the first step that is done of each phase, the
rest is read from the system when a checkpoint is written, and added up over the attempts of a run.
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
        """Take over what earlier attempts used; None: nobody knows."""
        self._before = dict(
            stored
            or {"cpu_seconds": None, "energy_joules": None, "peak_memory_bytes": 0, "volumes": {}}
        )
        self.volumes = {**self._before.pop("volumes"), **self.volumes}

    def to_dict(self) -> dict[str, Any]:
        """``cpu_seconds`` of all processes, ``peak_memory_bytes`` of the device (or of this process), ``energy_joules`` of
        the GPU or None where that is not measured, ``volumes`` a step by phase."""
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
        """Count the volumes of one step, if it is the phase's first one here.

        The classes of the backbones are wrapped, not the networks: a method may copy those in the middle of a step.
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
    """What was used before and since ``start``; None where a part is unknown: a part is not the whole."""
    return (
        None if before is None or now is None or start is None else round(before + now - start, 2)
    )


def _cpu_seconds() -> float:
    """Return the processor time of this process and of loader processes that have ended."""
    import resource  # Windows does not have it

    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _peak_memory() -> int:
    """Return the most memory, in bytes, that this process has used since it started."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _energy(device: torch.device) -> float | None:
    """Joules the GPU has used since its driver was loaded, by NVML; None without a GPU, the package, or the counter."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        name = torch.cuda.get_device_properties(device).uuid
        return (
            pynvml.nvmlDeviceGetTotalEnergyConsumption(
                pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{name}")
            )
            / 1000
        )
    except (ImportError, AttributeError):
        return None
    except pynvml.NVMLError:
        return None
