"""FixMatch: the confident label of a weak view is the target of a strong view of the same image.

Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel: FixMatch: Simplifying
Semi-Supervised Learning with Consistency and Confidence, NeurIPS 2020, arXiv:2001.07685. Official
code for segmentation, with CutMix: UniMatch (github.com/LiheYoung/UniMatch, MIT, commit 0324f3d)
and, without it, SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT, code/train_fixmatch_standard_augs.py).
Both were read; nothing was copied.

The weak view is the unlabeled image as the protocol augments it. Where the network's probability
for it reaches a threshold, the network learns the most probable class from the strong view: other
gray values, and a box from another unlabeled image (CutMix).

L = L_x + weight L_u (section 2.2; equations 3 and 4 are L_x and L_u):
L_u = mean over all voxels of [probability >= threshold] CE(strong view, label)

Paper                    Official code                      Here
images, one label each   UniMatch: natural images, one      2-D and 3-D, one label per voxel
                           label per pixel,
                           fixmatch.py:122-166
cross entropy            CE + Dice of all classes           (CE + Dice of all classes) / 2;
  supervised               (SSL4MIS), CE (UniMatch)           dice=foreground
average over all         the same, fixmatch.py:162-164      the same; loss=dice is the masked Dice
  unlabeled examples                                          of UniMatch's medical code
labels in the same mode  weak view in train mode (:146),    the same
  as the strong view       pasted box in eval mode (:133)
strong view: RandAugment color jitter, blur, CutMix boxes   ops.strong_view: brightness, contrast,
  or CTAugment             (p 0.5, 2-40 % of the area),       blur; the same boxes, also in 3-D
                           dataset/semi.py:51-55
-                        boxes come from a third stream     boxes come from the item before in the
                           of images (:120-124)               batch; a single item keeps its own
-                        labeled and weak images in one     the same
                           pass, strong ones in another
                           (:145-146)
weight 1                 (L_x + L_u) / 2 (:166); SSL4MIS:   L_x + weight L_u, weight 1, no ramp
                           0.1 after a ramp, CE + Dice
threshold 0.95           0.95; SSL4MIS: (largest -          0.95; other voxels count as 0
                           smallest probability) /
                           largest > 0.8, and other
                           pixels become background
moving average tested    UniMatch: none; SSL4MIS: updated   the network with its last weights
                           but never used; best
                           validation score
-                        SSL4MIS: complementary term for    left out
                           the least probable class
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import cross_entropy, dice, dice_ce
from segbench.nn.ops import evaluating, mix, pseudo_labels, wide_softmax
from segbench.nn.views import cutmix_view


@method("fixmatch", paper="Sohn et al., NeurIPS 2020")
class FixMatch(Method):
    """One network that learns its own confident labels from strong views with CutMix."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(1.0, ge=0, description="weight of the unlabeled term")
        threshold: float = Field(
            0.95, ge=0, le=1, description="probability from which a label is used"
        )
        cutmix: float = Field(
            0.5, ge=0, le=1, description="probability of a box from another image"
        )
        loss: Literal["ce", "dice"] = Field(
            "ce", description="unlabeled loss: cross entropy (paper) or Dice (UniMatch, medical)"
        )
        dice: Literal["foreground", "all"] = Field(
            "all", description="classes of the supervised Dice term (code: all)"
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        # A strong view (U, C, *S) with a box of the image before, and that image's labels.
        generator = t.generator("views", own=True)
        view, outside = cutmix_view(batch.u, generator, self.p.cutmix)
        others = batch.u.roll(1, 0)
        with torch.no_grad(), evaluating(self.network):
            pasted_labels, pasted_confidence = pseudo_labels(self.network(others))

        # Labels of the weak view, with the pasted ones inside the box: (U, *S).
        images = torch.cat([batch.x, batch.u])
        logits = self.network(images)
        labeled, weak = logits.split([len(batch.x), len(batch.u)])
        labels, confidence = pseudo_labels(weak)
        labels = mix(outside, labels, pasted_labels)
        confidence = mix(outside, confidence, pasted_confidence)
        confident = confidence >= self.p.threshold

        strong = self.network(view)  # (U, K, *S)
        unlabeled = self.unlabeled_loss(strong, labels, confident)
        background = self.p.dice == "all"
        return {
            "supervised": dice_ce(labeled, batch.y, background=background),
            "strong": self.p.weight * unlabeled,
        }

    def unlabeled_loss(self, logits: Tensor, labels: Tensor, confident: Tensor) -> Tensor:
        """Return the loss of logits (U, K, *S) and labels (U, *S) on confident voxels (U, *S)."""
        if self.p.loss == "dice":
            prediction = wide_softmax(logits)
            return dice(prediction, labels, background=True, weight=confident)
        # The mean over the confident voxels, times their share: the others count as 0.
        share = confident.float().mean()
        return share * cross_entropy(logits, labels, confident)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)
