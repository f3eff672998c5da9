"""Mean teacher: a student is consistent with the moving average of its weights.

Tarvainen, Valpola: Mean teachers are better role models, NeurIPS 2017, arXiv:1703.01780. Official
code for segmentation: SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT) and, for the left atrium (LA),
UA-MT without its uncertainty mask (github.com/yulequan/UA-MT, unlicensed). Both were consulted
through a written specification; nothing was copied.

On unlabeled images, the consistency term is the squared difference between the probabilities of the
student and those of the teacher, whose input gets noise.

Paper                    Official code                      Here
2-D classification       3-D segmentation, two classes      2-D and 3-D, two or more classes
consistency on all       on unlabeled images                on unlabeled images
  images
teacher evaluated        student evaluated                  student evaluated
-                        Dice of the foreground (LA) or of  dice=foreground (the default) or
                           all classes (SSL4MIS)              dice=all
-                        ramp of 40 stairs (LA) or 200      stairs=40 (the default) or stairs=200;
                           stairs (SSL4MIS) of 150 steps      both end with the run, as in the code
                           each                               at 6000 and 30,000 steps
-                        SSL4MIS: lr(t) = lr (1 - (t - 1)   the protocol's optimizer; protocol
                           / T)^0.9, which is one step        brats2019_meanteacher has this rate
                           late
-                        SSL4MIS in 2-D: no consistency     the consistency term starts at the first
                           term in the first 1000 steps       step; only the ramp weights it
-                        the teacher has its own initial    the teacher starts as a copy; after the
                           weights                            first step, whose decay is 0, there is
                                                              no difference
-                        buffers are neither averaged nor   the same: the teacher stays in train
                           copied                             mode
-                        SSL4MIS: 3-D U-Net                 the protocol's backbone
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, method
from segbench.nn.bases import StudentTeacher
from segbench.nn.losses import dice_ce, squared_error
from segbench.nn.ops import clipped_noise, wide_softmax


@method("mean_teacher", paper="Tarvainen & Valpola, NeurIPS 2017")
class MeanTeacher(StudentTeacher):
    """A student that is trained to agree with its moving average on unlabeled images."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            0.1, ge=0, description="weight of the consistency term after the ramp"
        )
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the teacher's moving average")
        noise: float = Field(
            0.1,
            ge=0,
            description="standard deviation of the teacher's input noise, clipped at twice this",
        )
        stairs: int = Field(
            40, ge=1, description="number of stairs of the sigmoid ramp over the run (SSL4MIS: 200)"
        )
        dice: Literal["foreground", "all"] = Field(
            "foreground",
            description="classes of the Dice term: foreground only (LA) or all (SSL4MIS)",
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = self.student(images)  # (L + U, K, *S)
        labeled, unlabeled = logits.split([len(batch.x), len(batch.u)])
        prediction = wide_softmax(unlabeled)  # (U, K, *S)

        noisy = batch.u + clipped_noise(batch.u, self.p.noise)
        target = wide_softmax(self.teacher(noisy))  # (U, K, *S)

        weight = self.p.weight * t.ramp(self.p.stairs)
        return {
            "supervised": dice_ce(labeled, batch.y, background=self.p.dice == "all"),
            "consistency": weight * squared_error(prediction, target),
        }
