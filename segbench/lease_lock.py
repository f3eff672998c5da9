"""A lock for file systems whose own locks do not reach other machines: a file that is renewed.

The holder creates ``<name>.lease``, which fails where it exists, and renews its time. One that was
not renewed for ``MISSED`` heartbeats is taken over, and so is one of a process of this machine that
has ended. Times are compared as the file system gives them: clocks of machines may differ.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HEARTBEAT = 30.0  # seconds
MISSED = 10


class HeldElsewhere(Exception):
    """Another process holds the lock; the text names it."""


@contextmanager
def lease_lock(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lease beside ``path``, the name of a lock file.

    Args:
        wait: seconds to wait for another holder.

    Raises:
        HeldElsewhere: another process holds it.
        OSError: the folder is not writable.
    """
    lease = path.with_name(f"{path.name}.lease")
    mine = _text()
    deadline = time.monotonic() + wait
    while not _take(lease, mine):
        if time.monotonic() >= deadline:
            raise HeldElsewhere(_read(lease).partition("\n")[0] or "another process")
        time.sleep(0.1)
    released = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lease, released), name="lock", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        released.set()
        renewal.join()
        if _read(lease) == mine:  # otherwise it was taken over while this process was suspended
            with suppress(OSError):
                lease.unlink()


def _text() -> str:
    """Return the content of a lease: who holds it, and a token."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    who = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    return f"{who}\n{secrets.token_hex(8)}\n"


def _read(lease: Path) -> str:
    try:
        return lease.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _take(lease: Path, mine: str) -> bool:
    """Create a lease, after removing one whose holder is gone; return whether it is ours."""
    for _ in range(2):
        try:
            handle = os.open(lease, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if not _remove_stale(lease):
                return False
            continue
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(mine)
        return True
    return False


def _remove_stale(lease: Path) -> bool:
    """Remove a lease whose holder is gone; return whether the name may be free now."""
    try:
        status = os.stat(lease)
        found = _read(lease)
        is_stale = _now(lease) - status.st_mtime > MISSED * HEARTBEAT
    except FileNotFoundError:
        return True
    if not is_stale and not _has_ended(found):
        return False
    aside = lease.with_name(f".{lease.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.rename(lease, aside)
    except FileNotFoundError:  # someone else removes it
        return True
    if _read(aside) != found:  # a new holder's, who came between the look and the rename
        with suppress(OSError):
            os.link(aside, lease)
    aside.unlink(missing_ok=True)
    return True


def _now(lease: Path) -> float:
    """Return the time as the file system gives it."""
    probe = lease.with_name(f".{lease.name}.{secrets.token_hex(4)}.tmp")
    probe.touch()
    try:
        return os.stat(probe).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _has_ended(text: str) -> bool:
    """Return whether a lease is one of a process of this machine that does not exist any more."""
    words = text.split()
    if len(words) < 4 or words[3] != socket.gethostname() or not words[1].isdecimal():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return False


def _renew(lease: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT):
        with suppress(OSError):
            os.utime(lease)
