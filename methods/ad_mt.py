"""AD-MT: two teachers that are updated in turn, for random periods, and label with one voice.

Zhao, Wang, Wang, Yu, Yuan, Zhou: Alternate Diverse Teaching for Semi-supervised Medical Image
Segmentation, ECCV 2024, arXiv:2311.17325. Official code: github.com/ZhenZHAO/AD-MT (unlicensed,
commit 03ef84c). The code was read for facts, of the paper only the abstract and the introduction;
no equations were at hand, so no equation numbers are given. Nothing was copied.

Only one of the two teachers follows the student at a time, for a random number of steps, then the
other one (random periodic alternate updating). In the periods of the first, the student sees views
with other gray values, in those of the second views with boxes of other images. The labels come
from the mean of both teachers' probabilities, weighted by exp(-entropy). Where the teachers
disagree, the student's own label is used if it is more probable (conflict-combating module).

Paper                    Official code (3-D)                Here
alternate, random        periods of 1 to P steps, P 19      period=19; a pure function of seed and
  periods                  (LA), 14 (pancreas), 50 (ACDC):    step; about half an epoch of the
                           half an epoch                      unlabeled images
                           (train_utils.py:12-61)
teacher: moving average  decay min(1 - 1/(n - 39), 0.99);   the same, copies=80 steps
                           first 80 steps: a copy of the
                           student; n counts half the steps
                           (train_post_3d_aut.py:40-49)
-                        buffers are averaged too (:51-53)  the same
-                        the teacher in turn is in train    the same
                           mode, the other in eval mode
                           (:207-212)
entropy-weighted mean    exp(-entropy in bits) (:228-234)   the same
conflicts: the more      only where the teachers disagree   the same; inside a box, the student's
  certain label            (train_utils.py:144-175); inside   label is that of the pasted image
                           a box, the student's label is
                           that of the covered image
intensity views          brightness and contrast (p 0.8,    ops.strong_view: brightness is a factor
                           +-0.5 each; brightness is added    here; noise p 0.2, as in the code
                           as a share of the mean), noise
                           (p 0.2) (dataset_3d.py:93-110);
                           2-D: blur (p 0.2), no noise        code=2d, as in protocol acdc_admt
                           (dataset_2d.py)
CutMix views             one Beta(4, 4) draw for the batch,  the same; boxes come from the item
                           one center per item, box clipped   before in the batch
                           at the border (mixaugs.py:115-148)
cross entropy (3-D),     conf 0.8 (3-D), 0.95 (2-D); mean   loss=ce, threshold=0.8; loss=dice,
  Dice (2-D)               over confident voxels, undefined   threshold=0.95 for the 2-D code; 0
                           without any (:333-339)             without any confident voxel
-                        supervised: (CE + Dice of all      the same; dice=foreground
                           classes) / 2 (:290-294)
-                        weight 2, ramp of 40 stairs (2-D:  weight=2; 40 stairs over the first 40 %
                           50) of 150 steps in 15,000         of the run (stairs, ramp_share)
                           (2-D: 30,000) (:35-37, :342)
-                        one pass for labeled, weak and     the same
                           strong images (:281-284)
student or teacher       best on the test list; the script  the student with its last weights
  tested                   tests the student (test_3d.sh)
-                        SGD 0.01, polynomial schedule      the protocol's optimizer; protocols
                           (cfgs/config_3d_la_aut.yml)        la_admt, pancreas_ct_admt, acdc_admt
                                                              have the authors' recipes
-                        an epoch is a pass over the        the protocol's two streams
                           unlabeled images (:114-115)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import floor, log
from typing import Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.averages import WarmEma
from segbench.nn.losses import cross_entropy, dice, dice_ce
from segbench.nn.ops import (
    entropy,
    evaluating,
    most_probable,
    outside_boxes,
    pseudo_labels,
    strong_view,
    wide_softmax,
)
from segbench.nn.views import paste


@method("ad_mt", paper="Zhao et al., ECCV 2024")
class ADMT(Method):
    """A student with two teachers that take turns in following it."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(2.0, ge=0, description="weight of the unlabeled term after its ramp")
        ramp_share: float = Field(
            0.4, gt=0, description="length of the ramp, in runs; above 1, the run ends before it"
        )
        threshold: float = Field(
            0.8, ge=0, le=1, description="probability from which a label is used"
        )
        loss: Literal["ce", "dice"] = Field(
            "ce", description="unlabeled loss: cross entropy (3-D code) or Dice (2-D code)"
        )
        period: int = Field(
            19, ge=1, description="longest number of steps for which one teacher follows"
        )
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the teachers' moving averages")
        copies: int = Field(
            80, ge=0, description="steps in which the teacher in turn is a copy of the student"
        )
        dice: Literal["foreground", "all"] = Field(
            "all", description="classes of the supervised Dice term (code: all)"
        )
        stairs: int = Field(40, ge=1, description="number of steps of the ramp (2-D code: 50)")
        code: Literal["3d", "2d"] = Field(
            "3d", description="authors' script: views with noise (volumes) or with blur (slices)"
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.student = network()
        self.first = WarmEma(self.student)
        self.second = WarmEma(self.student)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        labels, confidence, conflict = self.teach(batch.u, t)
        view, outside = self.view(batch.u, t)

        images = torch.cat([batch.x, batch.u, view])
        sizes = [len(batch.x), len(batch.u), len(view)]
        labeled, weak, strong = self.student(images).split(sizes)

        # Where the teachers disagree, the student's own label counts if it is more probable.
        own_labels, own_confidence = pseudo_labels(weak)
        differs = own_labels != labels
        is_surer = own_confidence > confidence
        own = conflict & differs & is_surer
        labels = torch.where(own, own_labels, labels)
        confidence = torch.where(own, own_confidence, confidence)

        # Inside a box, the labels are those of the image that it comes from.
        labels = paste(labels, outside)
        confident = paste(confidence, outside) >= self.p.threshold

        weight = self.p.weight * t.ramp(self.p.stairs, share=self.p.ramp_share)
        background = self.p.dice == "all"
        unlabeled = self.unlabeled_loss(strong, labels, confident)
        return {
            "supervised": dice_ce(labeled, batch.y, background=background),
            "unlabeled": weight * unlabeled,
        }

    def first_moves(self, t: Clock) -> bool:
        """Return whether the first teacher follows the student in this step, else the second does.

        The lengths of all periods are drawn from the run's seed, so no state is needed.
        """
        start = replace(t, step=0)
        generator = start.generator("periods")
        lengths = torch.randint(1, self.p.period + 1, (t.total,), generator=generator)
        ends = lengths.cumsum(0)
        completed = int((ends <= t.step).sum())
        return completed % 2 == 0

    def teachers(self, t: Clock) -> tuple[WarmEma, WarmEma]:
        """Return the teacher that follows the student in this step, and the other one."""
        if self.first_moves(t):
            return self.first, self.second
        return self.second, self.first

    @torch.no_grad()
    def teach(self, images: Tensor, t: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """Return labels, their probability, and where the teachers disagree, (U, *S) each.

        The teacher that moves is in train mode, the other one in eval mode.
        """
        moving, resting = self.teachers(t)
        p_moving = wide_softmax(moving(images))  # (U, K, *S)
        with evaluating(resting):
            p_resting = wide_softmax(resting(images))
        moving_labels = most_probable(p_moving)
        resting_labels = most_probable(p_resting)
        conflict = moving_labels != resting_labels

        moving_weight = certainty(p_moving)
        resting_weight = certainty(p_resting)
        weighted = moving_weight * p_moving + resting_weight * p_resting
        total = moving_weight + resting_weight
        mean = weighted / total
        confidence, labels = mean.max(1)
        return labels, confidence, conflict

    def view(self, images: Tensor, t: Clock) -> tuple[Tensor, Tensor]:
        """Return strong views (U, C, *S), and masks (U, *S) that are false in pasted boxes.

        The first teacher's views have other gray values, the second one's have boxes.
        """
        generator = t.generator("views", own=True)
        if self.first_moves(t):
            blur, noise = (0.2, 0.0) if self.p.code == "2d" else (0.0, 0.2)
            view = strong_view(images, generator, blur=blur, noise=noise)
            nothing_pasted = torch.ones_like(images[:, 0], dtype=torch.bool)
            return view, nothing_pasted
        outside = centered_boxes(images, generator)
        view = paste(images, outside)
        return view, outside

    def unlabeled_loss(self, logits: Tensor, labels: Tensor, confident: Tensor) -> Tensor:
        """Return the loss of logits (U, K, *S) and labels (U, *S) on confident voxels (U, *S)."""
        if self.p.loss == "dice":
            prediction = wide_softmax(logits)
            return dice(prediction, labels, background=True, weight=confident)
        return cross_entropy(logits, labels, confident)

    def after_step(self, t: Clock) -> None:
        moving, _ = self.teachers(t)
        # Both teachers share the steps: each counts half of them.
        age = t.step // 2 - self.p.copies // 2
        moving.follow_warm(self.student, self.p.decay, age)

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.student(image).softmax(1)


def certainty(probabilities: Tensor) -> Tensor:
    """Return exp(-entropy in bits), (U, 1, *S), of probabilities (U, K, *S)."""
    bits = entropy(probabilities) / log(2)
    return (-bits).exp().unsqueeze(1)


def centered_boxes(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return masks (U, *S) that are false inside a box; all boxes have the same edges.

    The share of the patch outside a box follows Beta(4, 4), as an area: each edge is
    floor(extent * sqrt(1 - share)). Centers are drawn from the last seven eighths of each axis, and
    what lies outside the patch is cut off.
    """
    # Beta(4, 4) from two sums of four exponential variables.
    uniform = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    exponential = -(1 - uniform).log()
    first, second = exponential.sum(1).tolist()
    share = first / (first + second)
    side = (1 - share) ** 0.5

    size = tuple(images.shape[2:])
    edges = []
    corners = []
    for extent in size:
        edge = floor(extent * side)
        half = edge // 2
        center = torch.randint(extent // 8, extent, (len(images),), generator=generator)
        edges.append(2 * half)
        corners.append(center - half)
    stacked = torch.stack(corners, 1)
    boxes = stacked.to(images.device, non_blocking=True)
    return outside_boxes(boxes, tuple(edges), size)
