"""Crops and mirror augmentation of the literature, as functions of a numpy Generator.

Source: the data loaders of UA-MT (Yu et al., MICCAI 2019) and its descendants; the ``+ 1`` pads are those of CoraNet
(Shi et al., TMI 2021) and VerSemi. A ``Cut`` says where a patch comes from, ``take`` fetches it; image and label share
one. Turns and mirrors are views and pads are written around the patch, so no volume, mapped or not, is ever copied.
``zoom`` and ``turn`` are the two-dimensional loaders of SSL4MIS (Luo et al.): a whole slice, resized to the patch by the
nearest neighbor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cut:
    """Where a patch comes from: quarter turns, then a mirror, then padding, then the corner in the padded volume.

    ``pads`` and ``corner`` refer to the volume after the turns.
    """

    corner: tuple[int, ...]
    pads: tuple[int, ...]  # voxels added on both sides of each axis
    turns: int = 0  # from the first towards the second spatial axis
    mirror: int | None = None  # spatial axis
    angle: int = 0  # degrees, from the first towards the second spatial axis, before anything else
    zoom: bool = False  # the whole image, resized; corner and pads are 0


def nearest(n: int, p: int) -> np.ndarray:
    """Where the ``p`` voxels of a resized axis come from among ``n``: end voxels on end voxels, (p,) indices."""
    return np.floor(np.arange(p) * ((n - 1) / max(p - 1, 1)) + 0.5).astype(np.intp)


def zoom(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The last axes of an array resized by the nearest neighbor, (..., *S) to (..., *shape)."""
    for axis, p in enumerate(shape, array.ndim - len(shape)):
        array = np.take(array, nearest(array.shape[axis], p), axis)
    return array


def pads(shape: Sequence[int], patch: Sequence[int], extra: int) -> tuple[int, ...]:
    """Zeros on both sides of every axis: none unless an axis is no longer than the patch, then every axis is padded.

    ``extra`` is 3 in the UA-MT line and 1 in CoraNet and VerSemi; an axis a little longer than the patch is padded too
    when another one triggers. With 0 the pad is what reaches the patch.
    """
    if all(n > p for n, p in zip(shape, patch, strict=True)):
        return (0,) * len(shape)
    return tuple(
        max((p - n) // 2 + extra, -((n - p) // 2), 0) for n, p in zip(shape, patch, strict=True)
    )


def random_corner(
    generator: np.random.Generator,
    shape: Sequence[int],
    patch: Sequence[int],
    last_offset: bool = False,
) -> tuple[int, ...]:
    """A uniform offset per axis, one draw each: of {0 .. n - P - 1}, the literature's, or of all with ``last_offset``.

    An axis as long as the patch gives 0.
    """
    return tuple(
        int(generator.integers(max(n - p + last_offset, 1)))
        for n, p in zip(shape, patch, strict=True)
    )


def center_corner(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """The offset of the central patch; a half is rounded to the even number."""
    return tuple(round((n - p) / 2) for n, p in zip(shape, patch, strict=True))


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
    """Draw a patch of a volume of spatial ``shape``; the order of draws is turns, mirror axis, offsets.

    ``where``: ``random``, ``center`` or ``zoom``. ``augment``: ``none``, or ``mirror``: k quarter turns in the plane of the
    first two axes, k uniform, then always a mirror along one of the two. The outcome is one of the square's four
    reflections, never the orientation as stored. ``turn``: with probability one half that, else a rotation by a whole
    angle from -20 to 19 degrees.
    """
    mirrored = augment == "mirror" or (augment == "turn" and generator.random() > 0.5)
    turns, mirror = (
        (int(generator.integers(4)), int(generator.integers(2))) if mirrored else (0, None)
    )
    angle = int(generator.integers(-20, 20)) if augment == "turn" and not mirrored else 0
    if where == "zoom":
        return Cut((0,) * len(shape), (0,) * len(shape), turns, mirror, angle, zoom=True)
    if turns % 2:
        shape = (shape[1], shape[0], *shape[2:])
    margin = pads(shape, patch, pad)
    padded = [n + 2 * q for n, q in zip(shape, margin, strict=True)]
    corner = (
        center_corner(padded, patch)
        if where == "center"
        else random_corner(generator, padded, patch, last_offset)
    )
    return Cut(corner, margin, turns, mirror, angle)


def around(
    generator: np.random.Generator,
    cut: Cut,
    spot: Sequence[int],
    shape: Sequence[int],
    patch: Sequence[int],
) -> Cut:
    """The cut moved so that its patch holds the voxel ``spot`` of a volume of ``shape``, at any place in it, uniformly."""
    place, size = list(spot), list(shape)
    for _ in range(cut.turns):
        place[:2] = [size[1] - 1 - place[1], place[0]]
        size[:2] = [size[1], size[0]]
    if cut.mirror is not None:
        place[cut.mirror] = size[cut.mirror] - 1 - place[cut.mirror]
    corner = []
    for at, n, margin, p in zip(place, size, cut.pads, patch, strict=True):
        low, high = max(0, at + margin - p + 1), min(at + margin, n + 2 * margin - p)
        corner.append(int(generator.integers(low, high + 1)))
    return replace(cut, corner=tuple(corner))


def take(
    array: np.ndarray,
    cut: Cut,
    patch: Sequence[int],
    out: np.ndarray | None = None,
    pad: Sequence[float] = (),
) -> np.ndarray:
    """The patch as a contiguous array (..., *patch); leading axes of ``array`` are kept.

    Only the patch's voxels are read, unless the cut is rotated. ``out``: write there; it must hold the result's shape.
    ``pad``: what stands beyond the volume, one number for each entry of the first axis; 0 where nothing is said.
    """
    dims = len(patch)
    view = np.asarray(
        array
    )  # of a memory map: the same memory, without the subclass's cost per view
    first = view.ndim - dims
    if cut.angle:
        view = _rotated(view, cut.angle, first)
    if cut.turns:
        view = np.rot90(view, cut.turns, axes=(first, first + 1))
    if cut.mirror is not None:
        view = np.flip(view, first + cut.mirror)
    if out is None:
        out = np.empty((*view.shape[:first], *patch), view.dtype)
    if cut.zoom:
        out[...] = zoom(view, patch)
        return out
    lead: tuple[Any, ...] = (slice(None),) * first
    source, target, inside = lead, lead, True
    for n, corner, margin, p in zip(view.shape[first:], cut.corner, cut.pads, patch, strict=True):
        low, high = corner - margin, corner - margin + p
        begin, end = (
            min(max(low, 0), n),
            min(max(high, 0), n),
        )  # equal where the patch lies in the padding
        source += (slice(begin, end),)
        target += (slice(begin - low, end - low),)
        inside &= low >= 0 and high <= n
    if not inside:
        out[...] = np.reshape(pad, (-1, *(1,) * (out.ndim - 1))) if pad else 0
    out[target] = view[source]
    return out


def _rotated(view: np.ndarray, angle: int, first: int) -> np.ndarray:
    """A copy turned in the plane of the first two spatial axes: nearest neighbor, same size, corners 0."""
    from scipy import ndimage

    return ndimage.rotate(view, angle, axes=(first + 1, first), reshape=False, order=0)
