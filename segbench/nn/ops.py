"""Operations that several methods share. Shapes: N items, C channels, K classes, ``*S`` two or three spatial axes."""

from __future__ import annotations

import copy
from math import floor

import torch
from torch import Tensor, nn

__all__ = [
    "Ema",
    "box_edges",
    "clipped_noise",
    "context_mask",
    "entropy",
    "mix",
    "one_hot",
    "outside_boxes",
]


class Ema(nn.Module):
    """A teacher: the moving average of a student's parameters.

    It starts as a copy, takes no gradient and follows train() and eval() of the method it belongs to: while teaching
    it uses dropout and batch statistics, as the literature's teachers do. Its buffers (running statistics) are moved
    by its own passes; they are neither averaged nor copied.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """The teacher's output, without gradient."""
        return self.model(image)

    @torch.no_grad()
    def follow(self, student: nn.Module, decay: float) -> None:
        """teacher <- decay teacher + (1 - decay) student."""
        for mine, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            mine.mul_(decay).add_(theirs, alpha=1 - decay)


def clipped_noise(like: Tensor, std: float) -> Tensor:
    """Normal noise for each voxel, clipped at twice its standard deviation."""
    return (torch.randn_like(like) * std).clamp(-2 * std, 2 * std)


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_c p_c ln(p_c + 1e-6) of (N, K, *S), in nats: (N, *S)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Boolean masks (N, K, *S) of the classes of ``labels`` (N, *S)."""
    values = torch.arange(classes, device=labels.device).view(-1, *[1] * (labels.ndim - 1))
    return labels.unsqueeze(1) == values


def box_edges(size: tuple[int, ...], ratio: float) -> tuple[int, ...]:
    """floor(edge ratio) of each axis, in voxels."""
    return tuple(floor(edge * ratio) for edge in size)


def outside_boxes(corners: Tensor, edges: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Boolean masks (N, *size), false inside boxes of ``edges`` voxels from ``corners`` (N, axes) on."""
    inside = torch.ones(len(corners), *size, dtype=torch.bool, device=corners.device)
    for axis, (edge, extent) in enumerate(zip(edges, size, strict=True)):
        offset = torch.arange(extent, device=corners.device) - corners[:, axis, None]  # (N, extent)
        within = (offset >= 0) & (offset < edge)
        inside &= within.view(-1, *(extent if i == axis else 1 for i in range(len(size))))
    return ~inside


def context_mask(
    count: int,
    size: tuple[int, ...],
    ratio: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """CutMix masks (count, *size), false inside a box whose edges are ``ratio`` of the patch's.

    Corners are uniform on {0, ..., size - edge - 1} and drawn on the CPU: the last place never comes, as in the code
    of BCP and VerSemi. One mask (1, *size) serves a whole batch.
    """
    edges = box_edges(size, ratio)
    corners = [
        torch.randint(max(extent - edge, 1), (count,), generator=generator)
        for extent, edge in zip(size, edges, strict=True)
    ]
    return outside_boxes(torch.stack(corners, 1).to(device), edges, size)


def mix(mask: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """``outer`` where ``mask`` (N, *S) is true, ``inner`` elsewhere; images (N, C, *S) or labels (N, *S)."""
    return torch.where(mask.unsqueeze(1) if outer.ndim > mask.ndim else mask, outer, inner)
