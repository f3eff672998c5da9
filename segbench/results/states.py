"""The state of a run, from the names in its folder; no result is read, so that it stays cheap."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from segbench.results.attempts import ATTEMPTS, BY_THE_USER, LEASE, history, read_lease

JOB = "job.json"
STATES = ("done", "running", "queued", "half-done", "stopped", "lost", "failed", "to do")
UNFINISHED = ("half-done", "stopped", "lost")  # begun, and no one is working on it

Jobs = Callable[[str], Collection[str]]  # ids of all jobs of an engine that wait or run


class HandedJob(NamedTuple):
    """The job that a run was handed to."""

    engine: str  # slurm or ray; empty without a job
    id: str


def no_jobs(engine: str) -> Collection[str]:
    """Return that no job waits, where there is no scheduler."""
    return ()


def state_of(folder: Path, jobs: Jobs = no_jobs) -> str:
    """Return one of ``STATES``.

    ``done`` has a result, ``failed`` a recorded failure, ``running`` a valid lease. ``queued`` has
    a job that waits; ``lost`` had one that ended and left neither a result nor a record of how it
    ended. ``stopped`` was interrupted by its user, ``half-done`` by anything else.

    Args:
        jobs: is called with the engine for runs that were handed to a scheduler.
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
    if JOB in names:
        job = job_of(folder)
        if job.id in jobs(job.engine):
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


def job_of(folder: Path) -> HandedJob:
    """Return the job that a run was handed to."""
    try:
        stored = json.loads((folder / JOB).read_bytes())
        return HandedJob(str(stored["engine"]), str(stored["job"]))
    except (OSError, ValueError, KeyError, TypeError):
        return HandedJob("", "")
