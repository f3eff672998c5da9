"""Train one run in several processes on this machine: start torchrun, and again after a loss.

torchrun's own restarts are not used (``--max-restarts 0``), because processes of different attempts
may wait for each other forever. The whole job starts again instead and continues from the
checkpoint. As a program, this module is torchrun without its traceback when a process fails.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from segbench.config import Machine
from segbench.errors import Interrupted, PeerLost, PluginError, SegbenchError
from segbench.results.attempts import STOPPED, history, read_lease, record_retry
from segbench.results.rundir import read_object
from segbench.storage import lock
from segbench.suites.local import TRIES
from segbench.training.build import build_if_fit
from segbench.training.run import clean_folder
from segbench.training.setup import Prepared
from segbench.training.signals import CODES, spared

WAIT = 0.1  # seconds between two looks at the processes
NOT_STARTED = 4  # exit code where the processes ended before they recorded an attempt


class ProcessesFailed(SegbenchError):
    """The processes of a training failed; the first one has printed why."""

    def __init__(self, run: Prepared, code: int, found: object) -> None:
        super().__init__(
            f"the training in {run.experiment.processes} processes failed",
            where=run.folder.path,
            found=found,
        )
        self.code = code  # type: ignore[misc]


def train_in_processes(
    run: Prepared,
    machine: Machine,
    say: Callable[[str], None],
    options: Sequence[str] = (),
    restart: bool = False,
) -> dict[str, Any]:
    """Train and evaluate a run in as many processes as it wants, and return its result.

    Args:
        say: is called with a sentence when the job is started again.
        options: global options of the processes, such as ``-v``.
        restart: delete earlier results first.

    Raises:
        Interrupted: a signal requested a stop, or processes were lost again and again.
        ProcessesFailed: the training failed.
        BusyError: another process is working on the run.
        PluginError: there are too few GPUs.
    """
    folder = run.folder
    stored = None if restart else folder.result()
    if stored is not None:
        return {**stored, "cached": True}
    _require_gpus(run, machine)
    build_if_fit(run.experiment, run.stores, fresh=False)
    with lock(folder.path / "lock"):
        folder.write_config(run.run_id, run.experiment, run.science, run.plugins)
        clean_folder(folder, restart)

    for attempt in range(1, TRIES + 1):
        record_retry(folder.path)
        received = _attempt(run, machine, options)
        result = folder.result()
        if result is not None:
            return result
        if received:
            name = signal.Signals(received[0]).name
            raise Interrupted(f"{name}: the processes have saved and ended", CODES[name])
        _require_lost(run)
        if attempt < TRIES:
            say(f"a process was lost; the job starts again ({attempt + 1} of {TRIES})")
    raise PeerLost(f"processes of this training were lost {TRIES} times", where=folder.path)


def _require_gpus(run: Prepared, machine: Machine) -> None:
    """Refuse to give two processes the same GPU."""
    import torch

    wanted = run.experiment.processes
    if machine.device == "cpu" or torch.cuda.device_count() >= wanted:
        return
    raise PluginError(
        f"the run needs {wanted} GPUs",
        found=f"{torch.cuda.device_count()} on this machine",
        fix="torchrun on several machines, or --device cpu",
    )


def _require_lost(run: Prepared) -> None:
    """Return if the last attempt lost a process.

    Raises:
        ProcessesFailed: it failed for another reason.
    """
    past = history(run.folder.path)
    was_killed = past.kills > 0
    if was_killed or past.code in STOPPED:  # torchrun ends those that are left with SIGTERM
        return
    found = read_object(run.folder.path / "failed.json").get("what", "see the messages above")
    raise ProcessesFailed(run, past.code or NOT_STARTED, found)


def _attempt(run: Prepared, machine: Machine, options: Sequence[str]) -> list[int]:
    """Run the job until all its processes have ended; return the signals that came meanwhile."""
    processes = run.experiment.processes
    words = [*options, "resume", str(run.folder.path), *machine.to_argv()]
    command = [sys.executable, "-m", "segbench.suites.processes", "--standalone"]
    command += ["--nproc-per-node", str(processes), "--max-restarts", "0"]
    command += ["-m", "segbench.cli.main", *words]
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment.setdefault("LOGLEVEL", "ERROR")  # torchrun's messages
    job = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # this process prints the result
        start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
    )
    with _forwarded_signals(run, job) as received:
        while job.poll() is None:
            time.sleep(WAIT)
    return received


@contextmanager
def _forwarded_signals(run: Prepared, job: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass signals on to the first process of the training; yield those received.

    All processes stop after the same step. torchrun gets the signal if no training has begun.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        lease = read_lease(run.folder.path)
        with suppress(ProcessLookupError):
            if lease is not None and lease.alive and lease.host == socket.gethostname():
                os.kill(lease.pid, number)
            else:
                job.send_signal(signal.SIGTERM)

    before = {}
    for name in CODES:
        number = getattr(signal, name, None)
        if number is not None and not spared(name):
            before[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Run torchrun with the arguments of this program; exit with 1 if a process failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Schedulers warn all processes of a job; torchrun would end its workers while they save.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        run(parse_args(sys.argv[1:]))
    except (ChildFailedError, SignalException):
        sys.exit(1)


if __name__ == "__main__":
    main()
