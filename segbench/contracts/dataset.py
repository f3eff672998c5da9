"""The contract of a data set: facts as attributes, a split, and how one raw case is read.

The engine does the rest: parallel and atomic preparation, digests, checks and crops. A data set
never sees a network.
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
    """One prepared volume."""

    id: str
    image: np.ndarray  # (C, *S) float32
    label: np.ndarray | None  # (*S) uint8, None if unlabeled
    spacing: tuple[float, ...] | None = None  # mm along the spatial axes, None if unknown
    affine: np.ndarray | None = None  # (4, 4) voxel to world, None if unknown
    group: str | None = None  # patient, None if the case is its own group
    # JSON: facts that preparation found, such as the crop's offset
    made: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawCase:
    """A case found in a source folder and not read yet."""

    id: str
    where: Any  # whatever ``Dataset.load`` needs, picklable
    group: str | None = None


@dataclass(frozen=True)
class Split:
    """Case ids in order: the cases of the first N patients of ``train`` are labeled (draw 0)."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    source: str = ""  # who published it
    val: tuple[str, ...] = ()  # published validation cases, used neither to train nor to test
    notes: tuple[str, ...] = ()  # what must be stated next to its numbers


@dataclass(frozen=True)
class Archive:
    """A file in which the publisher distributes the data."""

    name: str
    url: str = ""  # a stable public address, empty if a person has to ask for the file
    size: str = ""  # in words such as "1.5 GB", if known
    digest: str = ""  # "md5:..." or "sha256:...", if known


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
    archives: ClassVar[tuple[Archive, ...]] = ()  # the same data as it is distributed
    protocol: ClassVar[str] = "default"  # the protocol used if none is named
    labeled: ClassVar[int] = 0  # default number of labeled cases
    embedded: ClassVar[bool] = False  # made by code: needs no source, is prepared on first use
    members: ClassVar[tuple[str, ...]] = ()  # a group: stands for several data sets
    # Stands for the data sets that ``variant`` makes, such as the user's own folders.
    family: ClassVar[bool] = False
    source: ClassVar[Path | None] = None  # set if the data set knows its source folder
    # Data sets of one collection are prepared differently but name a patient in the same way.
    collection: ClassVar[str] = ""
    # Cases are cropped around the label; new scans cannot be.
    boxed: ClassVar[bool] = False
    # Axes of an HDF5 scan in the order in which the prepared cases have them.
    h5_axes: ClassVar[tuple[int, int, int]] = (0, 1, 2)
    version: ClassVar[int] = 1  # raise it when load() returns something else

    @classmethod
    def variant(cls, text: str, settings: dict[str, Any]) -> type[Dataset]:
        """Return the data set ``family:text`` with the user's settings; the registry names it.

        Raises:
            UsageError: this is not a family, or the text or a setting is not valid.
            DataError: what ``text`` names cannot be used.
        """
        raise UsageError(
            f"data set '{cls.name}' has no variants",
            found=f"{cls.name}:{text}",
            fix=f"--dataset {cls.name}",
        )

    def group(self, case: str) -> str:
        """Return the patient of a case.

        Labeled counts count patients, and a patient is never split between lists.
        """
        return case

    def split(self) -> Split:
        """Return the published split, or the data set's own."""
        raise NotImplementedError

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the cases in a source folder without reading voxels.

        Args:
            source: the folder, None for embedded data sets.

        Raises:
            DataError: nothing usable there; names what was looked for.
        """
        raise NotImplementedError

    def add_shared_facts(self, raw: Sequence[RawCase], split: Split) -> list[RawCase]:
        """Add to ``where`` what all cases share, such as a common spacing, and only files show.

        Called once before cases are loaded, possibly in other processes. It may read the training
        cases, but never labels of test cases.
        """
        return list(raw)

    def inputs(self) -> dict[str, Any]:
        """Return the user's choices on which a prepared store depends, as JSON by name.

        A store that was prepared with other choices is refused.
        """
        return {}

    def after_preparation(self) -> None:
        """Do whatever is left after all cases have been prepared; called once."""

    def scan(self, file: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Read a new scan for ``segbench predict`` in the data set's own way.

        The default leaves reading to the engine: by the file's ending, a folder as a DICOM series,
        and an HDF5 file with its axes in the order of ``h5_axes``.

        Args:
            file: a file, or a folder.

        Returns:
            Array (*S) or (*S, C) with its axes in the order of the prepared cases, and its affine
            (4, 4) to right-anterior-superior mm or None if unknown. None means the default.
        """
        return None

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Return gray values (C, *S) of a new scan as ``load`` scales them.

        Called only if no recipe is stored with the cases.
        """
        return image

    def load(self, raw: RawCase) -> Case:
        """Read one case; any error it raises is reported with the case's id and file."""
        raise NotImplementedError
