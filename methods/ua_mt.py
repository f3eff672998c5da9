"""UA-MT: a mean teacher whose predictions are used only where their uncertainty is low.

Yu, Wang, Li, Fu, Heng: Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium
Segmentation, MICCAI 2019, arXiv:1907.07034. Official code: github.com/yulequan/UA-MT (unlicensed).
The code was consulted through a written specification; nothing was copied.

The uncertainty of a voxel is the entropy of the mean of several stochastic predictions of the
teacher. The consistency term is the squared difference between student and teacher, averaged over
the voxels whose uncertainty is below a threshold that rises during training.

Paper                    Official code                      Here
consistency on all       two scripts; the recommended one   images=unlabeled (the default) or
  images                   uses unlabeled images              images=all
8 stochastic             four passes of the teacher, each   the same two predictions per pass,
  predictions              with every image twice             because a pass shares its batch
                                                              statistics; if the number is odd, the
                                                              last pass has one
threshold rises from     (3/4 + ramp/4) ln 2                (3/4 + ramp/4) ln K
  3/4 U_max
teacher's target         one more noisy pass, not the mean  the same
two classes              Dice of the foreground             averaged over the foreground classes
-                        weight: ramp of 40 stairs of 150   weight: ramp of 40 stairs over the run;
                           steps; threshold: smooth ramp      threshold: smooth ramp, as in the code
-                        the teacher has its own initial    the teacher starts as a copy; after the
                           weights                            first step, whose decay is 0, there is
                                                              no difference
-                        buffers are neither averaged nor   the same: the teacher stays in train
                           copied                             mode
not specified            student evaluated, last weights    the same
-                        optional KL divergence instead of  left out
                           squares
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
    """A student that is trained to agree with its moving average where the latter is certain."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            0.1, ge=0, description="weight of the consistency term after the ramp"
        )
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the teacher's moving average")
        passes: int = Field(
            8, ge=1, description="stochastic predictions for the uncertainty estimate"
        )
        noise: float = Field(
            0.1,
            ge=0,
            description="standard deviation of the teacher's input noise, clipped at twice this",
        )
        images: Literal["unlabeled", "all"] = Field(
            "unlabeled", description="images on which the consistency term is computed"
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = self.student(images)  # (L + U, K, *S)
        labeled = logits[: len(batch.x)]

        first = len(batch.x) if self.p.images == "unlabeled" else 0
        compared = images[first:]  # (N, C, *S)
        prediction = logits[first:].float().softmax(1)  # (N, K, *S)
        target = self.noisy_prediction(compared)  # (N, K, *S)
        uncertainty = self.uncertainty(compared)  # (N, *S)
        certain = uncertainty < self.threshold(t)
        gap = (prediction - target).square().mean(1)  # (N, *S)
        weight = self.p.weight * t.ramp(40)
        return {
            "supervised": dice_ce(labeled, batch.y),
            "consistency": weight * masked_mean(gap, certain),
        }

    def noisy_prediction(self, images: Tensor) -> Tensor:
        """Return the teacher's probabilities (N, K, *S) for noisy images, with dropout."""
        noisy = images + clipped_noise(images, self.p.noise)
        return self.teacher(noisy).float().softmax(1)

    def uncertainty(self, images: Tensor) -> Tensor:
        """Return the entropy (N, *S), in nats, of the mean of several noisy predictions."""
        count = len(images)
        total = torch.zeros((), device=images.device)
        for remaining in range(self.p.passes, 0, -2):
            copies = min(remaining, 2)  # one pass of the teacher makes two predictions
            repeated = torch.cat([images] * copies)
            p = self.noisy_prediction(repeated)  # (copies N, K, *S)
            total = total + p.unflatten(0, (copies, count)).sum(0)
        mean = total / self.p.passes  # (N, K, *S)
        return entropy(mean)

    def threshold(self, t: Clock) -> float:
        """Return the uncertainty below which a voxel is used.

        It rises from 3/4 of the largest possible uncertainty, ln K, to all of it.
        """
        largest = log(self.classes)
        return (0.75 + 0.25 * t.smooth_ramp()) * largest
