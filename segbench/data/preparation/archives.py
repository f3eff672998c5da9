"""Extract archives from elsewhere so that nothing lands outside the target folder.

Only regular files and folders are accepted. A name with ``..``, an absolute name, a link, a device,
too many members or too many bytes: then the whole archive is refused, and nothing of it stays.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from segbench.errors import DataError
from segbench.progress import Progress, no_progress
from segbench.storage import replace, storage_error, temp_path

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
MAX_BYTES = 500 * 10**9
MAX_MEMBERS = 10**6
MAX_RATIO = 1000  # bytes out per byte in: a volume of air compresses well, a zip bomb better
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    time: float  # of the last change, seconds
    open: Callable[[], IO[bytes] | None] | None  # None for a folder
    done: int  # bytes of the archive read so far


def is_archive(path: Path) -> bool:
    """Return whether a file's name is that of an archive that can be extracted."""
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def extract(archive: Path, target: Path, progress: Progress = no_progress) -> Path:
    """Extract an archive into the new folder ``target``, completely or not at all.

    Args:
        archive: the file.
        target: the folder; files in it keep their modification times.
        progress: called with the bytes read of the archive, its size, and the member's name.

    Raises:
        DataError: the archive is damaged, or a member could do harm; names it.
        StorageError: the disk is full or not writable.
    """
    temp = temp_path(target)
    total = archive.stat().st_size
    limit = min(MAX_BYTES, MAX_RATIO * max(total, 10**6))
    written = 0
    try:
        temp.mkdir(parents=True)
        for count, member in enumerate(_members(archive), 1):
            written += member.size
            if written > limit or count > MAX_MEMBERS:
                raise _refused(
                    archive,
                    member.name,
                    f"{written:,} bytes in {count:,} members so far",
                    f"at most {limit:,} bytes and {MAX_MEMBERS:,} members",
                )
            _write(archive, temp, member)
            progress(min(member.done, total), total, member.name)
        replace(temp, target)
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise storage_error(error, target) from error
        raise DataError(
            "the archive is damaged or cut short",
            where=archive,
            found=f"{error} ({total:,} bytes)",
            expected="a complete zip or tar, compressed or not",
            fix="copy or download it again",
        ) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return target


def _members(archive: Path) -> Iterator[_Member]:
    """Yield the members of an archive; refuse those that are no regular file or folder."""
    if archive.name.lower().endswith(".zip"):
        yield from _zip_members(archive)
        return
    with open(archive, "rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as tar:
        for info in tar:
            if not (info.isreg() or info.isdir()):
                kind = "a link" if info.issym() or info.islnk() else "a device or pipe"
                raise _refused(archive, info.name, kind, "files and folders only")
            opener = None if info.isdir() else lambda info=info: tar.extractfile(info)
            size = 0 if info.isdir() else info.size
            yield _Member(info.name, size, info.mtime, opener, raw.tell())
        assert tar.fileobj is not None
        tar.fileobj.read(1 << 20)  # to the end, where the checksum of a compressed tar is


def _zip_members(archive: Path) -> Iterator[_Member]:
    done = 0
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(
                    archive,
                    info.filename,
                    "a link" if kind == stat.S_IFLNK else "a device or pipe",
                    "files and folders only",
                )
            done += info.compress_size
            when = time.mktime((*info.date_time, 0, 0, -1))
            opener = None if info.is_dir() else lambda info=info: packed.open(info)
            yield _Member(info.filename, info.file_size, when, opener, done)


def _write(archive: Path, folder: Path, member: _Member) -> None:
    """Write a member below a folder."""
    path = folder / _safe_path(archive, member.name)
    try:
        (path if member.open is None else path.parent).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise _refused(
            archive, member.name, "a file and a folder of the same name", "each name once"
        ) from None
    if member.open is None:
        return
    source = member.open()
    if source is None or path.exists():
        raise _refused(archive, member.name, "a name that occurs twice", "each name once")
    with source:
        _copy(archive, member, source, path)
    # A modification time that cannot be set is no reason to refuse the file.
    with suppress(OverflowError, ValueError):
        os.utime(path, (member.time, member.time))


def _copy(archive: Path, member: _Member, source: IO[bytes], path: Path) -> None:
    """Copy a member's bytes to a new file; there must be as many as its header says."""
    left = member.size
    with open(path, "xb") as file:
        while block := source.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise _refused(
                    archive,
                    member.name,
                    "more bytes than its header says",
                    f"{member.size:,} bytes",
                )
            file.write(block)
    if left:
        raise EOFError(f"{member.name} ends {left:,} bytes early")


def _safe_path(archive: Path, name: str) -> Path:
    """Return a member's name as a relative path that stays below its folder."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    is_absolute = name.startswith(("/", "\\"))
    if is_absolute or any(_is_unsafe(part) for part in parts):
        raise _refused(archive, name, "a name that leads elsewhere", "plain names below one folder")
    return Path(*parts)


def _is_unsafe(part: str) -> bool:
    return part == ".." or ":" in part or not part.isprintable() or len(part) > 200


def _refused(archive: Path, name: str, found: str, expected: str) -> DataError:
    return DataError(
        "the archive is refused",
        where=f"{archive}, member {name[:200]!r}",
        found=found,
        expected=expected,
        fix="do not use it, or extract it yourself and give the folder: --from DIR",
    )
