"""Predictions that fit their references only if their axes are swapped or mirrored.

Headers tell how a volume is stored, but pictures, HDF5 files and arrays have none, and a header can
be wrong. Programs that take rows for columns give masks of the right shape in the wrong place.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import permutations, product

import numpy as np

from segbench.evaluation.prediction import LabelMap

WELL = 0.5  # Dice of the foreground: above, a prediction fits
BETTER = 2.0  # ratio of two Dice values: above, the higher one is no accident
MOST_VOXELS = 100_000  # of a case that are compared; evenly spaced in larger ones

Turn = tuple[tuple[int, ...], tuple[bool, ...]]  # order of the axes, and which are mirrored then


@dataclass
class FittingVoxels:
    """Voxels of the foreground in both masks, and in each of them, summed over cases."""

    both: float = 0.0
    each: float = 0.0

    @property
    def dice(self) -> float:
        """Dice of the foreground of all cases together."""
        return 2 * self.both / self.each if self.each else 0.0


@dataclass
class TurnedCases:
    """How well predictions fit as they are and turned, over the cases that fit badly."""

    stored: FittingVoxels = field(default_factory=FittingVoxels)
    turned: dict[Turn, FittingVoxels] = field(default_factory=lambda: defaultdict(FittingVoxels))
    cases: int = 0

    def add(self, pred: LabelMap, ref: LabelMap) -> None:
        """Count one case (*S) if its foreground overlaps badly."""
        is_pred = pred > 0
        is_ref = ref > 0
        pred_voxels = int(np.count_nonzero(is_pred))
        each = pred_voxels + int(np.count_nonzero(is_ref))
        both = int(np.count_nonzero(is_pred & is_ref))
        if not 0 < pred_voxels < each or 2 * both >= WELL * each:
            return
        self.cases += 1
        self.stored.both += both
        self.stored.each += each
        indices = np.argwhere(is_pred)
        indices = indices[:: 1 + len(indices) // MOST_VOXELS]
        for turn in _turns(pred.shape):
            moved = _moved(indices, pred.shape, turn)
            overlap = self.turned[turn]
            overlap.both += pred_voxels * float(is_ref[tuple(moved.T)].mean())
            overlap.each += each

    def warnings(self) -> list[str]:
        """Return a warning if one turn makes the predictions fit, and how it turns them."""
        if not self.turned:
            return []
        turn, overlap = max(self.turned.items(), key=lambda item: item[1].dice)
        if overlap.dice <= max(WELL, BETTER * self.stored.dice):
            return []
        return [
            f"predictions seem to be stored with other axes than their references: {_words(turn)}, "
            f"the foreground has Dice {100 * overlap.dice:.1f} instead of "
            f"{100 * self.stored.dice:.1f} (cases: {self.cases}). Nothing is turned: check how the "
            "files were written"
        ]


def _turns(shape: tuple[int, ...]) -> list[Turn]:
    """Return all ways to permute and mirror axes that keep a shape, but the one that does nothing.

    The simplest come first. Axes of length 1 are not mirrored.
    """
    axes = range(len(shape))
    orders = [
        order
        for order in permutations(axes)
        if all(shape[axis] == shape[other] for axis, other in zip(axes, order, strict=True))
    ]
    found = []
    for order in orders:
        for mirrored in product(*[(False, True) if size > 1 else (False,) for size in shape]):
            if order != tuple(axes) or any(mirrored):
                found.append((order, mirrored))
    return sorted(found, key=_changed_axes)


def _changed_axes(turn: Turn) -> tuple[int, int]:
    """Return how many axes a turn moves, and how many it mirrors."""
    order, mirrored = turn
    moved = sum(axis != other for axis, other in enumerate(order))
    return moved, sum(mirrored)


def _moved(indices: np.ndarray, shape: tuple[int, ...], turn: Turn) -> np.ndarray:
    """Return where voxels (N, axes) lie after a turn."""
    order, mirrored = turn
    moved = indices[:, list(order)]
    for axis, is_mirrored in enumerate(mirrored):
        if is_mirrored:
            moved[:, axis] = shape[axis] - 1 - moved[:, axis]
    return moved


def _words(turn: Turn) -> str:
    """Return a turn in words; axes count from 1."""
    order, mirrored = turn
    parts = []
    if order != tuple(range(len(order))):
        parts.append(f"with their axes in the order {', '.join(str(axis + 1) for axis in order)}")
    axes = [str(axis + 1) for axis, is_mirrored in enumerate(mirrored) if is_mirrored]
    if axes:
        parts.append(f"mirrored along axis {' and '.join(axes)}")
    return " and ".join(parts)
