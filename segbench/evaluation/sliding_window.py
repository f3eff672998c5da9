"""Sliding-window prediction of the literature: windows flush with the border, uniform weights, mean probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segbench.errors import TrainingError, UsageError

Predict = Callable[[Tensor], Tensor]  # (B, C, *P) to probabilities (B, K, *P)


def _positions(n: int, p: int, s: int) -> list[int]:
    """ceil((n - P) / s) + 1 window starts, the j-th at min(j s, n - P)."""
    return [min(j * s, n - p) for j in range(-(-(n - p) // s) + 1)] if n > p else [0]


def windows(
    shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, ...]]:
    """Starts of the windows that cover a volume, first axis slowest; 0 where the volume is no longer than the patch.

    Raises:
        UsageError: a stride below 1, or above the patch so that voxels would be left out.
    """
    if not all(1 <= s <= p for p, s in zip(patch, stride, strict=True)):
        raise UsageError(
            "the windows do not cover the volume",
            found=f"stride {tuple(stride)}",
            expected=f"1 to {tuple(patch)}",
        )
    return list(
        product(*(_positions(n, p, s) for n, p, s in zip(shape, patch, stride, strict=True)))
    )


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
    """Mean class probabilities (K, *S) float32 of all windows that see a voxel, on ``device`` (the image's if None).

    ``image`` is (C, *S). A volume smaller than the patch is padded with zeros, or with ``pad``, a number a channel, the
    smaller half in front, and the result cut back. When the device's memory runs out the batch is halved and the sum kept
    in main memory if need be; neither changes the result by more than rounding.

    Raises:
        TrainingError: memory runs out even with one window.
    """
    with torch.no_grad():
        shape = image.shape[1:]
        missing = [max(p - n, 0) for n, p in zip(shape, patch, strict=True)]
        before = [m // 2 for m in missing]
        sides = [side for m, b in zip(missing, before, strict=True) for side in (m - b, b)]
        padded = functional.pad(image.to(device or image.device, torch.float32), sides[::-1])
        if any(missing) and any(pad):
            outside = functional.pad(
                torch.zeros(shape, device=padded.device), sides[::-1], value=1.0
            )
            padded += outside * torch.tensor(pad, device=padded.device).reshape(
                -1, *(1,) * len(shape)
            )
        total = _accumulate(predict, padded, patch, windows(padded.shape[1:], patch, stride), batch)
        total /= _visits(padded.shape[1:], patch, stride, total.device)
        for axis, (b, n) in enumerate(zip(before, shape, strict=True), start=1):
            total = total.narrow(axis, b, n)
        return total


def _accumulate(
    predict: Predict,
    volume: Tensor,
    patch: Sequence[int],
    starts: list[tuple[int, ...]],
    batch: int,
) -> Tensor:
    """Sum of the windows' probabilities (K, *S); windows are added in order, whatever the batch."""
    boxes = [
        (slice(None), *(slice(a, a + p) for a, p in zip(start, patch, strict=True)))
        for start in starts
    ]
    total: Tensor | None = None
    done = 0
    while done < len(boxes):
        group = boxes[done : done + batch]
        try:
            probabilities = predict(
                torch.stack([volume[box] for box in group])
            ).float()  # (B, K, *P)
        except torch.OutOfMemoryError as error:
            if len(group) == 1:
                raise TrainingError(
                    "the device's memory is too small for one window",
                    where=str(volume.device),
                    found=f"patch {tuple(patch)}",
                    fix="--precision bf16, or --device cpu",
                ) from error
            probabilities = None
        if (
            probabilities is None
        ):  # outside the handler, whose traceback would hold on to the network's tensors
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


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    try:
        return torch.zeros(shape, device=device)
    except torch.OutOfMemoryError:
        return torch.zeros(shape)


def _visits(
    shape: Sequence[int], patch: Sequence[int], stride: Sequence[int], device: torch.device
) -> Tensor:
    """How many windows see each voxel (*S): the product of the axes' counts."""
    visits = torch.ones((), device=device)
    for n, p, s in zip(shape, patch, stride, strict=True):
        count = torch.zeros(n)
        for start in _positions(n, p, s):
            count[start : start + p] += 1
        visits = visits[..., None] * count.to(device)
    return visits


def labels_from(probabilities: Tensor) -> np.ndarray:
    """The likeliest class of every voxel, (K, *S) to (*S) uint8; the lower class where two are equal.

    Raises:
        TrainingError: a probability is not finite (argmax would silently give a class).
    """
    if not bool(probabilities.sum().isfinite()):  # one number: any NaN or infinity survives the sum
        raise TrainingError(
            "the network's prediction is not finite",
            expected="probabilities from 0 to 1",
            fix="train again with --precision fp32 or a lower learning rate",
        )
    # A running maximum over the classes is many times faster than argmax over the first axis.
    highest = probabilities[0].clone()
    labels = torch.zeros(highest.shape, dtype=torch.uint8, device=highest.device)
    for value in range(1, len(probabilities)):
        is_higher = probabilities[value] > highest
        torch.maximum(labels, is_higher.to(torch.uint8) * value, out=labels)
        torch.maximum(highest, probabilities[value], out=highest)
    return labels.cpu().numpy()
