"""Choose the engine that runs are handed to, by its name."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from segbench.config import Machine
from segbench.errors import PluginError
from segbench.results.states import Jobs
from segbench.suites import slurm_engine
from segbench.suites.engines import Cluster, Engine, Everything, PrintEngine
from segbench.suites.local_engine import LocalEngine, LocalJobs, Work


def engine_called(
    name: str, cluster: Cluster, machine: Machine, folder: Path, work: Work | None = None
) -> Engine:
    """Return an engine: local, slurm, ray or print.

    Args:
        folder: of batch files and logs.
        work: executes runs in a background process of this machine; only local needs it, to submit.

    Raises:
        UsageError: the file of --cluster does not fit the engine.
    """
    if name == "local":
        return LocalEngine(cluster, machine, folder, work)
    if name == "slurm":
        return slurm_engine.SlurmEngine(cluster, machine, folder)
    if name == "ray":
        from segbench.suites.ray_engine import RayEngine

        return RayEngine(cluster, machine)
    return PrintEngine(machine)


def known_jobs() -> Jobs:
    """Return a function that asks each engine once for the ids of jobs that wait or run.

    It returns every id where an engine cannot be asked.
    """
    return cache(_asked)


def _asked(name: str) -> Collection[str]:
    if name == "slurm":
        return slurm_engine.slurm_jobs()
    if name == "local":
        return LocalJobs()
    if name != "ray":
        return ()
    from segbench.suites.ray_engine import ray_jobs

    try:
        return ray_jobs()
    except PluginError:
        return Everything()
