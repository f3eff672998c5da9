"""The grid of two masks: the axes along which surfaces and distances are taken, and their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Version of the rule for axes of length 1. Rule 1 kept them, so that every voxel of a volume of one
# slice counted as surface; its records carry no version. Rule 2 drops them.
SURFACE_RULE = 2
# Cosine of the angle between two axes beyond which distances need the whole matrix.
SKEWED = 1e-3


@dataclass(frozen=True)
class Grid:
    """The voxels of two masks, and how far apart they are.

    Axes of length 1 are not extended: surfaces and distances leave them out, with their spacing.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None  # one step per axis of the shape, None: voxels
    # (n, n) upper triangular: columns are the steps of the n extended axes. None if these axes are
    # perpendicular, so that the spacing says everything.
    skewed: tuple[tuple[float, ...], ...] | None = None

    @property
    def extended(self) -> tuple[int, ...]:
        """Axes along which surfaces and distances are taken."""
        return extended_axes(self.shape)

    @property
    def is_flat(self) -> bool:
        """Whether axes are left out."""
        return len(self.extended) < len(self.shape)

    @property
    def extended_spacing(self) -> tuple[float, ...] | None:
        """Steps of the extended axes."""
        if self.spacing is None:
            return None
        return tuple(self.spacing[axis] for axis in self.extended)

    def extended_part(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array of this shape without the axes that are left out."""
        if not self.is_flat:
            return array
        return array.reshape([self.shape[axis] for axis in self.extended])


def extended_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes with more than one voxel; the last axis if there is none."""
    axes = tuple(axis for axis, size in enumerate(shape) if size > 1)
    return axes or (len(shape) - 1,)


def checked_grid(shape: tuple[int, ...], spacing: ArrayLike | None) -> Grid:
    """Return the grid of masks of a shape.

    Args:
        shape: voxels along each axis.
        spacing: one step per axis; or a matrix (M, N) whose columns are the steps of the N axes in
            space, which need not be perpendicular; or None for voxels.

    Raises:
        ValueError: another number of axes, or a step that is not finite and positive.
    """
    if spacing is None:
        return Grid(shape, None)
    given = np.asarray(spacing, dtype=np.float64)
    steps = given if given.ndim == 2 else None
    lengths = np.ravel(given) if steps is None else np.linalg.norm(steps, axis=0)
    values = tuple(float(length) for length in lengths)
    if len(values) != len(shape):
        raise ValueError(
            f"spacing {values} has {len(values)} values, expected one per axis: {len(shape)}"
        )
    if not all(np.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"spacing must be finite and > 0 along every axis, found {values}")
    if steps is None:
        return Grid(shape, values)
    return Grid(shape, values, _skewed(steps[:, extended_axes(shape)]))


def _skewed(steps: NDArray[np.float64]) -> tuple[tuple[float, ...], ...] | None:
    """Return steps as an upper triangle of the same lengths and angles; None if perpendicular."""
    if not are_skewed(steps):
        return None
    try:
        triangle = np.linalg.cholesky(steps.T @ steps).T
    except np.linalg.LinAlgError as error:
        raise ValueError(f"the axes are not independent, found steps {steps.tolist()}") from error
    return tuple(tuple(row) for row in triangle.tolist())


def are_skewed(steps: NDArray[np.float64]) -> bool:
    """Return whether two of the columns (M, N) are not perpendicular."""
    directions = steps / np.linalg.norm(steps, axis=0)
    cosines = directions.T @ directions
    return bool(np.abs(cosines - np.diag(np.diag(cosines))).max(initial=0) > SKEWED)


def longest_distance(record: Mapping[str, Any], in_voxels: bool) -> float:
    """Return the diagonal of a record's volume, in voxels or in the unit of its spacing.

    Axes of length 1 count in records of rule 1 only.
    """
    shape = record["shape"]
    axes: Sequence[int] = range(len(shape))
    if record.get("surface_rule"):
        axes = extended_axes(shape)
    sizes = [shape[axis] for axis in axes]
    if in_voxels:
        return sqrt(sum(size**2 for size in sizes))
    skewed = record.get("skewed")
    if skewed:
        return _longest_skewed(sizes, np.reshape(skewed, (len(sizes), -1)))
    spacing = record["spacing"]
    return sqrt(sum((shape[axis] * spacing[axis]) ** 2 for axis in axes))


def _longest_skewed(sizes: Sequence[int], steps: NDArray[np.float64]) -> float:
    """Return the longest of the diagonals of a box whose axes are not perpendicular."""
    corners = np.indices((2,) * len(sizes)).reshape(len(sizes), -1)
    diagonals = steps @ (np.array(sizes)[:, None] * (1 - 2 * corners))
    return float(np.linalg.norm(diagonals, axis=0).max())


def is_of_older_rule(record: Mapping[str, Any]) -> bool:
    """Return whether a stored record has distances of an older rule for axes of length 1."""
    shape = record.get("shape") or ()
    return 1 in shape and not record.get("surface_rule")
