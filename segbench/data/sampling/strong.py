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
neighbor.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        matrix, offset = _place(array.shape[array.ndim - axes :], patch, cut, warp.matrix)
        channels = np.asarray(array).reshape(-1, *array.shape[array.ndim - axes :])
        targets = out.reshape(-1, *patch)
        for index, channel in enumerate(channels):
            outside = pad[index] if len(pad) else 0
            targets[index] = _resample(channel, matrix, offset, patch, nearest, outside)
    if warp.mirrored:
        first = out.ndim - axes
        out[...] = np.flip(out, tuple(first + axis for axis in warp.mirrored)).copy()


def _place(
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


def change_intensities(image: Array, generator: np.random.Generator) -> None:
    """Change the gray values of a patch (C, *P), float32, in place.

    In this order, each with its probability: noise, blur, brightness, contrast, low resolution,
    gamma of the inverted image, gamma.
    """
    if generator.random() < 0.1:
        _add_noise(image, generator)
    if generator.random() < 0.2:
        _blur(image, generator)
    if generator.random() < 0.15:
        for channel in image:
            channel *= np.float32(_about_one(generator, 0.75, 1.25))
    if generator.random() < 0.15:
        _change_contrast(image, generator)
    if generator.random() < 0.25:
        _lower_resolution(image, generator)
    if generator.random() < 0.1:
        np.negative(image, out=image)
        _change_gamma(image, generator)
        np.negative(image, out=image)
    if generator.random() < 0.3:
        _change_gamma(image, generator)


def _add_noise(image: Array, generator: np.random.Generator) -> None:
    """Add Gaussian noise whose variance is up to a tenth of the channel's."""
    share = np.sqrt(generator.uniform(0, 0.1))
    for channel in image:
        noise = generator.standard_normal(channel.shape, np.float32)
        channel += np.float32(share * channel.std()) * noise


def _blur(image: Array, generator: np.random.Generator) -> None:
    """Blur half of the channels with a standard deviation of 0.5 to 1 voxel per axis."""
    for channel in image:
        if generator.random() < 0.5:
            sigma = generator.uniform(0.5, 1, channel.ndim)
            channel[...] = ndimage.gaussian_filter(channel, sigma)


def _change_contrast(image: Array, generator: np.random.Generator) -> None:
    """Scale the distance from the mean, within the old range."""
    for channel in image:
        factor = np.float32(_about_one(generator, 0.75, 1.25))
        mean = channel.mean()
        changed = (channel - mean) * factor + mean
        channel[...] = changed.clip(channel.min(), channel.max())


def _lower_resolution(image: Array, generator: np.random.Generator) -> None:
    """Reduce half of the channels by a factor of up to 2 and enlarge them again."""
    for channel in image:
        if generator.random() >= 0.5:
            continue
        scale = generator.uniform(0.5, 1)
        edges = np.array(channel.shape)
        smaller = np.maximum(np.round(edges * scale).astype(int), 1)
        reduced = zoom(channel, tuple(smaller))
        step = np.ones(channel.ndim)  # an axis of one voxel is repeated
        several = smaller > 1
        step[several] = (smaller[several] - 1) / (edges[several] - 1)
        channel[...] = ndimage.affine_transform(
            reduced, step, output_shape=channel.shape, order=1, mode="nearest"
        )


def _change_gamma(image: Array, generator: np.random.Generator) -> None:
    """Raise gray values within their range to a power; mean and standard deviation stay."""
    for channel in image:
        gamma = np.float32(_about_one(generator, 0.7, 1.5))
        mean = channel.mean()
        deviation = channel.std()
        low = channel.min()
        extent = max(channel.max() - low, np.float32(1e-7))
        curved = ((channel - low) / extent) ** gamma
        spread = max(curved.std(), np.float32(1e-7))
        channel[...] = (curved - curved.mean()) * (deviation / spread) + mean
