"""Reading foreign volume files for data set adapters: a clear error for every way in which a file can be wrong.

Nothing is allocated before the header's size has been looked at, and a file cannot make the reader open another one.
"""

from __future__ import annotations

import math
import os
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segbench.errors import DataError

MAX_VOXELS = 10**9


def require_file(path: Path, magic: bytes, kind: str) -> None:
    """Check that ``path`` is a regular file that begins with ``magic``.

    Raises:
        DataError: absent, a folder, a pipe, a loop of links, empty, an HTML page or another kind of file.
    """
    expected = f"{kind} file"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise DataError("not a regular file", where=path, found=found, expected=expected)
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DataError("the file cannot be read", where=path, found=error.strerror or error,
                        expected=expected) from error
    if not head.startswith(magic):
        found = "an empty file" if not head else repr(head[:16])
        if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            found = "an HTML page"
        raise DataError(f"not a {kind} file", where=path, found=found, expected=expected,
                        fix="download it again: the server sent a page instead" if found == "an HTML page" else None)


def require_size(path: Path, shape: Sequence[int], most: int = MAX_VOXELS) -> None:
    """Refuse a header that claims more than ``most`` voxels, before anything is allocated.

    Raises:
        DataError: too many voxels.
    """
    if math.prod(int(n) for n in shape) > most:
        raise DataError("the volume is too large", where=path, found="x".join(map(str, shape)),
                        expected=f"at most {most:.0e} voxels")


def read_h5(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The named arrays of an HDF5 file.

    Raises:
        DataError: truncated, a key is absent or not an array, too large, or it points to another file.
    """
    import h5py

    require_file(path, b"\x89HDF\r\n\x1a\n", "HDF5")
    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for key in keys:
                link = file.get(key, getlink=True)
                data = file.get(key) if isinstance(link, h5py.HardLink) else None
                if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
                    raise DataError(f"no array '{key}' in the file", where=path, expected=f"keys {', '.join(keys)}",
                                    found=f"keys {', '.join(map(repr, file)) or 'none'}")
                require_size(path, data.shape)
                arrays[key] = data[()]
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error
    return arrays


def read_nrrd(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Array (axes in the file's order, fastest first) and header of an NRRD file.

    Raises:
        DataError: truncated, too large, or its voxels are in another file.
    """
    import nrrd

    require_file(path, b"NRRD", "NRRD")
    try:
        header = nrrd.read_header(str(path))
        if "data file" in header or "datafile" in header:
            raise DataError("the header points to another file", where=path, expected="header and voxels in one file")
        sizes = [int(n) for n in header["sizes"]]
        if any(n < 1 for n in sizes):
            raise ValueError(f"sizes {sizes}")
        require_size(path, sizes)
        array, header = nrrd.read(str(path))
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, zlib.error, nrrd.NRRDError) as error:
        raise _damaged(path, error) from error
    return array, dict(header)


def _damaged(path: Path, error: Exception) -> DataError:
    message = " ".join(str(error).split())[:200]
    return DataError("the file is damaged or cut short", where=path, expected="a whole file",
                     found=f"{message} ({os.path.getsize(path):,} bytes)", fix="copy or download it again")
