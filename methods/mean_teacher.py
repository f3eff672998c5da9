"""Mean teacher: on unlabeled images a student agrees with the moving average of itself.

Tarvainen, Valpola: Mean teachers are better role models, NeurIPS 2017, arXiv:1703.01780. Official code of the
segmentation recipe: SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT) and, for the left atrium (LA), UA-MT without its mask
(github.com/yulequan/UA-MT, unlicensed), both consulted through a written specification; nothing copied.

Paper                      Official code                       Here
2-D classification         3-D segmentation, two classes       2-D and 3-D, two or more classes
consistency on all items   on unlabeled items                  on unlabeled items
teacher evaluated          student evaluated                   student evaluated
-                          Dice of the foreground (LA) or of   dice=foreground, the default, or dice=all
                           all classes (SSL4MIS)
-                          ramp of 40 stairs of 150 steps      stairs=40, the default, or stairs=200; both end with
                           (LA), of 200 (SSL4MIS)              the run, as in the code at 6000 and 30,000 steps
-                          SSL4MIS: lr(t) = lr (1 - (t - 1)    the protocol's optimizer, whose polynomial does not lag
                           / T)^0.9, which lags by one step
-                          SSL4MIS in 2-D: no consistency in   the ramp alone, from the first step on
                           the first 1000 steps
-                          the teacher has its own initial     starts as a copy; there is no difference after the
                           weights                             first step, whose decay is 0
-                          buffers neither averaged nor        the same: the teacher stays in train mode
                           copied
-                          SSL4MIS: 3-D U-Net                  the protocol's backbone
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, method
from segbench.nn.bases import StudentTeacher
from segbench.nn.losses import dice_ce, squared_error
from segbench.nn.ops import clipped_noise


@method("mean_teacher", paper="Tarvainen & Valpola, NeurIPS 2017")
class MeanTeacher(StudentTeacher):
    """A student agrees with its own moving average on unlabeled images."""

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="weight of the consistency after its ramp")
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the moving average")
        noise: float = Field(
            0.1,
            ge=0,
            description="standard deviation of the teacher's input noise, clipped at twice that",
        )
        stairs: int = Field(
            40, ge=1, description="equal steps of the sigmoid ramp over the run (SSL4MIS: 200)"
        )
        dice: Literal["foreground", "all"] = Field(
            "foreground",
            description="classes of the Dice term: without background (LA) or all (SSL4MIS)",
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        logits = self.student(torch.cat([batch.x, batch.u]))  # (L + U, K, *S)
        labeled, unlabeled = logits.split([len(batch.x), len(batch.u)])

        noisy = batch.u + clipped_noise(batch.u, self.p.noise)
        target = self.teacher(noisy).softmax(1)  # (U, K, *S)

        weight = self.p.weight * t.ramp(self.p.stairs)
        return {
            "supervised": dice_ce(labeled, batch.y, background=self.p.dice == "all"),
            "consistency": weight * squared_error(unlabeled.softmax(1), target),
        }
