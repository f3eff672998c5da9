"""The trackers by name, and whether their packages are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from segbench.errors import PluginError, unknown
from segbench.tracking.base import TrackedRun, Tracker

TRACKERS = ("tensorboard", "wandb", "mlflow")  # each is also the name of a package and an extra


def chosen_trackers(text: str) -> tuple[str, ...]:
    """Return the trackers in a list such as ``tensorboard,wandb``, each once.

    Raises:
        UsageError: one of them is unknown.
        PluginError: the package of one is not installed.
    """
    names = dict.fromkeys(part.strip() for part in text.split(","))
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS, fix="--log tensorboard")
        require_package(name)
    return tuple(names)


def require_package(name: str) -> None:
    """Refuse a tracker whose package is not installed. Nothing is imported.

    Raises:
        PluginError: it is not installed.
    """
    spec = find_spec(name)
    is_folder = spec is not None and spec.origin is None  # such as ./wandb, where W&B keeps files
    if spec is None or is_folder:
        raise PluginError(
            f"the package '{name}' is not installed",
            where=f"tracker {name}",
            found=f"it is not in {sys.prefix}",
            expected="an optional package, installed beside segbench",
            fix=f"pip install 'segbench[{name}]'",
        )


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Return a tracker that has opened a run."""
    if name == "tensorboard":
        from segbench.tracking.tensorboard import TensorBoard

        return TensorBoard(run)
    if name == "wandb":
        from segbench.tracking.wandb import WandB

        return WandB(run)
    from segbench.tracking.mlflow import MLflow

    return MLflow(run)
