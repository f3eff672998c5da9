"""UniMatch: two strong views and one view with perturbed features learn the label of a weak view.

Yang, Qi, Feng, Zhang, Shi: Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
Segmentation, CVPR 2023, arXiv:2208.09910. Official code for medical images:
github.com/LiheYoung/UniMatch, more-scenarios/medical (MIT, commit 0324f3d). The code was read;
nothing was copied.

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
-                        boxes come from a third stream of  boxes come from the next item of the
                           images (:114-120)                  batch; a single item keeps its own
color jitter, blur,      brightness and contrast 0.5        ops.strong_view: the same in a fixed
  CutMix                   (p 0.8), blur (p 0.5), box         order; blur in voxels; the same boxes,
                           (p 0.5, 2-40 % of the area)        also in 3-D
-                        images as 8-bit gray values        float images; jitter is relative to the
                                                              item's own range
-                        SGD 0.01, polynomial schedule      the protocol's optimizer
-                        best score on validation and test  the network with its last weights
                           cases (valtest.txt)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice, dice_ce
from segbench.nn.ops import (
    CUTMIX_ASPECT,
    CUTMIX_SHARE,
    evaluating,
    mix,
    pseudo_labels,
    random_boxes,
    strong_view,
    wide_softmax,
)


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
        # Labels of the boxes that are pasted into the strong views: those of the next image.
        others = batch.u.roll(1, 0)
        with torch.no_grad(), evaluating(self.network):
            pasted_labels, pasted_confidence = pseudo_labels(self.network(others))

        labeled, weak, perturbed = self.weak_views(batch)
        labels, confidence = pseudo_labels(weak)  # (U, *S) each

        views, outsides = self.strong_views(batch.u, t)
        logits = self.network(torch.cat(views))
        strong = logits.chunk(2)  # (U, K, *S) each
        image_terms = []
        for answer, outside in zip(strong, outsides, strict=True):
            mixed_labels = mix(outside, labels, pasted_labels)
            mixed_confidence = mix(outside, confidence, pasted_confidence)
            term = self.consistency(answer, mixed_labels, mixed_confidence)
            image_terms.append(term)

        # L = (L_x + L_u) / 2
        background = self.p.dice == "all"
        supervised = dice_ce(labeled, batch.y, background=background)
        feature_term = self.consistency(perturbed, labels, confidence)
        image_weight = self.p.image_weight / 4
        feature_weight = self.p.feature_weight / 2
        return {
            "supervised": supervised / 2,
            "strong_1": image_weight * image_terms[0],
            "strong_2": image_weight * image_terms[1],
            "features": feature_weight * feature_term,
        }

    def weak_views(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of labeled images, unlabeled images and the latter's perturbed features.

        Shapes: (L, K, *S), (U, K, *S) and (U, K, *S).
        """
        count = len(batch.x)
        images = torch.cat([batch.x, batch.u])
        pyramid = self.network.encode(images)
        joined = []
        for features in pyramid:
            unlabeled = features[count:]
            dropped = torch.feature_dropout(unlabeled, self.p.dropout, True)
            joined.append(torch.cat([features, dropped]))
        decoded = self.network.decode(joined)
        logits = self.network.head(decoded[0])
        sizes = [count, len(batch.u), len(batch.u)]
        labeled, weak, perturbed = logits.split(sizes)
        return labeled, weak, perturbed

    def strong_views(self, images: Tensor, t: Clock) -> tuple[list[Tensor], list[Tensor]]:
        """Return two strong views (U, C, *S), and masks (U, *S) that are false in pasted boxes."""
        generator = t.generator("views", own=True)
        size = tuple(images.shape[2:])
        views = []
        outsides = []
        for _ in range(2):
            view = strong_view(images, generator)
            outside = random_boxes(
                len(view), size, CUTMIX_SHARE, CUTMIX_ASPECT, generator, view.device, self.p.cutmix
            )
            pasted = view.roll(1, 0)
            views.append(mix(outside, view, pasted))
            outsides.append(outside)
        return views, outsides

    def consistency(self, logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
        """Return the Dice loss of logits (U, K, *S) and labels (U, *S) on confident voxels."""
        confident = confidence >= self.p.threshold
        prediction = wide_softmax(logits)
        return dice(prediction, labels, background=True, weight=confident)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)
