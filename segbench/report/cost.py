"""What runs cost, from their manifests: where a number was not measured there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean
from typing import Any

from segbench.report.gather import Member


@dataclass(frozen=True)
class Cost:
    """Means over the runs of a row; nan where nothing was measured."""

    seconds_per_step: float
    volumes: float  # through a network in a training step
    hours: float  # of training, on one device
    kind: str  # "GPU" or "CPU"
    peak_gib: float
    kwh: float  # of training
    parameters: float
    evaluation_seconds: float


def cost_of(members: Sequence[Member]) -> Cost:
    """The cost of a row."""
    manifests = [m.manifest for m in members]

    def mean(key: str) -> float:
        values = [m[key] for m in manifests if _number(m.get(key))]
        return fmean(values) if values else nan
    gpu = any(_number(m.get("gpu_seconds")) and m["gpu_seconds"] > 0 for m in manifests)
    hours = mean("gpu_seconds" if gpu else "cpu_seconds") / 3600
    volumes = [v for v in map(_volumes, manifests) if isfinite(v)]
    return Cost(mean("seconds_per_step"), fmean(volumes) if volumes else nan,
                hours if isfinite(hours) else mean("train_seconds") / 3600, "GPU" if gpu else "CPU",
                mean("peak_memory_bytes") / 2**30, mean("energy_joules") / 3.6e6, mean("parameters"),
                mean("evaluation_seconds"))


def _volumes(manifest: dict[str, Any]) -> float:
    """Mean over the steps of all phases."""
    phases = manifest.get("phases")
    if not isinstance(phases, list) or not all(isinstance(p, dict) and _number(p.get("volumes")) and _number(p.get("steps"))
                                               for p in phases):
        return nan
    steps = sum(p["steps"] for p in phases)
    return sum(p["volumes"] * p["steps"] for p in phases) / steps if steps else nan


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)
