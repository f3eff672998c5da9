"""Local execution of a suite: slots, one process a run, GPUs shared out. The run directories are the only state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from segbench.errors import Interrupted
from segbench.results.rundir import RunDir
from segbench.training.setup import Machine, Prepared
from segbench.training.signals import CODES, spared


@dataclass
class Job:
    """A run in a slot."""

    run: Prepared
    process: subprocess.Popen[bytes]
    slot: int
    log: IO[bytes]
    began: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, and the seconds it took."""

    run: Prepared
    code: int
    seconds: float


def state(folder: RunDir) -> str:
    """``done``, ``half-done``, ``failed`` or ``to do``."""
    return folder.state


def run_all(
    runs: Sequence[Prepared], machine: Machine, slots: int, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """Execute runs that are not done, ``slots`` at a time; a failed one does not stop the others.

    Raises:
        Interrupted: stopped by a signal; the running ones have saved and can be resumed.
    """
    todo = [run for run in runs if not ended(run, machine)]
    jobs: list[Job] = []
    outcomes: list[Outcome] = []
    with _forwarded(jobs) as stopped:
        while todo or jobs:
            while todo and len(jobs) < slots and not stopped:
                free = next(s for s in range(slots) if s not in {j.slot for j in jobs})
                jobs.append(_start(todo.pop(0), machine, free, slots))
                if stopped:  # it came while the process was being started
                    jobs[-1].process.send_signal(stopped[0])
            for job in [j for j in jobs if j.process.poll() is not None]:
                jobs.remove(job)
                job.log.close()
                outcomes.append(
                    Outcome(job.run, job.process.returncode, time.monotonic() - job.began)
                )
                tell(outcomes[-1])
            if stopped and not jobs:
                name = signal.Signals(stopped[0]).name
                raise Interrupted(
                    f"{name}: the suite was stopped, running ones have saved",
                    CODES[name],
                    fix="repeat the command to go on",
                )
            time.sleep(0.1)
    return outcomes


def ended(run: Prepared, machine: Machine) -> bool:
    """Finished, and its leak measured if that is wanted and its checkpoints were kept."""
    unmeasured = (
        machine.leak_meter and (run.folder.path / "snapshots").exists() and not run.folder.leak()
    )
    return state(run.folder) == "done" and not unmeasured


def own_command(machine: Machine, command: str, run: Prepared, *options: str) -> list[str]:
    """The words that start ``segbench COMMAND RUN`` as a process of its own on this machine's folders and device."""
    return [
        sys.executable,
        "-m",
        "segbench.cli.main",
        "--root",
        str(machine.root),
        "--data-root",
        str(machine.data_root),
        command,
        str(run.folder.path),
        "--device",
        machine.device,
        *options,
    ]


def _start(run: Prepared, machine: Machine, slot: int, slots: int) -> Job:
    """A process of ``segbench resume`` on a directory that holds the run's configuration."""
    if not (run.folder.path / "config.yaml").exists():
        run.folder.write_config(run.run_id, run.experiment, run.science, machine.plugins)
    cadence = machine.save_every
    words = own_command(
        machine,
        "resume",
        run,
        "--workers",
        str(machine.workers),
        "--save-every",
        str(cadence.steps) if cadence.steps else f"{round(cadence.seconds or 300)}s",
        *["--leak-meter"] * machine.leak_meter,
        *["--recompute"] * machine.recompute,
    )
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
    if machine.device == "cuda":
        visible = _gpus()
        env["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    log = (run.folder.path / "console.log").open("ab")
    # A session of its own: Ctrl-C reaches only us, and we pass it on once.
    process = subprocess.Popen(
        words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    return Job(run, process, slot, log, time.monotonic())


def _gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed:
        return listed.split(",")
    import torch

    return [str(i) for i in range(max(1, torch.cuda.device_count()))]


@contextmanager
def _forwarded(jobs: list[Job]) -> Iterator[list[int]]:
    """Pass signals on to the running processes, which save and leave; note the first one."""
    stopped: list[int] = []

    def handle(number: int, frame: object) -> None:
        stopped.append(number)
        for job in jobs:
            job.process.send_signal(number)

    numbers = [
        getattr(signal, name) for name in CODES if hasattr(signal, name) and not spared(name)
    ]
    old = {n: signal.signal(n, handle) for n in numbers}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def last_words(folder: Path, lines: int = 3) -> str:
    """The end of a run's console log, for a message about its failure."""
    try:
        text = (folder / "console.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    errors = [i for i, line in enumerate(text) if line.startswith("error:")]
    return "\n".join(text[errors[-1] :][:lines] if errors else text[-lines:])
