"""CPS: two networks with different initial weights teach each other with their hard predictions.

Chen, Yuan, Zeng, Wang: Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision, CVPR 2021,
arXiv:2106.01226. Official code of the segmentation of volumes: SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT), consulted
through a written specification; nothing copied.

Paper                      Official code                       Here
natural images             3-D, two classes                    2-D and 3-D, two or more classes
cross term on all images   on unlabeled images                 on unlabeled images
constant weight, 1.5 or 6  0.1 after a ramp                    0.1 after a ramp
CutMix as an option        none                                none
two initializations        Kaiming and Xavier normal for       the same, whatever the backbone's own (pretrained
                           convolutions, not transposed ones   weights too, which are lost); other layers keep theirs
-                          2-D: neither is called              start=backbone; the default is that of 3-D
not specified              Dice of all classes                 the same
-                          ramp of 200 stairs of 150 steps     stairs=40, those 150 steps at 6000, or stairs=200, as
                                                               in the code at 30 000 steps; both end with the run
-                          two optimizers, lr 0.1, polynomial  the protocol's, over both networks: no update mixes
                                                               parameters, so one optimizer equals two
-                          both networks tested, each at its   the first network, its last weights
                           best validation
-                          3-D U-Net                           the protocol's backbone
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import cross_entropy, dice_ce


@method("cps", paper="Chen et al., CVPR 2021")
class CPS(Method):
    """On unlabeled images, the most likely classes of each network are the labels of the other."""

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="weight of the cross terms after their ramp")
        stairs: int = Field(
            40, ge=1, description="equal steps of the sigmoid ramp over the run (SSL4MIS: 200)"
        )
        start: Literal["normal", "backbone"] = Field(
            "normal",
            description="initial weights: Kaiming and Xavier normal (SSL4MIS in 3-D), or the backbone's own (in 2-D)",
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.first = network()
        if self.p.start == "normal":
            initialize(self.first, nn.init.kaiming_normal_)
        self.second = network()
        if self.p.start == "normal":
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
    """Fill the weights of all convolutions, but not of transposed ones, and reset batch normalization.

    Biases of convolutions stay as they are.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            rule(module.weight)
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            module.reset_parameters()
    return network


def pseudo_supervision(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of logits (N, K, *S) with the most likely classes of ``teacher``, which gets no gradient."""
    return cross_entropy(logits, teacher.argmax(1))
