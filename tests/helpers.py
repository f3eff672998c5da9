"""Helpers of several test modules: rounded numbers, and inputs made by formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn


def near(value: float, digits: int = 6) -> Any:
    """Return what equals a number that was rounded to so many digits."""
    return pytest.approx(value, abs=0.51 * 10**-digits)


def wave(shape: tuple[int, ...], a: float, b: float, size: float) -> Tensor:
    """Return size * sin(a n + b) in float64, where n counts the elements in C order."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (size * torch.sin(a * n + b)).view(shape)


def grid(*shape: int) -> tuple[Tensor, ...]:
    """Return the indices along each axis of an array, in float64."""
    axes = [torch.arange(extent, dtype=torch.float64) for extent in shape]
    return torch.meshgrid(*axes, indexing="ij")


def wave_fill(model: nn.Module) -> None:
    """Fill parameter number t by waves of k, the number of the element from 1."""
    for t, (key, tensor) in enumerate(model.named_parameters()):
        k = torch.arange(1, tensor.numel() + 1, dtype=torch.float64).view(tensor.shape)
        if key.endswith("bias"):
            tensor.data = 0.1 * torch.cos(0.53 * k + t)
        elif tensor.ndim > 1:
            tensor.data = torch.sin(0.37 * k + t) / (tensor.numel() / len(tensor)) ** 0.5
        else:
            tensor.data = 1 + 0.1 * torch.sin(k + t)


def _ball() -> Tensor:
    i, j, k = grid(14, 15, 16)
    return (i - 6) ** 2 + (j - 7) ** 2 + (k - 8) ** 2 <= 16


BALL = _ball()  # of radius 4 voxels, (14, 15, 16)


class Table(nn.Module):
    """A network whose output is a parameter, whatever its input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits * (1 + 0 * image.sum())
