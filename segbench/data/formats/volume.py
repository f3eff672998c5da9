"""A volume as its file holds it, and the checks that its values have to pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segbench.data.geometry import spacing_of
from segbench.errors import DataError

WHOLE = 1e-3  # largest distance of a stored label value from a whole number


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
            found=", ".join(f"{value:g}" for value in np.unique(label)[:8]),
            fix="map the labels to whole numbers, or repair the file",
        )
    values: np.ndarray = whole.astype(np.uint8)
    return values
