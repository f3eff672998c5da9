"""The state of a run, from the names in its folder; no result is read, so that it stays cheap."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path

from segbench.results.attempts import ATTEMPTS, BY_THE_USER, LEASE, history, read_lease

JOB = "job.json"
STATES = ("done", "running", "queued", "half-done", "stopped", "lost", "failed", "to do")
UNFINISHED = ("half-done", "stopped", "lost")  # begun, and no one is working on it

Jobs = Callable[[], Collection[str]]  # ids of all jobs that wait or run


def no_jobs() -> Collection[str]:
    """Return that no job waits, where there is no scheduler."""
    return ()


def state_of(folder: Path, jobs: Jobs = no_jobs) -> str:
    """Return one of ``STATES``.

    ``done`` has a result, ``failed`` a recorded failure, ``running`` a valid lease. ``queued`` has
    a job that waits; ``lost`` had one that ended and left neither a result nor a record of how it
    ended. ``stopped`` was interrupted by its user, ``half-done`` by anything else.

    Args:
        jobs: is called for runs that were handed to a scheduler.
    """
    try:
        names = {entry.name for entry in os.scandir(folder)}
    except OSError:
        return "to do"
    if "result.json" in names:
        return "done"
    if LEASE in names:
        lease = read_lease(folder)
        if lease is not None and lease.alive:
            return "running"
    if "failed.json" in names:
        return "failed"
    if JOB in names and job_of(folder) in jobs():
        return "queued"
    return _state_at_rest(folder, names)


def _state_at_rest(folder: Path, names: set[str]) -> str:
    """Return the state of a run that has no result and that no one works on."""
    code = history(folder).code if ATTEMPTS in names else None
    if code in BY_THE_USER:
        return "stopped"
    if JOB in names and code is None:
        return "lost"
    if "ckpt" in names and any((folder / "ckpt").glob("*.st")):
        return "half-done"
    return "to do"


def job_of(folder: Path) -> str:
    """Return the id of the job that a run was handed to; empty if it was to none."""
    try:
        return str(json.loads((folder / JOB).read_bytes())["job"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
