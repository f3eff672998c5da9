"""Hand the runs of a suite to a cluster. The run directories are the queue: a job resumes one.

No process waits for the jobs. ``job.json`` in a run's folder names its job, and ``bench submit``
can be repeated: it takes only what neither is done, running nor queued.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from segbench.config import Machine, load_yaml
from segbench.config.schema import Strict, validate
from segbench.config.yaml import Document
from segbench.errors import UsageError
from segbench.results.attempts import record_retry
from segbench.suites.local import TRIES, own_command
from segbench.training.setup import Prepared

OPTION = re.compile(r"[a-z][a-z0-9-]*")


class Resources(Strict):
    """What one member asks for."""

    time: str | None = Field(None, description="time limit as sbatch takes it: '24:00:00'")
    gpus: int = Field(
        1, ge=0, description="GPUs of one member; none are asked for with --device cpu"
    )
    cpus: int = Field(1, ge=1, description="processor cores of one member")


class Cluster(Resources):
    """The file of ``--cluster``."""

    warn: int = Field(
        120, ge=1, description="seconds before the time limit at which a run saves and is requeued"
    )
    at_once: int | None = Field(None, ge=1, description="most members that run at a time")
    tries: int = Field(TRIES, ge=1, description="attempts of a run whose process is killed")
    setup: tuple[str, ...] = Field((), description="shell lines before a run: module load cuda")
    slurm: dict[str, str | int | bool] = Field(
        {}, description="more options of sbatch: partition, account"
    )
    methods: dict[str, dict[str, Any]] = Field(
        {}, description="time, gpus and cpus of a method, where they differ"
    )

    def of(self, method: str) -> Resources:
        """Return what runs of a method ask for."""
        common = self.model_dump(include=set(Resources.model_fields))
        return Resources.model_validate({**common, **self.methods.get(method, {})})


def load_cluster(path: Path | None) -> Cluster:
    """Read the file of ``--cluster``; without one, return the defaults.

    Raises:
        UsageError: a wrong key or value; names file, line and column.
    """
    if path is None:
        return Cluster.model_validate({})
    document = load_yaml(path)
    if document.get("schema") != 1:
        raise UsageError(
            "schema: expected 1, the version of this format",
            where=document.where("schema"),
            found=document.get("schema"),
        )
    content = {key: value for key, value in document.items() if key != "schema"}
    found = validate(Cluster, content, lambda key: document.where(*key.split(".")))
    for method, own in found.methods.items():
        _validate_method(method, own, document)
    for name in found.slurm:
        if not OPTION.fullmatch(name):
            raise UsageError(
                f"slurm: '{name}' is no option of sbatch",
                where=document.where("slurm", name),
                expected="the long form without dashes in front: partition, mail-type",
            )
    return found


def refuse_keys(cluster: Cluster, keys: Sequence[str], why: str, expected: str) -> None:
    """Refuse keys of the file of ``--cluster`` that mean nothing to an engine.

    Raises:
        UsageError: one of them is set.
    """
    for key in keys:
        if getattr(cluster, key) != Cluster.model_fields[key].default:
            raise UsageError(
                f"{key}: {why}",
                expected=expected,
                fix="remove it from the file of --cluster, or use --engine slurm",
            )


def _validate_method(method: str, own: dict[str, Any], document: Document) -> None:
    def origin(key: str) -> str:
        return document.where("methods", method, *key.split("."))

    validate(Resources, own, origin)


@dataclass(frozen=True)
class Submission:
    """What an engine did, or would do."""

    texts: list[str]  # commands, or batch files
    jobs: list[str]  # ids, one per run; empty where nothing was submitted


class Engine(Protocol):
    """Starts ``segbench resume`` for runs whose configuration is stored."""

    def submit(self, runs: Sequence[Prepared], dry_run: bool) -> Submission:
        """Hand runs over; with ``dry_run``, only say how."""

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs. Their runs save first."""


class PrintEngine:
    """Prints one command per line, for PBS, LSF, GNU parallel and whatever runs commands."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def submit(self, runs: Sequence[Prepared], dry_run: bool) -> Submission:
        """Return the commands."""
        return Submission([shlex.join(member_command(run, self.machine)) for run in runs], [])

    def cancel(self, jobs: Sequence[str]) -> None:
        """Do nothing: there are no jobs."""


def gpus_of(wanted: Resources, machine: Machine) -> int:
    """Return the number of GPUs that a member asks for."""
    return 0 if machine.device == "cpu" else wanted.gpus


def member_command(run: Prepared, machine: Machine) -> list[str]:
    """Return the command that trains a run to its end."""
    return own_command(["resume", str(run.folder.path.resolve()), *machine.to_argv()])


class Everything(Collection[str]):
    """Every id: where the scheduler cannot be asked, no job counts as lost."""

    def __contains__(self, job: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def store_configuration(runs: Sequence[Prepared]) -> None:
    """Write what ``segbench resume`` needs. Earlier kills do not count any more."""
    for run in runs:
        if not (run.folder.path / "config.yaml").exists():
            run.folder.write_config(run.run_id, run.experiment, run.science, run.plugins)
        record_retry(run.folder.path)
