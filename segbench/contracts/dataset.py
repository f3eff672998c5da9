"""The contract of a data set: facts as attributes, a split, and how one raw case is read.

The engine does the rest: parallel and atomic preparation, digests, checks, crops. A data set never sees a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segbench.errors import UsageError


@dataclass
class Case:
    """One prepared volume. ``spacing`` in mm in the order of the spatial axes, None where nobody knows it."""

    id: str
    image: np.ndarray  # (C, *S) float32
    label: np.ndarray | None  # (*S) uint8, None if nobody labeled it
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None  # (4, 4) voxel to world, None where nobody knows it
    group: str | None = None  # patient; None means the case is its own group
    made: dict[str, Any] = field(
        default_factory=dict
    )  # JSON: what the preparation found, such as the crop's offset


@dataclass(frozen=True)
class RawCase:
    """A case found in a source folder, not read yet; ``where`` is whatever ``Dataset.load`` needs, picklable."""

    id: str
    where: Any
    group: str | None = None


@dataclass(frozen=True)
class Split:
    """Case ids in order: the cases of the first N patients of ``train`` are the labeled ones (draw 0)."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    source: str = ""  # who published it
    val: tuple[str, ...] = ()  # known, and used neither for training nor for testing
    notes: tuple[str, ...] = ()  # what must be said next to numbers from it


@dataclass(frozen=True)
class Archive:
    """A file that holds the data as its publisher gives it out."""

    name: str
    url: str = ""  # a stable public address; empty where a person has to ask for the file
    size: str = ""  # in words such as "1.5 GB", where known
    digest: str = ""  # "md5:..." or "sha256:...", where known


class Dataset:
    """Base of every data set adapter."""

    name: ClassVar[str]
    title: ClassVar[str] = ""
    modality: ClassVar[str] = ""
    classes: ClassVar[tuple[str, ...]] = ()  # foreground classes; label value i + 1 is classes[i]
    channels: ClassVar[int] = 1
    dims: ClassVar[int] = 3
    license: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()  # what a complete source holds, in words, one line each
    archives: ClassVar[tuple[Archive, ...]] = ()  # the same as it is given out
    protocol: ClassVar[str] = "default"  # the protocol used when none is named
    labeled: ClassVar[int] = 0  # default number of labeled cases
    embedded: ClassVar[bool] = False  # made by code: needs no source and is prepared on first use
    members: ClassVar[tuple[str, ...]] = ()  # a group: stands for several data sets
    family: ClassVar[bool] = (
        False  # stands for data sets that ``variant`` makes, such as those of the user
    )
    source: ClassVar[Path | None] = None  # a data set of a folder knows its source
    collection: ClassVar[str] = (
        ""  # data sets of one collection, cut in other ways, call a patient by the same name
    )
    boxed: ClassVar[bool] = (
        False  # its cases are cut to a box around the label, which a new scan has not
    )
    h5_axes: ClassVar[tuple[int, int, int]] = (
        0,
        1,
        2,
    )  # axes of an HDF5 scan in the order that its cases have
    version: ClassVar[int] = 1  # raise when load() changes what it gives

    @classmethod
    def variant(cls, text: str, settings: dict[str, Any]) -> type[Dataset]:
        """The data set ``family:text`` with the user's settings; the registry gives it its name.

        Raises:
            UsageError: this is no family, or the text or a setting makes no sense.
            DataError: what ``text`` names cannot be used.
        """
        raise UsageError(
            f"data set '{cls.name}' has no variants",
            found=f"{cls.name}:{text}",
            fix=f"--dataset {cls.name}",
        )

    def group(self, case: str) -> str:
        """The patient of a case. Labeled counts count patients, and no patient is ever split."""
        return case

    def split(self) -> Split:
        """The published split, or the data set's own."""
        raise NotImplementedError

    def find(self, source: Path | None) -> list[RawCase]:
        """The cases in a source folder, cheaply (no voxels read). ``source`` is None for embedded data sets.

        Raises:
            DataError: nothing usable there; names what was looked for.
        """
        raise NotImplementedError

    def settle(self, raw: Sequence[RawCase], split: Split) -> list[RawCase]:
        """Write into ``where`` what all cases share and only their files tell, such as a common spacing.

        Called once before cases are loaded, possibly in other processes. It may read the training cases, never labels of
        test cases.
        """
        return list(raw)

    def inputs(self) -> dict[str, Any]:
        """What the user chose and a prepared store depends on, as JSON by name: a store with other choices is refused."""
        return {}

    def prepared(self) -> None:
        """Called once after all cases have been prepared."""

    def scan(self, file: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Read a new scan for ``segbench predict`` in a way of the data set's own; ``file`` may be a folder.

        Returns:
            Array (*S) or (*S, C) with its axes in the order of the prepared cases, and its affine (4, 4) to
            right-anterior-superior mm or None if unknown. None, the default, leaves reading to the engine: by the
            file's ending, a folder as a DICOM series, and the axes of an HDF5 file in the order of ``h5_axes``.
        """
        return None

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Gray values (C, *S) of a new scan as ``load`` gives them; asked only where no recipe is stored with the cases."""
        return image

    def load(self, raw: RawCase) -> Case:
        """Read one case. Any error it raises is reported with the case's id and file."""
        raise NotImplementedError
