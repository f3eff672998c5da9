"""Two-stream batches, each a pure function of (seed, phase, step).

There is no sampler state, and no worker can change a draw. ``TrainingData`` is the only view of the
data that training has: images of the training cases, labels of the labeled ones. Test cases and
labels of unlabeled cases cannot be reached through it.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from segbench.contracts.dataset import IGNORED
from segbench.contracts.method import Batch
from segbench.data.sampling import crops, strong
from segbench.errors import DataError, UsageError

MAX_VOXELS = 10_000  # foreground voxels kept per case to draw from, evenly spaced
UNREADABLE = (OSError, ValueError, EOFError)  # raised for a missing, truncated or unrelated file


class StoreLike(Protocol):
    """What training needs of a prepared data set (segbench.data.store.store.Store)."""

    @property
    def channels(self) -> int: ...
    @property
    def train(self) -> tuple[str, ...]: ...
    def image(self, case: str, /) -> np.ndarray: ...
    def label(self, case: str, /) -> np.ndarray: ...
    def pad(self, case: str, /) -> tuple[float, ...]: ...


def rng(*key: object) -> np.random.Generator:
    """Return a generator that depends only on ``key`` (numbers, strings, None)."""
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in key)
    text = repr(plain).encode()
    digest = hashlib.blake2b(text, digest_size=16).digest()
    seed = int.from_bytes(digest, "little")
    return np.random.Generator(np.random.PCG64(seed))


@dataclass(frozen=True)
class _File:
    """Where a memory-mapped array lies; it holds no file open, and pickling copies no voxels."""

    file: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    order: Any

    def open(self) -> np.ndarray:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, self.order)


def _reference(array: np.ndarray) -> np.ndarray | _File:
    """Return where a memory map lies; other arrays stay arrays."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename:
        order = "C" if array.flags.c_contiguous else "F"
        return _File(str(array.filename), array.dtype, array.offset, array.shape, order)
    return array


@dataclass(frozen=True)
class TrainingCase:
    """One training case, or one slice of it."""

    id: str
    dataset: str
    source: int  # index of the data set
    shape: tuple[int, ...]
    image: np.ndarray | _File
    label: np.ndarray | _File | None  # labeled cases only
    pad: tuple[float, ...] = ()  # gray value outside the volume, one per channel
    plane: int | None = None  # index along the last axis, if training is on slices of volumes

    def read(self, which: str) -> np.ndarray:
        """Return the ``image`` or ``label``."""
        volume = self.read_volume(which)
        return volume if self.plane is None else volume[..., self.plane]

    def read_volume(self, which: str) -> np.ndarray:
        """Return the ``image`` or ``label`` of the volume that the case is a slice of, or itself.

        Raises:
            DataError: the file cannot be read.
        """
        held = getattr(self, which)
        try:
            array: np.ndarray = held.open() if isinstance(held, _File) else held
            return array
        except UNREADABLE as error:
            raise DataError(
                f"the {which} of case '{self.id}' of {self.dataset} cannot be read: {error}",
                where=held.file,
                fix=f"segbench data check {self.dataset}",
            ) from error


@dataclass(frozen=True)
class Item:
    """One place of a batch: a case, where its patch lies, and the key of its strong view."""

    case: TrainingCase
    cut: crops.Cut
    strong_key: tuple[object, ...]


@dataclass(frozen=True)
class _CaseKey:
    """A case of a store by its name."""

    id: str
    store: StoreLike
    dataset: str
    source: int  # index of the data set


def _load_case(case: _CaseKey, labeled: bool, dims: int) -> list[TrainingCase]:
    """Return a case, or its slices along the last axis if the patch has one axis less."""
    image, label = _open_arrays(case, labeled)
    if image.ndim - 1 not in (dims, dims + 1):
        raise UsageError(
            f"the patch has {dims} axes, the volumes of {case.dataset} have {image.ndim - 1}",
            where=f"case '{case.id}'",
            fix="choose a protocol of that dimension",
        )
    if label is not None and label.shape != image.shape[1:]:
        raise DataError(
            "image and label differ in shape",
            where=f"{case.dataset}, case '{case.id}'",
            found=f"{image.shape[1:]} and {label.shape}",
            fix=f"segbench data check {case.dataset}",
        )
    whole = TrainingCase(
        id=case.id,
        dataset=case.dataset,
        source=case.source,
        shape=tuple(image.shape[1 : dims + 1]),
        image=_reference(image),
        label=None if label is None else _reference(label),
        pad=case.store.pad(case.id),
    )
    if image.ndim == dims + 1:
        return [whole]
    slices = []
    for plane in range(image.shape[-1]):
        slices.append(replace(whole, id=f"{case.id}[{plane}]", plane=plane))
    return slices


def _open_arrays(case: _CaseKey, labeled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        image = case.store.image(case.id)
        label = case.store.label(case.id) if labeled else None
    except UNREADABLE as error:
        raise DataError(
            f"case '{case.id}' of {case.dataset} cannot be read: {error}",
            fix=f"segbench data check {case.dataset}",
        ) from error
    return image, label


def _all(places: range) -> range:
    return places


class TrainingData:
    """The training cases of one or several data sets; the first N of each list are labeled.

    Epochs are those of the literature's two-stream sampler: one pass over a fresh permutation of
    the labeled cases in groups of L, with the remainder dropped. Unlabeled groups come from a chain
    of permutations that restarts with every labeled epoch. If there are fewer labeled cases than L,
    a group continues into further permutations (``repeats_labeled``). If no unlabeled case is left,
    the unlabeled stream shows the images of labeled cases. ``warnings`` says when either happened.

    Several data sets: ``sampling="proportional"`` pools their lists; ``"balanced"`` first draws the
    data set of every place in the batch, uniformly, and then takes its next case. Images with fewer
    channels than the largest get zero channels.

    With a patch of two axes and volumes of three, every slice along the last axis counts as a case.
    """

    def __init__(
        self,
        stores: Mapping[str, StoreLike],
        labeled: Mapping[str, int],
        protocol: Any,
        seed: int,
        *,
        share: Callable[[range], range] = _all,
    ) -> None:
        """Open the training cases.

        Args:
            stores: prepared data sets by name.
            labeled: number of labeled cases of each.
            protocol: its patch, crop, augment and sampling are used.
            seed: part of every draw.
            share: picks this process's places of a batch.

        Raises:
            UsageError: the training list does not allow that number of labeled cases, or the patch
                has the wrong number of axes.
            DataError: a case cannot be read.
        """
        self.names = tuple(stores)
        self.patch = tuple(int(edge) for edge in protocol.patch)
        self.channels = max(store.channels for store in stores.values())
        self.seed = int(seed)
        self.balanced = protocol.sampling == "balanced"
        self.share = share
        self.warnings: list[str] = []
        self.repeats_labeled = False
        crop = protocol.crop
        self._where = (crop.labeled, crop.unlabeled)
        self._foreground = crop.foreground  # share of labeled patches around a foreground voxel
        self._foreground_voxels: dict[tuple[str, str], np.ndarray] = {}
        self._strong = protocol.augment in ("strong", "strong_mirror")
        self._mirror = protocol.augment == "strong_mirror"
        self._crop = {
            "pad": crop.pad,
            "last_offset": crop.last_offset,
            "augment": "none" if self._strong else protocol.augment,
        }
        cases: list[TrainingCase] = []
        for source, (name, store) in enumerate(stores.items()):
            count = _checked_count(name, len(store.train), labeled.get(name))
            for position, case in enumerate(store.train):
                key = _CaseKey(case, store, name, source)
                cases += _load_case(key, position < count, len(self.patch))
        self._labeled = [case for case in cases if case.label is not None]
        self._unlabeled = [case for case in cases if case.label is None] or self._labeled
        self._borrows = self._unlabeled is self._labeled

    def epoch(self, step: int, labeled: int) -> int:
        """Return how many passes over the labeled cases are complete before ``step`` of a phase."""
        return step // self.steps_per_epoch(labeled)

    def steps_per_epoch(self, labeled: int) -> int:
        """Return the steps of one pass over the labeled cases, at least 1."""
        if labeled < 1:
            raise UsageError("a batch needs labeled items", found=labeled, expected="at least 1")
        return max(len(self._labeled) // labeled, 1)

    def batch(self, phase: int, step: int, labeled: int, unlabeled: int) -> Batch:
        """Return the batch of a step.

        Images are (L, C, *P) and (U, C, *P) float32, labels (L, *P) int64.

        Raises:
            DataError: a case cannot be read; the message names it.
        """
        everything = self._choose(phase, step, labeled, unlabeled)
        own_labeled = self.share(range(labeled))
        own_unlabeled = self.share(range(labeled, labeled + unlabeled))
        count = len(own_labeled)
        items = []
        for i, place in enumerate([*own_labeled, *own_unlabeled]):
            case = everything[place]
            cut = self._draw_cut(rng(self.seed, "item", phase, step, place), case, i < count)
            items.append(Item(case, cut, (self.seed, "strong", phase, step, place)))
        images, labels = self._cut(items, count)
        source = torch.tensor([item.case.source for item in items], dtype=torch.int64)
        return Batch(images[:count], labels, images[count:], source)

    def _cut(self, items: list[Item], count: int) -> tuple[Tensor, Tensor]:
        """Return the patches (N, C, *P) of all items and the labels (L, *P) of the first L."""
        images = np.zeros((len(items), self.channels, *self.patch), np.float32)
        labels = np.empty((count, *self.patch), np.int64)
        for i, item in enumerate(items):
            image = item.case.read("image")
            target = images[i, : len(image)]
            view = self._draw_view(item, len(image))
            strong.take_warped(image, item.cut, view.warp, target, pad=item.case.pad)
            strong.change_intensities(target, view.changes)
            if i < count:
                label = item.case.read("label")
                strong.take_warped(label, item.cut, view.warp, labels[i], nearest=True)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _draw_view(self, item: Item, channels: int) -> strong.View:
        """Return the strong augmentation of an item; nothing changes without it."""
        if not self._strong:
            return strong.UNCHANGED
        return strong.draw(rng(*item.strong_key), (channels, *self.patch), self._mirror)

    def _draw_cut(
        self, generator: np.random.Generator, case: TrainingCase, labeled: bool
    ) -> crops.Cut:
        where = self._where[0] if labeled else self._where[1]
        cut = crops.draw(generator, case.shape, self.patch, where=where, **self._crop)
        if labeled and self._foreground and generator.random() < self._foreground:
            return self._around_foreground(generator, cut, case)
        return cut

    def _around_foreground(
        self, generator: np.random.Generator, cut: crops.Cut, case: TrainingCase
    ) -> crops.Cut:
        """Move a cut so that it contains a foreground voxel; an empty label leaves it as it is."""
        key = (case.dataset, case.id)
        if key not in self._foreground_voxels:
            label = case.read("label")
            found = np.flatnonzero((label != 0) & (label != IGNORED))
            stride = max(1, len(found) // MAX_VOXELS)
            self._foreground_voxels[key] = found[::stride]
        voxels = self._foreground_voxels[key]
        if not len(voxels):
            return cut
        chosen = generator.integers(len(voxels))
        indices = np.unravel_index(int(voxels[chosen]), case.shape)
        voxel = [int(index) for index in indices]
        return crops.around(generator, cut, voxel, case.shape, self.patch)

    def cases(self, phase: int, step: int, labeled: int, unlabeled: int) -> list[str]:
        """Return ``dataset/case`` of every item of a batch, for messages."""
        chosen = self._choose(phase, step, labeled, unlabeled)
        return [f"{case.dataset}/{case.id}" for case in chosen]

    def check(self, labeled: int, unlabeled: int) -> None:
        """Add to ``warnings`` what is unusual about batches of this composition."""
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
                "every training case is labeled: "
                "the unlabeled stream shows the labeled cases' images"
            )
        self.warnings += [note for note in notes if note not in self.warnings]

    def _choose(self, phase: int, step: int, labeled: int, unlabeled: int) -> list[TrainingCase]:
        """Return the cases of a batch, labeled first."""
        steps = self.steps_per_epoch(labeled)
        epoch, group = divmod(step, steps)
        chosen: list[TrainingCase] = []
        for stream, pool, size in (
            ("labeled", self._labeled, labeled),
            ("unlabeled", self._unlabeled, unlabeled),
        ):
            places = range(group * size, (group + 1) * size)
            key = (self.seed, stream, phase, epoch)
            chosen += self._group(pool, places, steps * size, key)
        return chosen

    def _group(
        self, pool: list[TrainingCase], places: range, total: int, key: tuple[object, ...]
    ) -> list[TrainingCase]:
        """Return the cases at ``places`` of an epoch's chain of permutations.

        Args:
            pool: the cases to choose from.
            places: positions in the chain.
            total: how many positions the epoch uses.
            key: identifies the chain.
        """
        if not self.balanced:
            return [pool[i] for i in _chain(len(pool), places, key)]
        sources = sorted({case.source for case in pool})
        indices = rng(*key, "task").integers(len(sources), size=total)
        drawn = [sources[i] for i in indices]
        chosen = []
        for place in places:
            source = drawn[place]
            own = [case for case in pool if case.source == source]
            before = drawn[:place].count(source)
            (index,) = _chain(len(own), range(before, before + 1), (*key, source))
            chosen.append(own[index])
        return chosen


def _chain(size: int, places: range, key: tuple[object, ...]) -> list[int]:
    """Return the numbers at ``places`` of an infinite chain of permutations of range(size)."""
    permutations: dict[int, np.ndarray] = {}
    numbers = []
    for place in places:
        number, position = divmod(place, size)
        if number not in permutations:
            permutations[number] = rng(*key, number).permutation(size)
        numbers.append(int(permutations[number][position]))
    return numbers


def _checked_count(name: str, train: int, labeled: int | None) -> int:
    """Return the number of labeled cases if a training list of ``train`` cases allows it."""
    if labeled is None or not 1 <= labeled <= train:
        raise UsageError(
            f"{name} cannot have {labeled} labeled cases",
            expected=f"1 to {train}",
            fix=f"--labeled {min(max(labeled or 1, 1), train)}",
        )
    return labeled
