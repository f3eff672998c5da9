"""Leave the runs of a suite to a process of this machine that outlives the command.

The process works as ``bench run`` does. Its console is ``jobs/SUITE/TIME/queue.log``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from segbench.config import Machine
from segbench.errors import PluginError
from segbench.results.attempts import process_exists
from segbench.results.states import JOB
from segbench.storage import make_folder
from segbench.suites.engines import Cluster, Submission, member_command, refuse_keys
from segbench.suites.local import redirect_output
from segbench.training.setup import Prepared

NOT_FOR_LOCAL = ("time", "gpus", "cpus", "tries", "setup", "slurm", "methods")  # keys of --cluster

Work = Callable[[Sequence[Prepared], int], None]  # executes runs, so many at a time


class LocalEngine:
    """A background process that executes runs one after the other, or ``at_once`` at a time.

    Args:
        folder: of the logs.
        work: is called in the background process; not needed to cancel.

    Raises:
        UsageError: the file of --cluster has keys that mean nothing here.
        PluginError: processes cannot be forked here.
    """

    def __init__(
        self, cluster: Cluster, machine: Machine, folder: Path, work: Work | None = None
    ) -> None:
        why = "a machine without a scheduler has no such setting"
        refuse_keys(cluster, NOT_FOR_LOCAL, why, "at_once")
        if not hasattr(os, "fork"):
            raise PluginError(
                "--engine local needs Linux or macOS", fix="segbench bench run SUITE -j N"
            )
        self.slots = cluster.at_once or 1
        self.machine = machine
        self.folder = folder
        self.work = work

    def submit(self, runs: Sequence[Prepared], dry_run: bool) -> Submission:
        """Start the process; with ``dry_run``, return the commands that it would execute."""
        submission = Submission([], [])
        for run in runs:
            submission.texts.append(" ".join(member_command(run, self.machine)))
        if dry_run or not runs:
            return submission
        folder = self.folder / time.strftime("%Y%m%d-%H%M%S")
        make_folder(folder)
        log = folder.resolve() / "queue.log"
        for run in runs:
            (run.folder.path / "failed.json").unlink(missing_ok=True)  # it gets a new job
        process = self._start(runs, log)
        for number, run in enumerate(runs):
            job = str(Queued(socket.gethostname(), process, _began(process), number))
            run.folder.write_json(JOB, {"engine": "local", "job": job, "log": str(log)})
            submission.jobs.append(job)
        return submission

    def cancel(self, jobs: Sequence[str]) -> None:
        """End the processes of jobs. What is running saves first.

        Raises:
            PluginError: one is on another machine.
        """
        queues = {(queued.host, queued.process) for queued in map(Queued.parse, jobs)}
        for host, process in sorted(queues):
            if host != socket.gethostname():
                raise PluginError(
                    f"the process of these runs is on {host}",
                    fix=f"type the command there, or: kill {process}",
                )
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)  # it passes the signal on

    def _start(self, runs: Sequence[Prepared], log: Path) -> int:
        """Start the background process and return its number.

        It is forked twice: the one in between ends at once, so that the second has no parent that
        must wait for it.
        """
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            os.setsid()
            process = os.fork()
            if process:
                os.write(writer, str(process).encode())
                os._exit(0)
            os.close(reader)
            os.close(writer)
            self._execute(runs, log)
        os.close(writer)
        os.waitpid(between, 0)
        with os.fdopen(reader) as answer:
            return int(answer.read())

    def _execute(self, runs: Sequence[Prepared], log: Path) -> None:
        """Work in this process, which ends then."""
        redirect_output(log)
        assert self.work is not None
        try:
            self.work(runs, self.slots)
        except BaseException:  # this process must never go on as the command that it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _began(process: int) -> str:
    """Return when a process began, as Linux counts it; empty elsewhere and if there is none.

    It tells a process from a later one with the same number.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


class Queued(NamedTuple):
    """A job of this engine: the place of a run in the queue of a process."""

    host: str
    process: int
    began: str
    number: int

    def __str__(self) -> str:
        return f"{self.host}:{self.process}:{self.began}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Queued:
        """Read what ``str`` wrote.

        Raises:
            ValueError: it is something else.
        """
        host, process, began, number = text.rsplit(":", 3)
        return cls(host, int(process), began, int(number))

    @property
    def exists(self) -> bool:
        """Whether the process exists, as far as this machine can know."""
        if self.host != socket.gethostname():
            return True
        return process_exists(self.process) and _began(self.process) == self.began


class LocalJobs(Collection[str]):
    """The jobs whose process exists. Those of other machines count as such."""

    def __contains__(self, job: object) -> bool:
        try:
            return Queued.parse(str(job)).exists
        except ValueError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
