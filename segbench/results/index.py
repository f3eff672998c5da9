"""An index of finished runs, so that thousands of them need not be read and checked each time.

``<root>/runs/.index.json`` holds what was read from each run, with the versions of the files it was
read from. A run whose files have another version is read again. The index may be deleted at any
time, and commands that write it at the same time cannot harm it: the last one wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segbench.results.cases import Record
from segbench.results.finished import FinishedRun
from segbench.results.rundir import RunDir, read_object
from segbench.storage import write_if_possible

NAME = ".index.json"
FEWEST = 100  # runs from which on an index is worth its file
FILES = ("result.json", "cases.csv")
SETTLED = 2 * 10**9  # nanoseconds after which another change gives a file another time
# The modules whose code says what a valid run is: after a change, all runs are read again.
CHECKED_BY = (
    "segbench.results.cases",
    "segbench.results.index",
    "segbench.results.rundir",
    "segbench.results.schema",
    "segbench.identity.run_id",
    "segbench.metrics.aggregate",
)

Versions = list[list[int]] | None


class Index:
    """Reads finished runs, those that have not changed from the index.

    Args:
        root: folder of the results.
    """

    def __init__(self, root: Path) -> None:
        self.file = root / "runs" / NAME
        self._known: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._is_changed = False
        stored = read_object(self.file)
        if stored.get("checks") == checks_digest() and isinstance(stored.get("runs"), dict):
            self._known = stored["runs"]

    def load(self, folder: RunDir) -> FinishedRun | None:
        """Read a run; None if it is not finished.

        Raises:
            IntegrityError: the result or its case table is not what was written.
        """
        versions = _versions(folder.path)
        entry = self._entry(folder, versions)
        if entry.get("cases") is not None:
            return FinishedRun(folder, entry["result"], entry["cases"])
        run = FinishedRun.load(folder)
        if run is not None:
            self._keep(folder, versions, run.result, run.cases)
        return run

    def result(self, folder: RunDir) -> dict[str, Any] | None:
        """Read the result of a run without its test cases; None if it is not finished.

        Raises:
            IntegrityError: the result is not what was written.
        """
        versions = _versions(folder.path)
        entry = self._entry(folder, versions)
        if entry:
            stored: dict[str, Any] = entry["result"]
            return stored
        result = folder.result()
        if result is not None:
            self._keep(folder, versions, result)
        return result

    def _entry(self, folder: RunDir, versions: Versions) -> dict[str, Any]:
        """Return what is known of a run whose files have these versions; empty if nothing is."""
        entry = self._known.get(folder.short_path)
        if not isinstance(entry, dict) or entry.get("versions") != versions:
            return {}
        self._seen[folder.short_path] = entry
        return entry

    def _keep(
        self,
        folder: RunDir,
        versions: Versions,
        result: dict[str, Any],
        cases: list[Record] | None = None,
    ) -> None:
        """Keep what was read, unless the files may have changed meanwhile."""
        if _is_settled(versions) and versions == _versions(folder.path):
            content = {"versions": versions, "result": result, "cases": cases}
            self._seen[folder.short_path] = content
            self._is_changed = True

    def save(self) -> None:
        """Write the runs that were loaded, if there are many and some are new."""
        gone = len(self._known) > len(self._seen)
        if len(self._seen) < FEWEST or not (self._is_changed or gone):
            return
        content = {"checks": checks_digest(), "runs": self._seen}
        write_if_possible(self.file, json.dumps(content))


def _versions(folder: Path) -> Versions:
    """Return times and sizes of the files that a run is read from; None if one is missing.

    The time of the last change of an entry cannot be set back, as the time of its content can.
    """
    found = []
    for name in FILES:
        try:
            status = os.stat(folder / name)
        except OSError:
            return None
        found.append([status.st_mtime_ns, status.st_ctime_ns, status.st_size])
    return found


def _is_settled(versions: Versions) -> bool:
    """Return whether a change from now on would be seen, although clocks of disks are coarse."""
    if versions is None:
        return False
    newest = max(max(entry[:2]) for entry in versions)
    return time.time_ns() - newest > SETTLED


@cache
def checks_digest() -> str:
    """Return a digest of the code that checks runs."""
    digest = hashlib.sha256()
    for module in CHECKED_BY:
        found = find_spec(module)
        assert found is not None
        assert found.origin is not None
        digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()
