"""Save the measurements of the scripts in this folder."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segbench.storage import atomic_write, json_bytes

PACKAGES = ("numpy", "scipy", "medpy", "blosc2", "h5py", "torch")


def save(
    file: Path, rows: list[dict[str, Any]], note: str = "", other: Path | str | None = None
) -> None:
    """Write rows with the command, the commit, the versions and the machine.

    Args:
        other: the other checkout that was measured, or its commit; None if there was none.
    """
    content: dict[str, Any] = {
        "schema": "segbench.speed/1",
        "command": command(),
        "commit": current_commit(),
    }
    if other is not None:
        content["other_commit"] = commit_of(other) if isinstance(other, Path) else other
    content |= {
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
    """Return the commit of this checkout; empty where this is none."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(tree: Path) -> str:
    """Return the commit of a checkout; empty for a folder that is none, also inside of another."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"],
            cwd=tree,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    top, commit = done.stdout.splitlines()
    return commit if Path(top).resolve() == tree.resolve() else ""


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Hand out a folder with the code of a commit."""
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        add = ["git", "worktree", "add", "--detach", "--quiet", str(tree), commit]
        subprocess.run(add, cwd=root, check=True)
        try:
            yield tree
        finally:
            remove = ["git", "worktree", "remove", "--force", str(tree)]
            subprocess.run(remove, cwd=root, check=True)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each package; empty if it is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
