"""UnCL: a mean teacher whose consistency term is divided by the uncertainty of both predictions.

Assefa, Naseer, Ganapathi, Ali, Seghier, Werghi: DyCON: Dynamic Uncertainty-aware Consistency and
Contrastive Learning for Semi-supervised Medical Image Segmentation, CVPR 2025, arXiv:2504.04566.
Official code: github.com/KU-CVML/DyCON (MIT, commit 69c1384), lines of code/train_DyCON_Pancreas.py
unless a file is named. The code was read, of the paper only the abstract; no equations were at
hand, so no equation numbers are given. Nothing was copied.

This is one of DyCON's two losses, the uncertainty-aware consistency (UnCL), on top of its mean
teacher. The other one, the focal contrastive loss (FeCL), is left out: in the code it reads the
true labels of the unlabeled images. Published numbers of DyCON are therefore no numbers of this
method.

L = CE + Dice + weight ramp |p - q|^2 + uncertainty_weight UnCL
UnCL = mean of sum_c (p_c - q_c)^2 / (exp(beta H(p)) + exp(beta H(q))) + beta (H(p) + H(q))

p and q are the probabilities of student and teacher, H is the entropy. While beta falls, voxels
with an uncertain prediction gain weight.

Paper (abstract)         Official code                      Here
UnCL: each voxel is      the formula above, on labeled and  the same
  weighted by its          unlabeled images, without their
  uncertainty              labels (utils/dycon_losses.py:
                           92-118; :251)
weights shift during     beta from 5 to 0.5, exponentially  the same, by steps
  the training             by epochs (:191-194,
                           utils/dycon_losses.py:8-12)
FeCL: contrastive loss   its pairs of unlabeled images are  left out: a method gets no labels of
  of local features        chosen by their true labels        unlabeled images
                           (:226-229, :246-250); the authors
                           agree (issues 1 and 9)
-                        weight 0.5 of UnCL and FeCL,       uncertainty_weight=0.5
                           without a ramp (:255)
-                        beside it the mean teacher's       the same with one softmax; stairs=200,
                           squared error on unlabeled         ramp_share=1.5
                           images, with a second softmax
                           (:252, utils/losses.py:65-82);
                           weight 0.1 after 200 stairs of
                           150 steps, of which 20,000 steps
                           reach 133 (:209)
-                        supervised: CE + Dice of the       the same, averaged over the foreground
                           foreground, not halved             classes
                           (:212-213)
-                        teacher: decay 0.99, noisy input   the same
                           (:199-204, :269)
-                        gradients clipped at norm 1        left out
                           (:266)
-                        3-D U-Net, SGD 0.01, constant,     the protocol's backbone and optimizer;
                           4 + 4 images, patch 112x112x96     DyCON's recipe is no protocol, because
                                                              FeCL belongs to it
-                        best on the test cases (:298-309)  the student with its last weights
"""

from __future__ import annotations

import torch
from segbench.methods.mean_teacher import MeanTeacher
from torch import Tensor

from segbench import Batch, Clock, Field, method
from segbench.nn.losses import cross_entropy, dice, squared_error
from segbench.nn.ops import clipped_noise, entropy, wide_softmax


@method("uncl", paper="Assefa et al., CVPR 2025 (DyCON)")
class UnCL(MeanTeacher):
    """A mean teacher that is consistent most where both predictions are certain."""

    class Params(MeanTeacher.Params):
        stairs: int = Field(200, ge=1, description="number of stairs of the sigmoid ramp")
        ramp_share: float = Field(
            1.5, gt=0, description="length of the ramp, in runs; above 1, the run ends before it"
        )
        uncertainty_weight: float = Field(
            0.5, ge=0, description="weight of the uncertainty-aware consistency"
        )
        first_beta: float = Field(5.0, gt=0, description="weight of the entropies at the start")
        last_beta: float = Field(0.5, gt=0, description="weight of the entropies at the end")

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        noisy = images + clipped_noise(images, self.p.noise)
        logits = self.student(images)  # (L + U, K, *S)
        prediction = wide_softmax(logits)
        target = wide_softmax(self.teacher(noisy))

        count = len(batch.x)
        labeled = logits[:count]
        background = self.p.dice == "all"
        overlap = dice(prediction[:count], batch.y, background=background)
        gap = squared_error(prediction[count:], target[count:])
        ramp = t.ramp(self.p.stairs, share=self.p.ramp_share)
        beta = self.beta(t)
        uncertain = uncertainty_consistency(prediction, target, beta)
        return {
            "supervised": cross_entropy(labeled, batch.y) + overlap,
            "consistency": self.p.weight * ramp * gap,
            "uncl": self.p.uncertainty_weight * uncertain,
        }

    def beta(self, t: Clock) -> float:
        """Return the weight of the entropies, which falls exponentially over the run."""
        first: float = self.p.first_beta
        last: float = self.p.last_beta
        passed = t.step / t.total
        return float(first * (last / first) ** passed)


def uncertainty_consistency(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Return UnCL of the probabilities of student and teacher, (N, K, *S) each.

    The entropies are in nats. Without a gradient of ``q``, the entropy of the teacher adds a
    constant.
    """
    own_entropy = entropy(p)  # (N, *S)
    other_entropy = entropy(q)
    own_factor = (beta * own_entropy).exp()
    other_factor = (beta * other_entropy).exp()
    distance = (p - q).square().sum(1)
    penalty = beta * (own_entropy + other_entropy)
    weighted = distance / (own_factor + other_factor)
    return (weighted + penalty).mean()
