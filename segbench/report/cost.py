"""What runs cost, from their manifests: where a number was not measured there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean
from typing import Any

from segbench.report.content import Member
from segbench.results.rundir import is_number


@dataclass(frozen=True)
class Cost:
    """Means over the runs of a row, those on a GPU if there are any; nan where nothing was measured."""

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
    everywhere = [m.manifest for m in members]
    on_gpu = [m for m in everywhere if is_number(m.get("gpu_seconds")) and m["gpu_seconds"] > 0]
    manifests = on_gpu or everywhere

    def mean(key: str) -> float:
        values = [m[key] for m in manifests if is_number(m.get(key))]
        return fmean(values) if values else nan

    volumes = [v for v in map(_volumes, manifests) if isfinite(v)]
    return Cost(
        mean("seconds_per_step"),
        fmean(volumes) if volumes else nan,
        mean("gpu_seconds" if on_gpu else "cpu_seconds") / 3600,
        "GPU" if on_gpu else "CPU",
        mean("peak_memory_bytes") / 2**30,
        mean("energy_joules") / 3.6e6,
        mean("parameters"),
        mean("evaluation_seconds"),
    )


def _volumes(manifest: dict[str, Any]) -> float:
    """Mean over the steps of all phases."""
    phases = manifest.get("phases")
    if not isinstance(phases, list) or not all(
        isinstance(p, dict) and is_number(p.get("volumes")) and is_number(p.get("steps"))
        for p in phases
    ):
        return nan
    steps = sum(p["steps"] for p in phases)
    return sum(p["volumes"] * p["steps"] for p in phases) / steps if steps else nan
