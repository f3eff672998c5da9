"""Training steps as plain torch code, which step.py measures beside segbench's.

Written as in a training script of its own: the network, Dice and cross entropy, SGD, and a moving
average of the weights. Nothing of segbench is used but the networks and the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOTAL = 1000  # steps of the pretended training, of which half are done
Step = Callable[[], Tensor]


def dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (cross entropy + Dice of the foreground) / 2 for two classes."""
    p = logits.softmax(1)[:, 1]
    y = (labels == 1).float()
    dice = 1 - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + (y * y).sum() + 1e-5)
    return (F.cross_entropy(logits, labels) + dice) / 2


def supervised(network: nn.Module, x: Tensor, y: Tensor, u: Tensor) -> Step:
    """Return a function that makes a step on labeled images and returns the loss."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> Tensor:
        network.train()
        loss = dice_ce(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def mean_teacher(network: nn.Module, x: Tensor, y: Tensor, u: Tensor) -> Step:
    """Return a function that makes a step on labeled and unlabeled images and returns the loss."""
    teacher = copy.deepcopy(network)
    for weight in teacher.parameters():
        weight.detach_()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)
    done = TOTAL // 2

    def step() -> Tensor:
        nonlocal done
        network.train()
        teacher.train()
        logits = network(torch.cat([x, u]))
        noise = torch.clamp(torch.randn_like(u) * 0.1, -0.2, 0.2)
        with torch.no_grad():
            target = teacher(u + noise).softmax(1)
        consistency = ((logits[len(x) :].softmax(1) - target) ** 2).mean()
        weight = 0.1 * math.exp(-5 * (1 - done / TOTAL) ** 2)
        loss: Tensor = dice_ce(logits[: len(x)], y) + weight * consistency
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.99, 1 - 1 / (done + 1))
        for average, newest in zip(teacher.parameters(), network.parameters(), strict=True):
            average.data.mul_(decay).add_(newest.data, alpha=1 - decay)
        done += 1
        return loss.detach()

    return step


PLAIN = {"supervised": ("network", supervised), "mean_teacher": ("student", mean_teacher)}
