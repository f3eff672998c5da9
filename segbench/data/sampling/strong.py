"""Strong augmentation of training patches: rotation, scaling, mirrors, and changes of intensity.

Source: the list of transforms of nnU-Net with its probabilities and ranges (MIC-DKFZ/nnUNet,
Apache-2.0, nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py:472-513 and 739-837). The operations
are our own. They differ from nnU-Net's in these points:

- slices are rotated by up to 30 degrees, as volumes are, and not by up to 180;
- where one edge of a volume's patch is less than a third of the longest, only the plane of the
  other two axes is rotated; nnU-Net decides by the first axis;
- the factors of scaling are below 1 half of the time, as those of brightness, contrast and gamma;
- noise is relative to the patch's own standard deviation, because not all images are normalized;
- a patch of low resolution is enlarged by linear instead of cubic interpolation.

Everything is a function of a numpy Generator, and all arithmetic runs in one thread: a patch has
the same bytes for any number of workers. Labels follow rotation, scaling and mirrors by nearest
neighbor. ``strong_on_device`` computes the same from the same draws with torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from segbench.data.sampling.crops import Cut, take, zoom

Array = np.ndarray[Any, Any]

ROTATION = np.deg2rad(30)  # largest angle
FLAT = 3  # a patch whose edges differ by more than this factor is rotated in one plane only
SCALES = (0.7, 1.4)


@dataclass(frozen=True)
class Warp:
    """A change of geometry about the center of a patch.

    ``matrix`` (axes, axes) maps offsets from the center of the patch to offsets in the volume, in
    voxels; None leaves the patch as it is. Then the axes ``mirrored`` are reversed.
    """

    matrix: Array | None
    mirrored: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """A change of the gray values of one channel.

    ``CHANGES[kind]`` makes it; ``arguments`` come after the gray values.
    """

    kind: str
    channel: int
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class View:
    """The strong augmentation of one patch."""

    warp: Warp
    changes: tuple[Change, ...]


UNCHANGED = View(Warp(None, ()), ())


def draw(generator: np.random.Generator, shape: Sequence[int], mirror: bool) -> View:
    """Draw the augmentation of a patch (C, *P).

    Args:
        generator: source of the draws.
        shape: of the patch, channels first.
        mirror: whether each axis is mirrored half of the time.
    """
    warp = draw_warp(generator, shape[1:], mirror)
    return View(warp, tuple(draw_changes(generator, shape)))


def draw_warp(generator: np.random.Generator, patch: Sequence[int], mirror: bool) -> Warp:
    """Draw a rotation and a scaling, each with probability 0.2, and mirrors.

    Args:
        generator: source of the draws.
        patch: edges of the patch.
        mirror: whether each axis is mirrored half of the time.
    """
    matrix = None
    if generator.random() < 0.2:
        matrix = _rotation(generator, patch)
    if generator.random() < 0.2:
        factor = _about_one(generator, *SCALES)
        matrix = factor * (np.eye(len(patch)) if matrix is None else matrix)
    mirrored = []
    for axis in range(len(patch)):
        if mirror and generator.random() < 0.5:
            mirrored.append(axis)
    return Warp(matrix, tuple(mirrored))


def _rotation(generator: np.random.Generator, patch: Sequence[int]) -> Array:
    """Draw a rotation matrix: one angle for each plane in which the patch is rotated."""
    axes = len(patch)
    planes = [(first, second) for first in range(axes) for second in range(first + 1, axes)]
    if max(patch) > FLAT * min(patch):
        thin = int(np.argmin(patch))
        planes = [plane for plane in planes if thin not in plane]
    matrix = np.eye(axes)
    for first, second in planes:
        angle = generator.uniform(-ROTATION, ROTATION)
        turn = np.eye(axes)
        turn[first, first] = np.cos(angle)
        turn[second, second] = np.cos(angle)
        turn[first, second] = -np.sin(angle)
        turn[second, first] = np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _about_one(generator: np.random.Generator, low: float, high: float) -> float:
    """Draw a factor that is below 1 half of the time, uniform on both sides."""
    if generator.random() < 0.5:
        return float(generator.uniform(low, 1))
    return float(generator.uniform(1, high))


def take_warped(
    array: Array,
    cut: Cut,
    warp: Warp,
    out: Array,
    *,
    nearest: bool = False,
    pad: Sequence[float] = (),
) -> None:
    """Copy a patch with a warp.

    Args:
        array: the volume, (..., *S).
        cut: where the patch comes from, without turns, mirrors and angle.
        warp: how it is changed.
        out: the patch, (..., *P), with the same leading axes.
        nearest: interpolate by nearest neighbor, for labels, instead of linearly.
        pad: value outside the volume for each entry of the first axis; empty means 0.
    """
    axes = len(cut.corner)
    patch = out.shape[out.ndim - axes :]
    if warp.matrix is None:
        take(array, cut, patch, out=out, pad=pad)
    else:
        matrix, offset = place(array.shape[array.ndim - axes :], patch, cut, warp.matrix)
        channels = np.asarray(array).reshape(-1, *array.shape[array.ndim - axes :])
        targets = out.reshape(-1, *patch)
        for index, channel in enumerate(channels):
            outside = pad[index] if len(pad) else 0
            targets[index] = _resample(channel, matrix, offset, patch, nearest, outside)
    if warp.mirrored:
        first = out.ndim - axes
        out[...] = np.flip(out, tuple(first + axis for axis in warp.mirrored)).copy()


def place(
    shape: Sequence[int], patch: Sequence[int], cut: Cut, matrix: Array
) -> tuple[Array, Array]:
    """Return the matrix and the offset that map voxels of the patch to places in the volume."""
    edges = np.array(patch)
    center = (edges - 1) / 2
    step = np.ones(len(patch))
    if cut.zoom:  # the whole image, resized
        step = (np.array(shape) - 1) / np.maximum(edges - 1, 1)
    start = np.array(cut.corner) - np.array(cut.pads)
    return step[:, None] * matrix, step * (center - matrix @ center) + start


def _resample(
    volume: Array,
    matrix: Array,
    offset: Array,
    patch: Sequence[int],
    nearest: bool,
    outside: float,
) -> Array:
    """Return the values (*patch) of ``volume`` (*S) at ``matrix @ voxel + offset``.

    Only the block that the patch touches is read.
    """
    ends = np.array(patch) - 1
    reach = np.minimum(matrix, 0) @ ends, np.maximum(matrix, 0) @ ends
    low = np.floor(offset + reach[0]).astype(int) - 1
    high = np.ceil(offset + reach[1]).astype(int) + 2
    low = np.clip(low, 0, np.array(volume.shape) - 1)
    high = np.clip(high, low + 1, volume.shape)
    block = volume[tuple(slice(begin, end) for begin, end in zip(low, high, strict=True))]
    resampled: Array = ndimage.affine_transform(
        np.ascontiguousarray(block),
        matrix,
        offset - low,
        output_shape=tuple(patch),
        order=0 if nearest else 1,
        mode="grid-constant",
        cval=outside,
    )
    return resampled


def draw_changes(generator: np.random.Generator, shape: Sequence[int]) -> list[Change]:
    """Draw the changes of the gray values of a patch (C, *P) in the order in which they are made.

    Each has its probability: noise, blur, brightness, contrast, low resolution, gamma of the
    inverted image, gamma.
    """
    channels = range(shape[0])
    changes: list[Change] = []
    if generator.random() < 0.1:
        changes += _draw_noise(generator, shape)
    if generator.random() < 0.2:
        changes += _draw_blur(generator, shape)
    if generator.random() < 0.15:
        changes += _draw_factors("brightness", generator, channels, 0.75, 1.25)
    if generator.random() < 0.15:
        changes += _draw_factors("contrast", generator, channels, 0.75, 1.25)
    if generator.random() < 0.25:
        changes += _draw_low_resolution(generator, shape)
    if generator.random() < 0.1:
        inversion = [Change("invert", channel) for channel in channels]
        gamma = _draw_factors("gamma", generator, channels, 0.7, 1.5)
        changes += [*inversion, *gamma, *inversion]
    if generator.random() < 0.3:
        changes += _draw_factors("gamma", generator, channels, 0.7, 1.5)
    return changes


def _draw_noise(generator: np.random.Generator, shape: Sequence[int]) -> list[Change]:
    """Draw Gaussian noise whose variance is up to a tenth of the channel's."""
    share = np.sqrt(generator.uniform(0, 0.1))
    changes = []
    for channel in range(shape[0]):
        noise = generator.standard_normal(shape[1:], np.float32)
        changes.append(Change("noise", channel, (share, noise)))
    return changes


def _draw_blur(generator: np.random.Generator, shape: Sequence[int]) -> list[Change]:
    """Draw standard deviations of 0.5 to 1 voxel per axis for half of the channels."""
    changes = []
    for channel in range(shape[0]):
        if generator.random() < 0.5:
            sigma = generator.uniform(0.5, 1, len(shape) - 1)
            changes.append(Change("blur", channel, (sigma,)))
    return changes


def _draw_factors(
    kind: str, generator: np.random.Generator, channels: range, low: float, high: float
) -> list[Change]:
    """Draw a factor or a power for every channel."""
    changes = []
    for channel in channels:
        factor = np.float32(_about_one(generator, low, high))
        changes.append(Change(kind, channel, (factor,)))
    return changes


def _draw_low_resolution(generator: np.random.Generator, shape: Sequence[int]) -> list[Change]:
    """Draw the edges to which half of the channels are reduced, by a factor of up to 2."""
    edges = np.array(shape[1:])
    changes = []
    for channel in range(shape[0]):
        if generator.random() >= 0.5:
            continue
        scale = generator.uniform(0.5, 1)
        smaller = np.maximum(np.round(edges * scale).astype(int), 1)
        changes.append(Change("low_resolution", channel, (tuple(smaller),)))
    return changes


def change_intensities(image: Array, changes: Sequence[Change]) -> None:
    """Make changes of the gray values of a patch (C, *P), float32, in place."""
    for change in changes:
        CHANGES[change.kind](image[change.channel], *change.arguments)


def _add_noise(channel: Array, share: float, noise: Array) -> None:
    """Add noise of unit variance times a share of the channel's standard deviation."""
    channel += np.float32(share * channel.std()) * noise


def _blur(channel: Array, sigma: Array) -> None:
    channel[...] = ndimage.gaussian_filter(channel, sigma)


def _scale(channel: Array, factor: np.float32) -> None:
    channel *= factor


def _change_contrast(channel: Array, factor: np.float32) -> None:
    """Scale the distance from the mean, within the old range."""
    mean = channel.mean()
    changed = (channel - mean) * factor + mean
    channel[...] = changed.clip(channel.min(), channel.max())


def _lower_resolution(channel: Array, smaller: tuple[int, ...]) -> None:
    """Reduce a channel by nearest neighbor and enlarge it again, linearly."""
    reduced = zoom(channel, smaller)
    step = steps(smaller, channel.shape)
    channel[...] = ndimage.affine_transform(
        reduced, step, output_shape=channel.shape, order=1, mode="nearest"
    )


def steps(sizes: Sequence[int], new_sizes: Sequence[int]) -> Array:
    """Return the distance in old voxels between new ones; an axis of one voxel is repeated."""
    old = np.array(sizes)
    new = np.array(new_sizes)
    step = np.ones(len(old))
    several = old > 1
    step[several] = (old[several] - 1) / (new[several] - 1)
    return step


def _change_gamma(channel: Array, gamma: np.float32) -> None:
    """Raise gray values within their range to a power; mean and standard deviation stay."""
    mean = channel.mean()
    deviation = channel.std()
    low = channel.min()
    extent = max(channel.max() - low, np.float32(1e-7))
    curved = ((channel - low) / extent) ** gamma
    spread = max(curved.std(), np.float32(1e-7))
    channel[...] = (curved - curved.mean()) * (deviation / spread) + mean


def _invert(channel: Array) -> None:
    np.negative(channel, out=channel)


CHANGES: dict[str, Callable[..., None]] = {
    "noise": _add_noise,
    "blur": _blur,
    "brightness": _scale,
    "contrast": _change_contrast,
    "low_resolution": _lower_resolution,
    "invert": _invert,
    "gamma": _change_gamma,
}
