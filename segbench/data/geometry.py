"""Geometry of volumes: what a header says, orientation, and the mapping between two grids.

An affine (4, 4) maps voxel indices to millimeters, with axes that point right, anterior and
superior. Grids of one scan that differ by reorientation, resampling or cropping share that space,
so one matrix product leads from the voxels of one grid to the voxels of another.

``header_geometry`` is the only place that decides what the header of a file means, whatever its
format and whichever command reads it. Its warnings begin with the name of what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segbench.data.formats.limits import limits
from segbench.errors import DataError
from segbench.metrics.grid import are_skewed, extended_axes

ROUNDING = 1e-2  # voxels: two headers of one grid may differ by this much
SINGULAR = 1e-6  # volume of a voxel as a share of its box: below, the axes are not independent
# Relative difference of two statements of a spacing.
ROUNDED = 1e-3  # up to here they are equal
TWO_SPACINGS = 0.02  # beyond, the header contradicts itself
OTHER_DIRECTION = 1e-2  # difference of two unit vectors that is no rounding
OTHER_PLACE = 0.1  # voxels: difference of two origins that is no rounding
PLAUSIBLE = (0.005, 100.0)  # mm between the voxels of a medical scan

Steps = Sequence[float] | np.ndarray

UNITS = {  # in mm
    "": 1.0,
    "?": 1.0,
    "unknown": 1.0,
    "mm": 1.0,
    "millimeter": 1.0,
    "um": 1e-3,
    "micron": 1e-3,
    "micrometer": 1e-3,
    "nm": 1e-6,
    "nanometer": 1e-6,
    "cm": 10.0,
    "centimeter": 10.0,
    "m": 1e3,
    "meter": 1e3,
}


@dataclass(frozen=True)
class Header:
    """What the header of a file says about its grid. Fields that say it twice may differ."""

    shape: Sequence[int]  # voxels along the axes in space
    fields: str = ""  # names of the fields that hold the matrix
    matrix: np.ndarray | None = None  # (4, 4) to right, anterior, superior; None: no spacing
    oriented: bool = True  # whether the header says where the axes point
    unit: float = 1.0  # of the matrix, in mm
    # The same in other fields, by their names: whole matrices, and spacings.
    matrices: Mapping[str, np.ndarray] = field(default_factory=dict)
    spacings: Mapping[str, Steps] = field(default_factory=dict)
    # Spacings in fields that are often wrong; the matrix counts.
    hints: Mapping[str, Steps] = field(default_factory=dict)


class Geometry(NamedTuple):
    """What the header of a file means."""

    matrix: np.ndarray | None  # (4, 4) voxel to mm; None if the header gives no spacing
    oriented: bool  # False: the matrix has the spacing only, and the axes are used as they are
    warnings: tuple[str, ...]


def header_geometry(header: Header, path: Path) -> Geometry:
    """Return the grid of a file in mm, and warnings about its header.

    Axes of length 1 have no say in warnings, because their spacing enters no number.

    Raises:
        DataError: the matrix is no grid, or two fields give different spacings (a warning if
            ``limits`` allow it).
    """
    if header.matrix is None:
        return Geometry(None, oriented=False, warnings=())
    matrix = _in_millimeters(header.matrix, header.unit)
    matrix = _with_axes_of_one(matrix, header.shape)
    require_affine(matrix, path, header.fields)
    axes = list(extended_axes(header.shape))
    warnings = _contradictions(header, matrix, axes, path)
    if not header.oriented:
        matrix = np.diag([*spacing_of(matrix), 1.0])
        warnings.append(
            "no orientation: the header gives spacings only, so the axes are used as they are"
        )
    steps = matrix[:3, axes]
    if are_skewed(steps):
        warnings.append(
            f"sheared grid: its axes meet at {_smallest_angle(steps):.1f} degrees; distances are "
            "measured in space, but a network sees the grid as if they were perpendicular"
        )
    if np.isin(np.abs(steps), (0.0, 1.0)).all():
        warnings.append(
            "identity matrix: spacing of exactly 1 x 1 x 1 mm: if the true one was lost, distances "
            "in mm are wrong"
        )
    spacing = np.linalg.norm(steps, axis=0)
    if spacing.min() < PLAUSIBLE[0] or spacing.max() > PLAUSIBLE[1]:
        warnings.append(
            f"implausible spacing: {in_mm(spacing_of(matrix))}: check the unit in the header"
        )
    return Geometry(matrix, header.oriented, tuple(warnings))


def millimeters(unit: str, path: Path, name: str) -> float:
    """Return a unit of length in mm; a header without one means mm.

    Args:
        unit: as the header spells it.
        path: the file, for messages.
        name: the header's field, for messages.

    Raises:
        DataError: the unit is not known.
    """
    spelled = unit.strip().strip('"').lower().replace("\u00b5", "u").replace("\u03bc", "u")
    singular = spelled.removesuffix("s").replace("metre", "meter")
    if singular not in UNITS:
        raise DataError(
            "the header's unit of length is not known",
            where=path,
            found=f"{name} {unit}",
            expected="mm, um, nm, cm or m",
            fix=f"write {name} mm, with the spacing in mm",
        )
    return UNITS[singular]


def require_affine(affine: np.ndarray, path: Path, fields: str = "qform or sform") -> None:
    """Refuse an affine (4, 4) that cannot belong to a grid.

    Args:
        affine: from the file's header.
        path: the file, for messages.
        fields: names of the header's fields that hold it, for messages.

    Raises:
        DataError: a number is not finite, or the axes are not independent.
    """
    axes = np.asarray(affine, float)[:3, :3]
    box = np.prod(np.linalg.norm(axes, axis=0))
    if not np.isfinite(affine).all() or not abs(np.linalg.det(axes)) > SINGULAR * box:
        raise DataError(
            "the header's orientation cannot be used",
            where=path,
            found=affine[:3].tolist(),
            expected="three independent axes",
            fix=f"repair {fields}, or convert the file again",
        )


def spacing_of(affine: np.ndarray) -> tuple[float, ...]:
    """Return the voxel size along the array's axes in mm: the lengths of the affine's columns."""
    lengths = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    return tuple(float(length) for length in lengths)


def in_mm(spacing: Sequence[float]) -> str:
    """Return a spacing in words."""
    return " x ".join(f"{step:.4g}" for step in spacing) + " mm"


def skewed_steps(affine: np.ndarray, axes: int) -> np.ndarray | None:
    """Return the steps (3, N) of the first N axes in mm; None if these are perpendicular."""
    steps = np.asarray(affine, float)[:3, :axes]
    return steps if are_skewed(steps) else None


def _in_millimeters(matrix: np.ndarray, unit: float) -> np.ndarray:
    scaled = np.array(matrix, float)
    if unit != 1.0:
        scaled[:3] *= unit
    return scaled


def _with_axes_of_one(matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return a matrix (4, 4) whose axes of length 1, or missing ones, have a step if they had none.

    Headers of images of two axes often give 0. The step is 1 mm, perpendicular to the others; it
    enters no number.
    """
    complete = matrix.copy()
    for axis in range(3):
        is_one = axis >= len(shape) or shape[axis] == 1
        if is_one and not matrix[:3, axis].any():
            first, second = (other for other in range(3) if other != axis)
            normal = np.cross(complete[:3, first], complete[:3, second])
            length = np.linalg.norm(normal)
            if length > 0:
                complete[:3, axis] = normal / length
    return complete


def _contradictions(
    header: Header, matrix: np.ndarray, axes: Sequence[int], path: Path
) -> list[str]:
    """Return warnings about fields that say something else than the matrix.

    Raises:
        DataError: the spacings differ by more than rounding.
    """
    own = spacing_of(matrix)
    spacings = {name: spacing_of(other) for name, other in header.matrices.items()}
    spacings |= {name: tuple(map(float, steps)) for name, steps in header.spacings.items()}
    warnings = []
    for name, steps in {**spacings, **header.hints}.items():
        stated = tuple(header.unit * step for step in steps)
        difference = max(abs(stated[axis] - own[axis]) / own[axis] for axis in axes)
        if difference <= ROUNDED:
            continue
        found = f"{header.fields} {in_mm(own)}, {name} {in_mm(stated)}"
        is_contradiction = difference > TWO_SPACINGS and name in spacings
        if is_contradiction and not limits().other_spacing:
            raise DataError(
                "two spacings in one header",
                where=path,
                found=found,
                expected="the same spacing in all fields",
                fix=f"write the right one to all of them; if {header.fields} is right: "
                "--allow-affine-mismatch",
            )
        warnings.append(f"two spacings: {found}; {header.fields} counts")
    for name, other in header.matrices.items():
        if _placed_otherwise(matrix, _in_millimeters(other, header.unit)):
            warnings.append(
                f"two orientations: {header.fields} {orientation_codes(matrix)}, {name} "
                f"{orientation_codes(other)}, with other directions or origins; "
                f"{header.fields} counts"
            )
    return warnings


def _placed_otherwise(matrix: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two matrices differ in direction or origin by more than rounding."""
    turned = np.abs(directions_of(matrix) - directions_of(other)).max() > OTHER_DIRECTION
    moved = np.linalg.norm(matrix[:3, 3] - other[:3, 3]) > OTHER_PLACE * max(spacing_of(matrix))
    return bool(turned or moved)


def directions_of(affine: np.ndarray) -> np.ndarray:
    """Return the directions of the axes (3, 3): columns of length 1."""
    directions: np.ndarray = np.asarray(affine, float)[:3, :3] / np.array(spacing_of(affine))
    return directions


def _smallest_angle(steps: np.ndarray) -> float:
    """Return the smallest angle between two columns in degrees, at most 90."""
    directions = steps / np.linalg.norm(steps, axis=0)
    cosines = np.abs(directions.T @ directions)
    np.fill_diagonal(cosines, 0.0)
    return float(np.degrees(np.arccos(cosines.max())))


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
