"""Strong augmentation of patches that are cut out on a device (``--resident yes``).

The draws and the order of the changes are those of ``segbench.data.sampling.strong``, and so are
the results up to rounding: torch on a device adds in another order than numpy and scipy on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segbench.data.sampling.crops import Cut, nearest
from segbench.data.sampling.strong import Array, Change, place, steps

BLUR_WIDTH = 4.0  # standard deviations at which scipy cuts off the weights of a blur


def resample(
    volume: Tensor,
    cut: Cut,
    matrix: Array,
    out: Tensor,
    *,
    by_nearest: bool = False,
    pad: Sequence[float] = (),
) -> None:
    """Copy a rotated or scaled patch, as ``strong.take_warped`` does with arrays.

    Args:
        volume: image (C, *S) or label (*S).
        cut: where the patch comes from, without turns, mirrors and angle.
        matrix: (axes, axes), from offsets from the patch's center to offsets in the volume.
        out: the patch, (C, *P) or (*P).
        by_nearest: interpolate by nearest neighbor, for labels, instead of linearly.
        pad: value outside the volume for each channel; empty means 0.
    """
    axes = len(cut.corner)
    shape = volume.shape[volume.ndim - axes :]
    patch = out.shape[out.ndim - axes :]
    matrix, offset = place(shape, patch, cut, matrix)
    positions = _positions(matrix, offset, patch, volume.device)
    outside = torch.zeros(max(len(pad), 1), dtype=volume.dtype)
    for channel, value in enumerate(pad):
        outside[channel] = value
    outside = outside.to(volume.device).unsqueeze(1)  # (C or 1, 1)
    voxels = volume.reshape(-1, shape.numel())  # (C or 1, voxels)

    def values(indices: list[Tensor]) -> Tensor:
        flat, inside = _flat_index(indices, shape)
        return torch.where(inside, voxels[:, flat], outside)

    if by_nearest:
        found = values([(position + 0.5).floor().long() for position in positions])
    else:
        found = torch.zeros((len(voxels), patch.numel()), device=volume.device)
        for corner, weight in _corners(positions):
            found += weight * values(corner)
    out.copy_(found.reshape(out.shape))


def _positions(
    matrix: Array, offset: Array, patch: Sequence[int], device: torch.device
) -> list[Tensor]:
    """Return where the voxels of a patch lie in the volume, one flat tensor per axis."""
    exact = torch.float32 if device.type == "mps" else torch.float64
    edges = [torch.arange(edge, dtype=exact, device=device) for edge in patch]
    grid = torch.meshgrid(*edges, indexing="ij")
    positions = []
    for row, start in zip(matrix.tolist(), offset.tolist(), strict=True):
        position = torch.full_like(grid[0], start)
        for factor, voxel in zip(row, grid, strict=True):
            position += factor * voxel
        positions.append(position.flatten())
    return positions


def _corners(positions: list[Tensor]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the voxels around every position with their weights for linear interpolation."""
    low = [position.floor() for position in positions]
    for ends in product((0, 1), repeat=len(positions)):
        weight = torch.ones_like(positions[0])
        for end, position, floor in zip(ends, positions, low, strict=True):
            share = position - floor
            weight *= share if end else 1 - share
        yield [floor.long() + end for end, floor in zip(ends, low, strict=True)], weight.float()


def _flat_index(indices: list[Tensor], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return indices into a flat volume, and which of them lie inside it."""
    flat = torch.zeros_like(indices[0])
    inside = torch.ones_like(flat, dtype=torch.bool)
    for index, size in zip(indices, shape, strict=True):
        inside &= (index >= 0) & (index < size)
        flat = flat * size + index.clamp(0, size - 1)
    return flat, inside


def change_intensities(image: Tensor, changes: Sequence[Change]) -> None:
    """Make changes of the gray values of a patch (C, *P), float32, in place."""
    for change in changes:
        CHANGES[change.kind](image[change.channel], *change.arguments)


def _add_noise(channel: Tensor, share: float, noise: Array) -> None:
    channel += float(share) * _deviation(channel) * torch.from_numpy(noise).to(channel.device)


def _blur(channel: Tensor, sigma: Array) -> None:
    """Blur with a Gaussian, one axis after the other; the edges are mirrored."""
    for axis, deviation in enumerate(sigma):
        radius = int(BLUR_WIDTH * deviation + 0.5)
        distance = np.arange(-radius, radius + 1)
        weights = np.exp(-0.5 * (distance / deviation) ** 2)
        weights /= weights.sum()
        mirrored = np.pad(np.arange(channel.shape[axis]), radius, mode="symmetric")
        wider = _select(channel, axis, mirrored)
        blurred = torch.zeros_like(channel)
        for start, weight in enumerate(weights.tolist()):
            blurred += weight * wider.narrow(axis, start, channel.shape[axis])
        channel.copy_(blurred)


def _scale(channel: Tensor, factor: np.float32) -> None:
    channel *= float(factor)


def _change_contrast(channel: Tensor, factor: np.float32) -> None:
    mean = channel.mean()
    changed = (channel - mean) * float(factor) + mean
    channel.copy_(changed.clamp(channel.min(), channel.max()))


def _lower_resolution(channel: Tensor, smaller: tuple[int, ...]) -> None:
    """Reduce a channel by nearest neighbor and enlarge it again, linearly."""
    reduced = channel
    for axis, edge in enumerate(smaller):
        reduced = _select(reduced, axis, nearest(channel.shape[axis], edge))
    for axis, step in enumerate(steps(smaller, channel.shape)):
        reduced = _enlarge(reduced, axis, step * np.arange(channel.shape[axis]))
    channel.copy_(reduced)


def _enlarge(values: Tensor, axis: int, positions: Array) -> Tensor:
    """Return linearly interpolated values at positions along an axis."""
    last = values.shape[axis] - 1
    low = np.minimum(np.floor(positions), last).astype(np.intp)
    share = np.clip(positions - low, 0, 1)
    shape = [1] * values.ndim
    shape[axis] = len(positions)
    weight = torch.from_numpy(share).to(values.device, values.dtype).reshape(shape)
    above = _select(values, axis, np.minimum(low + 1, last))
    return (1 - weight) * _select(values, axis, low) + weight * above


def _select(values: Tensor, axis: int, indices: Array) -> Tensor:
    return values.index_select(axis, torch.from_numpy(indices).to(values.device))


def _change_gamma(channel: Tensor, gamma: np.float32) -> None:
    mean = channel.mean()
    deviation = _deviation(channel)
    low = channel.min()
    extent = (channel.max() - low).clamp_min(1e-7)
    curved = ((channel - low) / extent) ** float(gamma)
    spread = _deviation(curved).clamp_min(1e-7)
    channel.copy_((curved - curved.mean()) * (deviation / spread) + mean)


def _invert(channel: Tensor) -> None:
    channel.neg_()


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviation as numpy computes it."""
    return values.std(correction=0)


CHANGES: dict[str, Callable[..., Any]] = {
    "noise": _add_noise,
    "blur": _blur,
    "brightness": _scale,
    "contrast": _change_contrast,
    "low_resolution": _lower_resolution,
    "invert": _invert,
    "gamma": _change_gamma,
}
