"""Exact Euclidean distances on the voxel grid, in two or three dimensions, on any device, spacing 1.

In torch and not by scipy's transform: labels on a GPU stay there. On one core it takes about half of scipy's time for
patches of 64 x 64 x 32 and half as much again, some 0.2 s a label, for 112 x 112 x 80.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segbench.nn.ops import one_hot

__all__ = ["signed_distance", "squared_distance"]

FAR = 1e4  # voxels; farther than any patch reaches
CHECK = 8  # offsets between two looks at whether larger ones can matter


def squared_distance(mask: Tensor) -> Tensor:
    """Squared distance (N, *S) to the nearest true voxel of the same item of ``mask``; FAR^2 and more if it has none.

    float32 holds these whole numbers exactly up to 2^24, diagonals of 4096 voxels.
    """
    axes = range(1, mask.ndim)
    squared = _along_last_axis(mask).square()
    for axis in axes[
        :-1
    ]:  # the nearest voxel's offset along each axis in turn: min_j f(j) + (i - j)^2
        extent, nearest = mask.shape[axis], squared.clone()
        for step in range(1, extent):
            if step % CHECK == 1 and step**2 >= nearest.max():
                break
            for here, there in ((0, step), (step, 0)):
                target = nearest.narrow(axis, here, extent - step)
                torch.minimum(
                    target, squared.narrow(axis, there, extent - step) + step**2, out=target
                )
        squared = nearest
    return squared


def _along_last_axis(mask: Tensor) -> Tensor:
    """Distance (N, *S) to the nearest true voxel of the same row."""
    place = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.float32)
    before = torch.where(mask, place, -FAR).cummax(-1).values
    behind = torch.where(mask, place, 2 * FAR).flip(-1).cummin(-1).values.flip(-1)
    return torch.minimum(place - before, behind - place)


def signed_distance(
    labels: Tensor, classes: int, absent: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Normalized signed distance maps (N, K-1, *S) of the foreground classes of ``labels`` (N, *S), each for itself.

    Xue et al., AAAI 2020, as in SASSNet and DTC: outside, the distance to the nearest voxel of the class over its
    largest value; inside, minus the distance to the nearest other voxel over its largest value; 0 at the inner
    boundary, voxels of the class with another one across a face. Nothing is known beyond the patch: its faces are no
    boundary. A patch without the class is ``absent`` everywhere (0 in the official codes, where one would expect 1),
    a patch full of it -1 (NaN in the official codes).
    """
    mask = one_hot(labels, classes)[:, 1:].flatten(0, 1)  # (N (K-1), *S)
    outside, inside = squared_distance(mask), squared_distance(~mask)
    each = (-1, *[1] * (mask.ndim - 1))

    def normalized(squared: Tensor) -> Tensor:
        distance = squared.to(dtype).sqrt()
        return distance / distance.flatten(1).amax(1).view(each)

    signed = (normalized(outside) - normalized(inside)).masked_fill(inside == 1, 0)
    some, every = mask.flatten(1).any(1).view(each), mask.flatten(1).all(1).view(each)
    signed = signed.masked_fill(~some, absent).masked_fill(every, -1)
    return signed.unflatten(0, (len(labels), classes - 1))
