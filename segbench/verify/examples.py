"""The synthetic images that both sides get."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segbench.contracts.method import Batch


def example_batch(
    step: int,
    patch: tuple[int, ...],
    labeled: int,
    unlabeled: int,
    sets: int = 1,
    classes: int = 2,
) -> tuple[Batch, Tensor]:
    """Return a batch in double precision, and the labels of its unlabeled items.

    Each image is noise with a brighter box, which is its label. Further classes are slabs of the
    box along its first axis, brighter from one to the next.

    Args:
        sets: number of data sets that the items come from.
        classes: number of classes with background.
    """
    # Torch's draws depend on how many a step has made before; NumPy's generators do not.
    generator = np.random.Generator(np.random.PCG64(1000 + step))
    count = labeled + unlabeled
    images = torch.from_numpy(generator.standard_normal((count, 1, *patch)))
    labels = torch.zeros(count, *patch, dtype=torch.int64)
    for number in range(count):
        box = tuple(slice(edge // 4 + number % 3, 3 * edge // 4) for edge in patch)
        labels[number][box] = 1
        inside = labels[number][box]
        for value in range(2, classes):
            start = len(inside) * (value - 1) // (classes - 1)
            inside[start:] = value
    images += 2 * labels.unsqueeze(1)
    item = torch.arange(count)
    source = (item + item // 5) % sets  # pairs of one data set, and of two
    return Batch(images[:labeled], labels[:labeled], images[labeled:], source), labels[labeled:]


def example_volumes(patch: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return float32 images and labels: one larger than the patch, one smaller along an axis."""
    generator = np.random.Generator(np.random.PCG64(7))
    volumes = []
    for larger in ((13, 8, 5), (7, -6, 2)):
        shape = tuple(edge + more for edge, more in zip(patch, larger, strict=True))
        image = generator.standard_normal(shape).astype(np.float32)
        label = (image > 1).astype(np.uint8)
        volumes.append((image, label))
    return volumes
