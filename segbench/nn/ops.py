"""Implement operations that several methods share.

Shapes: N items, C channels, K classes, ``*S`` two or three spatial axes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from math import floor

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segbench.contracts.dataset import IGNORED

__all__ = [
    "Ema",
    "box_edges",
    "clipped_noise",
    "context_mask",
    "entropy",
    "evaluating",
    "is_known",
    "mix",
    "most_probable",
    "normalizes_items",
    "one_hot",
    "outside_boxes",
    "pass_groups",
    "pseudo_labels",
    "random_boxes",
    "sharpened",
    "strong_view",
    "wide_softmax",
    "widened",
]


class Ema(nn.Module):
    """A teacher: the exponential moving average of the parameters of a student.

    The teacher starts as a copy of the student and receives no gradient. It follows train() and
    eval() of its method: during training it uses dropout and batch statistics, as the teachers in
    the literature do. Its forward passes update its buffers (running statistics); the buffers of
    the student are neither averaged nor copied.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return the teacher's output, without gradient."""
        return self.model(image)

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float) -> None:
        """Update the teacher: decay * teacher + (1 - decay) * student."""
        mine: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(student.parameters())
        if len(mine) != len(theirs):
            raise ValueError("teacher and student are different networks")
        # These two calls update all parameters: on a GPU, with one kernel for many of them.
        torch._foreach_mul_(mine, decay)
        torch._foreach_add_(mine, theirs, alpha=1 - decay)


def normalizes_items(network: nn.Module) -> bool:
    """Return whether items of a batch are independent because no layer uses batch statistics."""
    return not any(isinstance(module, _BatchNorm) for module in network.modules())


def pass_groups(network: nn.Module, *groups: Tensor) -> list[Tensor]:
    """Return the network's output for each group of images (N, C, *S).

    With batch normalization, each group is a separate batch. Without it, all groups share one pass,
    which is faster and gives the same result.
    """
    if not normalizes_items(network):
        return [network(group) for group in groups]
    outputs: Tensor = network(torch.cat(groups))
    return list(outputs.split([len(group) for group in groups]))


def wide_softmax(logits: Tensor, axis: int = 1) -> Tensor:
    """Return the softmax of ``logits`` over an axis, in float32 or higher precision.

    On the CPU, automatic precision would leave the softmax of half-precision logits in half
    precision; on CUDA it would not.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(axis)


def widened(logits: Tensor) -> Tensor:
    """Return ``logits`` in float32 or higher precision.

    Division by a temperature would amplify rounding errors of half precision.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype)


def most_probable(p: Tensor, axis: int = 1, dtype: torch.dtype = torch.long) -> Tensor:
    """Return the class with the largest value along an axis; ties go to the lower class.

    A running maximum over the classes is many times faster on the CPU than argmax. ``p`` holds
    logits or probabilities of at most 256 classes; no gradient flows.
    """
    highest, *others = p.detach().unbind(axis)
    labels = torch.zeros_like(highest, dtype=torch.uint8)
    for value, one in enumerate(others, start=1):
        is_higher = (one > highest).view(torch.uint8)
        labels = torch.maximum(labels, is_higher * value)
        highest = torch.maximum(highest, one)
    return labels.to(dtype)


def sharpened(logits: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) / sum_k p_k^(1/T), where p is the softmax of ``logits`` (N, K, *S)."""
    return (logits / temperature).softmax(1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, for a pass inside ``loss``, and restore its modes afterwards.

    Use it for pseudo labels that the paper predicts without dropout and with running statistics::

        with torch.no_grad(), evaluating(self.network):
            labels = self.network(batch.u).argmax(1)
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def clipped_noise(like: Tensor, std: float) -> Tensor:
    """Return Gaussian noise with the shape of ``like``, clipped at two standard deviations."""
    return (torch.randn_like(like) * std).clamp(-2 * std, 2 * std)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (N, *S) of (N, K, *S) in nats: -sum_c p_c ln(p_c + 1e-6)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return hard labels and their probabilities, (N, *S) each, for logits (N, K, *S).

    No gradient flows through them.
    """
    probabilities = wide_softmax(logits.detach())
    confidence, labels = probabilities.max(1)
    return labels, confidence


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return boolean masks (N, K, *S) of the classes in ``labels`` (N, *S).

    All masks are false where the label is ``IGNORED``.
    """
    values = torch.arange(classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return labels.unsqueeze(1) == values


def is_known(labels: Tensor) -> Tensor:
    """Return a boolean mask of ``labels`` that is false where the label is ``IGNORED``."""
    return labels != IGNORED


def box_edges(size: tuple[int, ...], ratio: float) -> tuple[int, ...]:
    """Return the edge lengths of a box in voxels: floor(edge length of the patch * ratio)."""
    return tuple(floor(edge * ratio) for edge in size)


def outside_boxes(corners: Tensor, edges: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Return boolean masks (N, *size) that are false inside boxes.

    Each box has edges of ``edges`` voxels and starts at its row of ``corners`` (N, axes).
    """
    inside = torch.ones(len(corners), *size, dtype=torch.bool, device=corners.device)
    for axis, (edge, extent) in enumerate(zip(edges, size, strict=True)):
        offset = torch.arange(extent, device=corners.device) - corners[:, axis, None]  # (N, extent)
        within = (offset >= 0) & (offset < edge)
        shape = [-1] + [1] * len(size)
        shape[axis + 1] = extent
        inside &= within.view(shape)
    return ~inside


def context_mask(
    count: int,
    size: tuple[int, ...],
    ratio: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return CutMix masks (count, *size) that are false inside a box.

    The edges of the box are ``ratio`` times the edges of the patch. Corners are drawn on the CPU,
    uniformly from {0, ..., size - edge - 1}: the last possible corner never occurs, as in the code
    of BCP and VerSemi. One mask (1, *size) can be used for a whole batch.
    """
    edges = box_edges(size, ratio)
    corners = [
        torch.randint(max(extent - edge, 1), (count,), generator=generator)
        for extent, edge in zip(size, edges, strict=True)
    ]
    return outside_boxes(torch.stack(corners, 1).to(device, non_blocking=True), edges, size)


def mix(mask: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """Return ``outer`` where ``mask`` (N, *S) is true and ``inner`` elsewhere.

    The inputs are images (N, C, *S) or labels (N, *S).
    """
    if outer.ndim > mask.ndim:
        mask = mask.unsqueeze(1)
    return torch.where(mask, outer, inner)


CUTMIX_SHARE = (0.02, 0.4)  # of the patch inside a box, as UniMatch's code
CUTMIX_ASPECT = (0.3, 1 / 0.3)  # ratio of its edges


def random_boxes(
    count: int,
    size: tuple[int, ...],
    share: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    probability: float = 1.0,
) -> Tensor:
    """Return CutMix masks (count, *size) that are false inside a box of random size and shape.

    All draws are made on the CPU. In 2-D, a box is drawn as in UniMatch: a share of the area, then
    an aspect ratio and a corner that are drawn again until the box fits. In 3-D, the aspect ratio
    is that of two axes, which are drawn too; the edge along the third is the cube root of the
    share.

    Args:
        share: smallest and largest share of the patch inside the box, less than 1.
        aspect: smallest and largest ratio of two edges, relative to the edges of the patch.
        probability: probability that a mask has a box; the others are true everywhere.
    """
    masks = []
    for _ in range(count):
        if torch.rand((), generator=generator).item() >= probability:
            masks.append(torch.ones(1, *size, dtype=torch.bool))
            continue
        part = _uniform(share, generator)
        corner, edges = _random_box(part, size, aspect, generator)
        masks.append(outside_boxes(torch.tensor([corner]), edges, size))
    return torch.cat(masks).to(device, non_blocking=True)


def _random_box(
    share: float, size: tuple[int, ...], aspect: tuple[float, float], generator: torch.Generator
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Draw the corner and the edges of a box inside a patch."""
    axes = len(size)
    while True:
        ratio = _uniform(aspect, generator)
        relative = [share ** (1 / axes)] * axes
        first, second = sorted(torch.randperm(axes, generator=generator)[:2].tolist())
        relative[first] *= ratio**0.5
        relative[second] /= ratio**0.5
        edges = tuple(floor(part * extent) for part, extent in zip(relative, size, strict=True))
        places = torch.rand(axes, generator=generator).tolist()
        corner = tuple(floor(place * extent) for place, extent in zip(places, size, strict=True))
        ends = [start + edge for start, edge in zip(corner, edges, strict=True)]
        if all(end <= extent for end, extent in zip(ends, size, strict=True)):
            return corner, edges


def _uniform(limits: tuple[float, float], generator: torch.Generator) -> float:
    low, high = limits
    return low + (high - low) * torch.rand((), generator=generator).item()


@torch.no_grad()
def strong_view(
    image: Tensor,
    generator: torch.Generator,
    *,
    jitter: float = 0.8,
    blur: float = 0.5,
    noise: float = 0.0,
) -> Tensor:
    """Return images (N, C, *S) with other gray values; the geometry stays.

    Each item has its own draws, all made on the CPU. The defaults are those of UniMatch for medical
    images. Brightness, contrast and noise are relative to the item's own range of gray values and
    standard deviation, so the images need no particular scale.

    Args:
        jitter: probability that brightness and then contrast are multiplied by factors from 0.5 to
            1.5, within the item's range.
        blur: probability of a Gaussian blur with a standard deviation of 0.1 to 2 voxels.
        noise: probability of Gaussian noise with 0.1 to 1 times the item's standard deviation,
            clipped at twice its own.
    """
    count = len(image)
    draws = torch.rand(6, count, generator=generator)
    jittered = draws[0] < jitter
    blurred = draws[1] < blur
    noisy = draws[2] < noise
    brightness = torch.where(jittered, 0.5 + draws[3], 1)
    contrast = torch.where(jittered, 0.5 + draws[4], 1)
    sigma = torch.where(blurred, 0.1 + 1.9 * draws[5], 0)

    view = _jitter(image, brightness, contrast)
    if blurred.any():
        view = _blur(view, sigma)
    if noisy.any():
        level = torch.where(noisy, 0.1 + 0.9 * torch.rand(count, generator=generator), 0)
        standard = torch.randn(image.shape, generator=generator).clamp(-2, 2)
        deviation = image.flatten(1).std(1)
        scale = _per_item(deviation, image) * _per_item(level, image)
        view = view + scale * standard.to(image, non_blocking=True)
    return view


def _per_item(values: Tensor, image: Tensor) -> Tensor:
    """Return one value per item, shaped and placed to multiply images (N, C, *S)."""
    return values.to(image, non_blocking=True).view(-1, *[1] * (image.ndim - 1))


def _jitter(image: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Multiply brightness and contrast within the range of each channel of each item."""
    axes = tuple(range(2, image.ndim))
    low = image.amin(axes, keepdim=True)
    extent = (image.amax(axes, keepdim=True) - low).clamp(min=1e-7)
    unit = (image - low) / extent
    unit = (unit * _per_item(brightness, image)).clamp(0, 1)
    mean = unit.mean(axes, keepdim=True)
    unit = (mean + (unit - mean) * _per_item(contrast, image)).clamp(0, 1)
    return low + unit * extent


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each item with its own standard deviation in voxels; 0 leaves it as it is.

    One matrix product per axis, which is deterministic on every device. At the border, the weights
    of the voxels inside are normalized.
    """
    width = _per_item(sigma.clamp(min=1e-3), image).flatten(1)[:, :, None]  # (N, 1, 1)
    with torch.autocast(image.device.type, enabled=False):
        for axis in range(2, image.ndim):
            place = torch.arange(image.shape[axis], device=image.device, dtype=image.dtype)
            distance = (place[:, None] - place) / width  # (N, size, size)
            weights = (-distance.square() / 2).exp()
            weights = weights / weights.sum(2, keepdim=True)
            rows = image.movedim(axis, -1)
            blurred = rows.flatten(1, -2) @ weights.transpose(1, 2)
            image = blurred.view(rows.shape).movedim(-1, axis)
    return image.contiguous()
