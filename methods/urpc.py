"""URPC: predictions at several scales are consistent on unlabeled images where they are certain.

Luo, Liao, Chen, Song, Chen, Zhang, Chen, Wang, Zhang: Efficient Semi-supervised Gross Target Volume
of Nasopharyngeal Carcinoma Segmentation via Uncertainty Rectified Pyramid Consistency, MICCAI 2021,
arXiv:2012.07042; extended in Medical Image Analysis 80, 2022. Official code: SSL4MIS
(github.com/HiLab-git/SSL4MIS, MIT). The code was consulted through a written specification; nothing
was copied.

The target of each scale is the mean prediction of all scales. The uncertainty D of a scale is its
KL divergence from the mean; the squared error is weighted with w = exp(-D), and D itself is
minimized too.

Paper                    Official code                      Here
3-D U-Net, four scales   the same; channel dropout of 0.1   any backbone with side outputs, one
                           to 0.5 in the decoder stages       prediction for each scale of its
                                                              decoder; the V-Net has this dropout
                                                              too
-                        2-D U-Net: three of the four       the same with backbone unet_ssl4mis
                           heads see maps with noise,
                           without the most active voxels,
                           and with dropout
KL, inconsistent         KL(mean | scale)                   KL(mean | scale)
  notation
weights normalized over  over each scale, then averaged     over each scale, then averaged
  all scales
-                        squares averaged over the          the same
                           classes, KL summed over the
                           classes
-                        nothing is detached: gradients     the same
                           flow into the mean and the
                           weights
-                        logarithm of the softmax           log-softmax and log-sum-exp: the same
                                                              where the logarithm is finite, and
                                                              always finite
-                        ramp of 400 stairs of 150 steps,   stairs=400 over the run, the same at 60
                           even in a training of half that    000 steps, also in 2-D (in 6000 steps,
                           length; 2-D: 200 stairs, lr        40 stairs are of 150 steps each);
                           0.01                               ramp_share=2 in brats2019_urpc,
                                                              stairs=200 in acdc_urpc
not specified            Dice of all classes                the same
-                        3 classes, fixed in the code       K classes of the data set
-                        lr 0.1, polynomial schedule that   the protocol's optimizer; protocol
                           is one step late                   brats2019_urpc and acdc_urpc have the
                                                              authors' recipes
full resolution          the same                           the same
  evaluated
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
    """All scales learn from labels; on unlabeled images each learns from the mean of all scales."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            0.1, ge=0, description="weight of the consistency term after the ramp"
        )
        stairs: int = Field(400, ge=1, description="number of stairs of the sigmoid ramp")
        ramp_share: float = Field(
            1.0, gt=0, description="length of the ramp, in runs; above 1, the run ends before it"
        )

    needs = frozenset({"side_outputs"})

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network(side_outputs=True)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        scales = self.network(images)  # logits (L + U, K, *S) per scale, fine to coarse
        count = len(batch.x)
        labeled = [logits[:count] for logits in scales]
        unlabeled = [logits[count:] for logits in scales]

        supervised = [dice_ce(logits, batch.y, background=True) for logits in labeled]
        consistency = pyramid_consistency(unlabeled)
        weight = self.p.weight * t.ramp(self.p.stairs, share=self.p.ramp_share)
        return {
            "supervised": torch.stack(supervised).mean(),
            "consistency": weight * consistency.mean(),
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        finest = self.network(image)[0]
        return finest.softmax(1)


def divergences(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean prediction (N, K, *S) and the uncertainty D (scales, N, *S) of each scale.

    ``log_p`` (scales, N, K, *S) holds the logarithms of the predictions.
    D = KL(mean | scale) = sum_c mean_c (ln mean_c - ln p_c).
    """
    scales = len(log_p)
    log_mean = log_p.logsumexp(0) - log(scales)
    mean = log_mean.exp()
    divergence = mean * (log_mean - log_p)  # (scales, N, K, *S)
    return mean, divergence.sum(2)


def pyramid_consistency(scales: Sequence[Tensor]) -> Tensor:
    """Return mean[w (mean - p)^2] / mean[w] + mean[D] with w = exp(-D), one value per scale.

    ``scales`` holds the logits (N, K, *S) of each scale.
    """
    log_p = torch.stack([z.float().log_softmax(1) for z in scales])  # (scales, N, K, *S)
    mean, divergence = divergences(log_p)
    p = log_p.exp()
    gap = (mean - p).square().mean(2)  # (scales, N, *S)
    certainty = (-divergence).exp()  # (scales, N, *S)
    weighted_gap = mean_of_scale(certainty * gap)
    mean_certainty = mean_of_scale(certainty)
    rectified = weighted_gap / (mean_certainty + 1e-8)
    return rectified + mean_of_scale(divergence)


def mean_of_scale(values: Tensor) -> Tensor:
    """Return the mean (scales,) over the items and voxels of (scales, N, *S)."""
    return values.flatten(1).mean(1)
