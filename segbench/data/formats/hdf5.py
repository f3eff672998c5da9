"""HDF5 files (``.h5``, ``.hdf5``), the form in which preprocessed data sets are often shared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.limits import require_size
from segbench.data.formats.opening import reading, require_file
from segbench.errors import DataError

MAGIC = b"\x89HDF\r\n\x1a\n"


def is_h5(path: Path) -> bool:
    """Return whether a file's name says that it is HDF5."""
    return path.name.lower().endswith((".h5", ".hdf5"))


def read_h5(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of an HDF5 file.

    Raises:
        DataError: the file is cut short, a key is missing or not an array, an array is too large,
            or its values are in another file.
    """
    import h5py

    require_file(path, MAGIC, "HDF5")
    arrays = {}
    with reading(path), h5py.File(path, "r") as file:
        for key in keys:
            if not _is_own_array(file, key):
                raise DataError(
                    f"no array '{key}' in the file",
                    where=path,
                    expected=f"keys {', '.join(keys)}",
                    found=f"keys {', '.join(map(repr, file)) or 'none'}",
                )
            array = file[key]
            require_size(path, array.shape)
            arrays[key] = array[()]
    return arrays


def _is_own_array(file: Any, key: str) -> bool:
    """Return whether the file itself holds the values.

    A link or an external array could make the reader open any file of the machine.
    """
    import h5py

    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        return False
    data = file.get(key)
    return isinstance(data, h5py.Dataset) and not data.external and not data.is_virtual
