"""Strong views of images, with boxes that are pasted from other images of the batch (CutMix).

Shapes: U unlabeled items, C channels, ``*S`` two or three spatial axes. Each item gets its box from
the item before it, the first one from the last one; a single item keeps its own content.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segbench.nn.ops import CUTMIX_ASPECT, CUTMIX_SHARE, mix, random_boxes, strong_view

__all__ = ["cutmix_view", "paste"]


def cutmix_view(
    images: Tensor, generator: torch.Generator, probability: float
) -> tuple[Tensor, Tensor]:
    """Return strong views (U, C, *S) of images, and masks (U, *S) that are false in pasted boxes.

    A view has other gray values (``strong_view``) and, with a probability, a box from the view of
    the item before it. Boxes have 2 to 40 % of the patch, as in UniMatch's code. Paste the labels
    of the same items with ``paste``.

    Args:
        images: weak views (U, C, *S).
        generator: CPU generator of all draws, such as ``t.generator("views", own=True)``.
        probability: probability that an item has a box.
    """
    view = strong_view(images, generator)
    size = tuple(images.shape[2:])
    outside = random_boxes(
        len(view), size, CUTMIX_SHARE, CUTMIX_ASPECT, generator, view.device, probability
    )
    return paste(view, outside), outside


def paste(items: Tensor, outside: Tensor) -> Tensor:
    """Return ``items`` where masks (U, *S) are true, and the item before each in its box.

    Items are images (U, C, *S), or labels or probabilities (U, *S).
    """
    before = items.roll(1, 0)
    return mix(outside, items, before)
