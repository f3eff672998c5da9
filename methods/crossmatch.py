"""CrossMatch: strong views of an image, decoded from perturbed features, learn from each other.

Zhao, Wang, Ding: CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with
Perturbation Strategies and Knowledge Distillation, IEEE JBHI 2024, arXiv:2405.00354. Official code:
github.com/AiEson/CrossMatch (MIT, commit 59772e0), lines of LA/code/train_cross_match.py unless a
file is named. The code was read, of the paper only the abstract, so no equation numbers are given.
Nothing was copied.

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
-                        boxes come from a third stream,    boxes come from the item before in the
                           which is predicted in train mode   batch, with its answers in this step
                           (:231-249)
self-knowledge           Dice of the foreground on voxels   the same, averaged over the foreground
  distillation             whose label has a probability      classes
                           above the threshold (:306-357)
-                        eta 0.3 (:359-361)                 the same
-                        threshold 0.75 in the first step,  (0.75 + 0.25 ramp) ln 2 in all steps,
                           then (0.75 + 0.25 ramp) ln 2       one step earlier: 0.52 to 0.69, hardly
                           (:365-367)                         a threshold for two classes
-                        supervised: (CE + Dice) / 2        the same
                           (:301-304)
-                        2-D: threshold 0.95 in all steps,  code=2d with threshold=0.95: the same
                           Dice of all classes (ACDC/
                           configs/acdc.yaml:12, ACDC/
                           train_cross_match.py:253-312)
-                        AdamW 1e-3, polynomial over        the protocol's optimizer; protocol
                           17,000 steps, stopped at 14,001    la_crossmatch has theirs, with
                           (train.sh, :379, :415)             horizon=17,000/14,001
-                        2-D: SGD with Nesterov momentum,   protocol acdc_crossmatch
                           0.01, polynomial over 300 passes
                           (ACDC/train_cross_match.py:75,
                           :149, :333)
-                        last weights; best on the test     last weights
                           cases beside them (:422-460)
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, Optim, Phase, method
from segbench.contracts.method import sigmoid_ramp
from segbench.nn.losses import dice, dice_ce
from segbench.nn.ops import pseudo_labels, wide_softmax
from segbench.nn.views import cutmix_view, paste

Labels = tuple[Tensor, Tensor]  # hard labels and their probabilities, (U, *S) each


class LongPoly(Optim):
    """A polynomial schedule that is longer than the run."""

    horizon: float  # its length, in runs

    def lr_at(self, step: int, total: int) -> float:
        length = round(self.horizon * total)
        return super().lr_at(step, length)


@method("crossmatch", paper="Zhao et al., IEEE JBHI 2024")
class CrossMatch(Method):
    """One network whose answers from perturbed features and strong views learn from clean ones."""

    skips_ignored = True
    needs = frozenset({"features"})

    class Params(MethodParams):
        threshold: float = Field(
            0.75,
            ge=0,
            le=1,
            description="start of the threshold; it rises to 1, times ln 2 (code=2d: constant)",
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
        horizon: float = Field(
            1.0,
            ge=1,
            description="length of a polynomial schedule and of the threshold's rise, in runs",
        )
        code: Literal["3d", "2d"] = Field(
            "3d",
            description="authors' script: for volumes, or for slices, where the threshold is "
            "constant and Dice includes the background",
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        # Answers (U, K, *S) for the weak views: clean, weak decoder, strong decoder.
        labeled, weak, weak_1, weak_2 = self.answers(batch.x, batch.u)
        clean = pseudo_labels(weak)
        of_weak_decoder = pseudo_labels(weak_1)
        of_strong_decoder = pseudo_labels(weak_2)

        # The same for two strong views; only the second one is decoded from perturbed features.
        generator = t.generator("views", own=True)
        view_1, outside_1 = cutmix_view(batch.u, generator, self.p.cutmix)
        view_2, outside_2 = cutmix_view(batch.u, generator, self.p.cutmix)
        strong_1, strong_2, strong_2_weak, strong_2_strong = self.answers(view_1, view_2)
        clean_1 = pasted(clean, outside_1)
        clean_2 = pasted(clean, outside_2)

        threshold = self.threshold(t)
        image_term_1 = self.consistency(strong_1, clean_1, threshold)
        image_term_2 = self.consistency(strong_2, clean_2, threshold)
        from_clean = [
            self.consistency(weak_1, clean, threshold),
            self.consistency(weak_2, clean, threshold),
            self.consistency(strong_2_weak, clean_2, threshold),
            self.consistency(strong_2_strong, clean_2, threshold),
        ]
        weak_labels = pasted(of_weak_decoder, outside_2)
        strong_labels = pasted(of_strong_decoder, outside_2)
        within_decoder = [
            self.consistency(strong_2_weak, weak_labels, threshold),
            self.consistency(strong_2_strong, strong_labels, threshold),
        ]

        distilled = torch.stack(from_clean).mean()
        within = torch.stack(within_decoder).mean()

        supervised = dice_ce(labeled, batch.y, background=self.p.code == "2d")

        # L = (L_x + (L_s1 + L_s2) / 4 + KD) / 2
        half = self.p.weight / 2
        within_weight = half * self.p.eta
        clean_weight = half * (1 - self.p.eta)
        return {
            "supervised": supervised / 2,
            "strong_1": half / 4 * image_term_1,
            "strong_2": half / 4 * image_term_2,
            "distilled": clean_weight * distilled,
            "within_decoder": within_weight * within,
        }

    def answers(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return logits of two groups of images, and two of the second with perturbed features.

        The last two are those of the weak and of the strong decoder. Shapes: (N, K, *S) for the
        first group, (U, K, *S) for the others.
        """
        count = len(first)
        images = torch.cat([first, second])
        pyramid = self.network.encode(images)
        weak_share = (1 - self.p.gap) / 2
        strong_share = (1 + self.p.gap) / 2
        joined = []
        for features in pyramid:
            perturbed = features[count:]
            few_dropped = torch.feature_dropout(perturbed, weak_share, True)
            many_dropped = torch.feature_dropout(perturbed, strong_share, True)
            groups = [features, few_dropped, many_dropped]
            joined.append(torch.cat(groups))
        decoded = self.network.decode(joined)
        logits = self.network.head(decoded[0])
        perturbed_count = len(second)
        sizes = [count, perturbed_count, perturbed_count, perturbed_count]
        return list(logits.split(sizes))

    def threshold(self, t: Clock) -> float:
        """Return the probability from which a label is used in a step."""
        start = self.p.threshold
        if self.p.code == "2d":
            return start
        ramp = sigmoid_ramp(t.step, self.p.horizon * t.total)
        rise = (1 - start) * ramp
        return (start + rise) * log(2)

    def consistency(self, logits: Tensor, labels: Labels, threshold: float) -> Tensor:
        """Return the Dice loss on the voxels whose label is confident."""
        values, confidence = labels
        confident = confidence >= threshold
        prediction = wide_softmax(logits)
        return dice(prediction, values, background=self.p.code == "2d", weight=confident)

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        if self.p.horizon == 1 or not default.falls:
            return default
        settings = default.model_dump()
        return LongPoly(**settings, horizon=self.p.horizon)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)


def pasted(labels: Labels, outside: Tensor) -> Labels:
    """Return the labels and probabilities with the boxes of the item before pasted in."""
    values, confidence = labels
    return paste(values, outside), paste(confidence, outside)
