"""CPS: two networks with different initial weights train each other with hard pseudo labels.

Chen, Yuan, Zeng, Wang: Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision, CVPR
2021, arXiv:2106.01226. Official code for volumes: SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT). The
code was consulted through a written specification; nothing was copied.

On unlabeled images, the argmax of each network's prediction is the label for the other network; no
gradient flows through it.

Paper                    Official code                      Here
natural images           3-D, two classes                   2-D and 3-D, two or more classes
cross term on all        on unlabeled images                on unlabeled images
  images
constant weight of 1.5   0.1 after a ramp                   0.1 after a ramp
  or 6
CutMix is optional       no CutMix                          no CutMix
two different            Kaiming normal and Xavier normal   the same, replacing the backbone's own
  initializations          for convolutions, except           weights (pretrained ones too); other
                           transposed ones                    layers keep theirs
-                        2-D: neither function is called    start=backbone; the default is the 3-D
                                                              behavior
not specified            Dice of all classes                the same
-                        ramp of 200 stairs of 150 steps    stairs=40, which are stairs of 150 steps
                                                              in a run of 6000; stairs=200 as in the
                                                              code at 30,000 steps; both ramps end
                                                              with the run
-                        two optimizers, lr 0.1,            the protocol's optimizer for both
                           polynomial schedule                networks: no update mixes parameters,
                                                              so one optimizer is equivalent to two;
                                                              protocol brats2019_cps has theirs
-                        both networks tested, each with    the first network with its last weights
                           its best validation weights
-                        3-D U-Net                          the protocol's backbone
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import cross_entropy, dice_ce
from segbench.nn.ops import most_probable


@method("cps", paper="Chen et al., CVPR 2021")
class CPS(Method):
    """Two networks; on unlabeled images each learns from the other's hard predictions."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            0.1, ge=0, description="weight of the cross-supervision terms after the ramp"
        )
        stairs: int = Field(
            40, ge=1, description="number of stairs of the sigmoid ramp over the run (SSL4MIS: 200)"
        )
        start: Literal["normal", "backbone"] = Field(
            "normal",
            description="initialization: Kaiming and Xavier (SSL4MIS 3-D) or the backbone's (2-D)",
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        normal = self.p.start == "normal"
        self.first = network()
        if normal:
            initialize(self.first, nn.init.kaiming_normal_)
        self.second = network()
        if normal:
            initialize(self.second, nn.init.xavier_normal_)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        sizes = [len(batch.x), len(batch.u)]
        labeled_1, unlabeled_1 = self.first(images).split(sizes)  # (L, K, *S), (U, K, *S)
        labeled_2, unlabeled_2 = self.second(images).split(sizes)
        weight = self.p.weight * t.ramp(self.p.stairs)
        return {
            "supervised_1": dice_ce(labeled_1, batch.y, background=True),
            "supervised_2": dice_ce(labeled_2, batch.y, background=True),
            "cross_1": weight * pseudo_supervision(unlabeled_1, unlabeled_2),
            "cross_2": weight * pseudo_supervision(unlabeled_2, unlabeled_1),
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.first(image).softmax(1)


def initialize(network: Backbone, rule: Callable[[Tensor], Tensor]) -> Backbone:
    """Initialize the weights of all convolutions except transposed ones; reset batch normalization.

    The biases of convolutions are not changed.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            rule(module.weight)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.reset_parameters()
    return network


def pseudo_supervision(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross entropy of logits (N, K, *S) with the argmax of ``teacher`` (N, K, *S).

    No gradient flows into ``teacher``.
    """
    pseudo_labels = most_probable(teacher)  # (N, *S)
    return cross_entropy(logits, pseudo_labels)
