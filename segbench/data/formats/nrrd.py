"""NRRD files with header and voxels in one (``.nrrd``)."""

from __future__ import annotations

import bz2
import gzip
import math
import shlex
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading, require_file, require_length
from segbench.data.formats.volume import Volume
from segbench.data.geometry import Header, header_geometry, millimeters
from segbench.errors import DataError
from segbench.metrics.grid import are_skewed

LARGEST_TYPE = 8  # bytes of one voxel
NO_UNIT = ("???", "none")  # of an axis that is not in space
TO_RAS = {  # signs that turn a space's axes to right-anterior-superior
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD file.

    An axis without a direction holds channels or layers: it becomes the fourth axis, or is dropped
    if its length is 1. An image of two axes stays one.

    Raises:
        DataError: the file is cut short or too large, its voxels are in another file, or its space
            cannot be used.
    """
    array, header = _load(path)
    channels = _channel_axis(header)
    if channels is not None and channels < array.ndim:
        array = _with_channels_last(array, channels)
    with reading(path):
        stated = _stated(header, array.shape[:3], path)
    return Volume(array, *header_geometry(stated, path))


def _load(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the array (axes in the order of the file, fastest first) and the header."""
    import nrrd

    require_file(path, b"NRRD", "NRRD")
    with reading(path, nrrd.NRRDError, TypeError):
        with open(path, "rb") as file:
            header = nrrd.read_header(file)
            start = file.tell()
            file.seek(0)
            text = file.read(start)
        if "data file" in header or "datafile" in header:
            raise DataError(
                "the header points to another file",
                where=path,
                expected="header and voxels in one file",
            )
        sizes = [int(size) for size in header["sizes"]]
        if min(sizes, default=1) < 1:
            raise ValueError(f"sizes {sizes}")
        require_size(path, sizes)
        _require_unpacked_size(path, start, header, math.prod(sizes) * LARGEST_TYPE)
        array, header = nrrd.read(str(path))
    return array, {**header, **_units_beyond_ascii(text)}


def _units_beyond_ascii(header: bytes) -> dict[str, list[str]]:
    """Return the units of fields with other characters than ASCII.

    pynrrd leaves these characters out, which makes meters of micrometers.
    """
    found = {}
    for line in header.splitlines():
        name, _, value = line.partition(b":")
        if name in (b"units", b"space units") and not value.isascii():
            try:
                text = value.decode("utf-8")
            except UnicodeDecodeError:
                text = value.decode("latin-1")
            found[name.decode()] = shlex.split(text)
    return found


def _require_unpacked_size(path: Path, start: int, header: dict[str, Any], size: int) -> None:
    """Decompress the voxels without keeping them: a file of a few bytes may unpack to any size.

    Other damage is ignored here: pynrrd finds it.

    Raises:
        ValueError: more than ``size`` bytes.
    """
    encoding = str(header.get("encoding", "")).lower()
    if encoding not in ("gzip", "gz", "bzip2", "bz2"):
        return
    skipped_lines = int(header.get("line skip", header.get("lineskip", 0)))
    with open(path, "rb") as file, suppress(OSError, EOFError, zlib.error):
        file.seek(start)
        for _ in range(skipped_lines):
            file.readline()
        with gzip.open(file) if encoding.startswith("gz") else bz2.open(file) as stream:
            require_length(stream, size)


def _channel_axis(header: dict[str, Any]) -> int | None:
    """Return the axis that is not in space, None if there is none or more than one."""
    if header.get("space directions") is not None:
        unknown = np.isnan(np.asarray(header["space directions"], float)).any(axis=1)
    elif header.get("spacings") is not None and len(header["spacings"]) == 4:
        unknown = np.isnan(np.asarray(header["spacings"], float))
    else:
        return None
    axes = np.flatnonzero(unknown)
    return int(axes[0]) if len(axes) == 1 else None


def _with_channels_last(array: np.ndarray, axis: int) -> np.ndarray:
    """Return an array (X, Y), (X, Y, Z) or (X, Y, Z, C)."""
    array = np.moveaxis(array, axis, -1)
    if array.shape[-1] == 1:
        single: np.ndarray = array[..., 0]
        return single
    return array[:, :, None] if array.ndim == 3 else array


def _stated(header: dict[str, Any], shape: Sequence[int], path: Path) -> Header:
    """Return what the header says about space. Directions count, then spacings.

    Raises:
        DataError: numbers that make no grid, or a unit that is not known.
    """
    spacings = None
    if header.get("spacings") is not None:
        steps = np.asarray(header["spacings"], float)
        steps = steps * _units(header, "units", len(steps), path)
        channels = _channel_axis(header)
        spacings = _three(steps if channels is None else np.delete(steps, channels))
    if header.get("space directions") is not None:
        return _of_directions(header, shape, spacings, path)
    if spacings is None:
        return Header(shape)
    return Header(shape, "spacings", np.diag([*spacings, 1.0]), oriented=False)


def _of_directions(
    header: dict[str, Any], shape: Sequence[int], spacings: np.ndarray | None, path: Path
) -> Header:
    directions = np.asarray(header["space directions"], float)
    has_direction = np.isfinite(directions).all(axis=1)  # an axis of channels has none
    directions = directions[has_direction]
    space = str(header.get("space", "")).lower()
    origin = np.asarray(header.get("space origin", (0, 0, 0)), float)
    others = {} if spacings is None else {"spacings": spacings}
    units = _units(header, "space units", directions.shape[1], path)
    in_space = directions * units
    if np.ptp(units) > 0:
        _require_no_new_shear(directions, in_space, path)
    if space not in TO_RAS:
        steps = _three(np.linalg.norm(in_space, axis=1))
        matrix = np.diag([*steps, 1.0])
        return Header(shape, "space directions", matrix, oriented=False, spacings=others)
    count = len(directions)
    if directions.shape not in ((2, 3), (3, 3)) or origin.shape != (3,):
        raise DataError(
            "the header's space cannot be used",
            where=path,
            found=f"space {space}, {count} directions, origin of {origin.size} numbers",
            expected="three directions in left-posterior-superior or right-anterior-superior",
        )
    # The rows of the affine are the axes of the space, each with its unit and direction. An image
    # of two axes has no third direction.
    signs = np.asarray(TO_RAS[space], float)
    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[:3, :count] = signs[:, None] * in_space.T
    affine[:3, 3] = signs * units * origin
    return Header(shape, "space directions and space origin", affine, spacings=others)


def _require_no_new_shear(stated: np.ndarray, in_space: np.ndarray, path: Path) -> None:
    """Refuse units that differ from axis to axis of the space and turn a grid into a sheared one.

    Raises:
        DataError: such units were probably meant for the axes of the image.
    """
    if are_skewed(in_space.T) and not are_skewed(stated.T):
        raise DataError(
            "units that differ from axis to axis of an oblique grid",
            where=path,
            found="space units that make a sheared grid",
            expected="one unit for all axes of the space",
            fix="write the space directions in mm, and space units mm",
        )


def _three(numbers: np.ndarray) -> np.ndarray:
    """Return numbers for three axes; those of an image of two axes get a 1."""
    values = np.ones(3)
    values[: len(numbers)] = numbers[:3]
    return values


def _units(header: dict[str, Any], name: str, count: int, path: Path) -> np.ndarray:
    """Return the units of ``count`` axes in mm; axes without a unit have 1.

    Raises:
        DataError: another number of units, or an unknown one.
    """
    units = [str(text).strip('"') for text in header.get(name) or ()]
    if len(units) not in (0, count):
        raise DataError(
            "the number of units is not that of the axes",
            where=path,
            found=f"{name}: {' '.join(units)}",
            expected=f"{count} units",
            fix=f"write one of the {name} for each axis",
        )
    factors = np.ones(count)
    for axis, unit in enumerate(units):
        if unit not in NO_UNIT:
            factors[axis] = millimeters(unit, path, name)
    return factors
