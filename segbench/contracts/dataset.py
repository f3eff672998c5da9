"""The contract of a data set: facts as attributes, a split, and how one raw case is read.

The engine does the rest: parallel and atomic preparation, digests, checks, crops. A data set never sees a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


@dataclass
class Case:
    """One prepared volume. ``spacing`` in mm in the order of the spatial axes, None where nobody knows it."""

    id: str
    image: np.ndarray  # (C, *S) float32
    label: np.ndarray | None  # (*S) uint8, None if nobody labelled it
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None  # (4, 4) voxel to world, None where nobody knows it
    group: str | None = None  # patient; None means the case is its own group


@dataclass(frozen=True)
class RawCase:
    """A case found in a source folder, not read yet; ``where`` is whatever ``Dataset.load`` needs, picklable."""

    id: str
    where: Any
    group: str | None = None


@dataclass(frozen=True)
class Split:
    """Case ids in order: the first N of ``train`` are the labelled ones (draw 0)."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    source: str = ""  # who published it


class Dataset:
    """Base of every data set adapter."""

    name: ClassVar[str]
    title: ClassVar[str] = ""
    modality: ClassVar[str] = ""
    classes: ClassVar[tuple[str, ...]] = ()  # foreground classes; label value i + 1 is classes[i]
    channels: ClassVar[int] = 1
    dims: ClassVar[int] = 3
    licence: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()  # what a complete source holds, in words, one line each
    protocol: ClassVar[str] = "default"  # the protocol used when none is named
    labeled: ClassVar[int] = 0  # default number of labelled cases
    embedded: ClassVar[bool] = False  # made by code: needs no source and is prepared on first use
    members: ClassVar[tuple[str, ...]] = ()  # a group: stands for several data sets
    version: ClassVar[int] = 1  # raise when load() changes what it gives


    def split(self) -> Split:
        """The published split, or the data set's own."""
        raise NotImplementedError

    def find(self, source: Path | None) -> list[RawCase]:
        """The cases in a source folder, cheaply (no voxels read). ``source`` is None for embedded data sets.

        Raises:
            DataError: nothing usable there; names what was looked for.
        """
        raise NotImplementedError

    def load(self, raw: RawCase) -> Case:
        """Read one case. Any error it raises is reported with the case's id and file."""
        raise NotImplementedError
