"""Batches made ahead of the training step: by a thread, or by worker processes that may die and are replaced once."""

from __future__ import annotations

import multiprocessing.connection
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from segbench.contracts.method import Batch
from segbench.data.sampling.batches import TrainingData
from segbench.errors import DataError, SegbenchError, TrainingError

Step = tuple[int, int, int, int]  # phase, step of the phase, labeled items, unlabeled items


class _Steps(Dataset[Any]):
    """Batches by their step; runs in a worker."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __getitem__(self, step: Step) -> Batch | SegbenchError:
        try:
            return self.data.batch(*step)
        except SegbenchError as error:
            return error  # as a value: torch would rebuild a raised one from its text and lose the fields


class _Plan:
    """Hands steps out and remembers those whose batch is not back yet, so that a new loader can ask for them again."""

    def __init__(self, data: TrainingData, steps: Iterable[Step]) -> None:
        self.data, self.rest = data, iter(steps)
        self.open: deque[Step] = deque()

    def __iter__(self) -> Iterator[Step]:
        yield from tuple(self.open)
        for step in self.rest:
            self.data.check(*step[2:])
            self.open.append(step)
            yield step


class _WorkerDiedError(Exception):
    pass


def _as_is(batch: Any) -> Any:
    return batch


def _worker_init(_: int) -> None:
    # A signal to the process group is for the main process, which needs its workers until it has saved.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def _own_sigchld() -> Iterator[None]:
    """Keep torch from installing its SIGCHLD handler, which raises wherever the main process happens to be."""
    usable = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if usable else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def _deliver(
    plan: _Plan, workers: int, context: str | None, prefetch: int, timeout: float
) -> Iterator[Batch]:
    """Batches of the steps that are still open and of the rest of the plan, in order."""
    # Its own generator: without one every new iterator draws from torch's global generator and so changes training.
    torch_loader = DataLoader(
        _Steps(plan.data),
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        collate_fn=_as_is,
        prefetch_factor=prefetch,
        multiprocessing_context=context,
        worker_init_fn=_worker_init,
        generator=torch.Generator(),
        timeout=min(timeout, 1.0),
    )
    with _own_sigchld():
        batches = iter(torch_loader)
    processes = list(batches._workers)  # type: ignore[attr-defined]  # not public, but torch offers no other way
    try:
        while (batch := _next(batches, plan, processes, timeout)) is not None:
            plan.open.popleft()
            yield batch
    finally:
        del batches  # ends the workers, unless one hangs or a traceback still holds the iterator
        for process in processes:
            if process.exitcode is None:
                process.kill()  # it ignores SIGTERM, so nothing else would end it


def _next(
    batches: Iterator[Any], plan: _Plan, processes: list[Any], timeout: float
) -> Batch | None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return None
        except (RuntimeError, OSError, EOFError) as error:
            slow = "timed out" in str(error)
            if not slow:  # a broken connection is seen a moment before its worker is gone
                gone = multiprocessing.connection.wait([p.sentinel for p in processes], timeout=5)
                for process in processes:
                    process.join(5 if process.sentinel in gone else 0)
            dead = [p for p in processes if p.exitcode is not None]
            if dead:
                raise _WorkerDiedError(", ".join(_fate(p) for p in dead)) from error
            if not slow:
                raise
            if time.monotonic() > deadline:
                raise DataError(
                    f"no batch for {timeout:g} seconds: reading hangs",
                    where=", ".join(plan.data.cases(*plan.open[0])),
                    fix="check the file system the data lie on",
                ) from None
            continue
        if isinstance(batch, SegbenchError):
            raise batch
        return batch


def _fate(process: Any) -> str:
    code = process.exitcode
    return f"worker {process.pid} " + (
        f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    )


def _ahead(plan: _Plan, prefetch: int) -> Iterator[Batch]:
    """Batches made by one thread, up to ``prefetch`` of them before they are asked for."""
    coming: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, "segbench-batches") as pool:
        for step in plan:
            plan.open.clear()
            coming.append(pool.submit(plan.data.batch, *step))
            if len(coming) > prefetch:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def loader(
    data: TrainingData,
    steps: Iterable[Step],
    workers: int,
    *,
    context: str | None = None,
    prefetch: int = 2,
    timeout: float = 300.0,
) -> Generator[Batch, None, None]:
    """The batches of a plan of (phase, step, labeled, unlabeled), in order and the same for any number of workers.

    ``workers``: processes; 0 works ahead in a thread instead, which is enough for plain crops (numpy copies without the
    interpreter lock) and spares the way through shared memory. ``prefetch``: batches ahead, per worker. ``context``:
    fork, spawn or forkserver; the platform's default. A worker that dies is replaced once: the steps that were under
    way are done again and give the same batches.

    Raises:
        DataError: a case cannot be read, or nothing came for ``timeout`` seconds.
        TrainingError: a worker died a second time.
    """
    plan = _Plan(data, steps)
    if workers == 0:
        yield from _ahead(plan, prefetch)
        return
    for last in (False, True):
        try:
            yield from _deliver(plan, workers, context, prefetch, timeout)
            return
        except _WorkerDiedError as death:
            if last:
                raise TrainingError(
                    "a data worker died twice",
                    where=f"step {plan.open[0][1]} of phase {plan.open[0][0]}"
                    if plan.open
                    else None,
                    found=str(death),
                    fix="lower --workers; SIGKILL means that memory ran out, SIGBUS that /dev/shm is "
                    "too small",
                ) from death
            data.warnings.append(f"{death}; the loader was started again")
