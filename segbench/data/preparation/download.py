"""Download files with a known digest: downloads resume, and files are checked before use."""

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
    """Return the file in ``folder``; download it unless it is there with the right digest.

    A partial download is resumed.

    Raises:
        DataError: the connection ended early (the part is kept), or the server sent a page instead.
        IntegrityError: the digest is wrong (the file is removed).
        PluginError: the server cannot be reached or does not have the file.
        StorageError: the disk is full or not writable.
    """
    path = folder / archive.name
    part = folder / f"{archive.name}.part"
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
                fix="repeat the command: the download resumes",
            ) from error
        except OSError as error:
            raise storage_error(error, existing(part)) from error
    return path


def _download(archive: Archive, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": f"segbench/{__version__}"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(archive.url, headers=headers)
    try:
        answer: Any = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # the file is complete already
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
            have = 0  # the server starts from the beginning
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
            fix="repeat the command: the download resumes",
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
