"""Losses of the literature: tensors in, a scalar out; two or three dimensions, two or more classes.

Shapes: N items, K classes with background as class 0, ``*S`` space. Nothing is detached here: gradients flow into
every tensor that requires them. Half-precision inputs are widened first: sums over a patch exceed float16's range.

    UA-MT, mean teacher      dice_ce(logits, y)                           squared denominators, joint over the batch
    CPS, URPC (SSL4MIS)      dice_ce(logits, y, background=True)
    MC-Net, SS-Net           dice(p, y, squared=False, smooth=1e-8)
    BCP                      dice(p, y, background=True, squared=False, per_item=True, weight=mask)
    DTC, SASSNet, VerSemi    soft_dice(p, y)                              foreground maps
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segbench.nn.ops import one_hot

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
    """1 - (2 sum w p y + s) / (sum w p^2 + sum w y^2 + s) of two maps in [0, 1].

    Sums run jointly over all axes but ``keep``, over which the losses are averaged. ``y`` may be boolean or soft;
    ``weight`` (of each voxel, or a mask) broadcasts to ``p``. Without ``squared`` the denominator is sum w p + sum w y.
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
    """Soft Dice averaged over the classes, without background unless asked for.

    ``probabilities`` (N, K, *S), ``labels`` (N, *S) integer, ``weight`` broadcasts to (N, *S). Sums run over the whole
    batch, or with ``per_item`` over each item, whose losses are averaged.
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
    """Cross entropy of ``logits`` (N, K, *S) and ``labels`` (N, *S), averaged over voxels or those of a mask."""
    each = F.cross_entropy(
        _wide(logits), labels, reduction="none"
    )  # torch's own mean is not deterministic on CUDA
    return each.mean() if weight is None else masked_mean(each, weight)


def dice_ce(logits: Tensor, labels: Tensor, *, background: bool = False) -> Tensor:
    """(cross entropy + Dice) / 2, the supervised loss of UA-MT; with ``background`` that of SSL4MIS."""
    return (
        cross_entropy(logits, labels) + dice(logits.softmax(1), labels, background=background)
    ) / 2


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` weighted by ``mask``, which broadcasts to them; 0 where the mask is empty."""
    values = _wide(values)
    mask = mask.to(values.dtype).expand_as(values)
    return (values * mask).sum() / (mask.sum() + 1e-16)


def squared_error(p: Tensor, q: Tensor) -> Tensor:
    """Mean of (p - q)^2 over items, channels and voxels; symmetric, in its gradient too."""
    return (_wide(p) - _wide(q)).square().mean()
