"""The machine settings of the Python API: arguments, then environment, then the user's file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from segbench import registry
from segbench.config import Machine, machine_settings
from segbench.data.links import load_links


class SegbenchWarning(UserWarning):
    """Something that a user should know about a result, and that is no error."""


def warn(text: object) -> None:
    """Issue a warning to the caller of the API."""
    warnings.warn(str(text), SegbenchWarning, stacklevel=3)


def settings(
    root: str | Path | None = None, data_root: str | Path | None = None, device: str | None = None
) -> Machine:
    """Return the machine settings, and register the linked data sets.

    Raises:
        UsageError: a setting has a wrong value.
    """
    machine = machine_settings(os.environ, root=root, data_root=data_root, device=device)
    for problem in load_links(machine.data_root):
        warn(problem)
    return machine


def with_device(machine: Machine) -> Machine:
    """Return the settings with the device that ``auto`` means, and use as many threads as they say.

    Raises:
        PluginError: the device is not available.
    """
    import torch

    from segbench.training.setup import device_of

    if machine.threads != "auto":
        torch.set_num_threads(machine.threads)
    return machine.model_copy(update={"device": device_of(machine.device)})


def add_plugins(files: Iterable[str | Path]) -> tuple[str, ...]:
    """Register plug-in files and return their paths.

    Raises:
        UsageError, PluginError: a file cannot be read or registers nothing.
    """
    added = []
    for file in files:
        path = Path(file).expanduser().resolve()
        registry.add_stored_file(path)
        added.append(str(path))
    return tuple(added)
