"""Base classes of methods that share their networks and their prediction.

Shapes are those of ``segbench.contracts.method``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segbench.contracts.backbone import Backbone
from segbench.contracts.method import Clock, Method
from segbench.nn.averages import warm_decay
from segbench.nn.ops import Ema

__all__ = ["StudentTeacher", "TwoHeads"]


class StudentTeacher(Method):
    """A student that is trained, and a teacher that is the student's moving average.

    The student predicts.

    ``Params`` has ``decay``, the part of the teacher that each step keeps.
    """

    def build(self, network: Callable[..., Backbone]) -> None:
        self.student = network()
        self.teacher = Ema(self.student)

    def after_step(self, t: Clock) -> None:
        # The first steps keep less, so that the teacher soon forgets the initial weights.
        self.teacher.follow(self.student, warm_decay(self.p.decay, t.step))

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.student(image).softmax(1)


class TwoHeads(Method):
    """One network with two heads: a signed distance map and a mask of each foreground class.

    The mask is the prediction.
    """

    needs = frozenset({"heads"})

    def build(self, network: Callable[..., Backbone]) -> None:
        foreground = self.classes - 1
        self.network = network(heads=(foreground, foreground))

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return signed distances in (-1, 1) and foreground probabilities.

        Both have shape (N, K-1, *S) and are float32.
        """
        distance, logits = self.network(image)
        return distance.float().tanh(), logits.float().sigmoid()

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        _, p = self.answer(image)
        background = 1 - p.amax(1, keepdim=True)
        return torch.cat([background, p], 1)
