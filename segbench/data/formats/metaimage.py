"""MetaImage files with header and voxels in one (``.mha``), as ITK, Slicer and grand-challenge write them.

Read here and not by SimpleITK, which gives wrong voxels for a damaged compressed file and only prints a line.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.errors import DataError

HEAD = 1 << 16  # bytes within which the header must end
LAST = "ElementDataFile"  # the header's last key
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
TO_RAS = np.diag([-1.0, -1.0, 1.0])  # the format's space is left-posterior-superior


def read_metaimage(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels, axes in the file's order, channels last if there are several; and the affine (4, 4) to RAS mm.

    Raises:
        DataError: not three axes, too large, voxels elsewhere or as text, or a type that is no number.
        ValueError, KeyError, OSError or zlib.error: damaged or cut short.
    """
    with open(path, "rb") as file:
        header = _header(file.read(HEAD), path)
        shape = tuple(int(n) for n in header["DimSize"].split())
        channels, kind = (
            int(header.get("ElementNumberOfChannels", 1)),
            header["ElementType"].upper(),
        )
        if len(shape) != 3 or min(shape) < 1 or channels < 1 or kind not in TYPES:
            raise DataError(
                "no volume of gray values",
                where=path,
                found=f"shape {shape}, {channels} channels, type {kind}",
                expected="three axes and a type that is a number",
            )
        require_size(path, (*shape, channels))
        big = _yes(header, "BinaryDataByteOrderMSB") or _yes(header, "ElementByteOrderMSB")
        dtype = np.dtype(TYPES[kind]).newbyteorder(">" if big else "<")
        size = math.prod(shape) * channels * dtype.itemsize
        file.seek(header["start"])
        voxels = _unpacked(file, size) if _yes(header, "CompressedData") else file.read(size + 1)
    if len(voxels) != size:
        raise ValueError(f"{len(voxels):,} bytes of voxels where the header needs {size:,}")
    array = np.frombuffer(voxels, dtype).reshape(*shape[::-1], channels).transpose(2, 1, 0, 3)
    return array.astype(dtype.newbyteorder("=")) if channels > 1 else array[..., 0].astype(
        dtype.newbyteorder("=")
    ), _affine(header)


def _header(content: bytes, path: Path) -> dict[str, Any]:
    """Keys and values, and under ``start`` where the voxels begin."""
    header: dict[str, Any] = {}
    start = 0
    while LAST not in header:
        end = content.index(b"\n", start)
        key, equals, value = content[start:end].decode("ascii").partition("=")
        if not equals:
            raise ValueError(f"a line without '=': {key[:40]!r}")
        header[key.strip()], start = value.strip(), end + 1
    if header[LAST].upper() != "LOCAL":
        raise DataError(
            "the header points to another file",
            where=path,
            expected="header and voxels in one file (.mha)",
        )
    if header.get("BinaryData", "True").lower() != "true" or int(header.get("HeaderSize", 0)) > 0:
        raise DataError(
            "voxels in a form that is not read",
            where=path,
            expected="binary voxels right behind the header",
            fix="write it again with ITK or 3D Slicer",
        )
    return {**header, "start": start}


def _yes(header: dict[str, Any], key: str) -> bool:
    return str(header.get(key, "False")).lower() == "true"


def _unpacked(file: Any, size: int) -> bytes:
    """Never more than one byte beyond ``size``, whatever was packed; the checksum at the end is looked at."""
    stream = zlib.decompressobj()
    voxels = stream.decompress(file.read(), size + 1)
    if len(voxels) == size:
        voxels += stream.decompress(stream.unconsumed_tail, 1)
        if not stream.eof:
            raise ValueError("the packed voxels are cut short")
    return voxels


def _affine(header: dict[str, Any]) -> np.ndarray:
    """Rows of TransformMatrix are the directions of the axes."""

    def numbers(keys: tuple[str, ...], default: str) -> np.ndarray:
        return np.array(
            [float(n) for n in next((header[k] for k in keys if k in header), default).split()]
        )

    axes = numbers(("TransformMatrix", "Rotation", "Orientation"), "1 0 0 0 1 0 0 0 1").reshape(
        3, 3
    )
    spacing = numbers(("ElementSpacing", "ElementSize"), "1 1 1").reshape(3)
    affine = np.eye(4)
    affine[:3, :3] = TO_RAS @ (axes.T * spacing)
    affine[:3, 3] = TO_RAS @ numbers(("Offset", "Position", "Origin"), "0 0 0").reshape(3)
    return affine
