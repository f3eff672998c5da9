"""Opening files that other programs wrote: right kind, undamaged, no larger than announced."""

from __future__ import annotations

import bz2
import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segbench.errors import DataError

BLOCK = 1 << 20  # bytes that are decompressed at a time
HEAD = 64  # bytes that show what kind of file it is
LONGEST_MESSAGE = 200  # characters of a decoder's own message
DECODING_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    OverflowError,
    zlib.error,
)
WEB_PAGE = "an HTML page"


def require_file(path: Path, magic: bytes | tuple[bytes, ...], kind: str) -> None:
    """Check that ``path`` is a regular file that begins with ``magic``.

    Args:
        path: the file.
        magic: first bytes of files of this kind, or several alternatives.
        kind: name of the format, for messages.

    Raises:
        DataError: the file is missing, a folder, a pipe, a loop of links, empty, an HTML page or of
            another kind.
    """
    expected = f"{kind} file"
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
            raise DataError("not a regular file", where=path, found=found, expected=expected)
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=path, found=error.strerror or error, expected=expected
        ) from error
    if head.startswith(magic):
        return
    found = _described(head)
    fix = None
    if found == WEB_PAGE:
        fix = "download it again: the server sent a web page instead"
    raise DataError(f"not a {kind} file", where=path, found=found, expected=expected, fix=fix)


def _described(head: bytes) -> str:
    """Return in words what the first bytes of a file show."""
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return WEB_PAGE
    return repr(head[:16])


@contextmanager
def reading(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Report whatever a decoder raises as a damaged file.

    Args:
        path: the file that is read.
        others: errors of this decoder beside those that all decoders raise.

    Raises:
        DataError: the file is damaged or cut short; gives the decoder's message and the file's
            size.
    """
    damage: tuple[type[Exception], ...] = (*DECODING_ERRORS, *others)
    try:
        yield
    except damage as error:
        message = " ".join(str(error).split())[:LONGEST_MESSAGE]
        raise DataError(
            "the file is damaged or cut short",
            where=path,
            expected="a whole file",
            found=f"{message} ({os.path.getsize(path):,} bytes)",
            fix="copy or download it again",
        ) from error


def require_length(stream: gzip.GzipFile | bz2.BZ2File, size: int) -> None:
    """Decompress a stream to its end without keeping it.

    Args:
        stream: compressed voxels.
        size: bytes that the header announces.

    Raises:
        ValueError: more data than announced (with a tolerance of one block): a small file can
            unpack to any size.
    """
    length = 0
    while block := stream.read(BLOCK):
        length += len(block)
        if length > size + BLOCK:
            raise ValueError(f"more data than the header's {size:,} bytes")
