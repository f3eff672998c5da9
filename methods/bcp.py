"""BCP: boxes copied between labeled and unlabeled images, both ways; each part is learned from its own label.

Bai, Chen, Li, Shen, Wang: Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation, CVPR 2023,
arXiv:2305.00673. Official code: github.com/DeepMed-Lab-ECNU/BCP, consulted through a written specification; nothing
copied. It has three pipelines; that of the left atrium (LA) is the default here, and the others are named.

Paper                      Official code                       Here
pretraining on labels      2000, then 15 000 steps             the same shares of the run; the places of unlabeled
                                                               items go to labeled ones (LA: 4 of 8 stay empty)
both networks start from   best on the test list               the last
pretrained weights
-                          LA: constant rate, then a fresh     the same, with the protocol's optimizer and, in the
                           optimizer, a tenth every 2500       second phase, its schedule
                           steps; pancreas, 2-D: its state is
                           kept; pancreas: Adam 1e-3
-                          batch 4 + 4 (2-D: 12 + 12): halves  any batch; a pair is the n-th item of each half, the
                           a and b                             middle item of an odd number is in both halves, shorter
                                                               halves start over; a sole item is mixed with itself
-                          LA: u_a goes into x_a, x_b into     as LA
                           u_b; pancreas: x_b into u_a, u_b
                           into x_a
-                          pancreas: nothing is shuffled, so   shuffled batches, random crops where the protocol has
                           partners stay the same; unlabeled   them
                           crops are central
one box a step             corner from NumPy's generator       from the step's own generator, the same range
-                          teacher in train mode, dropout      the same; buffers neither averaged nor copied, except
                           and batch statistics                where the phase begins (2-D: buffers averaged too)
largest component          26 neighbors; pancreas 18           connectivity=26; of each class of each image; ties go
                                                               to the first in raster order; none stays none
-                          two classes: foreground >= 0.5      the same; more classes: argmax, as in 2-D
-                          Dice of all classes, linear         the same (2-D: squared denominators, and until October
                           denominators                        2023 no mask for the background)
-                          a ramp, logged only; projection,    left out
                           prediction and selector heads,
                           pooled features, never used
-                          pancreas: instance norm, no         the protocol's backbone; for vnet norm=instance,
                           dropout                             dropout=0
-                          student, best on the test list      student, the last weights
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, Optim, Phase, method
from segbench.metrics import largest_component
from segbench.nn.bases import StudentTeacher
from segbench.nn.losses import cross_entropy, dice
from segbench.nn.ops import context_mask, mix, pass_groups


@method("bcp", paper="Bai et al., CVPR 2023")
class BCP(StudentTeacher):
    """A student learns from mixed images: first of labeled ones, then of labeled ones and those its teacher labels."""

    class Params(MethodParams):
        pretrain_share: float = Field(
            2 / 17, gt=0, lt=1, description="share of the steps for labeled pretraining"
        )
        box: float = Field(
            2 / 3, gt=0, lt=1, description="edge of the box relative to that of the patch"
        )
        weight: float = Field(
            0.5, ge=0, description="weight of voxels with a pseudo label; labeled ones have 1"
        )
        decay: float = Field(0.99, ge=0, lt=1, description="decay of the moving average")
        connectivity: Literal[6, 18, 26] = Field(
            26,
            description="neighbors of a voxel in its component (LA 26, pancreas 18); 2-D: 6 means 4, others 8",
        )

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        size = tuple(batch.x.shape[2:])
        # One box for all pairs: (1, *S), false inside.
        outside = context_mask(1, size, self.p.box, t.generator("box"), batch.x.device)
        if t.phase == "pretrain":
            return self.pretrain(batch, outside)
        return self.self_train(batch, outside)

    def pretrain(self, batch: Batch, outside: Tensor) -> dict[str, Tensor]:
        """Boxes of labeled images in labeled images."""
        pairs = (len(batch.x) + 1) // 2
        x_a, x_b = halves(batch.x, pairs)
        y_a, y_b = halves(batch.y, pairs)
        logits = self.student(mix(outside, x_a, x_b))  # (P, K, *S)
        return {"supervised": dice_and_entropy(logits, mix(outside, y_a, y_b))}

    def self_train(self, batch: Batch, outside: Tensor) -> dict[str, Tensor]:
        """Boxes of unlabeled images in labeled ones, and boxes of labeled images in unlabeled ones."""
        pairs = (max(len(batch.x), len(batch.u)) + 1) // 2
        x_a, x_b = halves(batch.x, pairs)
        y_a, y_b = halves(batch.y, pairs)
        u_a, u_b = halves(batch.u, pairs)

        # The teacher labels the unlabeled images: (P, *S) each.
        pseudo_a, pseudo_b = (self.label(z) for z in pass_groups(self.teacher, u_a, u_b))

        # Batch statistics are those of one kind of mixture. Logits (P, K, *S) each.
        in_labeled, in_unlabeled = pass_groups(
            self.student, mix(outside, x_a, u_a), mix(outside, u_b, x_b)
        )
        weight = self.p.weight
        return {
            "in_labeled": mixed_loss(in_labeled, y_a, pseudo_a, outside, 1, weight),
            "in_unlabeled": mixed_loss(in_unlabeled, pseudo_b, y_b, outside, weight, 1),
        }

    def label(self, logits: Tensor) -> Tensor:
        """Pseudo labels (P, *S) from the teacher's logits (P, K, *S)."""
        return largest_components(harden(logits), self.classes, self.p.connectivity)

    def phases(self) -> tuple[Phase, ...]:
        share = self.p.pretrain_share
        pretrain = Phase("pretrain", share, unlabeled=0)
        return pretrain, Phase("self_train", 1 - share, fresh_optimizer=True)

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        if phase.name == "pretrain":
            return default.model_copy(update={"schedule": "constant"})
        return default

    def start_phase(self, phase: Phase) -> None:
        # Both networks start from the pretrained weights.
        self.teacher.model.load_state_dict(self.student.state_dict())

    def after_step(self, t: Clock) -> None:
        if t.phase != "pretrain":
            self.teacher.follow(self.student, self.p.decay)


def halves(items: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and second half of (N, ...), each repeated up to ``size`` items."""
    half = (len(items) + 1) // 2
    turn = torch.arange(size, device=items.device) % half
    return items[:half][turn], items[-half:][turn]


def harden(logits: Tensor) -> Tensor:
    """Labels (N, *S). Ties: the foreground of two classes (p >= 0.5), the first of more classes."""
    if logits.shape[1] == 2:
        return (logits[:, 1] >= logits[:, 0]).long()
    return logits.argmax(1)


def largest_components(labels: Tensor, classes: int, connectivity: int) -> Tensor:
    """Keep only the largest connected component of each class in each item of ``labels`` (N, *S)."""
    in_plane = labels.ndim == 3
    neighbors = 26 if in_plane and connectivity == 18 else connectivity  # in a plane both mean 8
    kept = torch.zeros_like(labels)
    for item, out in zip(labels, kept, strict=True):
        for value in range(1, classes):
            component = torch.from_numpy(largest_component(item == value, neighbors))
            out.masked_fill_(component.to(labels.device), value)
    return kept


def dice_and_entropy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """(Dice + cross entropy) / 2 of (N, K, *S) and (N, *S), over all voxels or those of a mask (1, *S)."""
    overlap = dice(
        logits.softmax(1), labels, background=True, per_item=True, squared=False, weight=mask
    )
    return (overlap + cross_entropy(logits, labels, mask)) / 2


def mixed_loss(
    logits: Tensor,
    outer: Tensor,
    inner: Tensor,
    mask: Tensor,
    outer_weight: float,
    inner_weight: float,
) -> Tensor:
    """Weighted sum of the loss outside the box (where ``mask`` is true) and inside it, each with its own labels."""
    outside = dice_and_entropy(logits, outer, mask)
    inside = dice_and_entropy(logits, inner, ~mask)
    return outer_weight * outside + inner_weight * inside
