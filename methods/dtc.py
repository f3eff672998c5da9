"""DTC: one network predicts a mask and a signed distance map, which must be consistent.

Luo, Chen, Song, Wang: Semi-supervised Medical Image Segmentation through Dual-task Consistency,
AAAI 2021, arXiv:2009.04448. Official code: github.com/HiLab-git/DTC. The code was consulted through
a written specification; nothing was copied.

On all images, sigmoid(-k s) with k = 1500 turns the predicted signed distance s into a soft mask,
whose squared difference from the predicted mask is the consistency term.

Paper                    Official code                      Here
two classes              one channel per head, sigmoid      each head has one channel per foreground
                                                              class, which gives K - 1 binary
                                                              problems; the terms are averaged over
                                                              the classes
distance map of the      of the labeled crop, computed on   the same exact map, computed on the
  mask                     the CPU                            device of the labels
-                        class absent from the crop:        absent=0; with absent=1 the whole crop
                           distance 0 everywhere, so the      is outside, which the steep sigmoid
                           soft mask is 1/2                   turns into an empty mask
-                        crop filled by the class: NaN      -1 everywhere
steep sigmoid, k = 1500  sigmoid(-1500 s), on labeled       the same; in float32 also with reduced
                           images too; nothing is detached    precision
-                        cross entropy is logged, not used  left out
-                        ramp of 40 stairs of 150 steps     40 stairs over the run: ramp_share=1
-                        sigmoid > 0.5 of the mask head     [1 - max p, p_1, ...], the same for one
                                                              class
-                        best test Dice when the paper was  the last weights; the protocol decides
                           written, last weights now;         about the largest component
                           largest component
"""

from __future__ import annotations

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, method
from segbench.nn.bases import TwoHeads
from segbench.nn.distance import signed_distance
from segbench.nn.losses import soft_dice, squared_error
from segbench.nn.ops import is_known, one_hot

STEEPNESS = 1500


@method("dtc", paper="Luo et al., AAAI 2021")
class DTC(TwoHeads):
    """Segmentation and distance regression, with consistency between both tasks on all images."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            1.0, ge=0, description="weight of the dual-task consistency term after the ramp"
        )
        distance_weight: float = Field(
            0.3, ge=0, description="weight of the supervised distance term"
        )
        ramp_share: float = Field(
            1.0, gt=0, description="length of the ramp, in runs; above 1, the run ends before it"
        )
        absent: float = Field(
            0.0,
            ge=0,
            le=1,
            description="target distance in crops without the class: 0 (boundary, as in the code) "
            "to 1 (outside)",
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        distance, p = self.answer(images)  # each (L + U, K-1, *S)
        count = len(batch.x)

        known = is_known(batch.y).unsqueeze(1)  # (L, 1, *S)
        mask = one_hot(batch.y, self.classes)[:, 1:]  # (L, K-1, *S)
        target = signed_distance(batch.y, self.classes, self.p.absent)  # (L, K-1, *S)
        consistency = squared_error(as_mask(distance), p)
        distance_error = squared_error(distance[:count], target, known)
        weight = self.p.weight * t.ramp(40, share=self.p.ramp_share)
        return {
            "dice": soft_dice(p[:count] * known, mask, keep=(1,)),
            "distance": self.p.distance_weight * distance_error,
            "consistency": weight * consistency,
        }


def as_mask(distance: Tensor) -> Tensor:
    """Return the soft mask of a signed distance map: 1 inside, 1/2 at the boundary, 0 outside."""
    return (-STEEPNESS * distance).sigmoid()
