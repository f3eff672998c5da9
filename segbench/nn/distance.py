"""Compute exact Euclidean distances on a 2D or 3D voxel grid with spacing 1, on any device.

The code uses torch instead of scipy, so that labels on a GPU stay on the GPU. On one core it takes
about half the time of scipy for patches of 64 x 64 x 32 voxels, and about 1.5 times the time of
scipy, about 0.2 s per label, for 112 x 112 x 80 voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segbench.nn.ops import one_hot

__all__ = ["signed_distance", "squared_distance"]

FAR = 1e4  # voxels; larger than any distance within a patch
CHECK = 8  # number of offsets between two checks whether the search can stop, on the CPU


def squared_distance(mask: Tensor) -> Tensor:
    """Return the squared distance (N, *S) to the nearest true voxel of the same item of ``mask``.

    The result is at least FAR^2 if an item has no true voxel. float32 represents these integers
    exactly up to 2^24, which corresponds to a distance of 4096 voxels.
    """
    axes = range(1, mask.ndim)
    squared = _along_last_axis(mask).square()
    # Asking whether the search can stop would make other devices wait; more offsets change nothing.
    can_stop = mask.device.type == "cpu"
    # Minimize over the offset along each remaining axis in turn: min_j f(j) + (i - j)^2.
    for axis in axes[:-1]:
        extent, nearest = mask.shape[axis], squared.clone()
        for step in range(1, extent):
            if can_stop and step % CHECK == 1 and step**2 >= nearest.max():
                break
            for here, there in ((0, step), (step, 0)):
                target = nearest.narrow(axis, here, extent - step)
                torch.minimum(
                    target, squared.narrow(axis, there, extent - step) + step**2, out=target
                )
        squared = nearest
    return squared


def _along_last_axis(mask: Tensor) -> Tensor:
    """Return the distance (N, *S) to the nearest true voxel along the last axis."""
    place = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.float32)
    before = torch.where(mask, place, -FAR).cummax(-1).values
    behind = torch.where(mask, place, 2 * FAR).flip(-1).cummin(-1).values.flip(-1)
    return torch.minimum(place - before, behind - place)


def signed_distance(
    labels: Tensor, classes: int, absent: float = 0.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return normalized signed distance maps (N, K-1, *S) of the foreground classes.

    ``labels`` has shape (N, *S). Each class is computed independently, as defined by Xue et al.
    (AAAI 2020) and used in SASSNet and DTC. Outside a class, the value is the distance to the
    nearest voxel of the class, divided by the maximum of this distance. Inside, it is minus the
    distance to the nearest voxel of another class, divided by the maximum of this distance. It is 0
    at the inner boundary: the voxels of the class that share a face with a voxel of another class.
    The faces of the patch are not a boundary, because the labels outside the patch are unknown.

    If a class is missing from a patch, the map is ``absent`` everywhere (the official code uses 0,
    although 1 would be expected). If a class fills a patch, the map is -1 everywhere (the official
    code returns NaN).
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
