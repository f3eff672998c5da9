"""Hand the runs of a suite to SLURM as job arrays, through submitit.

submitit writes the batch file and the call of each member, and names the logs. What happens to a
member that is warned, preempted or killed is decided in ``suites/member.py``.
"""

from __future__ import annotations

import getpass
import re
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench.config import Machine
from segbench.errors import PluginError
from segbench.results.states import JOB
from segbench.storage import make_folder
from segbench.suites.engines import Cluster, Everything, Resources, Submission, gpus_of
from segbench.suites.member import train_member
from segbench.training.setup import Prepared

if TYPE_CHECKING:
    from segbench.suites.array_executor import ArrayExecutor

SLURM_PROGRAMS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
ARRAY_LIMIT = 1001  # SLURM's default of MaxArraySize


class SlurmEngine:
    """Job arrays of SLURM, one array per kind of resources.

    Args:
        folder: of the batch files and logs.
    """

    def __init__(self, cluster: Cluster, machine: Machine, folder: Path) -> None:
        self.cluster = cluster
        self.machine = machine
        self.folder = folder

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs."""
        call_slurm(["scancel", *jobs])

    def submit(self, runs: Sequence[Prepared], dry_run: bool) -> Submission:
        """Submit one array per kind of resources, cut where SLURM limits arrays.

        Raises:
            PluginError: submitit or a program of SLURM is missing, or SLURM refuses.
        """
        submission = Submission([], [])
        if not runs:
            return submission
        executor_class = _executor_class()
        limit = ARRAY_LIMIT if dry_run else _array_limit()
        for group in self._by_resources(runs):
            for start in range(0, len(group), limit):
                part = group[start : start + limit]
                folder = self._folder(len(submission.texts))
                executor = executor_class(folder.resolve(), self._parameters(part[0]))
                submission.texts.append(executor.text(len(part)))
                if not dry_run:
                    make_folder(folder)
                    submission.jobs.extend(self._submit_array(executor, part))
        return submission

    def _by_resources(self, runs: Sequence[Prepared]) -> list[list[Prepared]]:
        groups: dict[str, list[Prepared]] = {}
        for run in runs:
            wanted = self.cluster.of(run.experiment.method)
            kind = wanted.model_dump_json(include=set(Resources.model_fields))
            groups.setdefault(kind, []).append(run)
        return list(groups.values())

    def _folder(self, number: int) -> Path:
        """Return the folder of an array's files."""
        return self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{number}"

    def _parameters(self, run: Prepared) -> dict[str, Any]:
        """Return submitit's parameters of the array that a run is part of."""
        wanted = self.cluster.of(run.experiment.method)
        more = {"requeue": True, **self.cluster.slurm}
        parameters: dict[str, Any] = {
            "job_name": f"segbench-{self.folder.name}",
            "time": wanted.time,  # None: the default of the partition
            "cpus_per_task": wanted.cpus,
            "signal_delay_s": self.cluster.warn,
            "array_parallelism": self.cluster.at_once or ARRAY_LIMIT,
            "setup": list(self.cluster.setup),
            "stderr_to_stdout": True,
            "additional_parameters": {
                key: value for key, value in more.items() if value is not False
            },
        }
        gpus = gpus_of(wanted, self.machine)
        if gpus:
            parameters["gres"] = f"gpu:{gpus}"
        return parameters

    def _submit_array(self, executor: ArrayExecutor, runs: Sequence[Prepared]) -> list[str]:
        """Submit an array, note in each run's folder which job it has, and return the jobs."""
        options = self.machine.to_argv()
        folders = [str(run.folder.path.resolve()) for run in runs]
        try:
            with executor.batch():
                calls = [
                    executor.submit(train_member, folder, self.cluster.tries, options)
                    for folder in folders
                ]
        except (OSError, RuntimeError) as error:  # submitit's errors are RuntimeErrors
            raise PluginError(
                "sbatch failed",
                found=str(error).strip()[-500:],
                fix="correct the file of --cluster; --dry-run shows the batch file",
            ) from error
        jobs = []
        for run, submitted in zip(runs, calls, strict=True):
            log = str(submitted.paths.stdout)
            run.folder.write_json(JOB, {"engine": "slurm", "job": submitted.job_id, "log": log})
            (run.folder.path / "failed.json").unlink(missing_ok=True)  # it has a new job now
            jobs.append(submitted.job_id)
        return jobs


def _executor_class() -> type[ArrayExecutor]:
    """Return submitit's executor.

    Raises:
        PluginError: submitit is not installed.
    """
    try:
        from segbench.suites.array_executor import ArrayExecutor
    except ImportError as error:
        raise PluginError(
            "--engine slurm needs the package submitit", fix="pip install 'segbench[slurm]'"
        ) from error
    return ArrayExecutor


def slurm_jobs() -> Collection[str]:
    """Return the ids of all own jobs of SLURM that wait or run."""
    command = ["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Everything()
    return set(done.stdout.split()) if done.returncode == 0 else Everything()


def _array_limit() -> int:
    """Return the most members that SLURM allows in one array."""
    text = call_slurm(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.M)
    return max(1, int(found.group(1))) if found else ARRAY_LIMIT


def call_slurm(command: list[str]) -> str:
    """Run a command of SLURM and return its output.

    Raises:
        PluginError: it is missing or failed.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PluginError(
            f"SLURM's command {command[0]} is not available here",
            found=error.strerror,
            fix="log in to the cluster, or use --engine print",
        ) from error
    if done.returncode:
        raise PluginError(
            f"{command[0]} failed",
            found=done.stderr.strip()[:500],
            fix="correct the file of --cluster; --dry-run shows the batch file",
        )
    return done.stdout
