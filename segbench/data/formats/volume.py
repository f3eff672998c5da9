"""A volume as its file holds it, and the checks that every volume has to pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segbench.data.formats.limits import limits
from segbench.data.geometry import orientation_codes
from segbench.errors import DataError

SAME_SPACING = 1e-3  # mm
SAME_PLACE = 1e-2  # largest difference between two affines that needs no warning
SINGULAR = 1e-9  # determinant below which the axes of an affine are not independent
WHOLE = 1e-3  # largest distance of a stored label value from a whole number


@dataclass(frozen=True)
class Volume:
    """One image as its file holds it, and what the header says about the scanner's space."""

    # (*S), or (*S, C) if the file has channels; axes in the order of the file, fastest first
    array: np.ndarray
    # (4, 4) voxel to millimeters, right-anterior-superior; None if the file does not say
    affine: np.ndarray | None

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Millimeters between voxels along the three axes, None if the file does not say."""
        return None if self.affine is None else spacing_of(self.affine)


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Return the voxel size along the array's axes in mm: the lengths of the affine's columns."""
    lengths = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return tuple(float(length) for length in lengths)


def check_pair(image: Volume, label: Volume, file: Path, what: str = "label") -> list[str]:
    """Check that a label lies on its image's grid.

    Args:
        image: volume whose grid counts.
        label: volume that must lie on it: a label, or another channel.
        file: file of the second volume, for messages.
        what: what the second volume is, for messages.

    Returns:
        Warnings about differences that are allowed, empty if there are none.

    Raises:
        DataError: the shape, the orientation or the spacing differs (a different spacing is a
            warning if ``limits`` allow it).
    """
    if image.array.shape[:3] != label.array.shape:
        raise DataError(
            f"image and {what} do not match",
            where=file,
            expected=f"the image's shape {image.array.shape[:3]}",
            found=f"{what} {label.array.shape}",
        )
    if image.affine is None or label.affine is None:
        return []
    image_codes = orientation_codes(image.affine)
    label_codes = orientation_codes(label.affine)
    image_spacing = _shown_spacing(image.affine)
    label_spacing = _shown_spacing(label.affine)
    same_orientation = image_codes == label_codes
    same_spacing = np.allclose(
        spacing_of(image.affine), spacing_of(label.affine), atol=SAME_SPACING
    )
    if not same_orientation or not (same_spacing or limits().other_spacing):
        fix = (
            "repair the header; if only the header is wrong and the voxels match: "
            "--allow-affine-mismatch"
        )
        raise DataError(
            f"image and {what} do not match",
            where=file,
            found=f"{what}: spacing {label_spacing}, axes {label_codes}",
            expected=f"as the image: spacing {image_spacing}, axes {image_codes}",
            fix=fix if same_orientation else None,
        )
    if not same_spacing:
        return [
            f"the {what}'s header gives spacing {label_spacing}, the image's {image_spacing}; "
            "matched by voxel index, as allowed"
        ]
    difference = float(np.abs(image.affine - label.affine).max())
    if difference > SAME_PLACE:
        return [
            f"image and {what} differ in origin or direction by up to {difference:.3g}; "
            "matched by voxel index"
        ]
    return []


def _shown_spacing(affine: np.ndarray) -> list[float]:
    rounded: list[float] = np.round(spacing_of(affine), 3).tolist()
    return rounded


def require_affine(affine: np.ndarray, path: Path, fields: str = "qform or sform") -> None:
    """Refuse an affine (4, 4) that cannot belong to a grid.

    Args:
        affine: from the file's header.
        path: the file, for messages.
        fields: names of the header's fields that hold it, for messages.

    Raises:
        DataError: a number is not finite, or the axes are not independent.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < SINGULAR:
        raise DataError(
            "the header's orientation cannot be used",
            where=path,
            found=affine[:3].tolist(),
            expected="three independent axes",
            fix=f"repair {fields}, or convert the file again",
        )


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
