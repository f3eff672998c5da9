"""UA-MT: a mean teacher whose predictions count only where they are certain.

Yu, Wang, Li, Fu, Heng: Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation, MICCAI
2019, arXiv:1907.07034. Official code: github.com/yulequan/UA-MT (unlicensed), consulted through a written
specification; nothing copied.

Paper                      Official code                       Here
consistency on all items   two scripts, the recommended one    images=unlabeled, the default, or images=all
                           on unlabeled items
8 stochastic predictions   four passes of the teacher, every   the same two predictions per pass, because a pass shares
                           item twice in each                  its batch statistics; the last of an odd number is alone
threshold from 3/4 U_max   (3/4 + ramp/4) ln 2                 (3/4 + ramp/4) ln K
target of the teacher      one more noisy pass, not the mean   the same
two classes                Dice of the foreground              averaged over the foreground classes
-                          ramp of 40 stairs of 150 steps for  40 stairs over the run; smooth for the threshold, as in
                           the weight, smooth for the          the code
                           threshold
-                          the teacher has its own initial     starts as a copy; there is no difference after the
                           weights                             first step, whose decay is 0
-                          buffers neither averaged nor        the same: the teacher stays in train mode
                           copied
not specified              student evaluated, last weights     the same
-                          KL instead of squares, as option    left out
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, method
from segbench.nn.bases import StudentTeacher
from segbench.nn.losses import dice_ce, masked_mean
from segbench.nn.ops import clipped_noise, entropy


@method("ua_mt", paper="Yu et al., MICCAI 2019")
class UAMT(StudentTeacher):
    """A student agrees with its own moving average where the average's predictions vary little."""

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="weight of the consistency after its ramp")
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the moving average")
        passes: int = Field(
            8, ge=1, description="stochastic predictions from which the uncertainty is estimated"
        )
        noise: float = Field(
            0.1,
            ge=0,
            description="standard deviation of the teacher's input noise, clipped at twice that",
        )
        images: Literal["unlabeled", "all"] = Field(
            "unlabeled", description="images of the consistency term"
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = self.student(images)  # (L + U, K, *S)

        first = len(batch.x) if self.p.images == "unlabeled" else 0
        target = self.noisy_prediction(images[first:])  # (N, K, *S)
        certain = self.uncertainty(images[first:]) < self.threshold(t)  # (N, *S)
        gap = (logits[first:].float().softmax(1) - target).square().mean(1)  # (N, *S)
        return {
            "supervised": dice_ce(logits[: len(batch.x)], batch.y),
            "consistency": self.p.weight * t.ramp(40) * masked_mean(gap, certain),
        }

    def noisy_prediction(self, images: Tensor) -> Tensor:
        """The teacher's probabilities (N, K, *S) of noisy images, under dropout."""
        noisy = images + clipped_noise(images, self.p.noise)
        return self.teacher(noisy).float().softmax(1)

    def uncertainty(self, images: Tensor) -> Tensor:
        """Entropy (N, *S) of the mean of several noisy predictions, in nats."""
        total = torch.zeros((), device=images.device)
        for left in range(self.p.passes, 0, -2):
            copies = min(left, 2)
            p = self.noisy_prediction(torch.cat([images] * copies))  # (2 N, K, *S)
            total = total + p.unflatten(0, (copies, len(images))).sum(0)
        return entropy(total / self.p.passes)

    def threshold(self, t: Clock) -> float:
        """The uncertainty below which the teacher counts: from 3/4 of the largest possible one up to all of it."""
        return (0.75 + 0.25 * t.smooth_ramp()) * log(self.classes)
