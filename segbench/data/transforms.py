"""Crops and mirror augmentation of the literature, as functions of a numpy Generator.

Source: the data loaders of UA-MT (Yu et al., MICCAI 2019) and its descendants; the ``+ 1`` pads are those of CoraNet
(Shi et al., TMI 2021) and VerSemi. A ``Cut`` says where a patch comes from, ``take`` fetches it; image and label share
one. Turns and mirrors are views and pads are written around the patch, so no volume, mapped or not, is ever copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Cut:
    """Where a patch comes from: quarter turns, then a mirror, then padding, then the corner in the padded volume.

    ``pads`` and ``corner`` refer to the volume after the turns.
    """

    corner: tuple[int, ...]
    pads: tuple[int, ...]  # zeros on both sides of each axis
    turns: int = 0  # from the first towards the second spatial axis
    mirror: int | None = None  # spatial axis


def pads(shape: Sequence[int], patch: Sequence[int], extra: int) -> tuple[int, ...]:
    """Zeros on both sides of every axis: none unless an axis is no longer than the patch, then every axis is padded.

    ``extra`` is 3 in the UA-MT line and 1 in CoraNet and VerSemi; an axis a little longer than the patch is padded too
    when another one triggers. With 0 the pad is what reaches the patch.
    """
    if all(n > p for n, p in zip(shape, patch, strict=True)):
        return (0,) * len(shape)
    return tuple(max((p - n) // 2 + extra, -((n - p) // 2), 0) for n, p in zip(shape, patch, strict=True))


def random_corner(generator: np.random.Generator, shape: Sequence[int], patch: Sequence[int],
                  last_offset: bool = False) -> tuple[int, ...]:
    """A uniform offset per axis, one draw each: of {0 .. n - P - 1}, the literature's, or of all with ``last_offset``.

    An axis as long as the patch gives 0.
    """
    return tuple(int(generator.integers(max(n - p + last_offset, 1))) for n, p in zip(shape, patch, strict=True))


def center_corner(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """The offset of the central patch; a half is rounded to the even number."""
    return tuple(round((n - p) / 2) for n, p in zip(shape, patch, strict=True))


def draw(generator: np.random.Generator, shape: Sequence[int], patch: Sequence[int], *, where: str = "random",
         pad: int = 3, last_offset: bool = False, augment: str = "none") -> Cut:
    """Draw a patch of a volume of spatial ``shape``; the order of draws is turns, mirror axis, offsets.

    ``where``: ``random`` or ``center``. ``augment``: ``none``, or ``mirror``: k quarter turns in the plane of the first
    two axes, k uniform, then always a mirror along one of the two. The outcome is one of the square's four reflections,
    never the orientation as stored.
    """
    turns, mirror = (int(generator.integers(4)), int(generator.integers(2))) if augment == "mirror" else (0, None)
    if turns % 2:
        shape = (shape[1], shape[0], *shape[2:])
    margin = pads(shape, patch, pad)
    padded = [n + 2 * q for n, q in zip(shape, margin, strict=True)]
    corner = center_corner(padded, patch) if where == "center" else random_corner(generator, padded, patch, last_offset)
    return Cut(corner, margin, turns, mirror)


def take(array: np.ndarray, cut: Cut, patch: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
    """The patch as a contiguous array (..., *patch); leading axes of ``array`` are kept.

    Only the patch's voxels are read. ``out``: write there; it must hold the result's shape.
    """
    dims = len(patch)
    view = np.asarray(array)  # of a memory map: the same memory, without the subclass's cost per view
    first = view.ndim - dims
    if cut.turns:
        view = np.rot90(view, cut.turns, axes=(first, first + 1))
    if cut.mirror is not None:
        view = np.flip(view, first + cut.mirror)
    if out is None:
        out = np.empty((*view.shape[:first], *patch), view.dtype)
    lead: tuple[Any, ...] = (slice(None),) * first
    source, target, inside = lead, lead, True
    for n, corner, margin, p in zip(view.shape[first:], cut.corner, cut.pads, patch, strict=True):
        low, high = corner - margin, corner - margin + p
        begin, end = min(max(low, 0), n), min(max(high, 0), n)  # equal where the patch lies in the padding
        source += (slice(begin, end),)
        target += (slice(begin - low, end - low),)
        inside &= low >= 0 and high <= n
    if not inside:
        out[...] = 0
    out[target] = view[source]
    return out
