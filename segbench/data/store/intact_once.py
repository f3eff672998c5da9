"""Files of a store are read in full once per node, not once per run.

A hundred runs that start together would otherwise read a large data set a hundred times from a
shared disk. What was found intact is noted in the node's temporary folder, with time and size of
each file: a file that has changed since, or a restart of the machine, makes it be read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from segbench.data.store.store import Store, require_intact
from segbench.errors import BusyError, StorageError
from segbench.progress import Progress, no_progress
from segbench.storage import lock, write_if_possible

SMALL = 50 * 10**6  # bytes: smaller stores are read for each run
SETTLED = 2 * 10**9  # nanoseconds after which another change gives a file another time
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
WAIT = 3600.0  # seconds in which another process of this node reads the same files

Versions = list[list[int]]


def require_intact_once(
    store: Store, cases: Iterable[str], progress: Progress = no_progress
) -> None:
    """Refuse changed files of cases; those that this node has read already are not read again.

    Raises:
        DataError: files have changed since they were prepared; lists all of them.
    """
    chosen = list(cases)
    note = _note_of(store, chosen)
    if note is None:
        require_intact(store, chosen, progress)
        return
    with ExitStack() as held:
        with suppress(BusyError, StorageError):
            held.enter_context(lock(note.with_suffix(".lock"), wait=WAIT))
        known = _known(note)
        before = {case: _versions(store, case) for case in chosen}
        unknown = [case for case in chosen if known.get(case) != before[case]]
        require_intact(store, unknown, progress)
        for case in unknown:
            if _is_settled(before[case]) and before[case] == _versions(store, case):
                known[case] = before[case]
        if unknown:
            write_if_possible(note, json.dumps(known))


def _note_of(store: Store, cases: list[str]) -> Path | None:
    """Return the file in which this node notes what it has read; None if it notes nothing."""
    size = sum(size for case in cases for size, _ in store.cases[case].files.values())
    folder = Path(tempfile.gettempdir()) / f"segbench-{os.getuid()}"
    try:
        boot = BOOT_ID.read_text()
        folder.mkdir(mode=0o700, exist_ok=True)
        is_mine = os.stat(folder).st_uid == os.getuid()
    except OSError:
        return None
    if size < SMALL or not is_mine:
        return None
    key = json.dumps([str(store.root.resolve()), store.fingerprint, boot])
    return folder / f"intact-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _known(note: Path) -> dict[str, Versions]:
    """Return the versions in which cases were found intact."""
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _versions(store: Store, case: str) -> Versions:
    """Return times and sizes of the files of a case; empty if one is missing."""
    found = []
    for name in sorted(store.cases[case].files):
        try:
            status = os.stat(store.root / "cases" / case / name)
        except OSError:
            return []
        found.append([status.st_mtime_ns, status.st_ctime_ns, status.st_size])
    return found


def _is_settled(versions: Versions) -> bool:
    """Return whether a later change would be seen, although clocks of disks are coarse."""
    times = [moment for version in versions for moment in version[:2]]
    return bool(times) and time.time_ns() - max(times) > SETTLED
