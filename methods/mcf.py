"""MCF: two different networks review where they differ, and the better one teaches the other.

Wang, Xiao, Bi, Li, Gao: MCF: Mutual Correction Framework for Semi-Supervised Medical Image
Segmentation, CVPR 2023. Official code: github.com/WYC-321/MCF (MIT, commit ad20659), lines of
code/train_MCF.py. The code was read, of the paper only the abstract, so no equation numbers are
given. Nothing was copied.

Contrastive difference review (CDR): on labeled images, the squared error of each network counts
again where the two predictions differ. Dynamic competitive pseudo labels (DCPLG): in each step, the
network with the lower Dice loss on the labeled images teaches the other one on the unlabeled images
with sharpened probabilities, p^(1/T) / sum_k p_k^(1/T).

L_i = CE_i + Dice_i + review CDR_i + weight ramp [i is the worse one] |p_i - sharp(p_j)|^2

Paper (abstract)         Official code                      Here
two different subnets    V-Net, and ResNet-34 with V-Net's  the protocol's backbone, and resvnet
                           decoder (:113-114)                 with its parameters
supervised               CE + Dice of the foreground, not   the same, averaged over the foreground
                           halved (:165-171, :189-190)        classes
CDR: review regions      where the labels differ; squared   the same, averaged over the foreground
  that differ              error of the foreground            classes
                           probability, times 0.5
                           (:181-190)
DCPLG: the better one    compared by the batch's Dice loss  the same; the second one if both are
  in real time             (:173-176)                         equal
its pseudo labels        sharpened, T 0.1, no gradient;     the same
                           squared error over all classes
                           (:192-216)
-                        weight 0.1 after a ramp of 40      the same; 40 stairs over the run
                           stairs of 150 steps (:206)
-                        two SGD optimizers, 0.01, divided  the protocol's optimizer for both: no
                           by ten every 2500 steps            update mixes their parameters; the
                           (:132-133, :255)                   authors' recipe is protocol la_mcf
-                        both networks get the same crop    the same
                           (dataloaders/la_heart.py:33-37)
-                        mean of both probabilities, last   the same
                           weights (test_util.py:90-99)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import cross_entropy, dice, masked_mean, squared_error
from segbench.nn.ops import is_known, most_probable, one_hot, sharpened, wide_softmax, widened


@method("mcf", paper="Wang et al., CVPR 2023")
class MCF(Method):
    """Two networks of different architecture; both predict."""

    skips_ignored = True
    backbones = ("resvnet",)

    class Params(MethodParams):
        weight: float = Field(0.1, ge=0, description="weight of the pseudo labels after the ramp")
        review: float = Field(
            0.5, ge=0, description="weight of the labeled voxels where the networks differ"
        )
        temperature: float = Field(0.1, gt=0, le=1, description="sharpening temperature T")

    def build(self, network: Callable[..., Backbone]) -> None:
        self.first = network()
        self.second = network(backbone="resvnet")

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        sizes = [len(batch.x), len(batch.u)]
        labeled_1, unlabeled_1 = self.first(images).split(sizes)  # (L, K, *S), (U, K, *S)
        labeled_2, unlabeled_2 = self.second(images).split(sizes)

        overlap_1 = dice(wide_softmax(labeled_1), batch.y)
        overlap_2 = dice(wide_softmax(labeled_2), batch.y)
        different = most_probable(labeled_1) != most_probable(labeled_2)
        different = different & is_known(batch.y)  # (L, *S)

        # In each step, one of the networks is the better one, and one of these weights is 0.
        weight = self.p.weight * t.ramp(40)
        first_is_better = overlap_1 < overlap_2
        weight_1 = torch.where(first_is_better, 0.0, weight)
        weight_2 = torch.where(first_is_better, weight, 0.0)
        return {
            "supervised_1": cross_entropy(labeled_1, batch.y) + overlap_1,
            "supervised_2": cross_entropy(labeled_2, batch.y) + overlap_2,
            "review_1": self.p.review * squared_gap(labeled_1, batch.y, different),
            "review_2": self.p.review * squared_gap(labeled_2, batch.y, different),
            "pseudo_1": weight_1 * self.consistency(unlabeled_1, unlabeled_2),
            "pseudo_2": weight_2 * self.consistency(unlabeled_2, unlabeled_1),
        }

    def consistency(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the squared error of two predictions, of which ``teacher``'s is sharpened.

        No gradient flows into ``teacher``.
        """
        target = sharpened(widened(teacher.detach()), self.p.temperature)
        return squared_error(wide_softmax(logits), target)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        p_1 = self.first(image).softmax(1)
        p_2 = self.second(image).softmax(1)
        return (p_1 + p_2) / 2


def squared_gap(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the squared error of the foreground probabilities where the mask (N, *S) is true."""
    p = wide_softmax(logits)
    target = one_hot(labels, p.shape[1]).to(p.dtype)
    gap = (p - target)[:, 1:].square().mean(1)  # (N, *S)
    return masked_mean(gap, mask)
