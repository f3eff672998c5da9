"""Whole-factor downsampling of one volume; a block cut by the border counts the voxels it has."""

from __future__ import annotations

import numpy as np


def _block_sum(array: np.ndarray, factor: int, dtype: type) -> np.ndarray:
    for axis in range(array.ndim):
        rows = np.moveaxis(array, axis, 0)
        total: np.ndarray = rows[::factor].astype(dtype)
        for k in range(1, factor):
            part = rows[k::factor]
            total[:len(part)] += part
        array = np.moveaxis(total, 0, axis)
    return array


def block_mean(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of each block, summed in float64: (*S) -> (*ceil(S / factor)) float32."""
    total = _block_sum(np.asarray(image), factor, np.float64)
    for axis, size in enumerate(image.shape):
        count = np.minimum(factor, size - np.arange(0, size, factor))
        total /= count.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    return total.astype(np.float32)


def block_majority(label: np.ndarray, factor: int) -> np.ndarray:
    """The most frequent value of each block, (*S) -> (*ceil(S / factor)) uint8; of equals the highest, so that thin
    structures stay."""
    best = np.zeros([-(-size // factor) for size in label.shape], dtype=np.uint8)
    most = np.zeros(best.shape, dtype=np.int32)
    for value in np.unique(label):  # ascending
        votes = _block_sum(np.asarray(label) == value, factor, np.int32)
        wins = votes >= most
        best[wins] = value
        most[wins] = votes[wins]
    return best
