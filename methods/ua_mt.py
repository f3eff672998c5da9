"""UA-MT: a mean teacher that is followed only where it is certain.

Yu, Wang, Li, Fu, Heng: Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation, MICCAI
2019, arXiv:1907.07034. Official code: github.com/yulequan/UA-MT (unlicensed), consulted through a written
specification; nothing copied.

Paper                      Official code                       Here
consistency on all items   two scripts, the recommended one    images=unlabeled, the default, or images=all
                           on unlabeled items
8 stochastic predictions   four passes of the teacher, every   the same two predictions a pass, as the pass shares its
                           item twice in each                  batch statistics; the last of an odd number is alone
limit from 3/4 U_max       (3/4 + ramp/4) ln 2                 (3/4 + ramp/4) ln K
target of the teacher      one more noisy pass, not the mean   the same
two classes                Dice of the foreground              averaged over the foreground classes
-                          ramp of 40 stairs of 150 steps for  40 stairs over the run; smooth for the limit, as there
                           the weight, smooth for the limit
-                          the teacher has its own initial     starts as a copy; from the first step on, whose decay
                           weights                             is 0, there is no difference
-                          buffers neither averaged nor        the same: the teacher stays in train mode
                           copied
not specified              student evaluated, last weights     the same
-                          KL instead of squares, as option    left out
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice_ce, masked_mean
from segbench.nn.ops import Ema, clipped_noise, entropy


@method("ua_mt", paper="Yu et al., MICCAI 2019")
class UAMT(Method):
    """A student follows its own moving average where that one's predictions hardly scatter."""

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="of the consistency term after its ramp")
        decay: float = Field(0.99, ge=0, lt=1, description="of the moving average")
        passes: int = Field(
            8, ge=1, description="stochastic predictions the uncertainty is estimated from"
        )
        noise: float = Field(
            0.1,
            ge=0,
            description="standard deviation on the teacher's input, clipped at twice that",
        )
        images: Literal["unlabeled", "all"] = Field(
            "unlabeled", description="images of the consistency term"
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.student = network()
        self.teacher = Ema(self.student)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = self.student(images)  # (L + U, K, *S)
        first = len(batch.x) if self.p.images == "unlabeled" else 0
        target = self.guess(images[first:])  # (N, K, *S)
        certain = self.uncertainty(images[first:]) < self.limit(t)  # (N, *S)
        gap = (logits[first:].float().softmax(1) - target).square().mean(1)  # (N, *S)
        return {
            "supervised": dice_ce(logits[: len(batch.x)], batch.y),
            "consistency": self.p.weight * t.ramp(40) * masked_mean(gap, certain),
        }

    def guess(self, images: Tensor) -> Tensor:
        """The teacher's probabilities (N, K, *S) of noisy images, under dropout."""
        return self.teacher(images + clipped_noise(images, self.p.noise)).float().softmax(1)

    def uncertainty(self, images: Tensor) -> Tensor:
        """Entropy (N, *S) of the mean of several guesses, in nats."""
        total = torch.zeros((), device=images.device)
        for left in range(self.p.passes, 0, -2):
            both = self.guess(torch.cat([images] * min(left, 2)))  # (2 N, K, *S)
            total = total + both.unflatten(0, (-1, len(images))).sum(0)
        return entropy(total / self.p.passes)

    def limit(self, t: Clock) -> float:
        """The uncertainty below which the teacher is followed; in the end the largest there is."""
        return (0.75 + 0.25 * t.smooth_ramp()) * log(self.classes)

    def after_step(self, t: Clock) -> None:
        self.teacher.follow(self.student, min(self.p.decay, 1 - 1 / (t.step + 1)))

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.student(image).softmax(1)
