"""Downsample a case by whole factors, one per axis.

A block that the border cuts counts only the voxels inside the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from segbench.contracts.dataset import Case
from segbench.data.store.case_files import CaseInfo
from segbench.data.store.store import Store


def downsampled_case(store: Store, info: CaseInfo, factors: tuple[int, ...]) -> Case:
    """Return a case of a store at a lower resolution, with the spacing and affine of its blocks."""
    channels = [block_mean(channel, factors) for channel in store.image(info.id)]
    label = None
    if info.has_label:
        label = block_majority(store.label(info.id), factors)
    spacing = None
    if info.spacing is not None:
        spacing = tuple(mm * factor for mm, factor in zip(info.spacing, factors, strict=True))
    affine = None
    if info.affine is not None:
        affine = np.array(info.affine) @ _block_to_voxel(factors)
    made: dict[str, Any] = {}
    pad = store.pad(info.id)
    if pad:
        made["pad"] = list(pad)
    return Case(
        info.id,
        image=np.stack(channels),
        label=label,
        spacing=spacing,
        affine=affine,
        group=info.group,
        made=made,
    )


def _block_to_voxel(factors: tuple[int, ...]) -> np.ndarray:
    """Return the (4, 4) matrix from block indices to voxel indices."""
    dims = len(factors)
    matrix = np.eye(4)
    for axis, factor in enumerate(factors):
        matrix[axis, axis] = factor
    # A block's center lies (factor - 1) / 2 voxels from the center of its first voxel.
    offset = (np.array(factors) - 1) / 2
    matrix[:dims, 3] = offset
    return matrix


def block_mean(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Return the mean of each block, summed in float64: (*S) -> (*ceil(S / factors)) float32."""
    total = _block_sum(np.asarray(image), factors, np.float64)
    for axis, factor in enumerate(factors):
        size = image.shape[axis]
        starts = np.arange(0, size, factor)
        count = np.minimum(factor, size - starts)  # voxels of each block along the axis
        along_axis = [1] * image.ndim
        along_axis[axis] = -1
        total /= count.reshape(along_axis)
    return total.astype(np.float32)


def block_majority(label: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """Return the most frequent value of each block: (*S) -> (*ceil(S / factors)) uint8.

    Ties go to the higher value, to preserve thin structures.
    """
    shape = [ceil(size / factor) for size, factor in zip(label.shape, factors, strict=True)]
    best = np.zeros(shape, dtype=np.uint8)
    most = np.zeros(shape, dtype=np.int32)
    for value in np.unique(label):  # in ascending order
        is_value = np.asarray(label) == value
        votes = _block_sum(is_value, factors, np.int32)
        wins = votes >= most
        best[wins] = value
        most[wins] = votes[wins]
    return best


def _block_sum(array: np.ndarray, factors: Sequence[int], dtype: type) -> np.ndarray:
    for axis, factor in enumerate(factors):
        rows = np.moveaxis(array, axis, 0)
        total: np.ndarray = rows[::factor].astype(dtype)
        for offset in range(1, factor):
            part = rows[offset::factor]
            total[: len(part)] += part
        array = np.moveaxis(total, 0, axis)
    return array
