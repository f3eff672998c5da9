"""Local execution of a suite: several runs at a time, each in a process of its own.

The run directories are the only state.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from segbench.config import Machine
from segbench.errors import BusyError, Interrupted, StorageError
from segbench.results.attempts import STOPPED, history, record_kill, record_retry, remove_lease
from segbench.training.setup import Prepared
from segbench.training.signals import CODES, STOP_SIGNALS, exit_at_once, spared

NO_RESULT = 4  # exit code of a run that a plug-in ended early, as by os._exit(0)
TRIES = 3  # of a run whose process is killed again and again
BUSY_WAIT = 1.0  # seconds until a run that another process works on is looked at again

Main = Callable[[list[str]], int]  # the command line as a function: words to an exit code


class Process(Protocol):
    """What a slot asks of a process; ``subprocess.Popen`` offers it."""

    returncode: int | None

    def poll(self) -> int | None:
        """Return the exit code, None while the process is running."""

    def send_signal(self, number: int) -> None:
        """Send a signal."""


@dataclass
class Job:
    """A run in a slot."""

    run: Prepared
    process: Process
    slot: int
    began: float  # time.monotonic()


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a run ended: its exit code, and the seconds it took."""

    run: Prepared
    code: int
    seconds: float
    tried_again: bool = False

    @property
    def kind(self) -> str:
        """``done``, ``busy``, ``stopped``, ``killed`` or ``failed``."""
        if self.code == 0:
            return "done"
        if self.code == BusyError.code:
            return "busy"
        if self.code in STOPPED or -self.code in STOP_SIGNALS:
            return "stopped"
        return "killed" if self.code < 0 else "failed"


@dataclass
class Waiting:
    """A run that waits for a slot, not before a time (``time.monotonic()``)."""

    run: Prepared
    not_before: float = 0.0


class SuiteWatcher:
    """Base class of the displays of a suite. Every method does nothing unless it is overridden."""

    def ended(self, outcome: Outcome) -> None:
        """Called with every outcome, also with those after which a run is tried again."""

    def tick(self, jobs: Sequence[Job]) -> None:
        """Called many times per second with the running runs."""

    def stopping(self, signal_name: str) -> None:
        """Called at once when a signal asks for a stop, within its handler."""


class Coordinator:
    """Starts runs in slots and settles how they end. The run directories hold all states.

    Args:
        watcher: shows what happens.
    """

    def __init__(self, machine: Machine, slots: int, watcher: SuiteWatcher, main: Main) -> None:
        self.machine = machine
        self.slots = slots
        self.watcher = watcher
        self.main = main
        self.waiting: list[Waiting] = []
        self.jobs: list[Job] = []
        self.outcomes: list[Outcome] = []
        self.disk_is_full = False
        self._reported_busy: set[str] = set()

    def run(self, runs: Sequence[Prepared]) -> None:
        """Execute runs until all have ended.

        Raises:
            Interrupted: a signal stopped the suite.
        """
        self.waiting = [Waiting(run) for run in runs]
        with _forwarded_signals(self.jobs, self.watcher.stopping) as received:
            while self.jobs or (self.waiting and not self.disk_is_full):
                if not received:
                    self._fill_slots(received)
                self._collect(bool(received))
                if received and not self.jobs:
                    name = signal.Signals(received[0]).name
                    raise Interrupted(
                        f"{name}: the suite was stopped; its unfinished runs have saved their "
                        "state",
                        CODES[name],
                        fix="repeat the command to continue",
                    )
                self.watcher.tick(self.jobs)
                time.sleep(0.02)

    def _fill_slots(self, received: list[int]) -> None:
        """Start the runs whose time has come, as long as there are slots and no signal came."""
        for waiting in list(self.waiting):
            if len(self.jobs) >= self.slots or received or self.disk_is_full:
                return
            if waiting.not_before > time.monotonic():
                continue
            if waiting.run.folder.state == "running":  # started by another coordinator or by hand
                self._put_back(waiting)
                continue
            self.waiting.remove(waiting)
            if ended(waiting.run, self.machine):
                self._settle(Outcome(waiting.run, 0, 0.0))
                continue
            self._start(waiting.run, received)

    def _start(self, run: Prepared, received: list[int]) -> None:
        try:
            job = _start(run, self.machine, _free_slot(self.jobs), self.slots, self.main)
        except StorageError as error:
            self._settle(Outcome(run, error.code, 0.0))
            return
        self.jobs.append(job)
        if received:  # a signal that came while the process was being started
            job.process.send_signal(received[0])

    def _collect(self, stopping: bool) -> None:
        """Settle the processes that have ended."""
        for job in list(self.jobs):
            code = job.process.poll()
            if code is None:
                continue
            self.jobs.remove(job)
            if code == 0 and job.run.folder.state != "done":
                code = NO_RESULT
            outcome = Outcome(job.run, code, time.monotonic() - job.began)
            if outcome.kind == "busy":
                self._put_back(Waiting(job.run))
            elif outcome.kind == "killed" and not stopping:
                self._settle_killed(outcome)
            else:
                self._settle(outcome)

    def _put_back(self, waiting: Waiting) -> None:
        """Look again later at a run that another process works on; report it once."""
        waiting.not_before = time.monotonic() + BUSY_WAIT
        if waiting not in self.waiting:
            self.waiting.append(waiting)
        if waiting.run.run_id not in self._reported_busy:
            self._reported_busy.add(waiting.run.run_id)
            self.watcher.ended(Outcome(waiting.run, BusyError.code, 0.0))

    def _settle_killed(self, outcome: Outcome) -> None:
        """Try a killed run again, up to ``TRIES`` times in a row."""
        folder = outcome.run.folder
        record_kill(folder.path, -outcome.code)
        if history(folder.path).kills < TRIES:
            self.watcher.ended(replace(outcome, tried_again=True))
            self.waiting.append(Waiting(outcome.run))
            return
        with suppress(StorageError):
            folder.fail_as_killed()
        remove_lease(folder.path)
        self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        """Keep the outcome of a run that is not tried again."""
        self.outcomes.append(outcome)
        self.watcher.ended(outcome)
        if outcome.code == StorageError.code:  # all others would end in the same way
            self.disk_is_full = True
            self.waiting.clear()


def run_all(
    runs: Sequence[Prepared],
    machine: Machine,
    slots: int,
    watcher: SuiteWatcher,
    main: Main,
) -> list[Outcome]:
    """Execute the runs that are not finished, ``slots`` at a time.

    A failed run does not stop the others. A run whose process was killed is tried again, one that
    another process works on is looked at again until it has ended, and after a full disk no more
    runs are started. ``main`` runs a command in this process. On Linux, runs on the CPU are forked
    off this process, which saves each of them the seconds that importing torch takes; elsewhere
    every run starts a new interpreter.

    Raises:
        Interrupted: stopped by a signal; the running ones have saved and can be resumed.
    """
    waiting = [run for run in runs if not ended(run, machine)]
    if waiting and _forks(machine):
        _import_for_children()
    for run in waiting:
        if run.folder.state != "running":  # otherwise another process is writing its attempts
            record_retry(run.folder.path)
    coordinator = Coordinator(machine, slots, watcher, main)
    coordinator.run(waiting)
    return coordinator.outcomes


def _free_slot(jobs: Sequence[Job]) -> int:
    taken = {job.slot for job in jobs}
    return next(slot for slot in range(len(jobs) + 1) if slot not in taken)


def ended(run: Prepared, machine: Machine) -> bool:
    """Return whether a run is finished and, if wanted and possible, its leak is measured."""
    has_snapshots = (run.folder.path / "snapshots").exists()
    unmeasured = machine.leak_meter and has_snapshots and not run.folder.leak()
    return run.folder.state == "done" and not unmeasured


def own_command(words: list[str]) -> list[str]:
    """Return the command that runs ``segbench WORDS`` in a new interpreter."""
    return [sys.executable, "-m", "segbench.cli.main", *words]


def _forks(machine: Machine) -> bool:
    """Return whether runs are forked. CUDA does not work in a fork; on macOS forks may crash."""
    return machine.device == "cpu" and sys.platform.startswith("linux")


def _import_for_children() -> None:
    """Import what every training needs, so that no forked child has to.

    torch imports its compiler, which is large, with the first optimizer.
    """
    importlib.import_module("torch._dynamo")


def _start(run: Prepared, machine: Machine, slot: int, slots: int, main: Main) -> Job:
    """Start ``segbench resume`` on a directory that holds the run's configuration."""
    if not (run.folder.path / "config.yaml").exists():
        run.folder.write_config(run.run_id, run.experiment, run.science, run.plugins)
    words = ["resume", str(run.folder.path), *machine.to_argv()]
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // slots)))
    log = run.folder.path / "console.log"
    process: Process
    if _forks(machine):
        process = ForkedCommand(main, words, log, threads)
    else:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if machine.device == "cuda":
            visible = _gpus()
            environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
        process = _spawn(own_command(words), log, environment)
    return Job(run, process, slot, time.monotonic())


def _spawn(command: list[str], log: Path, environment: dict[str, str]) -> Process:
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches only this process, which passes it on once.
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


class ForkedCommand:
    """A command in a forked child of this process, with a log, a session and signals of its own."""

    def __init__(self, main: Main, words: list[str], log: Path, threads: int) -> None:
        self.returncode: int | None = None
        # multiprocessing flushes output and runs no exit handlers of the parent in the child.
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._child, args=(main, words, log, threads))
        # The child must not run the parent's handlers, which pass signals on to all children.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in CODES])
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @staticmethod
    def _child(main: Main, words: list[str], log: Path, threads: int) -> None:
        os.setsid()
        exit_at_once()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [getattr(signal, name) for name in CODES])
        redirect_output(log)
        import torch

        torch.set_num_threads(threads)
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, as ``subprocess.Popen`` does: None while the process is running."""
        self.returncode = self._process.exitcode
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal if the process is still running."""
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, number)


def redirect_output(log: Path) -> None:
    """Have this process read nothing and write to the end of a file, also what libraries print."""
    empty = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((empty, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115


def _gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed:
        return listed.split(",")
    import torch

    return [str(number) for number in range(max(1, torch.cuda.device_count()))]


@contextmanager
def _forwarded_signals(jobs: list[Job], heard: Callable[[str], None]) -> Iterator[list[int]]:
    """Pass signals on to the running processes, which save and exit; yield those received.

    Args:
        heard: is called with the name of the first signal.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if not received:
            heard(signal.Signals(number).name)
        received.append(number)
        for job in jobs:
            job.process.send_signal(number)

    old = {}
    for name in CODES:
        number = getattr(signal, name, None)
        if number is not None and not spared(name):
            old[number] = signal.signal(number, handle)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def last_words(folder: Path, lines: int = 3) -> str:
    """Return the end of a run's console log, for a message about its failure."""
    try:
        text = (folder / "console.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    errors = [number for number, line in enumerate(text) if line.startswith("error:")]
    shown = text[errors[-1] :][:lines] if errors else text[-lines:]
    return "\n".join(shown)
