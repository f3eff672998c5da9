"""Two-stream batches, each a pure function of (seed, phase, step): no sampler state, no worker can change a draw.

``TrainingData`` is the only view of the data that training has: images of the training cases, labels of the labelled
ones. Test cases and labels of unlabelled cases cannot be reached through it.
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing.connection
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segbench.contracts.method import Batch
from segbench.data import transforms
from segbench.errors import DataError, SegbenchError, TrainingError, UsageError

Step = tuple[int, int, int, int]  # phase, step of the phase, labelled items, unlabelled items

UNREADABLE = (OSError, ValueError, EOFError)  # what a missing, truncated or foreign file raises


class StoreLike(Protocol):
    """What is asked of a prepared data set (segbench.data.store.Store)."""

    @property
    def channels(self) -> int: ...
    @property
    def train(self) -> tuple[str, ...]: ...
    def image(self, case: str, /) -> np.ndarray: ...
    def label(self, case: str, /) -> np.ndarray: ...


def rng(*key: object) -> np.random.Generator:
    """A generator that depends on ``key`` only (numbers, strings, None)."""
    plain = tuple(k.item() if isinstance(k, np.generic) else k for k in key)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class _File:
    """A memory-mapped array by its place. Unlike the map it costs no descriptor, and pickling it copies no voxels."""

    file: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    order: Any

    def open(self) -> np.ndarray:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, self.order)


def _reference(array: np.ndarray, preload: bool) -> np.ndarray | _File:
    """The place of a memory map; an array that is no map of a file, or is wanted in memory, stays an array."""
    if preload:
        return np.array(array)
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename:
        order = "C" if array.flags.c_contiguous else "F"
        return _File(str(array.filename), array.dtype, array.offset, array.shape, order)
    return array


@dataclass(frozen=True)
class _Case:
    """One training case; ``label`` is there for labelled cases only."""

    id: str
    dataset: str
    task: int  # index of the data set
    shape: tuple[int, ...]
    image: np.ndarray | _File
    label: np.ndarray | _File | None
    plane: int | None = None  # one slice of the last axis, where training is on slices of volumes

    def read(self, which: str) -> np.ndarray:
        held = getattr(self, which)
        try:
            array = held.open() if isinstance(held, _File) else held
            return array if self.plane is None else array[..., self.plane]
        except UNREADABLE as error:
            raise DataError(f"the {which} of case '{self.id}' of {self.dataset} cannot be read: {error}",
                            where=held.file, fix=f"segbench data check {self.dataset}") from error


def _load(store: StoreLike, dataset: str, task: int, case: str, labeled: bool, dims: int, preload: bool) -> list[_Case]:
    """A case, or its slices along the last axis where the patch has one axis less than the volume."""
    try:
        image, label = store.image(case), store.label(case) if labeled else None
    except UNREADABLE as error:
        raise DataError(f"case '{case}' of {dataset} cannot be read: {error}",
                        fix=f"segbench data check {dataset}") from error
    if image.ndim - 1 not in (dims, dims + 1):
        raise UsageError(f"the patch has {dims} axes, the volumes of {dataset} have {image.ndim - 1}",
                         where=f"case '{case}'", fix="choose a protocol of that dimension")
    if label is not None and label.shape != image.shape[1:]:
        raise DataError("image and label differ in shape", where=f"{dataset}, case '{case}'",
                        found=f"{image.shape[1:]} and {label.shape}", fix=f"segbench data check {dataset}")
    whole = _Case(case, dataset, task, tuple(image.shape[1:dims + 1]), _reference(image, preload),
                  None if label is None else _reference(label, preload))
    if image.ndim == dims + 1:
        return [whole]
    return [replace(whole, id=f"{case}[{plane}]", plane=plane) for plane in range(image.shape[-1])]


def _all(places: range) -> range:
    return places


class TrainingData:
    """The training cases of one or several data sets: the first N of each training list labelled, the rest not.

    Epochs are those of the literature's two-stream sampler: one pass over a fresh permutation of the labelled cases in
    groups of L, a remainder dropped. Unlabelled groups come from a chain of permutations that starts anew with every
    labelled epoch. Where labelled cases are fewer than L, a group goes on into further permutations
    (``repeats_labeled``); where no unlabelled case is left, the unlabelled stream shows the labelled cases' images.
    What happened so is in ``warnings``.

    Several data sets: ``sampling="proportional"`` pools their lists; ``"balanced"`` draws the data set of every place
    first, uniformly, then its next case. Images with fewer channels than the largest are filled up with zero channels.

    A patch of two axes and volumes of three: every slice along the last axis counts as a case.

    Used of ``protocol``: patch, crop (labeled, unlabeled, pad, last_offset), augment, sampling. ``preload`` reads all
    cases into memory once (workers that are forked share them). ``share`` picks one process's places of a batch.

    Raises:
        UsageError: a number of labelled cases that the training list does not allow, a patch of the wrong dimension.
        DataError: a case that cannot be read.
    """

    def __init__(self, stores: Mapping[str, StoreLike], labeled: Mapping[str, int], protocol: Any, seed: int, *,
                 preload: bool = False, share: Callable[[range], range] = _all) -> None:
        self.names = tuple(stores)
        self.patch = tuple(int(p) for p in protocol.patch)
        self.channels = max(s.channels for s in stores.values())
        self.seed, self.balanced, self.share = int(seed), protocol.sampling == "balanced", share
        self.warnings: list[str] = []
        self.repeats_labeled = False
        crop = protocol.crop
        self._where = (crop.labeled, crop.unlabeled)
        self._rule = {"pad": crop.pad, "last_offset": crop.last_offset, "augment": protocol.augment}
        cases = [part for task, (name, store) in enumerate(stores.items())
                 for i, case in enumerate(_checked(name, store.train, labeled.get(name)))
                 for part in _load(store, name, task, case, i < labeled[name], len(self.patch), preload)]
        self._labeled = [c for c in cases if c.label is not None]
        self._unlabeled = [c for c in cases if c.label is None] or self._labeled
        self._borrows = self._unlabeled is self._labeled

    def epoch(self, step: int, labeled: int) -> int:
        """Passes over the labelled cases that are complete before ``step`` of a phase."""
        return step // self.steps_per_epoch(labeled)

    def steps_per_epoch(self, labeled: int) -> int:
        """Steps of one pass over the labelled cases, at least 1."""
        if labeled < 1:
            raise UsageError("a batch needs labelled items", found=labeled, expected="at least 1")
        return max(len(self._labeled) // labeled, 1)

    def batch(self, phase: int, step: int, labeled: int, unlabeled: int) -> Batch:
        """The batch of a phase's step: images (L, C, *P) and (U, C, *P) float32, labels (L, *P) int64.

        Raises:
            DataError: a case cannot be read; it is named.
        """
        everything = self._choose(phase, step, labeled, unlabeled)
        mine = self.share(range(labeled))
        places = [*mine, *self.share(range(labeled, labeled + unlabeled))]
        chosen, labeled = [everything[place] for place in places], len(mine)
        images = np.zeros((len(chosen), self.channels, *self.patch), np.float32)
        labels = np.empty((labeled, *self.patch), np.int64)
        for i, (place, case) in enumerate(zip(places, chosen, strict=True)):
            draws = rng(self.seed, "item", phase, step, place)
            cut = transforms.draw(draws, case.shape, self.patch, where=self._where[i >= labeled], **self._rule)
            image = case.read("image")
            transforms.take(image, cut, self.patch, out=images[i, :len(image)])
            if i < labeled:
                transforms.take(case.read("label"), cut, self.patch, out=labels[i])
        x = torch.from_numpy(images)
        task = torch.tensor([case.task for case in chosen], dtype=torch.int64)
        return Batch(x[:labeled], torch.from_numpy(labels), x[labeled:], task)

    def cases(self, phase: int, step: int, labeled: int, unlabeled: int) -> list[str]:
        """``dataset/case`` of every item of a batch, for messages."""
        return [f"{case.dataset}/{case.id}" for case in self._choose(phase, step, labeled, unlabeled)]

    def check(self, labeled: int, unlabeled: int) -> None:
        """Note in ``warnings`` what a batch of this composition cannot have as it should."""
        for places in (labeled, unlabeled):
            self.share(range(places))  # refuses what cannot be shared
        notes = []
        if labeled > len(self._labeled):
            self.repeats_labeled = True
            notes.append(f"{len(self._labeled)} labelled cases for {labeled} places in a batch: cases repeat")
        if unlabeled and self._borrows:
            notes.append("every training case is labelled: the unlabelled stream shows the labelled cases' images")
        self.warnings += [note for note in notes if note not in self.warnings]

    def _choose(self, phase: int, step: int, labeled: int, unlabeled: int) -> list[_Case]:
        """The cases of a batch, labelled first."""
        steps = self.steps_per_epoch(labeled)
        epoch, group = divmod(step, steps)
        return [case for stream, pool, size in (("labeled", self._labeled, labeled),
                                                ("unlabeled", self._unlabeled, unlabeled))
                for case in self._group(pool, range(group * size, (group + 1) * size), steps * size,
                                        (self.seed, stream, phase, epoch))]

    def _group(self, pool: list[_Case], places: range, total: int, key: tuple[object, ...]) -> list[_Case]:
        """The cases at ``places`` of an epoch's chain of permutations, of which the epoch uses ``total``."""
        if not self.balanced:
            return [pool[i] for i in _chain(len(pool), places, key)]
        tasks = sorted({case.task for case in pool})
        drawn = [tasks[i] for i in rng(*key, "task").integers(len(tasks), size=total)]
        chosen = []
        for place in places:
            own = [case for case in pool if case.task == drawn[place]]
            nth = drawn[:place].count(drawn[place])
            chosen += [own[i] for i in _chain(len(own), range(nth, nth + 1), (*key, drawn[place]))]
        return chosen


def _chain(n: int, places: range, key: tuple[object, ...]) -> list[int]:
    """The numbers at ``places`` of an endless chain of permutations of n."""
    rounds = {r: rng(*key, r).permutation(n) for r in {place // n for place in places}}
    return [int(rounds[place // n][place % n]) for place in places]


def _checked(name: str, train: Sequence[str], labeled: int | None) -> Sequence[str]:
    if labeled is None or not 1 <= labeled <= len(train):
        raise UsageError(f"{name} cannot have {labeled} labelled cases", expected=f"1 to {len(train)}",
                         fix=f"--labeled {min(max(labeled or 1, 1), len(train))}")
    return train


# -- worker processes --------------------------------------------------------------------------------------------------


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


def _deliver(plan: _Plan, workers: int, context: str | None, prefetch: int, timeout: float) -> Iterator[Batch]:
    """Batches of the steps that are still open and of the rest of the plan, in order."""
    # Its own generator: without one every new iterator draws from torch's global generator and so changes training.
    torch_loader = DataLoader(_Steps(plan.data), batch_size=None, sampler=plan, num_workers=workers, collate_fn=_as_is,
                              prefetch_factor=prefetch, multiprocessing_context=context, worker_init_fn=_worker_init,
                              generator=torch.Generator(), timeout=min(timeout, 1.0))
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


def _next(batches: Iterator[Any], plan: _Plan, processes: list[Any], timeout: float) -> Batch | None:
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
                raise DataError(f"no batch for {timeout:g} seconds: reading hangs",
                                where=", ".join(plan.data.cases(*plan.open[0])),
                                fix="check the file system the data lie on") from None
            continue
        if isinstance(batch, SegbenchError):
            raise batch
        return batch


def _fate(process: Any) -> str:
    code = process.exitcode
    return f"worker {process.pid} " + (f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}")


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


def loader(data: TrainingData, steps: Iterable[Step], workers: int, *, context: str | None = None, prefetch: int = 2,
           timeout: float = 300.0) -> Generator[Batch, None, None]:
    """The batches of a plan of (phase, step, labelled, unlabelled), in order and the same for any number of workers.

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
                raise TrainingError("a data worker died twice", where=f"step {plan.open[0][1]} of phase "
                                    f"{plan.open[0][0]}" if plan.open else None, found=str(death),
                                    fix="lower --workers; SIGKILL means that memory ran out, SIGBUS that /dev/shm is "
                                        "too small") from death
            data.warnings.append(f"{death}; the loader was started again")
