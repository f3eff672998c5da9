"""A volume as its file holds it, and the checks that its values have to pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from segbench.data.geometry import spacing_of
from segbench.errors import DataError

WHOLE = 1e-3  # largest distance of a stored label value from a whole number
FEW_VALUES = 8  # a label map with at most this many values is never taken for an image
MOST_ALIKE = 0.5  # share of equal neighbors above which a map of many values is no image
NO_LABEL = "the file looks like a gray scan, not like a label map: put the label there"


@dataclass(frozen=True)
class Volume:
    """One image as its file holds it, and what the header says about the scanner's space."""

    # (*S), or (*S, C) if the file has channels; axes in the order of the file, fastest first
    array: np.ndarray
    # (4, 4) voxel to millimeters, right-anterior-superior; None if the file does not say
    affine: np.ndarray | None
    oriented: bool = True  # False: the affine has the spacing only
    warnings: tuple[str, ...] = ()  # about the header

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimeters between voxels along the three axes, None if the file does not say."""
        return None if self.affine is None else spacing_of(self.affine)


def as_one_slice(volume: Volume) -> Volume:
    """Return an image of two axes as a volume of one slice; other volumes stay as they are."""
    if volume.array.ndim != 2:
        return volume
    return replace(volume, array=volume.array[:, :, None])


def require_finite(array: np.ndarray, path: Path | None = None) -> None:
    """Refuse NaN and infinite gray values, also those that overflow in float32.

    A single one would make a whole normalized volume NaN.

    Raises:
        DataError: gives the number of such voxels and the index of the first one.
    """
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False))
    if finite.all():
        return
    first = tuple(int(index) for index in np.unravel_index((~finite).argmax(), finite.shape))
    raise DataError(
        "NaN or infinite gray values",
        where=path,
        found=f"{(~finite).sum():,} voxels, the first at {first}",
        expected="finite gray values",
        fix="repair the file, or remove the case",
    )


def looks_like_image(labels: np.ndarray) -> bool:
    """Return whether a label map has so many values, so mixed, that it looks like a gray scan."""
    if len(np.unique(labels)) <= FEW_VALUES:
        return False
    equal = 0
    pairs = 0
    for axis in range(labels.ndim):
        slices = np.moveaxis(labels, axis, 0)
        first = slices[:-1]
        second = slices[1:]
        inside = (first != 0) & (second != 0)
        pairs += int(np.count_nonzero(inside))
        equal += int(np.count_nonzero(inside & (first == second)))
    return equal < MOST_ALIKE * pairs


def holds_value(label: np.ndarray, values: Iterable[int]) -> np.ndarray:
    """Return where a label map of any type has one of some whole values."""
    found = np.zeros(label.shape, bool)
    for value in values:
        found |= np.abs(label - float(value)) < WHOLE
    return found


def whole_labels(label: np.ndarray, path: Path, expected: str) -> np.ndarray:
    """Return label values as uint8, whatever type they are stored in.

    Which of these values are allowed is checked later.

    Args:
        label: values of any type.
        path: the file, for messages.
        expected: which values the data set has, for messages.

    Raises:
        DataError: fractions, NaN, or values below 0 or above 255.
    """
    whole = np.rint(label)
    is_whole = np.abs(label - whole).max(initial=0) < WHOLE  # False for NaN
    if not is_whole or whole.min() < 0 or whole.max() > 255:
        raise DataError(
            "label values are not whole numbers from 0 to 255",
            where=path,
            expected=expected,
            found=", ".join(f"{value:g}" for value in np.unique(label)[:FEW_VALUES]),
            fix=_fix_of_values(whole)
            if is_whole
            else "map them to whole numbers, or repair the file",
        )
    values: np.ndarray = whole.astype(np.uint8)
    return values


def _fix_of_values(whole: np.ndarray) -> str:
    """Return what to do about label values that are whole numbers below 0 or above 255."""
    if looks_like_image(whole):
        return NO_LABEL
    outside = np.unique(whole[(whole < 0) | (whole > 255)])
    if len(np.unique(whole)) <= 2 and outside.max() > 0:
        return f"if {outside.max():.0f} is a class: write 1 instead of it"
    options = " ".join(f"--ignore {value:.0f}" for value in outside[:FEW_VALUES])
    return (
        "map the labels to other numbers; for voxels to leave out: "
        f"segbench data link PATH --as NAME {options}"
    )
