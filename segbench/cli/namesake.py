"""Find another package that Python would import under the name ``segbench``."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import segbench
from segbench.errors import PluginError

OURS = Path(__file__).resolve().parents[1]


def require_own_package() -> None:
    """Refuse to run with the files of two packages mixed in one folder.

    Raises:
        PluginError: ``import segbench`` gives another package, or parts of one.
    """
    loaded = Path(segbench.__file__ or "?").resolve().parent
    if loaded == OURS and hasattr(segbench, "_PUBLIC"):
        return
    raise PluginError(
        "another package is installed under the name 'segbench'",
        where=loaded / "__init__.py",
        found=_describe(loaded),
        expected=f"the package in {OURS}",
        fix=f"{_uninstall(loaded)}, then install this segbench again",
    )


def warning_about_namesakes() -> str | None:
    """Return a warning if another package of this name can be imported; None if there is none.

    Plug-ins, notebooks and processes that are started from another folder could get that one.
    """
    other = next(_others(), None)
    if other is None:
        return None
    return (
        f"another package can be imported as 'segbench': {_describe(other)} in {other}; "
        f"this is the one in {OURS}. To be safe: {_remedy(other)}"
    )


def _others() -> Iterator[Path]:
    """Yield the other packages, or single files, of this name on Python's path."""
    seen = {OURS}
    for entry in ["", *sys.path]:
        place = Path(entry or os.getcwd())
        for file in (place / "segbench" / "__init__.py", place / "segbench.py"):
            if not file.is_file():
                continue
            folder = file.resolve().parent
            found = file.resolve() if file.name == "segbench.py" else folder
            if found not in seen:
                seen.add(found)
                yield found


def _describe(folder: Path) -> str:
    name = _distribution(folder)
    return f"distribution '{name}'" if name else "a package that pip did not install"


def _remedy(folder: Path) -> str:
    if _distribution(folder):
        return f"{_uninstall(folder)}, or use a virtual environment for each"
    return f"rename {folder}, or work in another folder"


def _uninstall(folder: Path) -> str:
    python = shlex.quote(sys.executable)
    return f"{python} -m pip uninstall {_distribution(folder) or 'segbench'}"


def _distribution(folder: Path) -> str:
    """Return the name of the distribution that installed a package; empty if there is none."""
    for distribution in importlib.metadata.distributions(path=[str(folder.parent)]):
        for file in distribution.files or ():
            if file.parts and file.parts[0] in ("segbench", "segbench.py"):
                return str(distribution.metadata["Name"])
    return ""
