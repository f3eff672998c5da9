"""One member of a cluster's job: attempts at one run, until it has ended or someone stops it.

SLURM warns the processes of a job before the time limit (USR2); the run saves and its member asks
for a requeue. On preemption SLURM sends TERM and requeues by itself, but only if the job does not
end before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from segbench.errors import BusyError
from segbench.results.attempts import WARNED, history, record_kill
from segbench.results.rundir import RunDir
from segbench.training.signals import STOP_SIGNALS

LINGER = 300.0  # seconds in which SLURM ends a job that it has signaled
BUSY_WAIT = 30.0
GIVEN_UP = 1  # exit code of a member whose run was killed too often


class Member:
    """The run of a job.

    Args:
        tries: attempts in a row that may be killed.
        options: of ``segbench resume``.
        log: file that the output of the run is added to; None: that of this process.
    """

    def __init__(
        self, folder: Path, tries: int, options: list[str], log: Path | None = None
    ) -> None:
        self.run = RunDir(folder)
        self.tries = tries
        words = ["resume", str(folder), *options]
        self.command = [sys.executable, "-m", "segbench.cli.main", *words]
        self.log = log
        self.received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Pass a signal on to the run."""
        self.received.append(number)
        if self._child is not None:
            self._child.send_signal(number)

    def gives_up(self) -> bool:
        """Return whether the run was killed too often, and record it as failed then."""
        if self.run.state == "running":  # by another process, whose start is no kill
            return False
        if history(self.run.path).kills < self.tries:
            return False
        self.run.fail_as_killed()
        return True

    def attempt(self) -> int:
        """Execute the run, after waiting for other processes; return the exit code."""
        code = self._attempt()
        while code == BusyError.code and not self.received:
            time.sleep(BUSY_WAIT)
            if self.received:
                break
            code = self._attempt()
        return code

    def wants_again(self, code: int) -> bool:
        """Return whether a run is to be started again; a kill is recorded."""
        if self.run.state == "done":
            return False
        if code in (WARNED, BusyError.code) or -code in STOP_SIGNALS:
            return True
        if code >= 0:
            return False
        record_kill(self.run.path, -code)
        return not self.gives_up()

    def _attempt(self) -> int:
        output = None if self.log is None else self.log.open("ab")
        try:
            self._child = subprocess.Popen(self.command, stdout=output, stderr=output)
        finally:
            if output is not None:
                output.close()
        for number in self.received:  # came while the process was being started
            self._child.send_signal(number)
        return self._child.wait()


class SlurmMember(Member):
    """The run of a member of a SLURM array."""

    def execute(self) -> int:
        """Execute the run; return the exit code of the job."""
        if self.gives_up():
            return GIVEN_UP
        code = self.attempt()
        if self.run.state == "done":  # whatever reached the run while it was leaving
            return 0
        if signal.SIGTERM in self.received:
            time.sleep(LINGER)  # leaving now would count as completed: no requeue
            return code
        again = self.wants_again(code)
        shown = 128 - code if code < 0 else code  # as a shell shows it
        return self._requeue(shown) if again else shown

    def _requeue(self, code: int) -> int:
        """Have SLURM start this job again; where it refuses, end with a code."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which SLURM sends when it has agreed
        asked = subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
        if asked.returncode == 0:
            time.sleep(LINGER)
        return code


def train_member(folder: str, tries: int, options: list[str]) -> None:
    """Train the run of a member of an array. It is what submitit calls in a job.

    submitit's own handlers of signals are replaced: they would requeue a run before it has saved.

    Args:
        folder: of the run.
        tries: attempts in a row that may be killed.
        options: of ``segbench resume``.
    """
    member = SlurmMember(Path(folder), tries, options)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, member.handle)
    code = member.execute()
    if code:
        sys.exit(code)
