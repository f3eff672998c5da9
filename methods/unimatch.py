"""UniMatch: two strong views and one view with perturbed features learn the label of a weak view.

Yang, Qi, Feng, Zhang, Shi: Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
Segmentation, CVPR 2023, arXiv:2208.09910. Official code for medical images:
github.com/LiheYoung/UniMatch, more-scenarios/medical (MIT, commit 0324f3d). The code was read; of
the paper only the abstract was at hand, so no equation numbers are given. Nothing was copied.

The weak view is the unlabeled image as the protocol augments it; its labels count where their
probability reaches a threshold. The strong views have other gray values and a box from another
unlabeled image (CutMix). The third view is decoded from the weak view's features, half of whose
channels are dropped at every scale.

L = (L_x + L_u) / 2,  L_u = feature_weight L_fp + image_weight / 2 (L_s1 + L_s2)

Paper                    Official code                      Here
L = (L_x + L_u) / 2      the same, unimatch.py:175          the same
cross entropy (natural   supervised: (CE + Dice of all      the same; dice=foreground for the
  images)                  classes) / 2 (:164); unlabeled:    supervised Dice
                           Dice of all classes on voxels
                           with probability >= 0.95
                           (:166-173, util/utils.py:27-50)
lambda = mu = 0.5        0.5, 0.25, 0.25 (:175)             feature_weight = image_weight = 0.5
dropout of channels      p 0.5 at every level               the same
  at the encoder's end     (model/unet.py:171-173)
-                        features of labeled images are     features of unlabeled images only: with
                           perturbed too and not used         batch normalization, the statistics of
                           (unimatch.py:145-147)              the decoder differ
-                        labels of pasted boxes in eval     the same
                           mode (:129-134)
-                        boxes come from a third stream of  boxes come from the item before in the
                           images (:114-120)                  batch; a single item keeps its own
color jitter, blur,      brightness and contrast 0.5        ops.strong_view: the same in a fixed
  CutMix                   (p 0.8), blur (p 0.5), box         order; blur in voxels; the same boxes,
                           (p 0.5, 2-40 % of the area)        also in 3-D
                           (dataset/acdc.py:59-69,
                           dataset/transform.py:25-50)
-                        images as 8-bit gray values        float images; jitter is relative to the
                           (dataset/acdc.py:55)               item's own range
-                        SGD 0.01, polynomial schedule      the protocol's optimizer; protocol
                           that is one step late              acdc_unimatch has the authors' recipe
                           (unimatch.py:56, :192)
-                        best score on validation and test  the network with its last weights
                           cases (valtest.txt,
                           dataset/acdc.py:32)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice, dice_ce
from segbench.nn.ops import evaluating, mix, pseudo_labels, wide_softmax
from segbench.nn.views import cutmix_view


@method("unimatch", paper="Yang et al., CVPR 2023")
class UniMatch(Method):
    """One network that learns its confident labels from two strong views and perturbed features."""

    skips_ignored = True
    needs = frozenset({"features"})

    class Params(MethodParams):
        threshold: float = Field(
            0.95, ge=0, le=1, description="probability from which a label is used"
        )
        image_weight: float = Field(0.5, ge=0, description="weight of the two strong views (mu)")
        feature_weight: float = Field(
            0.5, ge=0, description="weight of the view with perturbed features (lambda)"
        )
        cutmix: float = Field(
            0.5, ge=0, le=1, description="probability of a box from another image"
        )
        dropout: float = Field(0.5, ge=0, lt=1, description="share of channels that are dropped")
        dice: Literal["foreground", "all"] = Field(
            "all", description="classes of the supervised Dice term (code: all)"
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        # Labels of the boxes that are pasted into the strong views: those of the image before.
        others = batch.u.roll(1, 0)
        with torch.no_grad(), evaluating(self.network):
            pasted_labels, pasted_confidence = pseudo_labels(self.network(others))

        labeled, weak, perturbed = self.weak_views(batch)
        labels, confidence = pseudo_labels(weak)  # (U, *S) each

        generator = t.generator("views", own=True)
        view_1, outside_1 = cutmix_view(batch.u, generator, self.p.cutmix)
        view_2, outside_2 = cutmix_view(batch.u, generator, self.p.cutmix)
        views = torch.cat([view_1, view_2])
        logits = self.network(views)
        strong_1, strong_2 = logits.chunk(2)  # (U, K, *S) each
        labels_1 = mix(outside_1, labels, pasted_labels)
        labels_2 = mix(outside_2, labels, pasted_labels)
        confidence_1 = mix(outside_1, confidence, pasted_confidence)
        confidence_2 = mix(outside_2, confidence, pasted_confidence)

        # L = (L_x + L_u) / 2
        background = self.p.dice == "all"
        supervised = dice_ce(labeled, batch.y, background=background)
        image_term_1 = self.consistency(strong_1, labels_1, confidence_1)
        image_term_2 = self.consistency(strong_2, labels_2, confidence_2)
        feature_term = self.consistency(perturbed, labels, confidence)
        image_weight = self.p.image_weight / 4
        feature_weight = self.p.feature_weight / 2
        return {
            "supervised": supervised / 2,
            "strong_1": image_weight * image_term_1,
            "strong_2": image_weight * image_term_2,
            "features": feature_weight * feature_term,
        }

    def weak_views(self, batch: Batch) -> list[Tensor]:
        """Return logits of labeled images, unlabeled images and the latter's perturbed features.

        Shapes: (L, K, *S), (U, K, *S) and (U, K, *S).
        """
        count = len(batch.x)
        unlabeled_count = len(batch.u)
        images = torch.cat([batch.x, batch.u])
        pyramid = self.network.encode(images)
        joined = []
        for features in pyramid:
            unlabeled = features[count:]
            dropped = torch.feature_dropout(unlabeled, self.p.dropout, True)
            groups = [features, dropped]
            joined.append(torch.cat(groups))
        decoded = self.network.decode(joined)
        logits = self.network.head(decoded[0])
        sizes = [count, unlabeled_count, unlabeled_count]
        return list(logits.split(sizes))

    def consistency(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        """Return the Dice loss of logits (U, K, *S) and labels (U, *S) on confident voxels."""
        confident = confidence >= self.p.threshold
        prediction = wide_softmax(logits)
        return dice(prediction, labels, background=True, weight=confident)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)
