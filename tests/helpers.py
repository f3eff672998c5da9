"""Helpers of several test modules: rounded numbers, and networks and inputs made by formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segbench import Batch


def near(value: float, digits: int = 6) -> Any:
    """Return what equals a number that was rounded to so many digits."""
    return pytest.approx(value, abs=0.51 * 10**-digits)


def all_near(*values: float) -> Any:
    """Return what equals a tuple of numbers that are known to 1e-6."""
    return pytest.approx(values, abs=1e-6)


# Inputs.


def wave(shape: tuple[int, ...], a: float, b: float, size: float) -> Tensor:
    """Return size * sin(a n + b) in float64, where n counts the elements in C order."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = size * torch.sin(a * n + b)
    return values.view(shape)


def slices(unlabeled: int = 3) -> Batch:
    """Return two labeled slices of 12 x 10 pixels and three classes, and unlabeled ones."""
    size = (12, 10)
    x = wave((2, 1, *size), 0.37, 0.2, 2)
    u = wave((unlabeled, 1, *size), 0.53, 1.1, 2.5)
    first = wave((2, *size), 0.91, 0.4, 1) > 0.25
    second = x[:, 0] > 1
    source = torch.zeros(2 + unlabeled).long()
    return Batch(x, first.long() + second.long(), u, source)


def grid(*shape: int) -> tuple[Tensor, ...]:
    """Return the indices along each axis of an array, in float64."""
    axes = [torch.arange(extent, dtype=torch.float64) for extent in shape]
    return torch.meshgrid(*axes, indexing="ij")


def ripples(count: int, phase: float = 0.0, edge: int = 32) -> Tensor:
    """Return images (count, 1, edge, edge, edge) that differ in phase."""
    n, i, j, k = grid(count, edge, edge, edge)
    angle = 0.11 * i + 0.23 * j + 0.31 * k + 0.7 * n + phase
    return torch.sin(angle).unsqueeze(1)


def balls(count: int) -> Tensor:
    """Return labels (count, 32, 32, 32): balls of radius 7 voxels at different places."""
    n, i, j, k = grid(count, 32, 32, 32)
    squares = (i - 8 - 2 * n) ** 2 + (j - 10 - n) ** 2 + (k - 12 - n) ** 2
    return (squares <= 49).long()


def _ball() -> Tensor:
    i, j, k = grid(14, 15, 16)
    squares = (i - 6) ** 2 + (j - 7) ** 2 + (k - 8) ** 2
    return squares <= 16


BALL = _ball()  # of radius 4 voxels, (14, 15, 16)


# Weights.


def wave_fill(model: nn.Module) -> None:
    """Fill parameter number t by waves of k, the number of the element from 1."""
    for t, (key, tensor) in enumerate(model.named_parameters()):
        k = torch.arange(1, tensor.numel() + 1, dtype=torch.float64).view(tensor.shape)
        if key.endswith("bias"):
            tensor.data = 0.1 * torch.cos(0.53 * k + t)
        elif tensor.ndim > 1:
            inputs = tensor.numel() / len(tensor)
            tensor.data = torch.sin(0.37 * k + t) / inputs**0.5
        else:
            tensor.data = 1 + 0.1 * torch.sin(k + t)


def hash_fill(model: nn.Module, published_name: Callable[[str], str] = str) -> None:
    """Fill each parameter by a hash of the element and the length of its published name."""
    for key, tensor in model.named_parameters():
        name = published_name(key)
        values = np.arange(tensor.numel(), dtype=np.uint32) + np.uint32(7919 * len(name))
        values *= np.uint32(2654435761)
        values ^= values >> np.uint32(15)
        values *= np.uint32(2246822519)
        values ^= values >> np.uint32(13)
        noise = torch.from_numpy(values / 2**32 - 0.5).view(tensor.shape)
        if tensor.ndim > 1:
            inputs = tensor.numel() / len(tensor)
            tensor.data = noise * (24 / inputs) ** 0.5
        elif name.endswith("weight"):
            tensor.data = 1 + 0.2 * noise
        else:
            tensor.data = 0.2 * noise


# Networks.


class Table(nn.Module):
    """A network whose output is a parameter, for any input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, image: Tensor) -> Tensor:
        return self.logits * (1 + 0 * image.sum())


class Tables(nn.Module):
    """A network with several outputs, which are parameters, for any input."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.ParameterList(outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.outputs)


class TwoTables(nn.Module):
    """A network with two heads, a distance map and logits, which are parameters, for any input."""

    def __init__(self, distance: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.distance = nn.Parameter(distance)
        self.logits = nn.Parameter(logits)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.distance, self.logits


class AnswersInTurn(nn.Module):
    """A network that returns the next of its answers in each pass, for any input."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.ParameterList(answers)
        self.shown: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shown.append(image)
        answer = self.answers[len(self.shown) - 1]
        assert len(answer) == len(image)
        return answer * 1  # without gradient if the caller wants none


class Pixelwise(nn.Module):
    """A backbone of two scales in which each class's logit is slope * gray value + bias.

    ``seen`` holds its inputs with the mode in which they were seen. The second scale is zero.
    """

    def __init__(self, slopes: list[float], biases: list[float], dims: int = 2) -> None:
        super().__init__()
        shape = (1, -1, *[1] * dims)
        self.slope = nn.Parameter(torch.tensor(slopes, dtype=torch.float64).view(shape))
        self.bias = nn.Parameter(torch.tensor(biases, dtype=torch.float64).view(shape))
        self.seen: list[tuple[Tensor, bool]] = []

    def encode(self, image: Tensor) -> list[Tensor]:
        self.seen.append((image, self.training))
        return [image, 0 * image]

    def decode(self, pyramid: list[Tensor]) -> list[Tensor]:
        return [pyramid[0] + pyramid[1]]

    def head(self, features: Tensor) -> Tensor:
        return self.slope * features + self.bias

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(image))[0])


# Formulas in NumPy.


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the second axis, in NumPy."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def numpy_dice(p: np.ndarray, labels: np.ndarray, used: np.ndarray, first: int = 0) -> float:
    """Return the mean over the classes of 1 - (2 sum pq + 1e-5) / (sum pp + sum qq + 1e-5).

    Sums run over the voxels where ``used`` (N, *S) is true, of probabilities (N, K, *S) and of
    labels (N, *S). Classes before ``first`` are left out.
    """
    losses = []
    for value in range(first, p.shape[1]):
        own = p[:, value][used]
        target = (labels == value)[used].astype(float)
        overlap = 2 * (own * target).sum() + 1e-5
        losses.append(1 - overlap / ((own**2).sum() + (target**2).sum() + 1e-5))
    return float(np.mean(losses))


def torch_dice(p: Tensor, labels: Tensor, used: Tensor, first: int = 0) -> Tensor:
    """Return what ``numpy_dice`` does, with a gradient with respect to ``p``."""
    losses = []
    for value in range(first, p.shape[1]):
        own = p[:, value][used]
        target = (labels == value)[used].to(p.dtype)
        overlap = 2 * (own * target).sum() + 1e-5
        losses.append(1 - overlap / ((own**2).sum() + (target**2).sum() + 1e-5))
    return torch.stack(losses).mean()


def numpy_cross_entropy(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return -ln p of the label's class, (N, *S), for probabilities (N, K, *S)."""
    return -np.log(np.take_along_axis(p, labels[:, None], 1)[:, 0])
