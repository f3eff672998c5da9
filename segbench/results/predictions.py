"""Predicted label maps in one zip file, one ``<data set>/<case>.npy`` each.

Nothing is pickled, and nothing is extracted to disk.
"""

from __future__ import annotations

import io
import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from segbench.errors import IntegrityError

DATE = (1980, 1, 1, 0, 0, 0)  # the same labels give the same file
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:]{0,99}/[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\.npy")

# All that reading a damaged or forged archive, or the header of an array in it, can raise.
BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


class KeepLabel(Protocol):
    """Stores the label map of a case."""

    def __call__(self, dataset: str, case: str, label: np.ndarray) -> None: ...


@contextmanager
def writer(file: IO[bytes]) -> Iterator[KeepLabel]:
    """Yield a function that adds label maps (*S) uint8 to ``file``."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def keep(dataset: str, case: str, label: np.ndarray) -> None:
            content = io.BytesIO()
            np.lib.format.write_array(
                content, np.ascontiguousarray(label, np.uint8), (1, 0), allow_pickle=False
            )
            info = zipfile.ZipInfo(_name(dataset, case), DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content.getvalue())

        yield keep


def read(path: Path, wanted: Iterable[tuple[str, str, tuple[int, ...]]]) -> Iterator[np.ndarray]:
    """Yield the label maps of (data set, case, shape), in that order.

    Raises:
        IntegrityError: one is missing, or is not a plain array of bytes of that shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for dataset, case, shape in wanted:
                with archive.open(_name(dataset, case)) as file:
                    yield _array(file, shape)
    except BROKEN as error:
        raise IntegrityError("the predictions cannot be read", where=path, found=error) from error


def _name(dataset: str, case: str) -> str:
    name = f"{dataset}/{case}.npy"
    if not NAME.fullmatch(name):
        raise ValueError(f"not a valid name of a prediction: {name[:200]!r}")
    return name


def _array(file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Return the array if its header is the expected one.

    The header is checked first, so that a forged one cannot make us reserve memory.
    """
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another format version")
    found: Any = np.lib.format.read_array_header_1_0(file)
    if found != (tuple(shape), False, np.dtype(np.uint8)):
        raise ValueError(f"an array {found}, expected bytes of shape {tuple(shape)}")
    size = int(np.prod(shape))
    content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"an array of {len(content)} bytes, expected {size}")
    return np.frombuffer(content, np.uint8).reshape(shape)
