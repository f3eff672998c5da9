"""Whole-factor downsampling of one volume, per axis; a block cut by the border counts the voxels it has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def _block_sum(array: np.ndarray, factors: Sequence[int], dtype: type) -> np.ndarray:
    for axis, factor in enumerate(factors):
        rows = np.moveaxis(array, axis, 0)
        total: np.ndarray = rows[::factor].astype(dtype)
        for k in range(1, factor):
            part = rows[k::factor]
            total[: len(part)] += part
        array = np.moveaxis(total, 0, axis)
    return array


def block_mean(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Mean of each block, summed in float64: (*S) -> (*ceil(S / factors)) float32."""
    total = _block_sum(np.asarray(image), factors, np.float64)
    for axis, (size, factor) in enumerate(zip(image.shape, factors, strict=True)):
        count = np.minimum(factor, size - np.arange(0, size, factor))
        total /= count.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    return total.astype(np.float32)


def block_majority(label: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """The most frequent value of each block, (*S) -> (*ceil(S / factors)) uint8; of equals the highest, so that thin
    structures stay."""
    best = np.zeros(
        [-(-size // factor) for size, factor in zip(label.shape, factors, strict=True)],
        dtype=np.uint8,
    )
    most = np.zeros(best.shape, dtype=np.int32)
    for value in np.unique(label):  # ascending
        votes = _block_sum(np.asarray(label) == value, factors, np.int32)
        wins = votes >= most
        best[wins] = value
        most[wins] = votes[wins]
    return best
