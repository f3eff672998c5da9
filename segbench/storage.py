"""Files that survive crashes: atomic writes, one writer per folder, digests."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from segbench.errors import BusyError, StorageError
from segbench.lease_lock import HeldElsewhere, lease_lock
from segbench.mounts import mount_of

if TYPE_CHECKING:
    import numpy as np

# POSIX locks do not exclude a second holder in the same process; this set does.
_held: set[Path] = set()
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
WAIT_FOR_HOLDER = "wait for it, or stop it"
_STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EROFS: "read-only file system",
    errno.EFBIG: "the file is too large",
    errno.EACCES: "no permission to write",
    errno.EPERM: "no permission to write",
}


def storage_error(error: OSError, path: Path) -> StorageError:
    """Return the error that the user sees when ``path`` cannot be written."""
    if error.errno == errno.ENOENT and not path.parent.exists():
        return StorageError(
            "cannot write: the folder does not exist",
            where=path.parent,
            fix=f"create it: mkdir -p {shlex.quote(str(path.parent))}",
        )
    free = None
    with suppress(OSError):
        free = f"{shutil.disk_usage(existing(path)).free / 1e9:.1f} GB free"
    is_forbidden = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
    return StorageError(
        f"cannot write: {_STORAGE.get(error.errno or 0, error.strerror or str(error))}",
        where=path,
        found=None if is_forbidden else free,
        fix="choose another folder" if is_forbidden else "free some space or choose another folder",
    )


def existing(path: Path) -> Path:
    """Return ``path`` itself, or its nearest parent that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        StorageError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, path) from error


def is_storage(error: OSError) -> bool:
    """Return whether the disk is full or not writable, as opposed to a missing file."""
    return error.errno in _STORAGE


def temp_path(path: Path) -> Path:
    """Return a new hidden name beside ``path``.

    ``sweep`` removes the files that a killed process leaves under such names.
    """
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep(folder: Path) -> None:
    """Remove temporary files and folders of dead processes; the caller must hold the lock."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_if_possible(path: Path, text: str) -> None:
    """Write a small file in one piece, at once and without an error if it cannot be written.

    For signs of life: a full disk must not end the run that they stand for, and after a crash of
    the machine they are worth nothing.
    """
    temp = temp_path(path)
    try:
        temp.write_text(text, encoding="utf-8")
        os.replace(temp, path)
    except OSError:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: bytes | Callable[[IO[bytes]], Any]) -> None:
    """Write a file so that a reader sees either the old or the new content, even after a crash.

    Args:
        content: the bytes, or a function that writes them to a binary file.

    Raises:
        StorageError: the disk is full or read-only, or the quota is used up. The old file is
            unchanged then, and no temporary file is left.
    """
    path = Path(path)
    temp = temp_path(path)
    try:
        with open(temp, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(temp, path)
    except OSError as error:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        raise storage_error(error, path) from error
    except BaseException:
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        raise


def replace(source: Path, target: Path) -> None:
    """Rename a file over ``target`` and make that durable.

    Network file systems may report an error although they have renamed the file.
    """
    inode = os.stat(source).st_ino
    for wait in (0.05, 0.2, 0.8, None):
        try:
            os.replace(source, target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE) or wait is None:
                raise
            with suppress(OSError):
                if not source.exists() and os.stat(target).st_ino == inode:
                    break
            time.sleep(wait)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, on file systems that can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def lock(path: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``.

    The kernel releases the lock when the process dies, so it is never stale. POSIX locks
    (``lockf``) are not inherited by children and work on NFS. The file itself is not deleted.
    Where the file system has none, or they do not reach other nodes, a lease file is the lock.

    Args:
        wait: seconds to wait for another holder.

    Raises:
        BusyError: another process holds it. The message names the process, its host and the time.
        StorageError: the folder is not writable.
    """
    path = Path(path).resolve()
    if lock_kind(path) == LEASE_FILE:
        with _lease(path, wait):
            yield
        return
    with _kernel_lock(path, wait):
        yield


LEASE_FILE = "lease file"
KERNEL_LOCK = "POSIX lock"


def lock_kind(path: Path) -> str:
    """Return which lock is used for a lock file, whose folder need not exist: ``LEASE_FILE`` or
    ``KERNEL_LOCK``.
    """
    place = existing(path.parent)
    mount = mount_of(place)
    if mount is not None and mount.local_locks:
        return LEASE_FILE
    return LEASE_FILE if _has_no_locks(place) else KERNEL_LOCK


@cache
def _has_no_locks(place: Path) -> bool:
    """Return whether the file system of a folder refuses locks, as some parallel ones do."""
    import fcntl  # Windows does not have it

    try:
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS
    return False


@contextmanager
def _lease(path: Path, wait: float) -> Iterator[None]:
    """Hold a lease file, as ``lock`` does."""
    if path in _held:
        raise BusyError("busy: this process is already writing there", where=path.parent)
    try:
        make_folder(path.parent)
        with lease_lock(path, wait):
            _held.add(path)
            try:
                yield
            finally:
                _held.discard(path)
    except HeldElsewhere as error:
        raise BusyError(f"busy: {error}", where=path.parent, fix=WAIT_FOR_HOLDER) from error


@contextmanager
def _kernel_lock(path: Path, wait: float) -> Iterator[None]:
    """Hold a POSIX lock, as ``lock`` does."""
    deadline = time.monotonic() + wait
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = (
            os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) if path not in _held else -1
        )
    except OSError as error:
        raise storage_error(error, path) from error
    if handle < 0:  # opening and closing it here would drop the lock that this process holds
        raise BusyError("busy: this process is already writing there", where=path.parent)
    try:
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                holder = (
                    os.pread(handle, 300, 0).decode(errors="replace").strip() or "another process"
                )
                raise BusyError(f"busy: {holder}", where=path.parent, fix=WAIT_FOR_HOLDER)
            time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(
            handle,
            f"process {os.getpid()} on {socket.gethostname()} since "
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(),
            0,
        )
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    import fcntl  # Windows does not have it

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


_known_versions: dict[Path, tuple[int, int]] | None = None


@contextmanager
def unchanging_files() -> Iterator[None]:
    """Within the block, ``file_version`` looks at each file once: for work on many runs at once."""
    global _known_versions
    before = _known_versions
    _known_versions = {}
    try:
        yield
    finally:
        _known_versions = before


def file_version(path: Path) -> tuple[int, int]:
    """Return the time of the last change and the size, by which a changed file or folder is known.

    They are 0 where there is none.
    """
    if _known_versions is not None and path in _known_versions:
        return _known_versions[path]
    try:
        status = os.stat(path)
        version = (status.st_mtime_ns, status.st_size)
    except OSError:
        version = (0, 0)
    if _known_versions is not None:
        _known_versions[path] = version
    return version


def file_digest(path: str | Path) -> str:
    """Return the blake2b digest (32 hex digits) of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Return the blake2b digest (32 hex digits) of dtype, shape and values.

    The order in memory does not matter.
    """
    import numpy as np  # most users of this module need no arrays

    digest = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def json_bytes(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, no NaN, one line break at the end."""
    return (
        json.dumps(value, sort_keys=True, allow_nan=False, indent=1, ensure_ascii=False) + "\n"
    ).encode()
