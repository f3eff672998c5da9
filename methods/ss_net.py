"""SS-Net: smooth predictions under adversarial noise, and class separation by prototypes.

Wu, Wu, Wu, Ge, Cai: Exploring Smoothness and Class-Separation for Semi-supervised Medical Image
Segmentation, MICCAI 2022, arXiv:2203.01324. Official code: github.com/ycwu1997/SS-Net. The code was
consulted through a written specification; nothing was copied.

The smoothness term is the difference between the predictions for an image and for the same image
with an adversarial perturbation, as in virtual adversarial training. The separation term moves the
projected features of voxels toward stored prototypes of their class.

Paper                    Official code                      Here
prototypes with the      the 32 lowest scores among the     the same: projected in eval mode from
  best scores              correctly segmented voxels of      features after dropout; they replace
                           each step                          the previous prototypes
classes are separated    background never gets prototypes,  the same for classes 1 to K - 1, with
                           so nothing is pushed apart;        the factor 1/K: prototypes attract
                           factor 1/2                         only
weighted prototypes      the weights are always 1           left out; the distance is to the mean
                                                              prototype, which needs no matrix of
                                                              voxels by prototypes; the selectors
                                                              are kept
-                        selectors that are not used have   they have no gradient (``dormant``) and
                           a zero gradient                    no weight decay either
adversarial              norm 10 in 3-D (2-D: 6), on        magnitude=10 for any patch size and
  perturbation             labeled images too                 dimension; the norm is over all
                                                              channels of an image
-                        Dice of both channels of two       the same over K channels; without a
                           softmax maps                       perturbation it equals the mean Gini
                                                              impurity, so it also lowers the
                                                              entropy
-                        running statistics are updated in  the same
                           the main pass and in the clean
                           pass only
-                        float32 throughout                 with reduced precision, heads and
                                                              normalizations stay in float32; the
                                                              gradient of the power step is scaled
                                                              because float16 would round it to 0
two classes              Dice of the foreground             averaged over the foreground classes
-                        cross entropy is logged, not used  left out
-                        ramp of 40 stairs of 150 steps,    40 stairs over the run, also counted
                           with steps counted from 1; 15      from 1, as in the first 6000 steps of
                           000 steps                          the code; ramp_share=0.4 reproduces
                                                              its run of 15,000 steps
-                        lr divided by ten every 2500       the protocol's optimizer (la: the same)
                           steps
-                        2-D (train_ss_2d.py): both Dice    code=2d, as in protocol acdc_ssnet
                           losses for each class, with
                           squared denominators; steps of
                           the ramp counted from 0
-                        2-D: weight 0.1, 200 stairs of     weight=0.1, stairs=200, magnitude=6
                           150 steps in 30,000
best test Dice           best test Dice; largest component  the last weights; the protocol decides
                                                              about the largest component
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice, soft_dice
from segbench.nn.ops import most_probable

WIDTH = 32  # channels of the projected features


def head(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    """Return two linear layers that map rows (M, inputs), one per voxel, to (M, outputs)."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.BatchNorm1d(WIDTH),
        activation,
        nn.Linear(WIDTH, outputs),
    )


def selectors(classes: int) -> nn.ModuleList:
    """Return one feature selector per class, which maps rows (M, 32) to scores (M, 1)."""
    heads = [head(WIDTH, 1, nn.LeakyReLU(0.2)) for _ in range(classes)]
    return nn.ModuleList(heads)


@method("ss_net", paper="Wu et al., MICCAI 2022")
class SSNet(Method):
    """Dice, virtual adversarial smoothness and attraction to prototypes; one network, one stage."""

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            1.0, ge=0, description="weight of the unsupervised terms after the ramp"
        )
        separation_weight: float = Field(
            0.1, ge=0, description="weight of the prototype term relative to smoothness"
        )
        prototypes: int = Field(
            32, ge=2, le=4096, description="number of prototypes stored per foreground class"
        )
        magnitude: float = Field(
            10.0, gt=0, description="Euclidean norm of the adversarial perturbation (2-D code: 6)"
        )
        probe: float = Field(
            10.0, gt=0, description="norm of the random perturbation at which the gradient is taken"
        )
        ramp_share: float = Field(
            1.0,
            gt=0,
            description="length of the ramp, in runs; above 1, the run ends before it (code: 0.4)",
        )
        stairs: int = Field(40, ge=1, description="number of steps of the ramp (2-D code: 200)")
        code: Literal["3d", "2d"] = Field(
            "3d",
            description="authors' script: for volumes, or for slices, with another Dice loss",
        )

    needs = frozenset({"features"})
    # These layers get no gradient: background has no prototypes, and prototypes are not weighted.
    dormant: ClassVar[tuple[str, ...]] = ("selectors.0.", "memory_selectors.")
    bank: Tensor
    filled: Tensor

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()
        self.projection = head(self.network.width, WIDTH, nn.ReLU())
        self.prediction = head(WIDTH, WIDTH, nn.ReLU())
        self.selectors = selectors(self.classes)
        self.memory_selectors = selectors(self.classes)
        bank = torch.zeros(self.classes, self.p.prototypes, WIDTH)
        filled = torch.zeros(self.classes, dtype=torch.int64)
        self.register_buffer("bank", bank)
        self.register_buffer("filled", filled)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        image = torch.cat([batch.x, batch.u])
        pyramid = self.network.encode(image)
        features = self.network.decode(pyramid)[0]  # (L + U, F, *S), after dropout
        logits = self.network.head(features)  # (L + U, K, *S)
        guess = most_probable(logits)  # (L + U, *S)
        with torch.autocast(image.device.type, enabled=False):
            separation = self.separation(wide(features), guess, batch.y)

        labeled = wide(logits[: len(batch.x)]).softmax(1)
        if self.p.code == "2d":
            overlap = dice(labeled, batch.y, background=True, smooth=1e-10)
        else:
            overlap = dice(labeled, batch.y, squared=False, smooth=1e-8)
        smoothness = self.smoothness(image)
        first = 0 if self.p.code == "2d" else 1
        ramp = t.ramp(self.p.stairs, share=self.p.ramp_share, first=first)
        weight = self.p.weight * ramp
        return {
            "dice": overlap,
            "separation": weight * self.p.separation_weight * separation,
            "smoothness": weight * smoothness,
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)

    # -- class separation ----------------------------------------------------------------------

    def separation(self, features: Tensor, guess: Tensor, y: Tensor) -> Tensor:
        """Return the attraction of labeled voxels plus that of unlabeled voxels.

        The class of a labeled voxel is its label in ``y`` (L, *S), the class of an unlabeled voxel
        its prediction in ``guess`` (L + U, *S).
        """
        rows = features.movedim(1, -1)  # (L + U, *S, F)
        count = len(y)
        labeled = rows[:count]
        unlabeled = rows[count:]
        pseudo_labels = guess[count:]

        self.remember(labeled, guess[:count], y)
        of_labeled = self.attraction(labeled.flatten(0, -2), y.flatten())
        of_unlabeled = self.attraction(unlabeled.flatten(0, -2), pseudo_labels.flatten())
        return of_labeled + of_unlabeled

    @torch.no_grad()
    def remember(self, rows: Tensor, guess: Tensor, y: Tensor) -> None:
        """Replace the prototypes of each foreground class that has correctly segmented voxels."""
        for c in range(1, self.classes):
            is_correct = (guess == c) & (y == c)
            correct = rows[is_correct]  # (M, F)
            if len(correct) == 0:
                continue
            self.projection.eval()
            projected = self.projection(correct)  # (M, 32)
            self.projection.train(self.training)
            if len(projected) > self.p.prototypes:
                order = self.score(c, projected).argsort(stable=True)
                lowest = order[: self.p.prototypes]
                projected = projected[lowest]
            count = len(projected)
            self.bank[c, :count] = projected
            self.filled[c] = count

    def attraction(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the distance of ``rows`` (M, F) to their class's prototypes, averaged over K."""
        projected = self.projection(rows)  # (M, 32)
        predicted = self.prediction(projected)  # (M, 32)
        total = predicted.new_zeros(())
        for c in range(1, self.classes):
            mine = predicted[labels == c]
            count = self.filled[c]
            prototypes = self.bank[c, :count]
            if len(mine) < 2 or len(prototypes) < 2:
                continue
            score = self.score(c, mine.detach())
            total = total + distance(mine, prototypes, score)
        return total / self.classes

    def score(self, c: int, rows: Tensor) -> Tensor:
        """Return scores (M,) in (0, 1) of rows (M, 32) by the feature selector of class ``c``."""
        selector = self.selectors[c]
        return selector(rows).sigmoid().squeeze(1)

    # -- smoothness ----------------------------------------------------------------------------

    def smoothness(self, image: Tensor) -> Tensor:
        """Return the difference between the predictions for clean and for perturbed images.

        The passes have different dropout masks.
        """
        with torch.no_grad():
            logits = self.network(image)  # updates the running statistics again
        p = wide(logits).softmax(1)
        with statistics_held(self.network):
            start = torch.rand_like(image) - 0.5
            per_class = self.p.code == "2d"
            d = worst_direction(self.network, image, p, start, self.p.probe, per_class)
            perturbed = image + self.p.magnitude * d
            return overlap_loss(self.network(perturbed), p, per_class)


def distance(features: Tensor, prototypes: Tensor, score: Tensor) -> Tensor:
    """Return the mean over i and j of a_i (1 - cos(feature i, prototype j)).

    ``features`` is (M, 32), and a = M score / sum(score). The mean over j is computed first, so
    no matrix (M, prototypes) is needed.
    """
    features = F.normalize(features, dim=1)
    prototypes = F.normalize(prototypes, dim=1)
    cosine = features @ prototypes.mean(0)  # (M,)
    weighted = score * (1 - cosine)
    return weighted.sum() / score.sum()


def worst_direction(
    network: nn.Module,
    image: Tensor,
    p: Tensor,
    start: Tensor,
    probe: float,
    per_class: bool = False,
) -> Tensor:
    """Return the adversarial direction after one power iteration from ``start``; norm 1 per item.

    It increases the difference of the prediction from ``p`` (N, K, *S) the most. Parameters get no
    gradient. The loss is scaled by the number of voxels, because float16 would round its gradient
    to 0.
    """
    d = unit(start).requires_grad_()
    perturbed = image + probe * d
    change = overlap_loss(network(perturbed), p, per_class)
    voxels = p[:, 0].numel()
    (gradient,) = torch.autograd.grad(change * voxels, d)
    return unit(gradient / voxels)


def unit(d: Tensor) -> Tensor:
    """Return each item of (N, C, *S) divided by its Euclidean norm."""
    d = wide(d)
    axes = tuple(range(1, d.ndim))
    norm = torch.linalg.vector_norm(d, dim=axes, keepdim=True)
    return d / (norm + 1e-8)


def overlap_loss(logits: Tensor, q: Tensor, per_class: bool = False) -> Tensor:
    """Return 1 - 2 sum(p q) / sum(p + q) with p = softmax(logits) and sums over all elements.

    It equals 1 minus the mean over voxels of sum_c p_c q_c. With ``per_class`` it is the mean over
    the classes of 1 - 2 sum(p q) / sum(p^2 + q^2).
    """
    p = wide(logits).softmax(1)
    if per_class:
        return soft_dice(p, q, keep=(1,), smooth=1e-10)
    return soft_dice(p, q, squared=False, smooth=1e-8)


@contextmanager
def statistics_held(network: nn.Module) -> Iterator[None]:
    """Restore the running statistics at exit; passes inside still use their batch statistics."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(network.buffers(), before, strict=True):
            # ``data`` hides the change from autograd, which saved the buffers, although it does not
            # need them, and would refuse the backward pass.
            buffer.data.copy_(value)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 or higher precision."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.to(dtype)
