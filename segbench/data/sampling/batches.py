"""Two-stream batches, each a pure function of (seed, phase, step): no sampler state, no worker can change a draw.

``TrainingData`` is the only view of the data that training has: images of the training cases, labels of the labeled
ones. Test cases and labels of unlabeled cases cannot be reached through it.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from segbench.contracts.method import Batch
from segbench.data.sampling import crops as transforms
from segbench.errors import DataError, UsageError

SPOTS = 10_000  # foreground voxels of a case to draw from, evenly taken
UNREADABLE = (OSError, ValueError, EOFError)  # what a missing, truncated or foreign file raises


class StoreLike(Protocol):
    """What is asked of a prepared data set (segbench.data.store.store.Store)."""

    @property
    def channels(self) -> int: ...
    @property
    def train(self) -> tuple[str, ...]: ...
    def image(self, case: str, /) -> np.ndarray: ...
    def label(self, case: str, /) -> np.ndarray: ...
    def pad(self, case: str, /) -> tuple[float, ...]: ...


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
    """One training case; ``label`` is there for labeled cases only."""

    id: str
    dataset: str
    source: int  # index of the data set
    shape: tuple[int, ...]
    image: np.ndarray | _File
    label: np.ndarray | _File | None
    pad: tuple[float, ...] = ()  # what stands beyond the volume, one number a channel
    plane: int | None = None  # one slice of the last axis, where training is on slices of volumes

    def read(self, which: str) -> np.ndarray:
        held = getattr(self, which)
        try:
            array = held.open() if isinstance(held, _File) else held
            return array if self.plane is None else array[..., self.plane]
        except UNREADABLE as error:
            raise DataError(
                f"the {which} of case '{self.id}' of {self.dataset} cannot be read: {error}",
                where=held.file,
                fix=f"segbench data check {self.dataset}",
            ) from error


def _load(
    store: StoreLike, dataset: str, source: int, case: str, labeled: bool, dims: int, preload: bool
) -> list[_Case]:
    """A case, or its slices along the last axis where the patch has one axis less than the volume."""
    try:
        image, label = store.image(case), store.label(case) if labeled else None
    except UNREADABLE as error:
        raise DataError(
            f"case '{case}' of {dataset} cannot be read: {error}",
            fix=f"segbench data check {dataset}",
        ) from error
    if image.ndim - 1 not in (dims, dims + 1):
        raise UsageError(
            f"the patch has {dims} axes, the volumes of {dataset} have {image.ndim - 1}",
            where=f"case '{case}'",
            fix="choose a protocol of that dimension",
        )
    if label is not None and label.shape != image.shape[1:]:
        raise DataError(
            "image and label differ in shape",
            where=f"{dataset}, case '{case}'",
            found=f"{image.shape[1:]} and {label.shape}",
            fix=f"segbench data check {dataset}",
        )
    whole = _Case(
        case,
        dataset,
        source,
        tuple(image.shape[1 : dims + 1]),
        _reference(image, preload),
        None if label is None else _reference(label, preload),
        store.pad(case),
    )
    if image.ndim == dims + 1:
        return [whole]
    return [replace(whole, id=f"{case}[{plane}]", plane=plane) for plane in range(image.shape[-1])]


def _all(places: range) -> range:
    return places


class TrainingData:
    """The training cases of one or several data sets: the first N of each training list labeled, the rest not.

    Epochs are those of the literature's two-stream sampler: one pass over a fresh permutation of the labeled cases in
    groups of L, a remainder dropped. Unlabeled groups come from a chain of permutations that starts anew with every
    labeled epoch. Where labeled cases are fewer than L, a group goes on into further permutations
    (``repeats_labeled``); where no unlabeled case is left, the unlabeled stream shows the labeled cases' images.
    What happened so is in ``warnings``.

    Several data sets: ``sampling="proportional"`` pools their lists; ``"balanced"`` draws the data set of every place
    first, uniformly, then its next case. Images with fewer channels than the largest are filled up with zero channels.

    A patch of two axes and volumes of three: every slice along the last axis counts as a case.

    Used of ``protocol``: patch, crop, augment, sampling. ``preload`` reads all
    cases into memory once (workers that are forked share them). ``share`` picks one process's places of a batch.

    Raises:
        UsageError: a number of labeled cases that the training list does not allow, a patch of the wrong dimension.
        DataError: a case that cannot be read.
    """

    def __init__(
        self,
        stores: Mapping[str, StoreLike],
        labeled: Mapping[str, int],
        protocol: Any,
        seed: int,
        *,
        preload: bool = False,
        share: Callable[[range], range] = _all,
    ) -> None:
        self.names = tuple(stores)
        self.patch = tuple(int(p) for p in protocol.patch)
        self.channels = max(s.channels for s in stores.values())
        self.seed, self.balanced, self.share = int(seed), protocol.sampling == "balanced", share
        self.warnings: list[str] = []
        self.repeats_labeled = False
        crop = protocol.crop
        self._where, self._foreground = (crop.labeled, crop.unlabeled), crop.foreground
        self._spots: dict[tuple[str, str], np.ndarray] = {}
        self._rule = {"pad": crop.pad, "last_offset": crop.last_offset, "augment": protocol.augment}
        cases = [
            part
            for source, (name, store) in enumerate(stores.items())
            for i, case in enumerate(_checked(name, store.train, labeled.get(name)))
            for part in _load(
                store, name, source, case, i < labeled[name], len(self.patch), preload
            )
        ]
        self._labeled = [c for c in cases if c.label is not None]
        self._unlabeled = [c for c in cases if c.label is None] or self._labeled
        self._borrows = self._unlabeled is self._labeled

    def epoch(self, step: int, labeled: int) -> int:
        """Passes over the labeled cases that are complete before ``step`` of a phase."""
        return step // self.steps_per_epoch(labeled)

    def steps_per_epoch(self, labeled: int) -> int:
        """Steps of one pass over the labeled cases, at least 1."""
        if labeled < 1:
            raise UsageError("a batch needs labeled items", found=labeled, expected="at least 1")
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
            cut = transforms.draw(
                draws, case.shape, self.patch, where=self._where[i >= labeled], **self._rule
            )
            image = case.read("image")
            if i < labeled and self._foreground and draws.random() < self._foreground:
                cut = self._around(draws, cut, case)
            transforms.take(image, cut, self.patch, out=images[i, : len(image)], pad=case.pad)
            if i < labeled:
                transforms.take(case.read("label"), cut, self.patch, out=labels[i])
        x = torch.from_numpy(images)
        source = torch.tensor([case.source for case in chosen], dtype=torch.int64)
        return Batch(x[:labeled], torch.from_numpy(labels), x[labeled:], source)

    def _around(
        self, draws: np.random.Generator, cut: transforms.Cut, case: _Case
    ) -> transforms.Cut:
        """The cut with a foreground voxel in it; as it is where the label has none."""
        spots = self._spots.get((case.dataset, case.id))
        if spots is None:
            found = np.flatnonzero(case.read("label"))
            spots = self._spots[case.dataset, case.id] = found[:: max(1, len(found) // SPOTS)]
        if not len(spots):
            return cut
        spot = np.unravel_index(int(spots[draws.integers(len(spots))]), case.shape)
        return transforms.around(draws, cut, [int(n) for n in spot], case.shape, self.patch)

    def cases(self, phase: int, step: int, labeled: int, unlabeled: int) -> list[str]:
        """``dataset/case`` of every item of a batch, for messages."""
        return [
            f"{case.dataset}/{case.id}" for case in self._choose(phase, step, labeled, unlabeled)
        ]

    def check(self, labeled: int, unlabeled: int) -> None:
        """Note in ``warnings`` what a batch of this composition cannot have as it should."""
        for places in (labeled, unlabeled):
            self.share(range(places))  # refuses what cannot be shared
        notes = []
        if labeled > len(self._labeled):
            self.repeats_labeled = True
            notes.append(
                f"{len(self._labeled)} labeled cases for {labeled} places in a batch: cases repeat"
            )
        if unlabeled and self._borrows:
            notes.append(
                "every training case is labeled: the unlabeled stream shows the labeled cases' images"
            )
        self.warnings += [note for note in notes if note not in self.warnings]

    def _choose(self, phase: int, step: int, labeled: int, unlabeled: int) -> list[_Case]:
        """The cases of a batch, labeled first."""
        steps = self.steps_per_epoch(labeled)
        epoch, group = divmod(step, steps)
        return [
            case
            for stream, pool, size in (
                ("labeled", self._labeled, labeled),
                ("unlabeled", self._unlabeled, unlabeled),
            )
            for case in self._group(
                pool,
                range(group * size, (group + 1) * size),
                steps * size,
                (self.seed, stream, phase, epoch),
            )
        ]

    def _group(
        self, pool: list[_Case], places: range, total: int, key: tuple[object, ...]
    ) -> list[_Case]:
        """The cases at ``places`` of an epoch's chain of permutations, of which the epoch uses ``total``."""
        if not self.balanced:
            return [pool[i] for i in _chain(len(pool), places, key)]
        sources = sorted({case.source for case in pool})
        drawn = [sources[i] for i in rng(*key, "task").integers(len(sources), size=total)]
        chosen = []
        for place in places:
            own = [case for case in pool if case.source == drawn[place]]
            nth = drawn[:place].count(drawn[place])
            chosen += [own[i] for i in _chain(len(own), range(nth, nth + 1), (*key, drawn[place]))]
        return chosen


def _chain(n: int, places: range, key: tuple[object, ...]) -> list[int]:
    """The numbers at ``places`` of an endless chain of permutations of n."""
    rounds = {r: rng(*key, r).permutation(n) for r in {place // n for place in places}}
    return [int(rounds[place // n][place % n]) for place in places]


def _checked(name: str, train: Sequence[str], labeled: int | None) -> Sequence[str]:
    if labeled is None or not 1 <= labeled <= len(train):
        raise UsageError(
            f"{name} cannot have {labeled} labeled cases",
            expected=f"1 to {len(train)}",
            fix=f"--labeled {min(max(labeled or 1, 1), len(train))}",
        )
    return train
