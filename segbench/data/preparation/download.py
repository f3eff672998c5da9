"""Downloads with a known digest: resumed where they stopped, checked before anybody uses them."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from segbench import __version__
from segbench.contracts.dataset import Archive
from segbench.errors import DataError, IntegrityError, PluginError
from segbench.progress import Progress, no_progress
from segbench.storage import existing, lock, replace, storage_error

BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte


def fetch(archive: Archive, folder: Path, progress: Progress = no_progress) -> Path:
    """The file in ``folder``, downloaded unless it is there and right. A part that is there is gone on with.

    Raises:
        DataError: the connection ended early (the part is kept), or the server sent a page instead.
        IntegrityError: the digest is wrong (the file is removed).
        PluginError: the server cannot be reached or does not have the file.
        StorageError: disk full or not writable.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    with lock(folder / f"{archive.name}.lock"):
        if path.is_file() and _digest(path, archive) == archive.digest:
            return path
        try:
            _download(archive, part, progress)
            _check(archive, part)
            replace(part, path)
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise PluginError(
                f"the download failed: {getattr(error, 'reason', error)}",
                where=archive.url,
                fix="repeat the command: it goes on where it stopped",
            ) from error
        except OSError as error:
            raise storage_error(error, existing(part)) from error
    return path


def _download(archive: Archive, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": f"segbench/{__version__}"} | (
        {"Range": f"bytes={have}-"} if have else {}
    )
    try:
        answer: Any = urllib.request.urlopen(
            urllib.request.Request(archive.url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # all of it is there already
        raise
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise DataError(
                "the server sent a page instead of the file",
                where=archive.url,
                found=repr(answer.read(80)),
                expected=archive.name,
                fix="download it by hand, then: --from FILE",
            )
        if answer.status != http.client.PARTIAL_CONTENT:
            have = 0  # the server begins anew
        total = have + int(answer.headers.get("Content-Length") or 0)
        with open(part, "ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                progress(have, max(total, have), archive.name)
    if have < total:
        raise DataError(
            "the download was cut short",
            where=archive.url,
            found=f"{have:,} bytes",
            expected=f"{total:,} bytes",
            fix="repeat the command: it goes on where it stopped",
        )


def _check(archive: Archive, part: Path) -> None:
    found = _digest(part, archive)
    if found != archive.digest:
        size = part.stat().st_size
        part.unlink()
        raise IntegrityError(
            "the downloaded file is not the one expected, and was removed",
            where=archive.url,
            found=f"{found} ({size:,} bytes)",
            expected=archive.digest,
            fix="repeat the command, or download it by hand",
        )


def _digest(path: Path, archive: Archive) -> str:
    kind = archive.digest.partition(":")[0]
    digest = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return f"{kind}:{digest.hexdigest()}"
