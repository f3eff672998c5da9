"""Name DICOM series with several images at a position: phases, echoes, b-values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from segbench.errors import DataError

SAME_PLACE = 1e-3  # mm
# Fields that usually tell such images apart, the most specific first.
MARKS = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "DiffusionBValue",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "ContrastBolusAgent",
    "AcquisitionNumber",
    "ImageType",
    "AcquisitionTime",
    "ContentTime",
)


def require_one_phase(slices: list[Any], folder: Path) -> None:
    """Refuse a series in which every position repeats: it is several volumes.

    Args:
        slices: headers with an ``ImagePositionPatient`` each, in any order.

    Raises:
        DataError: several images lie at each position.
    """
    positions = _positions(slices)
    counts = Counter(positions)
    fewest = min(counts.values())
    most = max(counts.values())
    if fewest == 1:
        return
    number = str(most) if fewest == most else f"{fewest} to {most}"
    found = f"{number} images at each of {len(counts)} positions"
    mark = _distinguishing_mark(slices, positions)
    if mark is not None:
        found += f"; they differ in {mark}"
    raise DataError(
        "a DICOM series has several images at each position, such as phases, echoes or b-values",
        where=folder,
        found=found,
        expected="one image at each position",
        fix="move the files of each phase into a folder of its own and choose one",
    )


def _positions(slices: list[Any]) -> list[tuple[int, ...]]:
    positions = []
    for header in slices:
        position = np.asarray(header.ImagePositionPatient, float)
        positions.append(tuple(np.round(position / SAME_PLACE).astype(int).tolist()))
    return positions


def _distinguishing_mark(slices: list[Any], positions: list[tuple[int, ...]]) -> str | None:
    """Return the first field whose values differ within each position, with its values."""
    for name in MARKS:
        values = [str(header.get(name, "")) for header in slices]
        pairs = set(zip(positions, values, strict=True))
        different = sorted(set(values))
        if "" not in different and len(pairs) == len(slices):
            shown = ", ".join(different[:4])
            more = ", ..." if len(different) > 4 else ""
            return f"{name}: {shown}{more}"
    return None
