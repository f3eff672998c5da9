"""MetaImage files with header and voxels in one (``.mha``).

ITK, 3D Slicer and grand-challenge.org write them. They are not read with SimpleITK, which returns
wrong voxels for a damaged compressed file and only prints a warning.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading, require_file
from segbench.data.formats.volume import Volume
from segbench.data.geometry import Header as Stated
from segbench.data.geometry import header_geometry, millimeters
from segbench.errors import DataError

LONGEST_HEADER = 1 << 16  # bytes
LAST_KEY = "ElementDataFile"  # the voxels begin after its line
TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# Older names of a key come after the one in use.
DIRECTION_KEYS = ("TransformMatrix", "Rotation", "Orientation")
SPACING_KEYS = ("ElementSpacing", "ElementSize")
ORIGIN_KEYS = ("Offset", "Position", "Origin")
UNIT_KEY = "DistanceUnits"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # the format's axes point left, posterior and superior

Header = dict[str, str]


def read_metaimage(path: Path) -> Volume:
    """Read a MetaImage file of two or three axes; several channels become a fourth axis.

    Raises:
        DataError: the file is damaged, cut short or too large, does not hold an image of numbers,
            keeps its voxels in another file or as text, or its orientation cannot be used.
    """
    require_file(path, (b"ObjectType", b"NDims", b"Comment"), "MetaImage")
    with reading(path):
        with open(path, "rb") as file:
            header, start = _header(file.read(LONGEST_HEADER))
            _require_binary_inside(header, path)
            file.seek(start)
            array = _voxels(file, header, path)
        stated = _stated(header, array.shape[:3], path)
    return Volume(array, *header_geometry(stated, path))


def _header(content: bytes) -> tuple[Header, int]:
    """Return keys and values, and the byte at which the voxels begin.

    Raises:
        ValueError: a line is not ``key = value``, or the last key does not come.
    """
    header: Header = {}
    start = 0
    while LAST_KEY not in header:
        end = content.index(b"\n", start)
        line = content[start:end].decode("latin-1")  # comments may hold any byte
        key, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"a line without '=': {key[:40]!r}")
        header[key.strip()] = value.strip()
        start = end + 1
    return header, start


def _require_binary_inside(header: Header, path: Path) -> None:
    if header[LAST_KEY].upper() != "LOCAL":
        raise DataError(
            "the header points to another file",
            where=path,
            expected="header and voxels in one file (.mha)",
        )
    is_binary = _is_true(header, "BinaryData", default="True")
    if not is_binary or int(header.get("HeaderSize", 0)) > 0:
        raise DataError(
            "voxels in a form that cannot be read",
            where=path,
            expected="binary voxels directly after the header",
            fix="write it again with ITK or 3D Slicer",
        )


def _is_true(header: Header, key: str, default: str = "False") -> bool:
    return header.get(key, default).lower() == "true"


def _voxels(file: IO[bytes], header: Header, path: Path) -> np.ndarray:
    """Return voxels (X, Y), (X, Y, Z) or (X, Y, Z, C), read from the file's current position.

    Raises:
        DataError: not two or three axes of numbers, or too many.
        ValueError, KeyError or zlib.error: damaged or cut short.
    """
    shape = tuple(int(size) for size in header["DimSize"].split())
    channels = int(header.get("ElementNumberOfChannels", 1))
    kind = header["ElementType"].upper()
    is_image = len(shape) in (2, 3) and len(shape) == int(header["NDims"]) and min(shape) > 0
    if not is_image or channels < 1 or kind not in TYPES:
        raise DataError(
            "no volume of gray values",
            where=path,
            found=f"shape {shape}, {channels} channels, type {kind}",
            expected="two or three axes and a type that is a number",
        )
    require_size(path, (*shape, channels))
    dtype = np.dtype(TYPES[kind]).newbyteorder(">" if _is_big_endian(header) else "<")
    size = math.prod(shape) * channels * dtype.itemsize
    is_compressed = _is_true(header, "CompressedData")
    voxels = _decompressed(file, size) if is_compressed else file.read(size + 1)
    if len(voxels) != size:
        raise ValueError(f"{len(voxels):,} bytes of voxels where the header needs {size:,}")
    array = np.frombuffer(voxels, dtype).reshape(channels, *shape, order="F")
    array = np.moveaxis(array, 0, -1)
    if channels == 1:
        array = array[..., 0]
    elif len(shape) == 2:
        array = array[:, :, None]
    return array.astype(dtype.newbyteorder("="))


def _is_big_endian(header: Header) -> bool:
    return _is_true(header, "BinaryDataByteOrderMSB") or _is_true(header, "ElementByteOrderMSB")


def _decompressed(file: IO[bytes], size: int) -> bytes:
    """Return at most one byte more than ``size``, however much was packed.

    Raises:
        ValueError or zlib.error: cut short, or the checksum at the end is wrong.
    """
    stream = zlib.decompressobj()
    voxels = stream.decompress(file.read(), size + 1)
    if len(voxels) == size:
        # The checksum is read with the byte that must not come.
        voxels += stream.decompress(stream.unconsumed_tail, 1)
        if not stream.eof:
            raise ValueError("the packed voxels are cut short")
    return voxels


def _stated(header: Header, shape: Sequence[int], path: Path) -> Stated:
    """Return what the header says about space.

    Rows of TransformMatrix are the directions of the axes. Without a spacing, there is no grid in
    mm; without directions, there is no orientation. An image of two axes has a third one of 1 mm.
    """
    axes = int(header["NDims"])
    spacings = {}
    for key, numbers in _numbers(header, SPACING_KEYS, (axes,)).items():
        spacings[key] = np.ones(3)
        spacings[key][:axes] = numbers
    if not spacings:
        return Stated(shape)
    unit = millimeters(header.get(UNIT_KEY, ""), path, UNIT_KEY)
    field, spacing = next(iter(spacings.items()))
    directions = _numbers(header, DIRECTION_KEYS, (axes, axes))
    if not directions:
        matrix = np.diag([*spacing, 1.0])
        return Stated(shape, field, matrix, oriented=False, unit=unit, spacings=spacings)
    direction_field, rows = next(iter(directions.items()))
    turned = np.eye(3)
    turned[:axes, :axes] = rows.T
    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ (turned * spacing)
    for origin in _numbers(header, ORIGIN_KEYS, (axes,)).values():
        affine[:axes, 3] = LPS_TO_RAS[:axes, :axes] @ origin
        break
    fields = f"{direction_field} and {field}"
    return Stated(shape, fields, affine, unit=unit, spacings=spacings)


def _numbers(
    header: Header, keys: tuple[str, ...], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Return the numbers of those keys that the header has, the key in use first."""
    found = {}
    for key in keys:
        if key in header:
            numbers = [float(number) for number in header[key].split()]
            found[key] = np.array(numbers).reshape(shape)
    return found
