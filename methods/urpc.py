"""URPC: one network predicts at several scales, which should agree on unlabeled images, less so where they diverge.

Luo, Liao, Chen, Song, Chen, Zhang, Chen, Wang, Zhang: Efficient Semi-supervised Gross Target Volume of Nasopharyngeal
Carcinoma Segmentation via Uncertainty Rectified Pyramid Consistency, MICCAI 2021, arXiv:2012.07042; extended in Medical
Image Analysis 80, 2022. Official code: SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT), consulted through a written
specification; nothing copied.

Paper                      Official code                       Here
3-D U-Net, four scales     the same; channel dropout 0.1 to    any backbone with side outputs, one prediction for each
                           0.5 on each decoder stage           of its decoder's scales; the V-Net has that dropout too
KL in inconsistent         KL(mean | scale)                    KL(mean | scale)
notation
weights normalized over    over each scale, then averaged      over each scale, then averaged
all scales
-                          squares averaged over the classes,  the same
                           KL summed over them
-                          nothing detached: gradients flow    the same
                           into the mean and the weights
-                          log of the softmax                  log-softmax and log-sum-exp: the same where that is
                                                               finite, and finite everywhere
-                          ramp of 400 stairs of 150 steps,    stairs=400 over the run, the same at 60 000 steps; ends
                           also when trained half as long;     with every run (40 are 150 steps each of 6000), in 2-D
                           2-D: 200, and lr 0.01               too
not specified              Dice of all classes                 the same
-                          3 classes written down              K of the data set
-                          lr 0.1, polynomial with a lag of    the protocol's optimizer
                           one step
full resolution evaluated  the same                            the same
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice_ce


@method("urpc", paper="Luo et al., MICCAI 2021")
class URPC(Method):
    """All scales learn from labels; on unlabeled images each scale learns from the mean of all."""

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="weight of the consistency after its ramp")
        stairs: int = Field(400, ge=1, description="equal steps of the sigmoid ramp over the run")

    needs = frozenset({"side_outputs"})

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network(side_outputs=True)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        scales = self.network(images)  # logits of each scale (L + U, K, *S), fine to coarse
        labeled = [z[: len(batch.x)] for z in scales]
        unlabeled = [z[len(batch.x) :] for z in scales]

        supervised = torch.stack([dice_ce(z, batch.y, background=True) for z in labeled])
        weight = self.p.weight * t.ramp(self.p.stairs)
        return {
            "supervised": supervised.mean(),
            "consistency": weight * pyramid_consistency(unlabeled).mean(),
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image)[0].softmax(1)


def divergences(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, K, *S) of the scales' predictions, and how far each scale diverges from it, D (scales, N, *S).

    ``log_p`` (scales, N, K, *S) are the logarithms of the predictions. D = KL(mean | scale) = sum_c mean_c (ln mean_c -
    ln p_c) is the uncertainty of a scale.
    """
    log_mean = log_p.logsumexp(0) - log(len(log_p))
    mean = log_mean.exp()
    return mean, (mean * (log_mean - log_p)).sum(2)


def pyramid_consistency(scales: Sequence[Tensor]) -> Tensor:
    """mean[w (mean - p)^2] / mean[w] + mean[D] with w = exp(-D), one value per scale; ``scales`` are logits (N, K, *S)."""
    log_p = torch.stack([z.float().log_softmax(1) for z in scales])  # (scales, N, K, *S)
    mean, divergence = divergences(log_p)
    gap = (mean - log_p.exp()).square().mean(2)  # (scales, N, *S)
    certainty = (-divergence).exp()
    rectified = (certainty * gap).flatten(1).mean(1) / (certainty.flatten(1).mean(1) + 1e-8)
    return rectified + divergence.flatten(1).mean(1)
