"""Compute exact Euclidean distances on a 2D or 3D voxel grid with spacing 1, on any device.

The code uses torch instead of scipy, so that labels on a GPU stay on the GPU. On one core it takes
about half the time of scipy for patches of 64 x 64 x 32 voxels, and about 1.5 times the time of
scipy, about 0.2 s per label, for 112 x 112 x 80 voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segbench.nn.ops import is_known, one_hot

__all__ = ["signed_distance", "squared_distance"]

FAR = 1e4  # voxels; larger than any distance within a patch
CHECK = 8  # number of offsets between two checks whether the search can stop, on the CPU


def squared_distance(mask: Tensor) -> Tensor:
    """Return the squared distance (N, *S) to the nearest true voxel of the same item of ``mask``.

    The result is at least FAR^2 if an item has no true voxel. float32 represents these integers
    exactly up to 2^24, which corresponds to a distance of 4096 voxels.
    """
    squared = _along_last_axis(mask).square()
    for axis in range(1, mask.ndim - 1):
        squared = _minimum_along(squared, axis)
    return squared


def _minimum_along(squared: Tensor, axis: int) -> Tensor:
    """Return min_j f(j) + (i - j)^2 for each position i along an axis; f is ``squared``."""
    # Asking whether the search can stop would make other devices wait; more offsets change nothing.
    can_stop = squared.device.type == "cpu"
    extent = squared.shape[axis]
    nearest = squared.clone()
    for step in range(1, extent):
        if can_stop and step % CHECK == 1 and step**2 >= nearest.max():
            break
        overlap = extent - step
        for here, there in ((0, step), (step, 0)):
            best = nearest.narrow(axis, here, overlap)
            candidate = squared.narrow(axis, there, overlap) + step**2
            torch.minimum(best, candidate, out=best)
    return nearest


def _along_last_axis(mask: Tensor) -> Tensor:
    """Return the distance (N, *S) to the nearest true voxel along the last axis."""
    place = torch.arange(mask.shape[-1], device=mask.device, dtype=torch.float32)
    true_or_low = torch.where(mask, place, -FAR)
    before = true_or_low.cummax(-1).values  # place of the last true voxel up to here
    true_or_high = torch.where(mask, place, 2 * FAR)
    after = true_or_high.flip(-1).cummin(-1).values.flip(-1)
    return torch.minimum(place - before, after - place)


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

    Voxels whose label is ``IGNORED`` are of no class: no distance is measured to or from them, and
    their own values have no meaning.

    If a class is missing from a patch, the map is ``absent`` everywhere (the official code uses 0,
    although 1 would be expected). If a class fills a patch, the map is -1 everywhere (the official
    code returns NaN).
    """
    mask = one_hot(labels, classes)[:, 1:].flatten(0, 1)  # (N (K-1), *S)
    known = is_known(labels).repeat_interleave(classes - 1, 0)  # (N (K-1), *S)
    others = known & ~mask
    outside = squared_distance(mask)
    inside = squared_distance(others)
    signed = _normalized(outside * known, dtype) - _normalized(inside * known, dtype)
    signed = signed.masked_fill(inside == 1, 0)

    voxels = tuple(range(1, mask.ndim))
    is_absent = ~mask.any(voxels, keepdim=True)
    fills_patch = ~others.any(voxels, keepdim=True)
    signed = signed.masked_fill(is_absent, absent)
    signed = signed.masked_fill(fills_patch, -1)
    return signed.unflatten(0, (len(labels), classes - 1))


def _normalized(squared: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the root of squared distances (M, *S), divided by the maximum of each item."""
    distance = squared.to(dtype).sqrt()
    voxels = tuple(range(1, distance.ndim))
    return distance / distance.amax(voxels, keepdim=True)
