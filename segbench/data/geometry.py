"""Orientation of volumes, and the mapping from the voxels of one grid to those of another.

An affine (4, 4) maps voxel indices to millimeters, with axes that point right, anterior and
superior. Grids of one scan that differ by reorientation, resampling or cropping share that space,
so one matrix product leads from the voxels of one grid to the voxels of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

ROUNDING = 1e-2  # voxels: two headers of one grid may differ by this much


def _orientations() -> Any:
    """Return nibabel's module of orientations, imported late because the import is slow."""
    from nibabel import orientations

    return orientations


def orientation_codes(affine: np.ndarray) -> str:
    """Return the nearest anatomical direction of each axis, such as ``RAS``."""
    return "".join(_orientations().aff2axcodes(np.asarray(affine, float)))


def reorient(array: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Transpose and flip the spatial axes to come nearest to ``codes``; nothing is interpolated.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C).
        affine: (4, 4) of the array's grid.
        codes: three directions such as ``RAS``.

    Returns:
        The turned array and its affine.
    """
    orientations = _orientations()
    current = orientations.io_orientation(affine)
    wanted = orientations.axcodes2ornt(codes)
    turn = orientations.ornt_transform(current, wanted)
    turned: np.ndarray = orientations.apply_orientation(array, turn)
    turned_affine: np.ndarray = affine @ orientations.inv_ornt_aff(turn, array.shape[:3])
    return turned, turned_affine


def file_axes(affine: np.ndarray) -> list[int]:
    """Return the axes of the array in the order of the anatomical axes.

    The first one runs nearest to right-left, then anterior-posterior, then superior-inferior.
    """
    directions = _orientations().io_orientation(affine)[:, 0]
    axes = []
    for direction in range(3):
        (axis,) = np.flatnonzero(directions == direction)
        axes.append(int(axis))
    return axes


def translation(offset: Sequence[float]) -> np.ndarray:
    """Return the matrix (4, 4) that moves by ``offset`` voxels.

    ``affine @ translation(start)`` is the affine of a crop that begins at ``start``.
    """
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def sample_on_grid(
    values: np.ndarray,
    affine: np.ndarray,
    target: np.ndarray,
    shape: Sequence[int],
    cropped: bool = False,
) -> np.ndarray:
    """Sample class values of one grid at the voxels of another one.

    Each axis of one grid must run along an axis of the other, as it does after reorienting,
    resampling and cropping. Values are copied where voxels coincide and are interpolated linearly
    elsewhere. Voxels outside the first grid take the nearest value or, if that grid was cropped
    from a scan, are background with probability 1.

    Args:
        values: (K, X, Y, Z) probabilities of the classes on the first grid, background first.
        affine: (4, 4) of the first grid.
        target: (4, 4) of the second grid.
        shape: voxels of the second grid along its axes.
        cropped: whether the first grid covers only a part of the scan.

    Returns:
        (K, *shape) float32.
    """
    target_to_source = np.linalg.inv(affine) @ target
    # Each axis of the first grid runs along one axis of the second.
    target_axes = np.abs(target_to_source[:3, :3]).argmax(1)
    sampled = np.moveaxis(values, 0, -1)
    inside = []
    for axis, target_axis in enumerate(target_axes):
        size = values.shape[1 + axis]
        start = target_to_source[axis, 3]
        step = target_to_source[axis, target_axis]
        positions = _positions(start, step, shape[target_axis])
        inside.append((positions >= -0.5) & (positions <= size - 0.5))
        clipped = np.clip(positions, 0, size - 1)
        sampled = _interpolated(sampled, clipped, axis)
    if cropped:
        covered = np.ones(sampled.shape[:3], bool)
        for axis, inside_axis in enumerate(inside):
            covered &= _along_axis(inside_axis, axis, 3)
        background = np.zeros(len(values))
        background[0] = 1.0
        sampled[~covered] = background
    source_axes = np.argsort(target_axes)
    return np.ascontiguousarray(sampled.transpose(3, *source_axes), dtype=np.float32)


def _positions(start: float, step: float, count: int) -> np.ndarray:
    """Return evenly spaced positions in voxels.

    Positions that miss the center of a voxel only by rounding in the headers become that center.
    """
    positions = start + step * np.arange(count)
    centers = np.rint(positions)
    is_center = np.abs(positions - centers) < ROUNDING
    return np.where(is_center, centers, positions)


def _interpolated(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Return values at fractional positions along one axis, linear between voxels."""
    lower = np.floor(positions).astype(int)
    upper = np.minimum(lower + 1, values.shape[axis] - 1)
    fractions = (positions - lower).astype(np.float32)
    at_lower: np.ndarray = values.take(lower, axis)
    if not fractions.any():
        return at_lower
    at_upper = values.take(upper, axis)
    difference = at_upper - at_lower
    weights = _along_axis(fractions, axis, values.ndim)
    interpolated: np.ndarray = at_lower + weights * difference
    return interpolated


def _along_axis(values: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    """Return values (N) with axes of length 1 added, so that they broadcast along ``axis``."""
    shape = [1] * dimensions
    shape[axis] = len(values)
    return values.reshape(shape)
