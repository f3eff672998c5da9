"""Self-training: train, label the unlabeled images once, and train again on all images.

Rosenberg, Hebert, Schneiderman: Semi-Supervised Self-Training of Object Detection Models, WACV
2005. The maintainers of nnU-Net recommend this recipe for unlabeled images
(github.com/MIC-DKFZ/nnUNet, issue 2233; in issue 2338, the second network is trained on the
predicted labels first). There is no official code. The issues were read, of the paper only the
bibliographic data; no equations were at hand, so no equation numbers are given.

The first phase trains a network on the labeled images. Its last weights become the teacher, which
does not change any more: every unlabeled image keeps its label. The second phase trains a network
from the initial weights on labeled and on pseudo-labeled images.

Paper (nnU-Net, issue)   Official code                      Here
train on the labeled     -                                  first phase: share of the run's steps,
  images                                                      all places of a batch labeled
predict all unlabeled    -                                  the teacher, in eval mode, labels each
  images                                                      patch as it is drawn: the same as
                                                              predicting the image once if the patch
                                                              is the whole image, else one window
hard labels, all voxels  -                                  the same; threshold=0.95 uses confident
                                                              voxels only
train another network    -                                  second phase: a new optimizer; the
  on both                                                     network starts again from its initial
                                                              weights
each training has its    -                                  both share the run's steps, so that the
  full length                                                 method costs as much as others
one list of images       -                                  the protocol's two streams: labeled
                                                              images come more often
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from segbench import Batch, Clock, Field, MethodParams, Phase, method
from segbench.nn.bases import StudentTeacher
from segbench.nn.losses import cross_entropy, dice, dice_ce
from segbench.nn.ops import evaluating, pseudo_labels, wide_softmax


@method("self_training", paper="Rosenberg et al., WACV 2005")
class SelfTraining(StudentTeacher):
    """A network that learns from labels and from the labels of its fixed predecessor."""

    skips_ignored = True

    class Params(MethodParams):
        share: float = Field(
            0.5, gt=0, lt=1, description="fraction of the steps for the first training"
        )
        weight: float = Field(1.0, ge=0, description="weight of the pseudo-labeled images")
        threshold: float = Field(
            0.0, ge=0, le=1, description="probability from which a pseudo label is used"
        )

    def phases(self) -> tuple[Phase, ...]:
        first = Phase("labeled", self.p.share, unlabeled=0)
        second = Phase("all", 1 - self.p.share, fresh_optimizer=True)
        return first, second

    def start_phase(self, phase: Phase) -> None:
        if phase.name != "all":
            return
        # The teacher has kept the initial weights of the student so far: exchange the two.
        trained = copy.deepcopy(self.student.state_dict())
        initial = self.teacher.model.state_dict()
        self.student.load_state_dict(initial)
        self.teacher.model.load_state_dict(trained)

    def after_step(self, t: Clock) -> None:
        """Leave the teacher as it is."""

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        if t.phase == "labeled":
            return {"supervised": dice_ce(self.student(batch.x), batch.y)}

        with evaluating(self.teacher):
            labels, confidence = pseudo_labels(self.teacher(batch.u))  # (U, *S) each
        used = confidence >= self.p.threshold

        images = torch.cat([batch.x, batch.u])
        logits = self.student(images)
        labeled, unlabeled = logits.split([len(batch.x), len(batch.u)])
        overlap = dice(wide_softmax(unlabeled), labels, weight=used)
        entropy = cross_entropy(unlabeled, labels, used)
        pseudo = (entropy + overlap) / 2
        return {
            "supervised": dice_ce(labeled, batch.y),
            "pseudo": self.p.weight * pseudo,
        }
