"""What runs cost, from their manifests; what was not measured is nan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean
from typing import Any

from segbench.results.finished import FinishedRun
from segbench.results.rundir import is_number


@dataclass(frozen=True)
class RowCost:
    """Means over the runs of a row, or over those on a GPU if there are any."""

    seconds_per_step: float
    volumes: float  # that go through a network in a training step
    hours: float  # of training, on one device
    kind: str  # "GPU" or "CPU"
    peak_gib: float
    kwh: float  # of training
    parameters: float
    evaluation_seconds: float


def cost_of(runs: Sequence[FinishedRun]) -> RowCost:
    """Return the cost of a row."""
    manifests = [run.manifest for run in runs]
    on_gpu = [manifest for manifest in manifests if _ran_on_gpu(manifest)]
    if on_gpu:
        manifests = on_gpu

    def mean(key: str) -> float:
        values = [manifest[key] for manifest in manifests if is_number(manifest.get(key))]
        return fmean(values) if values else nan

    volumes = [value for value in map(_volumes, manifests) if isfinite(value)]
    return RowCost(
        seconds_per_step=mean("seconds_per_step"),
        volumes=fmean(volumes) if volumes else nan,
        hours=mean("gpu_seconds" if on_gpu else "cpu_seconds") / 3600,
        kind="GPU" if on_gpu else "CPU",
        peak_gib=mean("peak_memory_bytes") / 2**30,
        kwh=mean("energy_joules") / 3.6e6,
        parameters=mean("parameters"),
        evaluation_seconds=mean("evaluation_seconds"),
    )


def _ran_on_gpu(manifest: dict[str, Any]) -> bool:
    seconds = manifest.get("gpu_seconds")
    return is_number(seconds) and seconds > 0


def _volumes(manifest: dict[str, Any]) -> float:
    """Return the mean over the steps of all phases."""
    phases = manifest.get("phases")
    if not isinstance(phases, list) or not all(map(_is_phase, phases)):
        return nan
    steps = sum(phase["steps"] for phase in phases)
    volumes = sum(phase["volumes"] * phase["steps"] for phase in phases)
    return volumes / steps if steps else nan


def _is_phase(phase: object) -> bool:
    return (
        isinstance(phase, dict)
        and is_number(phase.get("volumes"))
        and is_number(phase.get("steps"))
    )
