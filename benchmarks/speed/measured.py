"""Save the measurements of the scripts in this folder."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segbench.storage import atomic_write, json_bytes

PACKAGES = ("numpy", "scipy", "medpy", "blosc2", "h5py", "torch")


def save(file: Path, rows: list[dict[str, Any]], note: str = "") -> None:
    """Write rows with the command, the commit, the versions and the machine."""
    here = Path(__file__).resolve().parents[2]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
    ).stdout.strip()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    # Paths of this machine do not belong in a stored result.
    words = [Path(word).name if word.startswith(("/", "..")) else word for word in sys.argv]
    atomic_write(
        file,
        json_bytes(
            {
                "schema": "segbench.speed/1",
                "command": shlex.join(["python", *words]),
                "commit": head,
                "note": note,
                "rows": rows,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
                "versions": versions,
            }
        ),
    )
