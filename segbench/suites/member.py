"""One member of a SLURM array: resumes the run of its number, and has SLURM requeue it.

    python -m segbench.suites.member MEMBERS.txt TRIES [OPTION]...

Started by the batch file that ``segbench bench submit`` writes. SLURM warns this process before
the time limit (USR2); the run saves and this process asks for a requeue. On preemption SLURM sends
TERM and requeues by itself, but only if the job does not end before.
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


class Member:
    """The run of this job."""

    def __init__(self, folder: Path, tries: int, options: list[str]) -> None:
        self.run = RunDir(folder)
        self.tries = tries
        words = ["resume", str(folder), *options]
        self.command = [sys.executable, "-m", "segbench.cli.main", *words]
        self.received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on to the run."""
        self.received.append(number)
        if self._child is not None:
            self._child.send_signal(number)

    def execute(self) -> int:
        """Execute the run; return the exit code of the job."""
        is_running = self.run.state == "running"  # by another process, whose start is no kill
        if not is_running and history(self.run.path).kills >= self.tries:
            self.run.fail_as_killed()
            return 1
        code = self._attempt()
        while code == BusyError.code and not self.received:
            time.sleep(BUSY_WAIT)
            if self.received:
                break
            code = self._attempt()
        if signal.SIGTERM in self.received:
            time.sleep(LINGER)  # leaving now would count as completed: no requeue
            return code
        if code in (WARNED, BusyError.code) or -code in STOP_SIGNALS:
            return self._requeue(WARNED)
        if code < 0:
            record_kill(self.run.path, -code)
            if history(self.run.path).kills >= self.tries:
                self.run.fail_as_killed()
                return 128 - code
            return self._requeue(128 - code)
        return code

    def _attempt(self) -> int:
        self._child = subprocess.Popen(self.command)
        for number in self.received:  # came while the process was being started
            self._child.send_signal(number)
        return self._child.wait()

    def _requeue(self, code: int) -> int:
        """Have SLURM start this job again; where it refuses, end with a code."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which SLURM sends when it has agreed
        asked = subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
        if asked.returncode == 0:
            time.sleep(LINGER)
        return code


def main() -> None:
    """Execute the member that SLURM_ARRAY_TASK_ID names."""
    members, tries, *options = sys.argv[1:]
    folders = Path(members).read_text(encoding="utf-8").splitlines()
    folder = Path(folders[int(os.environ["SLURM_ARRAY_TASK_ID"])])
    member = Member(folder, int(tries), options)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, member.handle)
    sys.exit(member.execute())


if __name__ == "__main__":
    main()
