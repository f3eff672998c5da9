"""Implement operations that several methods share.

Shapes: N items, C channels, K classes, ``*S`` two or three spatial axes.
"""

from __future__ import annotations

import copy
from math import floor

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = [
    "Ema",
    "box_edges",
    "clipped_noise",
    "context_mask",
    "entropy",
    "mix",
    "normalizes_items",
    "one_hot",
    "outside_boxes",
    "pass_groups",
    "wide_softmax",
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
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)


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


def clipped_noise(like: Tensor, std: float) -> Tensor:
    """Return Gaussian noise with the shape of ``like``, clipped at two standard deviations."""
    return (torch.randn_like(like) * std).clamp(-2 * std, 2 * std)


def entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy (N, *S) of (N, K, *S) in nats: -sum_c p_c ln(p_c + 1e-6)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return boolean masks (N, K, *S) of the classes in ``labels`` (N, *S)."""
    values = torch.arange(classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return labels.unsqueeze(1) == values


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
