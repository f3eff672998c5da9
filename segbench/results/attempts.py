"""Who is working on a run, and how the attempts at it ended: the run directory is the queue.

``lease.json``     of a running attempt: host, process, job, stage and step, renewed every minute
``attempts.jsonl`` one line per start, per end, and per kill that another process saw
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segbench.storage import write_if_possible

LEASE = "lease.json"
ATTEMPTS = "attempts.jsonl"
HEARTBEAT = 60.0  # seconds between two renewals of a lease
MISSED = 3  # a lease that was not renewed for so many heartbeats is not valid any more
BY_THE_USER = (129, 130, 143)  # exit codes of an attempt that SIGHUP, SIGINT or SIGTERM stopped
WARNED = 75  # exit code of an attempt that a scheduler's warning stopped
STOPPED = (*BY_THE_USER, WARNED)
JOB_VARIABLES = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID")


@dataclass(frozen=True)
class Lease:
    """The sign of life of a running attempt."""

    host: str
    pid: int
    job: str  # of a scheduler, empty without one
    since: float  # seconds since the epoch
    heartbeat: float
    stage: str
    step: int
    total: int

    @property
    def alive(self) -> bool:
        """Whether the attempt is running, as far as this machine can know."""
        if time.time() - self.heartbeat > MISSED * HEARTBEAT:
            return False
        return self.host != socket.gethostname() or process_exists(self.pid)


def process_exists(pid: int) -> bool:
    """Return whether this machine has a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def own_job() -> str:
    """Return the id of the scheduler's job that this process is part of; empty without one."""
    array, task, job = (os.environ.get(name, "") for name in JOB_VARIABLES)
    return f"{array}_{task}" if array else job


def new_lease() -> Lease:
    """Return a lease of this process."""
    now = time.time()
    return Lease(socket.gethostname(), os.getpid(), own_job(), now, now, "set-up", 0, 0)


def write_lease(folder: Path, lease: Lease) -> None:
    """Write a lease, unless the disk is full."""
    write_if_possible(folder / LEASE, json.dumps(asdict(lease)))


def read_lease(folder: Path) -> Lease | None:
    """Return the lease of a run; None if there is none or it cannot be read."""
    try:
        return Lease(**json.loads((folder / LEASE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def remove_lease(folder: Path) -> None:
    """Remove the lease of an attempt that has ended."""
    with suppress(OSError):
        (folder / LEASE).unlink(missing_ok=True)


# -- attempts --------------------------------------------------------------------------------------


def record_start(folder: Path) -> None:
    """Note that this process begins an attempt."""
    place = {"host": socket.gethostname(), "pid": os.getpid(), "job": own_job()}
    _append(folder, {"event": "start", **place})


def record_end(folder: Path, code: int) -> None:
    """Note that an attempt of this process has ended with an exit code."""
    _append(folder, {"event": "end", "code": code})


def record_kill(folder: Path, number: int) -> None:
    """Note that an attempt was killed by a signal, which the attempt itself cannot do."""
    _append(folder, {"event": "killed", "signal": signal_name(number)})


def record_retry(folder: Path) -> None:
    """Note that someone asked for new attempts: earlier kills do not count any more."""
    _append(folder, {"event": "retry"})


def _append(folder: Path, event: dict[str, Any]) -> None:
    line = json.dumps({"time": round(time.time(), 3), **event})
    with suppress(OSError), (folder / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@dataclass(frozen=True)
class History:
    """What the attempts at a run came to."""

    starts: int = 0
    kills: int = 0  # attempts in a row, up to the last one, with no recorded end
    code: int | None = None  # exit code of the last attempt; None if it was not recorded
    signal: str = ""  # that killed the last one, as far as known


def history(folder: Path) -> History:
    """Return what the attempts came to. One that is still running counts as ended."""
    starts = 0
    kills = 0
    is_open = False
    code: int | None = None
    name = ""
    for event in _events(folder):
        kind = event.get("event")
        if kind == "start":
            starts += 1
            kills += is_open
            is_open = True
            code = None
        elif kind == "killed":
            kills += 1
            is_open = False
            code = None
            name = str(event.get("signal", ""))
        elif kind in ("end", "retry"):
            kills = 0
            is_open = False
            code = event.get("code")
            name = ""
    return History(starts, kills + is_open, code, name)


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        text = (folder / ATTEMPTS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the last line may be incomplete
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def kill_reason(name: str, kills: int) -> str:
    """Return why a run counts as failed whose attempts were killed."""
    times = "once" if kills == 1 else f"{kills} times in a row"
    hint = " (out of memory?)" if name in ("SIGKILL", "") else ""
    return f"killed by {name or 'an unknown cause'} {times}{hint}"
