"""Replace libraries that the authors' scripts import, but that the comparison does not need.

Progress bars yield one epoch, logs and metrics do nothing. Other libraries are used if they are
installed; if not, their functions can be imported, but not called.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy import ndimage


class OneEpoch:
    """A progress bar over the first item."""

    def __init__(self, items: Iterable[Any], **options: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return islice(self.items, 1)

    def close(self) -> None:
        """Do nothing."""


class NoLog:
    """Accepts every call of a log, and of a metric that is only logged."""

    def __init__(self, *values: Any, **options: Any) -> None: ...

    def __getattr__(self, name: str) -> NoLog:
        return self

    def __call__(self, *values: Any, **options: Any) -> float:
        """Return 0."""
        return 0.0


class InOrder:
    """Applies transforms one after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, sample: Any) -> Any:
        """Return the transformed sample."""
        for transform in self.transforms:
            sample = transform(sample)
        return sample


def label_components(mask: Any, **options: Any) -> np.ndarray:
    """Number the components of a mask, with all neighbors, as scikit-image does by default."""
    everything = np.ones((3,) * np.ndim(mask))
    components: np.ndarray = ndimage.label(mask, structure=everything)[0]
    return components


def inner_boundaries(mask: Any, **options: Any) -> np.ndarray:
    """Return the voxels of a mask that share a face with a voxel outside it."""
    inside = ndimage.binary_erosion(mask, border_value=1)
    boundaries: np.ndarray = np.logical_and(mask, np.logical_not(inside))
    return boundaries


# What the modules offer that replace others, always or if the library is not installed.
ALWAYS: dict[str, dict[str, Any]] = {
    "tensorboardX": {"SummaryWriter": NoLog},
    "tqdm": {"tqdm": OneEpoch},
    "medpy": {"metric": NoLog()},
    "turtle": {},  # imported by mistake, and useless without a display
}
IF_MISSING: dict[str, dict[str, Any]] = {
    "torchvision.transforms": {"Compose": InOrder},
    "skimage.measure": {"label": label_components},
    "skimage.segmentation": {"find_boundaries": inner_boundaries},
}
FINDING = ("_importing_file", "find_spec")
ALIASES = {"bool": bool, "int": int, "float": float}  # names that numpy no longer has


class Unavailable:
    """A function or class of a library that is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *values: Any, **options: Any) -> Any:
        """Explain that the library is missing."""
        library = self.name.partition(".")[0]
        raise ImportError(f"the script calls {self.name}: install {library}")


class Replacement(ModuleType):
    """A module in place of a library."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        full_name = f"{self.__name__}.{name}"
        if full_name in IF_MISSING:
            return importlib.import_module(full_name)
        return Unavailable(full_name)


class Replacements(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds replacements: those of ``ALWAYS`` first, or others last, for a repository only."""

    def __init__(self, repository: Path, always: bool) -> None:
        self.folders = (str(repository), __file__)
        self.always = always

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return where a replacement comes from, if the repository asks for one."""
        if self.always:
            wanted = fullname.partition(".")[0] in ALWAYS
        else:
            # Libraries look for optional ones too, and must not find a replacement.
            wanted = _importing_file().startswith(self.folders)
        if not wanted:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the module with what it offers."""
        module = Replacement(spec.name)
        offers: dict[str, Any] = ALWAYS.get(spec.name, {}) or IF_MISSING.get(spec.name, {})
        for name, value in offers.items():
            setattr(module, name, value)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is complete."""


def _importing_file() -> str:
    """Return the file with the import statement that is being executed."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        is_machinery = file.startswith("<frozen importlib") or "/importlib/" in file
        if not is_machinery and frame.f_code.co_name not in FINDING:
            return file
        frame = frame.f_back
    return ""


def install(repository: Path) -> None:
    """Make the replacements available to the modules of a repository."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ALWAYS:
            del sys.modules[name]
    sys.meta_path.insert(0, Replacements(repository, always=True))
    sys.meta_path.append(Replacements(repository, always=False))
    for name, value in ALIASES.items():
        if not hasattr(np, name):
            setattr(np, name, value)
