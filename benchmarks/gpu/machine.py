"""Where a measurement was made, and how its result is written."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
from segbench.benchmarks.speed.measured import command, current_commit, versions

from segbench.identity.engine import ENGINE
from segbench.storage import atomic_write, json_bytes

PACKAGES = ("torch", "numpy", "scipy", "triton")


def facts(device: str, seed: int, commit: str = "") -> dict[str, Any]:
    """Return the command, commit, machine, versions and seed of a measurement.

    Args:
        device: cpu or cuda.
        seed: of the weights and of everything drawn.
        commit: used where the folder is no git checkout.
    """
    found: dict[str, Any] = {
        "command": command(),
        "commit": current_commit() or commit or "unknown",
        "engine": ENGINE,
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "versions": versions(PACKAGES),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a result at once and completely, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json_bytes(content))
