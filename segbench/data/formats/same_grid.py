"""Bring two volumes of one grid together: an image and its label, a prediction and its reference.

The affines are compared as matrices. A volume that is stored with other axes (flipped or permuted)
is turned, which loses nothing. Everything else that differs is a warning or an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import limits
from segbench.data.formats.volume import Volume
from segbench.data.geometry import directions_of, orientation_codes, spacing_of
from segbench.errors import DataError
from segbench.metrics.grid import extended_axes

SAME_STEP = 1e-3  # difference of two steps, as a share of the largest one, that is rounding
TILTED = 2e-2  # the same for steps of equal length: up to here a warning, beyond an error
SAME_ORIGIN = 1e-2  # mm
SAME_PLACE = 0.5  # voxels between the origins of two grids that are stored with other axes
NO_TURN = ((0, 1, 2), (1, 1, 1))

Turn = tuple[tuple[int, ...], tuple[int, ...]]  # order of the axes, and their signs after it


def match(
    first: Volume, second: Volume, file: Path, what: str = "label", whole: str = "image"
) -> tuple[Volume, list[str]]:
    """Return the second volume with its axes stored as those of the first, and warnings.

    Args:
        first: the volume whose grid counts.
        second: the volume (*S) that must lie on the same grid.
        file: file of the second volume, for messages.
        what: what the second volume is, for messages.
        whole: what the first volume is, for messages.

    Raises:
        DataError: the shape, the spacing or the place differs. If ``limits`` allow it, another
            spacing or tilt is a warning, and the voxels are matched by index. A grid that is
            mirrored or permuted, and lies elsewhere, is never matched.
    """
    second = _with_axis_of_one(second, first.array.shape[:3])
    names = (whole, what)
    is_placed = _has_orientation(first) and _has_orientation(second)
    turned = _turned(second, _turn(first, second)) if is_placed else second
    warnings = []
    if first.affine is not None:
        warnings = [f"{what}: {text}" for text in second.warnings if text not in first.warnings]
    if turned.array.shape != first.array.shape[:3]:
        raise DataError(
            f"{whole} and {what} do not match",
            where=file,
            expected=f"the {whole}'s shape {first.array.shape[:3]}",
            found=f"{what} {turned.array.shape}",
        )
    if _is_same_grid(first, turned, is_placed, is_turned=turned is not second):
        return turned, warnings + _pair_warnings(first, second, turned, names)
    if turned is not second or not limits().other_spacing:
        raise _mismatch(first, second, file, names, can_be_allowed=turned is second)
    text = (
        f"the {what}'s header gives {_described(second)}, the {whole}'s {_described(first)}; "
        "matched by voxel index, as allowed"
    )
    return second, [*warnings, text]


def _has_orientation(volume: Volume) -> bool:
    return volume.affine is not None and volume.oriented


def _with_axis_of_one(volume: Volume, shape: Sequence[int]) -> Volume:
    """Return an image of two axes as a volume of one slice, if that is what it is matched with."""
    if volume.array.ndim != 2 or len(shape) != 3 or 1 not in shape:
        return volume
    candidates = [axis for axis, size in enumerate(shape) if size == 1]
    axis = candidates[0]
    for candidate in candidates:  # an image that is one voxel wide has two
        if np.expand_dims(volume.array, candidate).shape == tuple(shape):
            axis = candidate
    affine = volume.affine
    if affine is not None:
        columns = [0, 1]
        columns.insert(axis, 2)
        affine = affine[:, [*columns, 3]]
    return replace(volume, array=np.expand_dims(volume.array, axis), affine=affine)


def _turn(first: Volume, second: Volume) -> Turn:
    """Return how the axes of the second volume come nearest to those of the first."""
    assert first.affine is not None and second.affine is not None
    cosines = directions_of(first.affine).T @ directions_of(second.affine)

    def agreement(order: tuple[int, ...]) -> float:
        return float(np.abs(cosines[(0, 1, 2), order]).sum())

    order = max(permutations(range(3)), key=agreement)
    signs = tuple(1 if cosine >= 0 else -1 for cosine in cosines[(0, 1, 2), order])
    return order, signs


def _turned(volume: Volume, turn: Turn) -> Volume:
    """Return a volume with its axes in another order and direction; no value changes."""
    if turn == NO_TURN or volume.array.ndim != 3:
        return volume
    assert volume.affine is not None
    order, signs = turn
    array = volume.array.transpose(order)
    affine = volume.affine[:, [*order, 3]]
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            affine = affine @ _mirror(axis, array.shape[axis])
    return replace(volume, array=array, affine=affine)


def _mirror(axis: int, size: int) -> np.ndarray:
    """Return the matrix (4, 4) that counts the voxels of an axis from its other end."""
    matrix = np.eye(4)
    matrix[axis, axis] = -1
    matrix[axis, 3] = size - 1
    return matrix


def _is_same_grid(first: Volume, second: Volume, is_placed: bool, is_turned: bool) -> bool:
    """Return whether two volumes of one shape have the same steps.

    Volumes that were stored with other axes must also begin at the same place. Axes of length 1 may
    have any spacing.
    """
    if first.affine is None or second.affine is None:
        return True
    axes = list(extended_axes(first.array.shape[:3]))
    spacing = np.array(spacing_of(first.affine))[axes]
    difference = np.abs(spacing - np.array(spacing_of(second.affine))[axes])
    if difference.max() > SAME_STEP * spacing.max():
        return False
    if not is_placed:
        return True
    is_tilted = _largest_change(first, second) > TILTED * spacing.max()
    is_elsewhere = is_turned and _voxels_apart(first, second) > SAME_PLACE
    return not is_tilted and not is_elsewhere


def _largest_change(first: Volume, second: Volume) -> float:
    """Return the largest difference between the steps of two grids in mm."""
    assert first.affine is not None and second.affine is not None
    axes = list(extended_axes(first.array.shape[:3]))
    change = first.affine[:3, axes] - second.affine[:3, axes]
    return float(np.abs(change).max())


def _voxels_apart(first: Volume, second: Volume) -> float:
    """Return how far apart the first voxels of two grids are, along the axis of most voxels."""
    assert first.affine is not None and second.affine is not None
    axes = list(extended_axes(first.array.shape[:3]))
    offset = second.affine[:3, 3] - first.affine[:3, 3]
    voxels = np.linalg.solve(first.affine[:3, :3], offset)
    return float(np.abs(voxels[axes]).max())


def _mismatch(
    first: Volume, second: Volume, file: Path, names: tuple[str, str], can_be_allowed: bool
) -> DataError:
    whole, what = names
    fix = "repair the header"
    if can_be_allowed:
        fix += "; if only the header is wrong and the voxels match: --allow-affine-mismatch"
    return DataError(
        f"{whole} and {what} do not match",
        where=file,
        found=f"{what}: {_described(second)}",
        expected=f"as the {whole}: {_described(first)}",
        fix=fix,
    )


def _described(volume: Volume) -> str:
    assert volume.affine is not None
    spacing: list[Any] = np.round(spacing_of(volume.affine), 3).tolist()
    if not volume.oriented:
        return f"spacing {spacing}"
    corner = np.round(volume.affine[:3, 3], 3).tolist()
    return f"spacing {spacing}, axes {orientation_codes(volume.affine)} from {corner}"


def _pair_warnings(
    first: Volume, second: Volume, turned: Volume, names: tuple[str, str]
) -> list[str]:
    """Return warnings about two volumes that can be matched."""
    whole, what = names
    if first.affine is None:
        return []
    if first.oriented != _has_orientation(second):
        missing = what if first.oriented else whole
        return [f"only the {missing} has no orientation; matched by voxel index"]
    if not first.oriented:
        return []
    assert first.affine is not None and second.affine is not None and turned.affine is not None
    warnings = []
    if turned is not second:
        warnings.append(
            f"the {what} is stored with axes {orientation_codes(second.affine)}, the {whole} with "
            f"{orientation_codes(first.affine)}; its voxels are turned, without loss"
        )
    change = _largest_change(first, turned)
    if change > SAME_STEP * max(spacing_of(first.affine)):
        warnings.append(
            f"{whole} and {what} differ in direction by up to {change:.3g} mm per voxel; matched "
            "by voxel index"
        )
    distance = float(np.abs(first.affine[:3, 3] - turned.affine[:3, 3]).max())
    if distance > SAME_ORIGIN:
        warnings.append(
            f"{whole} and {what} differ in origin, {distance:.3g} mm apart; matched by voxel index"
        )
    return warnings
