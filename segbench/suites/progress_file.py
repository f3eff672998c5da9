"""A small file in the folder of a run that is at work: how far it is, for those who watch it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from segbench.storage import write_if_possible

NAME = "progress.json"
EVERY = 1.0  # seconds between two writes
FRESH = 120.0  # seconds after which a file counts as left by a process that was killed


class Reached(NamedTuple):
    """How far a run is."""

    stage: str
    done: int
    total: int
    remaining: float | None  # seconds


class ProgressFile:
    """Writes the file, at most once per second; a full disk must not end the run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._written = 0.0

    def write(self, stage: str, done: int, total: int, remaining: float | None) -> None:
        """Note what was reached."""
        now = time.monotonic()
        if now - self._written < EVERY:
            return
        self._written = now
        record = {**Reached(stage, done, total, remaining)._asdict(), "time": time.time()}
        write_if_possible(self.path, json.dumps(record))

    def remove(self) -> None:
        """Remove the file at the end of an attempt."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def read_progress(folder: Path) -> Reached | None:
    """Return how far a run is; None if no process works on it, or nothing was noted yet."""
    try:
        record = json.loads((folder / NAME).read_bytes())
        age = time.time() - float(record["time"])
        done = int(record["done"])
        total = int(record["total"])
        remaining = record["remaining"]
        left = None if remaining is None else float(remaining)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return None if age > FRESH else Reached(str(record["stage"]), done, total, left)
