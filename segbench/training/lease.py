"""The lease of a running attempt: who works on the run, and how far it is."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

from segbench.results.attempts import HEARTBEAT, new_lease, remove_lease, write_lease


class Heartbeat:
    """Within the block, renews the lease of a run. A thread does so: one step may take minutes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lease = new_lease()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Heartbeat:
        write_lease(self.folder, self._lease)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        remove_lease(self.folder)

    def note(self, stage: str, step: int, total: int) -> None:
        """Note how far the run is. A new stage is written at once, else the next heartbeat does."""
        is_new = stage != self._lease.stage
        self._lease = replace(self._lease, stage=stage, step=step, total=total)
        if is_new:
            write_lease(self.folder, replace(self._lease, heartbeat=time.time()))

    def _renew(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            write_lease(self.folder, replace(self._lease, heartbeat=time.time()))
