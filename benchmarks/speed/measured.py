"""Save the measurements of the scripts in this folder."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segbench.storage import atomic_write, json_bytes

PACKAGES = ("numpy", "scipy", "medpy", "blosc2", "h5py", "torch")


def save(file: Path, rows: list[dict[str, Any]], note: str = "") -> None:
    """Write rows with the command, the commit, the versions and the machine."""
    content = {
        "schema": "segbench.speed/1",
        "command": command(),
        "commit": current_commit(),
        "note": note,
        "rows": rows,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": versions(PACKAGES),
    }
    atomic_write(file, json_bytes(content))


def command() -> str:
    """Return the command of this process without paths of this machine."""
    words = [Path(word).name if word.startswith(("/", "..")) else word for word in sys.argv]
    return shlex.join(["python", *words])


def current_commit() -> str:
    """Return the commit that is checked out; empty where this is no checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each package; empty if it is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
