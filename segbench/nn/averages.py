"""Moving averages of networks whose first updates keep less of the past."""

from __future__ import annotations

import torch
from torch import nn

from segbench.nn.ops import Ema

__all__ = ["WarmEma", "warm_decay"]


def warm_decay(decay: float, age: int) -> float:
    """Return min(decay, 1 - 1 / (age + 1)), the part of a teacher that an update keeps.

    With it, the teacher is the plain mean of its students until ``decay`` is reached.

    Args:
        age: number of earlier updates. If it is 0 or less, nothing is kept.
    """
    return min(decay, 1 - 1 / (age + 1)) if age > 0 else 0.0


class WarmEma(Ema):
    """A teacher whose first updates keep less, and whose running statistics are averaged too."""

    @torch.no_grad()
    def follow_warm(self, student: nn.Module, decay: float, age: int) -> None:
        """Update parameters and floating-point buffers: d * teacher + (1 - d) * student.

        d is ``warm_decay(decay, age)``: with ``age`` 0 or less, the teacher becomes a copy. Buffers
        of integers, such as counts of batches, do not change.
        """
        kept = warm_decay(decay, age)
        self.follow(student, kept)
        pairs = zip(self.model.buffers(), student.buffers(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.mul_(kept).add_(theirs, alpha=1 - kept)
