"""DTC: one network predicts a mask and a signed distance map, and the two must agree.

Luo, Chen, Song, Wang: Semi-supervised Medical Image Segmentation through Dual-task Consistency, AAAI 2021,
arXiv:2009.04448. Official code: github.com/HiLab-git/DTC, consulted through a written specification; nothing
copied.

Paper                      Official code                       Here
two classes                one channel per head, sigmoid       a channel of each head for each foreground class, K - 1
                                                               binary problems; terms are averages over the classes
distance of the mask       of the labeled crop, on the host    the same map, exact, on the labels' device
-                          a crop without the class: 0         absent=0; absent=1 makes all of it outside, which the
                           everywhere, so a mask of 1/2        steep sigmoid turns into an empty mask
-                          a crop full of it: NaN              -1 everywhere
steep sigmoid, k = 1500    sigmoid(-1500 s), labeled items     the same, in float32 also under lower precision
                           included, nothing detached
-                          cross entropy logged, not used      left out
-                          ramp of 40 stairs of 150 steps      40 stairs over the run
-                          sigmoid > 0.5 of the mask's head    [1 - max p, p_1, ...]: the same for one class
-                          best test Dice at paper time, last  the last weights; the largest component is the protocol's
                           weights now; largest component      choice
"""

from __future__ import annotations

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, method
from segbench.nn.bases import TwoHeads
from segbench.nn.distance import signed_distance
from segbench.nn.losses import soft_dice, squared_error
from segbench.nn.ops import one_hot

STEEPNESS = 1500


@method("dtc", paper="Luo et al., AAAI 2021")
class DTC(TwoHeads):
    """Segmentation and distance regression; a steep sigmoid turns distances into masks that are compared on all images."""

    class Params(MethodParams):
        weight: float = Field(
            1.0, ge=0, description="weight of the dual-task consistency after its ramp"
        )
        distance_weight: float = Field(
            0.3, ge=0, description="weight of the supervised distance term"
        )
        absent: float = Field(
            0.0,
            ge=0,
            le=1,
            description="target distance in a crop without the class: 0 (all boundary, as in the code) to 1 (all outside)",
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        distance, p = self.answer(torch.cat([batch.x, batch.u]))  # each (L + U, K-1, *S)
        labeled = slice(0, len(batch.x))

        mask = one_hot(batch.y, self.classes)[:, 1:]  # (L, K-1, *S)
        target = signed_distance(batch.y, self.classes, self.p.absent)  # (L, K-1, *S)
        return {
            "dice": soft_dice(p[labeled], mask, keep=(1,)),
            "distance": self.p.distance_weight * squared_error(distance[labeled], target),
            "consistency": self.p.weight * t.ramp(40) * squared_error(as_mask(distance), p),
        }


def as_mask(distance: Tensor) -> Tensor:
    """Soft mask of a signed distance map: 1 inside, 1/2 at the boundary, 0 outside."""
    return (-STEEPNESS * distance).sigmoid()
