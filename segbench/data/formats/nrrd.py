"""NRRD files with header and voxels in one (``.nrrd``)."""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading, require_file, require_length
from segbench.data.formats.volume import Volume, require_affine
from segbench.errors import DataError

LARGEST_TYPE = 8  # bytes of one voxel
DEFAULT_SPACE = "left-posterior-superior"  # of files that give directions but no space
TO_RAS = {  # signs that turn a space's axes to right-anterior-superior
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}


def read_nrrd(path: Path) -> Volume:
    """Read an NRRD file; a first axis without a direction holds channels and becomes the last axis.

    Raises:
        DataError: the file is cut short or too large, its voxels are in another file, or its space
            cannot be used.
    """
    array, header = _load(path)
    affine = _affine(header, path)
    if array.ndim == 4 and _begins_with_channels(header):
        array = np.moveaxis(array, 0, -1)
    return Volume(array, affine)


def _load(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the array (axes in the order of the file, fastest first) and the header."""
    import nrrd

    require_file(path, b"NRRD", "NRRD")
    with reading(path, nrrd.NRRDError, TypeError):
        with open(path, "rb") as file:
            header = nrrd.read_header(file)
            start = file.tell()
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
    return array, dict(header)


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


def _begins_with_channels(header: dict[str, Any]) -> bool:
    directions = header.get("space directions")
    if directions is None:
        return False
    first_axis = np.asarray(directions, float)[0]
    return bool(np.isnan(first_axis).any())


def _affine(header: dict[str, Any], path: Path) -> np.ndarray | None:
    """Return the affine (4, 4) from voxels to right-anterior-superior mm.

    None if the header has neither directions nor spacings.

    Raises:
        DataError: a space other than left/right, posterior/anterior, superior, or numbers that make
            no grid.
    """
    if header.get("space directions") is not None:
        return _affine_of_directions(header, path)
    if header.get("spacings") is not None:
        return _affine_of_spacings(header, path)
    return None


def _affine_of_spacings(header: dict[str, Any], path: Path) -> np.ndarray:
    spacings = np.asarray(header["spacings"], float)[:3]
    affine = np.eye(4)
    for axis, spacing in enumerate(spacings):
        affine[axis, axis] = spacing
    require_affine(affine, path, "spacings")
    return affine


def _affine_of_directions(header: dict[str, Any], path: Path) -> np.ndarray:
    directions = np.asarray(header["space directions"], float)
    has_direction = np.isfinite(directions).all(axis=1)  # an axis of channels has none
    directions = directions[has_direction]
    space = str(header.get("space", DEFAULT_SPACE)).lower()
    origin = np.asarray(header.get("space origin", (0, 0, 0)), float)
    if space not in TO_RAS or directions.shape != (3, 3) or origin.shape != (3,):
        raise DataError(
            "the header's space cannot be used",
            where=path,
            found=f"space {space}, {len(directions)} directions, origin of {origin.size} numbers",
            expected="three directions in left-posterior-superior or right-anterior-superior",
        )
    to_ras = np.diag(np.asarray(TO_RAS[space], float))
    affine = np.eye(4)
    affine[:3, :3] = to_ras @ directions.T
    affine[:3, 3] = to_ras @ origin
    require_affine(affine, path, "space directions and space origin")
    return affine
