"""Our batches and patches, made comparable with those of the authors' loaders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from segbench.config.protocol import Protocol
from segbench.data.sampling import crops
from segbench.data.sampling.batches import TrainingData

Draw = tuple[int, int, int]  # lowest number, the one after the highest, and the number drawn


def epoch_of(protocol: Protocol, cases: int, labeled: int) -> list[list[int]]:
    """Return the cases of all batches of an epoch; the first ``labeled`` cases have labels."""
    data = TrainingData({"set": TinyStore(cases)}, {"set": labeled}, protocol, seed=0)
    batch = protocol.batch
    epoch = []
    for step in range(data.steps_per_epoch(batch.labeled)):
        names = data.cases(0, step, batch.labeled, batch.unlabeled)
        epoch.append([int(name.rpartition("/")[2]) for name in names])
    return epoch


def cut_again(
    protocol: Protocol, shape: tuple[int, ...], patch: tuple[int, ...], drawn: Sequence[Draw]
) -> crops.Cut | None:
    """Return the cut that our loader makes of the numbers that another one drew.

    None means that ours draws other numbers, in another order or from other ranges.
    """
    replayed = Replay(drawn)
    cut = crops.draw(
        cast(np.random.Generator, replayed),
        shape,
        patch,
        where=protocol.crop.labeled,
        pad=protocol.crop.pad,
        last_offset=protocol.crop.last_offset,
        augment=protocol.augment,
    )
    return cut if replayed.fits and not replayed.left else None


class Replay:
    """Returns numbers that were drawn before, to the code that asks for them in the same order."""

    def __init__(self, drawn: Sequence[tuple[int, int, int]]) -> None:
        self.left = list(drawn)
        self.fits = True

    def integers(self, low: int, high: int | None = None) -> int:
        """Return the next number, and note whether its range is the same."""
        if high is None:
            low, high = 0, low
        if not self.left:
            self.fits = False
            return low
        first, last, value = self.left.pop(0)
        self.fits = self.fits and last - first == high - low
        return value - first + low


class TinyStore:
    """A prepared data set of tiny volumes, named by their numbers."""

    channels = 1

    def __init__(self, cases: int) -> None:
        self.train = tuple(str(number) for number in range(cases))

    def image(self, case: str, /) -> np.ndarray:
        """Return an empty image."""
        return np.zeros((1, 2, 2, 2), np.float32)

    def label(self, case: str, /) -> np.ndarray:
        """Return an empty label."""
        return np.zeros((2, 2, 2), np.uint8)

    def pad(self, case: str, /) -> tuple[float, ...]:
        """Return no gray value."""
        return ()


def composition(epoch: Sequence[Sequence[int]], labeled: int) -> tuple[Any, ...]:
    """Return what an epoch has in common with any other of the same sampler.

    These are its steps, labeled and unlabeled items per batch, whether labeled ones come first,
    and the smallest and largest number of appearances of labeled cases.
    """
    first = epoch[0]
    is_labeled = [case < labeled for case in first]
    count = sum(is_labeled)
    ordered = all([case < labeled for case in group] == is_labeled for group in epoch)
    appearances = [0] * labeled
    for group in epoch:
        for case in group:
            if case < labeled:
                appearances[case] += 1
    sizes = (len(epoch), count, len(first) - count)
    return (*sizes, ordered and all(is_labeled[:count]), min(appearances), max(appearances))
