"""Make batches ahead of the training step, in a thread or in worker processes.

Worker processes may die; they are replaced once.
"""

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
    """Batches by their step; used inside a worker."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __getitem__(self, step: Step) -> Batch | SegbenchError:
        try:
            return self.data.batch(*step)
        except SegbenchError as error:
            # Returned, because torch would rebuild a raised error from text and lose its fields.
            return error


class _Plan:
    """Hands out steps and remembers those whose batch has not come back.

    A new loader can then ask for them once more.
    """

    def __init__(self, data: TrainingData, steps: Iterable[Step]) -> None:
        self.data = data
        self.rest = iter(steps)
        self.open: deque[Step] = deque()

    def __iter__(self) -> Iterator[Step]:
        yield from tuple(self.open)
        for step in self.rest:
            _, _, labeled, unlabeled = step
            self.data.check(labeled, unlabeled)
            self.open.append(step)
            yield step


class _WorkerDiedError(Exception):
    pass


def _unchanged(batch: Any) -> Any:
    return batch


def _worker_init(_: int) -> None:
    # The main process handles signals to the group; it needs its workers until it has saved.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def _own_sigchld() -> Iterator[None]:
    """Keep torch from installing its SIGCHLD handler, which raises anywhere in the main process."""
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
    """Yield the batches of the steps that are still open and of the rest of the plan, in order."""
    # The loader gets a generator, because otherwise every new iterator would draw from torch's
    # global one and change the training.
    torch_loader = DataLoader(
        _Steps(plan.data),
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=prefetch,
        multiprocessing_context=context,
        worker_init_fn=_worker_init,
        generator=torch.Generator(),
        timeout=min(timeout, 1.0),
    )
    with _own_sigchld():
        batches = iter(torch_loader)
    # Not public, but torch offers no other way.
    processes = list(batches._workers)  # type: ignore[attr-defined]
    try:
        while True:
            batch = _next(batches, plan, processes, timeout)
            if batch is None:
                return
            plan.open.popleft()
            yield batch
    finally:
        del batches  # ends the workers, unless one hangs or a traceback still holds the iterator
        for process in processes:
            if process.exitcode is None:
                process.kill()  # because it ignores SIGTERM


def _next(
    batches: Iterator[Any], plan: _Plan, processes: list[Any], timeout: float
) -> Batch | None:
    """Return the next batch, or None after the last one.

    Raises:
        _WorkerDiedError: a worker has ended.
        DataError: the batch could not be made, or did not come in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            batch: Batch | SegbenchError = next(batches)
        except StopIteration:
            return None
        except (RuntimeError, OSError, EOFError) as error:
            timed_out = "timed out" in str(error)
            if not timed_out:
                _wait_for_the_dead(processes)
            dead = [process for process in processes if process.exitcode is not None]
            if dead:
                raise _WorkerDiedError(", ".join(map(_cause_of_death, dead))) from error
            if not timed_out:
                raise
            if time.monotonic() > deadline:
                raise DataError(
                    f"no batch for {timeout:g} seconds: reading hangs",
                    where=", ".join(plan.data.cases(*plan.open[0])),
                    fix="check the file system of the data",
                ) from None
            continue
        if isinstance(batch, SegbenchError):
            raise batch
        return batch


def _wait_for_the_dead(processes: list[Any]) -> None:
    """Wait until a worker that broke its connection has ended, which takes a moment."""
    sentinels = [process.sentinel for process in processes]
    ended = multiprocessing.connection.wait(sentinels, timeout=5)
    for process in processes:
        process.join(5 if process.sentinel in ended else 0)


def _cause_of_death(process: Any) -> str:
    code = process.exitcode
    if code < 0:
        return f"worker {process.pid} killed by {signal.Signals(-code).name}"
    return f"worker {process.pid} ended with {code}"


def _pinned(batch: Batch) -> Batch:
    """Return the batch in memory that a GPU can copy from while the program goes on."""
    if batch.x.device.type != "cpu":
        return batch
    return Batch(**{name: value.pin_memory() for name, value in vars(batch).items()})


def _batches_from_thread(plan: _Plan, prefetch: int, pin: bool) -> Iterator[Batch]:
    """Yield batches that one thread makes, up to ``prefetch`` of them ahead."""

    def make(step: Step) -> Batch:
        batch = plan.data.batch(*step)
        return _pinned(batch) if pin else batch

    coming: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, "segbench-batches") as pool:
        for step in plan:
            plan.open.clear()
            coming.append(pool.submit(make, step))
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
    pin: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the batches of the planned steps, in order and the same for any number of workers.

    If a worker dies, all workers are replaced once: the steps under way are repeated and give the
    same batches.

    Args:
        data: makes the batches.
        steps: (phase, step, labeled items, unlabeled items) of each batch.
        workers: number of processes; 0 works ahead in a thread instead, which is enough for plain
            crops (numpy copies without the interpreter lock) and avoids shared memory.
        context: fork, spawn or forkserver; None is the platform's default.
        prefetch: batches made ahead, per worker.
        timeout: seconds to wait for a batch.
        pin: put batches into memory that a GPU can copy from in the background.

    Raises:
        DataError: a case cannot be read, or no batch came for ``timeout`` seconds.
        TrainingError: a worker died a second time.
    """
    plan = _Plan(data, steps)
    if workers == 0:
        yield from _batches_from_thread(plan, prefetch, pin)
        return
    for last in (False, True):
        try:
            for batch in _deliver(plan, workers, context, prefetch, timeout):
                yield _pinned(batch) if pin else batch
            return
        except _WorkerDiedError as death:
            if last:
                raise _died_twice(plan, death) from death
            data.warnings.append(f"{death}; the loader was restarted")


def _died_twice(plan: _Plan, death: _WorkerDiedError) -> TrainingError:
    where = None
    if plan.open:
        phase, step, _, _ = plan.open[0]
        where = f"step {step} of phase {phase}"
    return TrainingError(
        "data workers died twice",
        where=where,
        found=str(death),
        fix="lower --workers; SIGKILL means that memory ran out, SIGBUS that /dev/shm is too small",
    )
