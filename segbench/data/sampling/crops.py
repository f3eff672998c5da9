"""Crops and mirror augmentation of the literature, as functions of a numpy Generator.

Source: the data loaders of UA-MT (Yu et al., MICCAI 2019) and its descendants; the ``+ 1`` pads are
those of CoraNet (Shi et al., TMI 2021) and VerSemi. ``zoom`` and ``turn`` are the two-dimensional
loaders of SSL4MIS (Luo et al.): a whole slice, resized to the patch by nearest neighbor.

A ``Cut`` says where a patch comes from, ``take`` copies it; image and label share one cut. Turns
and mirrors are views and padding is written around the patch, so no whole volume is ever copied,
memory-mapped or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np


@dataclass(frozen=True)
class Cut:
    """Where a patch comes from: quarter turns, then a mirror, then padding, then the corner.

    ``pads`` and ``corner`` refer to the volume after the turns.
    """

    corner: tuple[int, ...]  # in the padded volume
    pads: tuple[int, ...]  # voxels added on both sides of each axis
    turns: int = 0  # quarter turns from the first towards the second spatial axis
    mirror: int | None = None  # spatial axis
    angle: int = 0  # degrees, from the first towards the second spatial axis, before all else
    zoom: bool = False  # the whole image, resized; corner and pads are 0


def nearest(size: int, new_size: int) -> np.ndarray:
    """Return which voxels an axis of ``size`` keeps when it is resized by nearest neighbor.

    The end voxels stay end voxels. Returns (new_size,) indices.
    """
    step = (size - 1) / max(new_size - 1, 1)
    positions = np.arange(new_size) * step
    rounded = np.floor(positions + 0.5)
    return cast(np.ndarray, rounded.astype(np.intp))


def zoom(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize the last axes of an array by nearest neighbor: (..., *S) to (..., *shape)."""
    first = array.ndim - len(shape)
    for axis, new_size in enumerate(shape, first):
        kept = nearest(array.shape[axis], new_size)
        array = np.take(array, kept, axis)
    return array


def pads(shape: Sequence[int], patch: Sequence[int], extra: int) -> tuple[int, ...]:
    """Return how many voxels to add on both sides of every axis.

    Nothing is added if every axis is longer than the patch. Otherwise every axis is padded, even
    one that is a little longer than the patch.

    Args:
        shape: size of the volume.
        patch: size of the patch.
        extra: 3 in UA-MT and its descendants, 1 in CoraNet and VerSemi; 0 pads just to the patch.
    """
    if all(size > edge for size, edge in zip(shape, patch, strict=True)):
        return (0,) * len(shape)
    added = []
    for size, edge in zip(shape, patch, strict=True):
        published = (edge - size) // 2 + extra
        needed = -((size - edge) // 2)
        added.append(max(published, needed, 0))
    return tuple(added)


def random_corner(
    generator: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    last_offset: bool = False,
) -> tuple[int, ...]:
    """Draw a uniform offset per axis, one draw each; 0 for an axis as long as the patch.

    Args:
        generator: source of the draws.
        shape: size of the padded volume.
        patch: size of the patch.
        last_offset: draw from all offsets {0 .. n - p}; False leaves out the last one, as the
            published code does.
    """
    corner = []
    for size, edge in zip(shape, patch, strict=True):
        count = max(size - edge + last_offset, 1)
        corner.append(int(generator.integers(count)))
    return tuple(corner)


def center_corner(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the offset of the central patch; a half is rounded to the even number."""
    return tuple(round((size - edge) / 2) for size, edge in zip(shape, patch, strict=True))


def draw(
    generator: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    *,
    where: str = "random",
    pad: int = 3,
    last_offset: bool = False,
    augment: str = "none",
) -> Cut:
    """Draw a patch of a volume. The order of draws is: turns, mirror axis, offsets.

    Args:
        generator: source of the draws.
        shape: size of the volume, (*S).
        patch: size of the patch.
        where: ``random``, ``center`` or ``zoom``.
        pad: ``extra`` of ``pads``.
        last_offset: as in ``random_corner``.
        augment: ``none``; ``mirror``: a uniform number of quarter turns in the plane of the first
            two axes, then always a mirror along one of the two, so the result is one of the
            square's four reflections and never the stored orientation; ``turn``: half of the time
            ``mirror``, otherwise a rotation by a whole angle from -20 to 19 degrees.
    """
    mirrored = augment == "mirror" or (augment == "turn" and generator.random() > 0.5)
    turns = 0
    mirror = None
    angle = 0
    if mirrored:
        turns = int(generator.integers(4))
        mirror = int(generator.integers(2))
    elif augment == "turn":
        angle = int(generator.integers(-20, 20))
    if where == "zoom":
        zeros = (0,) * len(shape)
        return Cut(zeros, zeros, turns, mirror, angle, zoom=True)
    if turns % 2:
        shape = (shape[1], shape[0], *shape[2:])
    margin = pads(shape, patch, pad)
    padded = [size + 2 * added for size, added in zip(shape, margin, strict=True)]
    if where == "center":
        corner = center_corner(padded, patch)
    else:
        corner = random_corner(generator, padded, patch, last_offset)
    return Cut(corner, margin, turns, mirror, angle)


def around(
    generator: np.random.Generator,
    cut: Cut,
    voxel: Sequence[int],
    shape: Sequence[int],
    patch: Sequence[int],
) -> Cut:
    """Return a cut moved so that its patch contains a voxel, at a uniformly drawn place.

    Args:
        generator: source of the draws, one per axis.
        cut: the cut to move; its turns, mirror and pads stay.
        voxel: indices of the voxel in the volume as stored.
        shape: size of the volume as stored.
        patch: size of the patch.
    """
    position, size = _turned(cut, voxel, shape)
    corner = []
    for at, length, margin, edge in zip(position, size, cut.pads, patch, strict=True):
        lowest = max(0, at + margin - edge + 1)
        highest = min(at + margin, length + 2 * margin - edge)
        corner.append(int(generator.integers(lowest, highest + 1)))
    return replace(cut, corner=tuple(corner))


def _turned(cut: Cut, voxel: Sequence[int], shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the place of a voxel and the volume's size after the turns and mirror of a cut."""
    position = list(voxel)
    size = list(shape)
    for _ in range(cut.turns):
        x, y = position[:2]
        width, height = size[:2]
        position[:2] = [height - 1 - y, x]
        size[:2] = [height, width]
    if cut.mirror is not None:
        last = size[cut.mirror] - 1
        position[cut.mirror] = last - position[cut.mirror]
    return position, size


def take(
    array: np.ndarray,
    cut: Cut,
    patch: Sequence[int],
    out: np.ndarray | None = None,
    pad: Sequence[float] = (),
) -> np.ndarray:
    """Copy a patch into a contiguous array (..., *patch); leading axes of ``array`` are kept.

    Only the patch's voxels are read, unless the cut is rotated.

    Args:
        array: the volume, (..., *S).
        cut: where the patch comes from.
        patch: its size.
        out: array of the result's shape to write to; None makes one.
        pad: value outside the volume for each entry of the first axis; empty means 0.
    """
    # A plain array over the same memory: views of the memmap subclass are slow to make.
    view = np.asarray(array)
    first = view.ndim - len(patch)
    view = _oriented(view, cut, first)
    if out is None:
        out = np.empty((*view.shape[:first], *patch), view.dtype)
    if cut.zoom:
        out[...] = zoom(view, patch)
        return out
    part = overlap(view.shape[first:], cut, patch)
    if not part.whole:
        out[...] = _pad_values(pad, out.ndim)
    leading = (slice(None),) * first
    out[leading + part.of_patch] = view[leading + part.of_volume]
    return out


@dataclass(frozen=True)
class Overlap:
    """The part that a patch and a volume share, as slices of both; the rest is padding."""

    of_volume: tuple[slice, ...]
    of_patch: tuple[slice, ...]
    whole: bool  # no part of the patch is padding


def overlap(shape: Sequence[int], cut: Cut, patch: Sequence[int]) -> Overlap:
    """Return the overlap of a patch with a volume of this shape, after the turns of the cut."""
    of_volume = []
    of_patch = []
    whole = True
    for size, corner, margin, edge in zip(shape, cut.corner, cut.pads, patch, strict=True):
        low = corner - margin
        high = low + edge
        # Equal if the whole patch lies in the padding.
        begin = min(max(low, 0), size)
        end = min(max(high, 0), size)
        of_volume.append(slice(begin, end))
        of_patch.append(slice(begin - low, end - low))
        whole = whole and low >= 0 and high <= size
    return Overlap(tuple(of_volume), tuple(of_patch), whole)


def _oriented(view: np.ndarray, cut: Cut, first: int) -> np.ndarray:
    """Return the volume rotated, turned and mirrored; ``first`` is its first spatial axis."""
    if cut.angle:
        view = _rotated(view, cut.angle, first)
    if cut.turns:
        view = np.rot90(view, cut.turns, axes=(first, first + 1))
    if cut.mirror is not None:
        view = np.flip(view, first + cut.mirror)
    return view


def _pad_values(pad: Sequence[float], dims: int) -> Any:
    """Return the value outside the volume, shaped to fill an array of ``dims`` axes."""
    if not pad:
        return 0
    return np.reshape(pad, (-1, *(1,) * (dims - 1)))


def _rotated(view: np.ndarray, angle: int, first: int) -> np.ndarray:
    """Return a copy rotated in the plane of the first two spatial axes.

    Nearest neighbor, same size, corners 0.
    """
    from scipy import ndimage

    rotated = ndimage.rotate(view, angle, axes=(first + 1, first), reshape=False, order=0)
    return cast(np.ndarray, rotated)
