"""Sliding-window prediction as in the literature, with averaged probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segbench.errors import TrainingError, UsageError
from segbench.nn.ops import most_probable

Predict = Callable[[Tensor], Tensor]  # (B, C, *P) to probabilities (B, K, *P)


def _positions(size: int, patch: int, stride: int) -> list[int]:
    """Return the ceil((n - P) / s) + 1 window starts of an axis, the j-th at min(j s, n - P)."""
    last = size - patch
    if last <= 0:
        return [0]
    steps = -(-last // stride)  # rounded up
    return [min(number * stride, last) for number in range(steps + 1)]


def windows(
    shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, ...]]:
    """Return the starts of the windows that cover a volume, the first axis slowest.

    An axis that is not longer than the patch has one window, at 0.

    Raises:
        UsageError: a stride below 1, or above the patch so that voxels would be left out.
    """
    if not all(1 <= s <= p for p, s in zip(patch, stride, strict=True)):
        raise UsageError(
            "the windows do not cover the volume",
            found=f"stride {tuple(stride)}",
            expected=f"1 to {tuple(patch)}",
        )
    starts = [_positions(*axis) for axis in zip(shape, patch, stride, strict=True)]
    return list(product(*starts))


def predict_probabilities(
    predict: Predict,
    image: Tensor,
    patch: Sequence[int],
    stride: Sequence[int],
    *,
    batch: int = 4,
    device: torch.device | str | None = None,
    pad: Sequence[float] = (),
) -> Tensor:
    """Return the mean class probabilities (K, *S), float32, of all windows that contain a voxel.

    A volume smaller than the patch is padded, the smaller half in front, and the result is cropped.
    If the device runs out of memory, the batch is halved, and the sum is kept in main memory if
    necessary; neither changes the result by more than rounding.

    Args:
        image: (C, *S).
        batch: windows that are predicted at once.
        device: where to predict; None for the image's.
        pad: value per channel to pad with; empty for zeros.

    Raises:
        TrainingError: memory runs out even with one window.
    """
    shape = image.shape[1:]
    missing = [max(edge - size, 0) for size, edge in zip(shape, patch, strict=True)]
    before = [voxels // 2 for voxels in missing]
    with torch.no_grad():
        padded = image.to(device or image.device, torch.float32)
        if any(missing):
            padded = _padded(padded, before, missing, pad)
        starts = windows(padded.shape[1:], patch, stride)
        total = _accumulate(predict, padded, patch, starts, batch)
        total /= _visits(padded.shape[1:], patch, stride, total.device)
        # Remove the padding.
        for axis, size in enumerate(shape):
            total = total.narrow(1 + axis, before[axis], size)
        return total


def _padded(
    image: Tensor, before: Sequence[int], missing: Sequence[int], values: Sequence[float]
) -> Tensor:
    """Pad an image (C, *S) by ``missing`` voxels per axis, ``before`` of them in front."""
    sides: list[int] = []  # of the last axis first, as torch wants them
    for front, voxels in zip(reversed(before), reversed(missing), strict=True):
        sides += [front, voxels - front]
    padded = functional.pad(image, sides)
    if any(values):
        shape = image.shape[1:]
        outside = functional.pad(torch.zeros(shape, device=image.device), sides, value=1.0)
        per_channel = torch.tensor(values, device=image.device).reshape(-1, *[1] * len(shape))
        padded += outside * per_channel
    return padded


def _accumulate(
    predict: Predict,
    volume: Tensor,
    patch: Sequence[int],
    starts: list[tuple[int, ...]],
    batch: int,
) -> Tensor:
    """Return the sum of the windows' probabilities (K, *S), added in order for any batch."""
    boxes = [_box(start, patch) for start in starts]
    total: Tensor | None = None
    done = 0
    while done < len(boxes):
        group = boxes[done : done + batch]
        try:
            batch_of_windows = torch.stack([volume[box] for box in group])
            probabilities = predict(batch_of_windows).float()  # (B, K, *P)
        except torch.OutOfMemoryError as error:
            if len(group) == 1:
                raise TrainingError(
                    "the device's memory is too small for one window",
                    where=str(volume.device),
                    found=f"patch {tuple(patch)}",
                    fix="--precision bf16, or --device cpu",
                ) from error
            probabilities = None
        # Outside the handler, whose traceback would keep the network's tensors in memory.
        if probabilities is None:
            batch = len(group) // 2
            torch.cuda.empty_cache()
            continue
        if total is None:
            total = _zeros((probabilities.shape[1], *volume.shape[1:]), volume.device)
        for box, window in zip(group, probabilities.to(total.device), strict=True):
            total[box] += window
        done += len(group)
    assert total is not None  # there is always a window
    return total


def _box(start: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """Return the index of a window in a volume (C, *S)."""
    sides = [slice(first, first + size) for first, size in zip(start, patch, strict=True)]
    return (slice(None), *sides)


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return zeros on a device, or in main memory if the device's memory is too small."""
    try:
        return torch.zeros(shape, device=device)
    except torch.OutOfMemoryError:
        return torch.zeros(shape)


def _visits(
    shape: Sequence[int], patch: Sequence[int], stride: Sequence[int], device: torch.device
) -> Tensor:
    """Return how many windows contain each voxel (*S)."""
    visits = torch.ones((), device=device)
    for size, edge, step in zip(shape, patch, stride, strict=True):
        # Windows form a grid, so the counts along the axes multiply.
        along_axis = torch.zeros(size)
        for start in _positions(size, edge, step):
            along_axis[start : start + edge] += 1
        visits = visits[..., None] * along_axis.to(device)
    return visits


def labels_from(probabilities: Tensor) -> np.ndarray:
    """Return the most probable class of every voxel, (*S) uint8; ties go to the lower class.

    Raises:
        TrainingError: a probability is not finite (argmax would silently give a class).
    """
    if not bool(probabilities.sum().isfinite()):  # one number: any NaN or infinity survives the sum
        raise TrainingError(
            "the network's prediction is not finite",
            expected="probabilities from 0 to 1",
            fix="train again with --precision fp32 or a lower learning rate",
        )
    labels = most_probable(probabilities, axis=0, dtype=torch.uint8)
    return labels.cpu().numpy()
