"""Compute losses of the literature in two or three dimensions, with two or more classes.

All losses take tensors and return a scalar. Shapes: N items, K classes with background as class 0,
``*S`` two or three spatial axes. No tensor is detached: gradients flow into every tensor that
requires them. Half-precision inputs are converted to float32 first, because sums over a patch can
exceed the range of float16.

Voxels whose label is ``IGNORED`` (255) are left out of ``cross_entropy``, ``dice`` and ``dice_ce``.
The other losses get masks instead of labels: ``ops.is_known`` says which voxels count. Without such
voxels, all results are the same to the last bit as if there were no such value.

    UA-MT, mean teacher  dice_ce(logits, y)                       squared, joint over the batch
    CPS, URPC (SSL4MIS)  dice_ce(logits, y, background=True)
    MC-Net, SS-Net       dice(p, y, squared=False, smooth=1e-8)
    BCP                  dice(p, y, background=True, squared=False, per_item=True, weight=mask)
    DTC, SASSNet, VerSemi
                         soft_dice(p, y)                          foreground maps
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segbench.contracts.dataset import IGNORED
from segbench.nn.ops import is_known, one_hot, wide_softmax

__all__ = [
    "cross_entropy",
    "dice",
    "dice_ce",
    "known_mean",
    "masked_mean",
    "soft_dice",
    "squared_error",
]


# Up to so many classes the masks of all classes are made at once. Above, one class after the other
# is faster, needs less memory and gives the same to rounding (benchmarks/speed/classes.py).
FEW_CLASSES = 2


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
    is_mask = y.dtype == torch.bool
    y = y if is_mask else y.to(p.dtype)  # a mask takes a quarter of the memory of numbers
    overlap = p * y
    total = p.square() + (y if is_mask else y.square()) if squared else p + y
    if weight is not None:
        overlap, total = overlap * weight, total * weight
    axes = [i for i in range(p.ndim) if i not in keep]
    return (1 - (2 * overlap.sum(axes) + smooth) / (total.sum(axes) + smooth)).mean()


class _ClassSums(torch.autograd.Function):
    """The sums of the Dice loss per item and class, one class at a time, (N, K) each.

    They are sum w p y and sum w p^2 + sum w y^2, or sum w p + sum w y if ``squared`` is false, for
    probabilities p (N, K, *S), weights w (N, *S), and y that is 1 where the label is the class.
    """

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, labels: Tensor, weight: Tensor, squared: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(p, labels, weight)
        ctx.squared = squared
        overlaps = []
        totals = []
        for value, probability in enumerate(p.unbind(1)):
            mask = labels == value
            weighted = probability * weight
            size = weighted * probability if squared else weighted
            overlaps.append((weighted * mask).flatten(1).sum(1))
            totals.append((size + mask * weight).flatten(1).sum(1))
        return torch.stack(overlaps, 1), torch.stack(totals, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_overlap: Tensor, of_total: Tensor) -> tuple[Tensor, None, None, None]:
        p, labels, weight = ctx.saved_tensors
        gradient = torch.empty_like(p)
        per_item = (-1, *[1] * (labels.ndim - 1))
        for value, probability in enumerate(p.unbind(1)):
            slope = of_total[:, value].view(per_item)
            through_total = 2 * slope * probability if ctx.squared else slope
            through_overlap = of_overlap[:, value].view(per_item) * (labels == value)
            gradient[:, value] = (through_total + through_overlap) * weight
        return gradient, None, None, None


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
    if probabilities.shape[1] > FEW_CLASSES and not (weight is not None and weight.requires_grad):
        counted = is_known(labels) if weight is None else weight * is_known(labels)
        sums: tuple[Tensor, Tensor] = _ClassSums.apply(
            _wide(probabilities), labels, counted.expand_as(labels), squared
        )
        overlap, total = sums if per_item else (sums[0].sum(0), sums[1].sum(0))
        losses = 1 - (2 * overlap + smooth) / (total + smooth)
        return losses[..., first:].mean()

    target = one_hot(labels, probabilities.shape[1])
    known = is_known(labels).unsqueeze(1)
    keep = (0, 1) if per_item else (1,)
    return soft_dice(
        probabilities[:, first:] * known,
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
    known = is_known(labels)
    # The mean reduction of torch is not deterministic on CUDA.
    each = F.cross_entropy(_wide(logits), labels, reduction="none", ignore_index=IGNORED)
    return known_mean(each, known) if weight is None else masked_mean(each, weight * known)


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


def known_mean(values: Tensor, known: Tensor) -> Tensor:
    """Return the mean of ``values`` where ``known`` is true, or 0 if it is true nowhere.

    The boolean mask broadcasts to the shape of ``values``. No device has to wait, and a mask that
    is true everywhere gives ``values.mean()`` to the last bit.
    """
    values = torch.where(known, values, 0)
    count = known.sum().clamp(min=1)
    everything = torch.full_like(count, known.numel())
    # Not a Python number divided by a tensor, which torch computes as a product with 1 / count.
    factor = everything.to(values.dtype) / count.to(values.dtype)
    return values.mean() * factor


def squared_error(p: Tensor, q: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean of (p - q)^2 over all elements; symmetric, including its gradient.

    With a boolean mask that broadcasts to ``p``, only elements where it is true count.
    """
    squares = (_wide(p) - _wide(q)).square()
    return squares.mean() if known is None else known_mean(squares, known)
