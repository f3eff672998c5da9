"""BCP: paste boxes between labeled and unlabeled images in both directions.

Bai, Chen, Li, Shen, Wang: Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation,
CVPR 2023, arXiv:2305.00673. Official code: github.com/DeepMed-Lab-ECNU/BCP. The code was consulted
through a written specification; nothing was copied.

Phase 1 trains the student on mixtures of two labeled images. In phase 2 the teacher, a moving
average of the student, labels the unlabeled images; the student learns from labeled images with a
box of an unlabeled one and from unlabeled images with a box of a labeled one. The loss inside and
outside the box uses the label of the image that the voxels come from.

The official code has three pipelines. The default here follows the one for the left atrium (LA);
the table says so where another one is meant.

Paper                    Official code                      Here
pretraining on labeled   2000 steps, then 15,000 steps of   the same fractions of the run; labeled
  images                   self-training                      images fill the whole batch (LA code:
                                                              4 of 8 places stay empty)
both networks start      from those with the best test      from the last ones
  from the pretrained      score
  weights
-                        LA: constant learning rate, then   as LA, but with the protocol's optimizer
                           a new optimizer whose rate is      and, in the second phase, its schedule
                           divided by ten every 2500
                           steps; pancreas and 2-D keep     keep_optimizer, as in protocols acdc_bcp
                           the optimizer's state;             and pancreas_ct_bcp
                           pancreas: Adam, 1e-3
-                        batch 4 + 4 (2-D: 12 + 12), split  any batch size; a pair is the n-th item
                           into halves a and b                of both halves; the middle item of an
                                                              odd number is in both halves; shorter
                                                              halves are repeated; a single item is
                                                              mixed with itself
-                        LA: u_a is pasted into x_a, x_b    as LA
                           into u_b; pancreas: x_b into
                           u_a, u_b into x_a
-                        pancreas: no shuffling, so the     shuffled batches; random crops if the
                           partners stay the same; central    protocol has them
                           crops of unlabeled images
one box per step         corner from NumPy's generator      corner from the step's own generator, in
                                                              the same range
-                        teacher in train mode, with        the same; its buffers are neither
                           dropout and batch statistics       averaged nor copied, except when the
                                                              phase begins (2-D code: buffers are
                                                              averaged too)
largest component        26 neighbors; pancreas: 18         connectivity=26; applied to each class
                                                              of each image; ties go to the first
                                                              component in raster order; an absent
                                                              class stays absent
-                        two classes: foreground if p >=    the same; more classes: argmax, as in
                           0.5                                2-D
-                        Dice of all classes with linear    the same; code=2d: squared denominators,
                           denominators, per image; 2-D:      sums over the batch (2-D code until
                           squared, over the batch            October 2023: no mask for the
                                                              background)
-                        computed but never used: a ramp    left out
                           (only logged), projection,
                           prediction and selector heads,
                           pooled features
-                        pancreas: instance normalization,  the protocol's backbone; for vnet:
                           no dropout                         norm=instance, dropout=0
-                        student with the best test score   student with the last weights
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, Optim, Phase, method
from segbench.metrics import largest_component
from segbench.nn.bases import StudentTeacher
from segbench.nn.losses import cross_entropy, dice
from segbench.nn.ops import context_mask, mix, most_probable, pass_groups, wide_softmax


@method("bcp", paper="Bai et al., CVPR 2023")
class BCP(StudentTeacher):
    """A student trained on copy-paste mixtures; pretraining uses labeled images only."""

    skips_ignored = True

    class Params(MethodParams):
        pretrain_share: float = Field(
            2 / 17, gt=0, lt=1, description="fraction of the steps for labeled pretraining"
        )
        box: float = Field(
            2 / 3, gt=0, lt=1, description="edge length of the box relative to the patch"
        )
        weight: float = Field(
            0.5, ge=0, description="weight of voxels with a pseudo label; labeled voxels: 1"
        )
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the teacher's moving average")
        connectivity: Literal[6, 18, 26] = Field(
            26,
            description="neighbors of a voxel (LA: 26, pancreas: 18); in 2-D: 6 means 4, others 8",
        )
        keep_optimizer: bool = Field(
            False,
            description="continue with the optimizer's state after pretraining (pancreas and 2-D "
            "code); false: a new optimizer",
        )
        code: Literal["3d", "2d"] = Field(
            "3d",
            description="authors' script: for volumes, or for slices, with another Dice loss",
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        size = tuple(batch.x.shape[2:])
        generator = t.generator("box")
        # One box for all pairs: (1, *S), false inside the box.
        outside = context_mask(1, size, self.p.box, generator, batch.x.device)
        if t.phase == "pretrain":
            return self.pretrain(batch, outside)
        return self.self_train(batch, outside)

    def pretrain(self, batch: Batch, outside: Tensor) -> dict[str, Tensor]:
        """Return the loss on labeled images with boxes of other labeled images."""
        pairs = (len(batch.x) + 1) // 2
        x_a, x_b = halves(batch.x, pairs)
        y_a, y_b = halves(batch.y, pairs)
        images = mix(outside, x_a, x_b)
        labels = mix(outside, y_a, y_b)
        logits = self.student(images)  # (P, K, *S)
        return {"supervised": dice_and_entropy(logits, labels, code=self.p.code)}

    def self_train(self, batch: Batch, outside: Tensor) -> dict[str, Tensor]:
        """Return the losses on labeled images with unlabeled boxes, and the other way round."""
        larger = max(len(batch.x), len(batch.u))
        pairs = (larger + 1) // 2
        x_a, x_b = halves(batch.x, pairs)
        y_a, y_b = halves(batch.y, pairs)
        u_a, u_b = halves(batch.u, pairs)

        # Pseudo labels of the unlabeled images by the teacher: (P, *S) each.
        teacher_a, teacher_b = pass_groups(self.teacher, u_a, u_b)
        pseudo_a = self.label(teacher_a)
        pseudo_b = self.label(teacher_b)

        # Each kind of mixture has its own batch statistics. Logits (P, K, *S) each.
        labeled_outside = mix(outside, x_a, u_a)
        unlabeled_outside = mix(outside, u_b, x_b)
        in_labeled, in_unlabeled = pass_groups(self.student, labeled_outside, unlabeled_outside)
        weight = self.p.weight
        code = self.p.code
        return {
            "in_labeled": mixed_loss(in_labeled, y_a, pseudo_a, outside, 1, weight, code),
            "in_unlabeled": mixed_loss(in_unlabeled, pseudo_b, y_b, outside, weight, 1, code),
        }

    def label(self, logits: Tensor) -> Tensor:
        """Return pseudo labels (P, *S) for the teacher's logits (P, K, *S)."""
        labels = harden(logits)
        return largest_components(labels, self.classes, self.p.connectivity)

    def phases(self) -> tuple[Phase, ...]:
        share = self.p.pretrain_share
        pretrain = Phase("pretrain", share, unlabeled=0)
        self_train = Phase("self_train", 1 - share, fresh_optimizer=not self.p.keep_optimizer)
        return pretrain, self_train

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        if phase.name == "pretrain" and not self.p.keep_optimizer:
            return default.model_copy(update={"schedule": "constant"})
        return default  # an optimizer that is kept has one schedule over both phases

    def start_phase(self, phase: Phase) -> None:
        # Both networks start from the pretrained weights.
        pretrained = self.student.state_dict()
        self.teacher.model.load_state_dict(pretrained)

    def after_step(self, t: Clock) -> None:
        if t.phase != "pretrain":
            self.teacher.follow(self.student, self.p.decay)


def halves(items: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first and second half of (N, ...), each repeated until it has ``size`` items."""
    half = (len(items) + 1) // 2
    first = items[:half]
    second = items[-half:]
    turn = torch.arange(size, device=items.device) % half
    return first[turn], second[turn]


def harden(logits: Tensor) -> Tensor:
    """Return hard labels (N, *S) for logits (N, K, *S).

    Ties go to the foreground if there are two classes (p >= 0.5), else to the first class.
    """
    if logits.shape[1] > 2:
        return most_probable(logits)
    background = logits[:, 0]
    foreground = logits[:, 1]
    return (foreground >= background).long()


def largest_components(labels: Tensor, classes: int, connectivity: int) -> Tensor:
    """Keep only the largest connected component of each class in each item of (N, *S)."""
    in_plane = labels.ndim == 3
    if in_plane and connectivity == 18:
        connectivity = 26  # both mean 8 neighbors in 2-D
    kept = torch.zeros_like(labels)
    for item, out in zip(labels, kept, strict=True):
        for value in range(1, classes):
            mask = item == value
            largest = largest_component(mask, connectivity)
            component = torch.from_numpy(largest).to(labels.device)
            out.masked_fill_(component, value)
    return kept


def dice_and_entropy(
    logits: Tensor, labels: Tensor, mask: Tensor | None = None, code: str = "3d"
) -> Tensor:
    """Return (Dice + cross entropy) / 2 of logits (N, K, *S) and labels (N, *S).

    With a mask (1, *S), only voxels where it is true count. With ``code="2d"`` the Dice loss has
    squared denominators and sums over the batch.
    """
    for_slices = code == "2d"
    overlap = dice(
        wide_softmax(logits),
        labels,
        background=True,
        per_item=not for_slices,
        squared=for_slices,
        smooth=1e-10 if for_slices else 1e-5,
        weight=mask,
    )
    entropy = cross_entropy(logits, labels, mask)
    return (overlap + entropy) / 2


def mixed_loss(
    logits: Tensor,
    outer: Tensor,
    inner: Tensor,
    mask: Tensor,
    outer_weight: float,
    inner_weight: float,
    code: str = "3d",
) -> Tensor:
    """Return the weighted sum of the losses outside the box (``mask`` is true) and inside it.

    ``outer`` and ``inner`` are the labels (N, *S) for the two regions.
    """
    outside = dice_and_entropy(logits, outer, mask, code)
    inside = dice_and_entropy(logits, inner, ~mask, code)
    return outer_weight * outside + inner_weight * inside
