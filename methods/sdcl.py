"""SDCL: where two students differ, one term brings them closer to the label, one makes them unsure.

Song, Wang: SDCL: Students Discrepancy-Informed Correction Learning for Semi-supervised Medical
Image Segmentation, MICCAI 2024. Official code: github.com/pascalcpp/SDCL (no license, commit
cfb260f), lines of code/LA_train.py unless a file is named. The code was read, and of the paper the
abstract and the supplement (MICCAI2024_SDCL.pdf), whose equations are S1 to S8. Nothing was copied.

Built on BCP: two students of different architecture are pretrained on mixtures of labeled images,
then trained on mixtures of labeled and unlabeled ones, which a teacher labels. Voxels where the
students' labels differ are potential biases. There, the first term is the squared distance to the
mixed label, and the second one, where a student is wrong, the divergence from the uniform
distribution.

L_i = BCP_i + review MSE_i + rectify KL_i, of both mixtures

Paper                    Official code                      Here
two students and one     V-Net and residual V-Net; the      the protocol's backbone, and resvnet
  teacher that is not      teacher follows the V-Net only     with its parameters; the same teacher
  trained                  (:290-292, :409)
-                        2-D: the U-Net of SSL4MIS, and     backbone unet_ssl4mis, and
                           its decoder on a ResNet-34         second=resunet_ssl4mis
                           (ACDC_train.py:308-309)
-                        a labeled box in an unlabeled      the same (BCP for LA pairs other items)
                           image of the first half, an
                           unlabeled box of the second
                           half in a labeled image
                           (:353-354)
segmentation             where the argmax of the students   the same; without unknown voxels
  discrepancy              differs (:179-190, :367-369)
minimize the distance    mean of the squared errors of the  the same
  of correct voxels:       classes; 0.5 times the pseudo-
  their sum (Eq. S2)       labeled part (pancreas/
                           losses.py:144-157)
maximize the entropy of  mean over the classes of -log p    the same
  wrong voxels: KL(u, p)   where the student's label is not
  (Eq. S1), for which      the mixed one (pancreas/
  H(u, p) stands (S8)      losses.py:161-184)
-                        weights 0.5 and 0.05 (:387-391);   the same; protocol pancreas_ct_sdcl has
                           pancreas: 0.3 and 0.1              review=0.3, rectify=0.1
-                        options: 2,000 and 15,000 steps;   pretrain_share 2/17, as the options say;
                           the epochs give 3,200 and          protocol la_sdcl follows the epochs
                           11,000 for 8 labeled images
                           (:225, :333)
-                        Adam 1e-3, constant rate, state    the protocol's optimizer, a new one for
                           kept between the phases            each phase; keep_optimizer=true: the
                           (:214-215, :318-319)               same
-                        2-D: 11,300 and 45,200 steps with  protocol acdc_sdcl, with code=2d, the
                           7 patients, 24 labeled and 24      Dice loss of BCP's 2-D code
                           unlabeled slices (ACDC_train.py:
                           314, :343, :476; dataloaders/
                           dataset.py:85)
-                        instance normalization, dropout    the protocol's backbone
                           (:64-82)
-                        second student starts from         from Kaiming-normal values, as in MCF
                           torch's usual values (networks/
                           resnet3d.py:156-161)
-                        the best of each network, and of   the mean of both with the last weights
                           their mean, on the test cases
                           (:412-455)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from segbench.methods.bcp import BCP, dice_and_entropy, halves, mixed_loss
from torch import Tensor
from torch.nn import functional

from segbench import Backbone, Batch, Field, method
from segbench.nn.losses import masked_mean
from segbench.nn.ops import Ema, is_known, mix, most_probable, one_hot, pass_groups, widened


@dataclass(frozen=True)
class Mixture:
    """Images (P, C, *S) of two sources, and the labels (P, *S) and weights of both."""

    images: Tensor
    outer: Tensor  # labels outside the box
    inner: Tensor  # labels inside the box
    outer_weight: float
    inner_weight: float


@method("sdcl", paper="Song & Wang, MICCAI 2024")
class SDCL(BCP):
    """Two students of different architecture that learn most where they differ; both predict."""

    backbones = ("resvnet", "resunet_ssl4mis")

    class Params(BCP.Params):
        review: float = Field(0.5, ge=0, description="weight of the squared error (MSE)")
        rectify: float = Field(
            0.05, ge=0, description="weight of the divergence from the uniform distribution (KL)"
        )
        second: Literal["resvnet", "resunet_ssl4mis"] = Field(
            "resvnet", description="backbone of the second student (2-D code: resunet_ssl4mis)"
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.student = network()
        self.second = network(backbone=self.p.second)
        self.teacher = Ema(self.student)

    def pretrain(self, batch: Batch, outside: Tensor) -> dict[str, Tensor]:
        pairs = (len(batch.x) + 1) // 2
        x_a, x_b = halves(batch.x, pairs)
        y_a, y_b = halves(batch.y, pairs)
        images = mix(outside, x_a, x_b)
        labels = mix(outside, y_a, y_b)
        logits_1 = self.student(images)
        logits_2 = self.second(images)
        return {
            "supervised_1": dice_and_entropy(logits_1, labels, code=self.p.code),
            "supervised_2": dice_and_entropy(logits_2, labels, code=self.p.code),
        }

    def self_train(self, batch: Batch, outside: Tensor) -> dict[str, Tensor]:
        mixtures = self.mixtures(batch, outside)
        images = [mixture.images for mixture in mixtures]
        answers_1 = pass_groups(self.student, *images)  # (P, K, *S) per mixture
        answers_2 = pass_groups(self.second, *images)

        total_1 = torch.zeros(3, device=outside.device)
        total_2 = torch.zeros(3, device=outside.device)
        for mixture, logits_1, logits_2 in zip(mixtures, answers_1, answers_2, strict=True):
            different = most_probable(logits_1) != most_probable(logits_2)
            total_1 = total_1 + self.student_losses(logits_1, mixture, different, outside)
            total_2 = total_2 + self.student_losses(logits_2, mixture, different, outside)

        mixed_1, review_1, rectify_1 = total_1
        mixed_2, review_2, rectify_2 = total_2
        return {
            "mixed_1": mixed_1,
            "mixed_2": mixed_2,
            "review_1": self.p.review * review_1,
            "review_2": self.p.review * review_2,
            "rectify_1": self.p.rectify * rectify_1,
            "rectify_2": self.p.rectify * rectify_2,
        }

    def mixtures(self, batch: Batch, outside: Tensor) -> tuple[Mixture, Mixture]:
        """Return unlabeled images with labeled boxes, and labeled images with unlabeled boxes."""
        larger = max(len(batch.x), len(batch.u))
        pairs = (larger + 1) // 2
        x_a, x_b = halves(batch.x, pairs)
        y_a, y_b = halves(batch.y, pairs)
        u_a, u_b = halves(batch.u, pairs)
        teacher_a, teacher_b = pass_groups(self.teacher, u_a, u_b)
        pseudo_a = self.label(teacher_a)
        pseudo_b = self.label(teacher_b)
        weight = self.p.weight
        in_unlabeled = Mixture(
            images=mix(outside, u_a, x_b),
            outer=pseudo_a,
            inner=y_b,
            outer_weight=weight,
            inner_weight=1,
        )
        in_labeled = Mixture(
            images=mix(outside, x_a, u_b),
            outer=y_a,
            inner=pseudo_b,
            outer_weight=1,
            inner_weight=weight,
        )
        return in_unlabeled, in_labeled

    def student_losses(
        self, logits: Tensor, mixture: Mixture, different: Tensor, outside: Tensor
    ) -> Tensor:
        """Return BCP's loss, the squared error and the divergence of one student, (3,).

        ``different`` (P, *S) is true where the students' labels differ.
        """
        labels = mix(outside, mixture.outer, mixture.inner)
        weights = torch.where(outside, mixture.outer_weight, mixture.inner_weight)
        different = different & is_known(labels)
        wrong = different & (most_probable(logits) != labels)
        bcp = mixed_loss(
            logits,
            mixture.outer,
            mixture.inner,
            outside,
            mixture.outer_weight,
            mixture.inner_weight,
            self.p.code,
        )
        distance = squared_distance(logits, labels)
        surprise = surprise_of_uniform(logits)
        review = masked_mean(weights * distance, different)
        rectify = masked_mean(weights * surprise, wrong)
        return torch.stack([bcp, review, rectify])

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        p_1 = self.student(image).softmax(1)
        p_2 = self.second(image).softmax(1)
        return (p_1 + p_2) / 2


def squared_distance(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the classes of the squared error of each voxel, (N, *S)."""
    p = widened(logits).softmax(1)
    target = one_hot(labels, p.shape[1]).to(p.dtype)
    return (p - target).square().mean(1)


def surprise_of_uniform(logits: Tensor) -> Tensor:
    """Return the mean over the classes of -log p of each voxel, (N, *S).

    Except for a constant, this is the divergence KL(uniform || p), which is lowest for equal
    probabilities.
    """
    return -functional.log_softmax(widened(logits), 1).mean(1)
