"""CrossMatch: strong views of an image, decoded from perturbed features, learn from each other.

Zhao, Wang, Ding: CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with
Perturbation Strategies and Knowledge Distillation, IEEE JBHI 2024, arXiv:2405.00354. Official code:
github.com/AiEson/CrossMatch (MIT, commit 59772e0), lines of LA/code/train_cross_match.py unless a
file is named. The code was read, of the paper only the abstract; nothing was copied.

As UniMatch with two strong views. In addition, the decoder answers for the weak view and for the
second strong view from features with few channels dropped (the weak decoder) and with many dropped
(the strong decoder). These answers learn from the clean answer for the weak view, and those for the
strong view also from the answers of the same decoder for the weak view.

L = (L_x + (L_s1 + L_s2) / 4 + KD) / 2
KD = (1 - eta) / 4 (w -> w_weak + w -> w_strong + w -> s2_weak + w -> s2_strong)
     + eta / 2 (w_weak -> s2_weak + w_strong -> s2_strong)

Paper (abstract)         Official code                      Here
image and feature level  views: bias field, gamma, blur     ops.strong_view: brightness and
  perturbation             (dataloaders/la_heart.py:104-116)   contrast, blur
-                        CutMix box p 0.5, 2-40 % of the    ops.random_boxes: the same shares and
                           volume (la_heart.py:14-46; its     probability
                           axes x and z are exchanged)
multiple encoders and    Dropout3d of all scales: 0.25 for  the same; gap 0.5: (1 - gap) / 2 and
  decoders by feature      the weak, 0.75 for the strong      (1 + gap) / 2
  perturbation             decoder (networks/vnet.py:
                           331-372)
-                        no dropout before the last layer   dropout as the backbone has it
                           in these passes (vnet.py:321)
-                        boxes come from a third stream,    boxes come from the next item of the
                           which is predicted in train mode   batch, with its answers in this step
                           (:231-249)
self-knowledge           Dice of the foreground on voxels   the same, averaged over the foreground
  distillation             whose label has a probability      classes
                           above the threshold (:306-357)
-                        eta 0.3 (:359-361)                 the same
-                        threshold 0.75 in the first step,  the same from the second step on: 0.52
                           then (0.75 + 0.25 ramp) ln 2       to 0.69, hardly a threshold for two
                           (:365-367)                         classes
-                        supervised: (CE + Dice) / 2        the same
                           (:301-304)
-                        AdamW 1e-3, polynomial over        the protocol's optimizer
                           17,000 steps, stopped at 14,000
                           (train.sh)
-                        last weights; best on the test     last weights
                           cases beside them (:422-460)
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice, dice_ce
from segbench.nn.ops import (
    CUTMIX_ASPECT,
    CUTMIX_SHARE,
    mix,
    pseudo_labels,
    random_boxes,
    strong_view,
    wide_softmax,
)

Labels = tuple[Tensor, Tensor]  # hard labels and their probabilities, (U, *S) each


@method("crossmatch", paper="Zhao et al., IEEE JBHI 2024")
class CrossMatch(Method):
    """One network whose answers from perturbed features and strong views learn from clean ones."""

    skips_ignored = True
    needs = frozenset({"features"})

    class Params(MethodParams):
        threshold: float = Field(
            0.75, ge=0, le=1, description="start of the threshold; it rises to 1, times ln 2"
        )
        eta: float = Field(
            0.3, ge=0, le=1, description="share of the terms within one decoder in the distillation"
        )
        gap: float = Field(
            0.5, ge=0, lt=1, description="difference of the dropout of both decoders"
        )
        cutmix: float = Field(
            0.5, ge=0, le=1, description="probability of a box from another image"
        )
        weight: float = Field(1.0, ge=0, description="weight of all terms without labels")

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        # Answers (U, K, *S) for the weak views: clean, weak decoder, strong decoder.
        labeled, weak, weak_1, weak_2 = self.answers(batch.x, batch.u)
        clean = pseudo_labels(weak)
        of_weak_decoder = pseudo_labels(weak_1)
        of_strong_decoder = pseudo_labels(weak_2)

        # The same for two strong views; only the second one is decoded from perturbed features.
        (view_1, view_2), (outside_1, outside_2) = self.strong_views(batch.u, t)
        strong_1, strong_2, strong_2_weak, strong_2_strong = self.answers(view_1, view_2)
        clean_1 = pasted(clean, outside_1)
        clean_2 = pasted(clean, outside_2)

        threshold = self.threshold(t)
        distilled = [
            consistency(weak_1, clean, threshold),
            consistency(weak_2, clean, threshold),
            consistency(strong_2_weak, clean_2, threshold),
            consistency(strong_2_strong, clean_2, threshold),
        ]
        within_decoder = [
            consistency(strong_2_weak, pasted(of_weak_decoder, outside_2), threshold),
            consistency(strong_2_strong, pasted(of_strong_decoder, outside_2), threshold),
        ]

        # L = (L_x + (L_s1 + L_s2) / 4 + KD) / 2
        half = self.p.weight / 2
        eta = self.p.eta
        return {
            "supervised": dice_ce(labeled, batch.y) / 2,
            "strong_1": half / 4 * consistency(strong_1, clean_1, threshold),
            "strong_2": half / 4 * consistency(strong_2, clean_2, threshold),
            "distilled": half * (1 - eta) * torch.stack(distilled).mean(),
            "within_decoder": half * eta * torch.stack(within_decoder).mean(),
        }

    def answers(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits of two groups of images, and two of the second with perturbed features.

        The last two are those of the weak and of the strong decoder.
        """
        count = len(first)
        pyramid = self.network.encode(torch.cat([first, second]))
        joined = []
        for features in pyramid:
            perturbed = features[count:]
            few = torch.feature_dropout(perturbed, (1 - self.p.gap) / 2, True)
            many = torch.feature_dropout(perturbed, (1 + self.p.gap) / 2, True)
            joined.append(torch.cat([features, few, many]))
        logits = self.network.head(self.network.decode(joined)[0])
        sizes = [count, len(second), len(second), len(second)]
        plain_1, plain_2, weak, strong = logits.split(sizes)
        return plain_1, plain_2, weak, strong

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
            views.append(mix(outside, view, view.roll(1, 0)))
            outsides.append(outside)
        return views, outsides

    def threshold(self, t: Clock) -> float:
        """Return the probability from which a label is used in a step."""
        start = self.p.threshold
        return (start + (1 - start) * t.smooth_ramp()) * log(2)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)


def pasted(labels: Labels, outside: Tensor) -> Labels:
    """Return the labels and probabilities with the boxes of the next item pasted in."""
    values, confidence = labels
    next_values = values.roll(1, 0)
    next_confidence = confidence.roll(1, 0)
    mixed_values = mix(outside, values, next_values)
    mixed_confidence = mix(outside, confidence, next_confidence)
    return mixed_values, mixed_confidence


def consistency(logits: Tensor, labels: Labels, threshold: float) -> Tensor:
    """Return the Dice loss of the foreground on the voxels whose label is confident."""
    values, confidence = labels
    confident = confidence >= threshold
    prediction = wide_softmax(logits)
    return dice(prediction, values, weight=confident)
