"""Compute losses of the literature in two or three dimensions, with two or more classes.

All losses take tensors and return a scalar. Shapes: N items, K classes with background as class 0,
``*S`` two or three spatial axes. No tensor is detached: gradients flow into every tensor that
requires them. Half-precision inputs are converted to float32 first, because sums over a patch can
exceed the range of float16.

    UA-MT, mean teacher  dice_ce(logits, y)                       squared, joint over the batch
    CPS, URPC (SSL4MIS)  dice_ce(logits, y, background=True)
    MC-Net, SS-Net       dice(p, y, squared=False, smooth=1e-8)
    BCP                  dice(p, y, background=True, squared=False, per_item=True, weight=mask)
    DTC, SASSNet, VerSemi
                         soft_dice(p, y)                          foreground maps
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.nn.ops import one_hot, wide_softmax

__all__ = ["cross_entropy", "dice", "dice_ce", "masked_mean", "soft_dice", "squared_error"]


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def soft_dice(
    p: Tensor,
    y: Tensor,
    *,
    weight: Tensor | None = None,
    keep: tuple[int, ...] = (),
    squared: bool = True,
    smooth: float = 1e-5,
) -> Tensor:
    """Return the soft Dice loss of two maps in [0, 1].

    The loss is 1 - (2 sum w p y + s) / (sum w p^2 + sum w y^2 + s). If ``squared`` is false, the
    denominator is sum w p + sum w y + s. Sums run over all axes except ``keep``; the losses are
    averaged over the axes ``keep``. ``y`` may be boolean or soft. ``weight`` contains voxel weights
    or a mask and broadcasts to ``p``.
    """
    p = _wide(p)
    y = y.to(p.dtype)
    overlap = p * y
    total = p.square() + y.square() if squared else p + y
    if weight is not None:
        overlap, total = overlap * weight, total * weight
    axes = [i for i in range(p.ndim) if i not in keep]
    return (1 - (2 * overlap.sum(axes) + smooth) / (total.sum(axes) + smooth)).mean()


def dice(
    probabilities: Tensor,
    labels: Tensor,
    *,
    background: bool = False,
    per_item: bool = False,
    weight: Tensor | None = None,
    squared: bool = True,
    smooth: float = 1e-5,
) -> Tensor:
    """Return the soft Dice loss averaged over the classes.

    ``probabilities`` has shape (N, K, *S), ``labels`` contains integers of shape (N, *S), and
    ``weight`` broadcasts to (N, *S). Background is included only if ``background`` is true. Sums
    run over the whole batch; with ``per_item`` they run over each item, and the losses of the items
    are averaged.
    """
    first = 0 if background else 1
    target = one_hot(labels, probabilities.shape[1])
    keep = (0, 1) if per_item else (1,)
    return soft_dice(
        probabilities[:, first:],
        target[:, first:],
        weight=None if weight is None else weight[:, None],
        keep=keep,
        squared=squared,
        smooth=smooth,
    )


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross entropy of ``logits`` (N, K, *S) and ``labels`` (N, *S).

    The loss is averaged over all voxels, or weighted by ``weight``.
    """
    # The mean reduction of torch is not deterministic on CUDA.
    each = F.cross_entropy(_wide(logits), labels, reduction="none")
    return each.mean() if weight is None else masked_mean(each, weight)


def dice_ce(logits: Tensor, labels: Tensor, *, background: bool = False) -> Tensor:
    """Return (cross entropy + Dice) / 2, the supervised loss of UA-MT.

    With ``background`` it is the supervised loss of SSL4MIS.
    """
    overlap = dice(wide_softmax(logits), labels, background=background)
    return (cross_entropy(logits, labels) + overlap) / 2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` weighted by ``mask``, or 0 if the mask is empty.

    The mask broadcasts to the shape of ``values``.
    """
    values = _wide(values)
    mask = mask.to(values.dtype).expand_as(values)
    return (values * mask).sum() / (mask.sum() + 1e-16)


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """Return the mean of (p - q)^2 over all elements; symmetric, including its gradient."""
    return (_wide(p) - _wide(q)).square().mean()
