"""SS-Net: predictions resist the worst small change of the image, and voxels move toward prototypes of their class.

Wu, Wu, Wu, Ge, Cai: Exploring Smoothness and Class-Separation for Semi-supervised Medical Image Segmentation, MICCAI
2022, arXiv:2203.01324. Official code: github.com/ycwu1997/SS-Net, consulted through a written specification; nothing
copied.

Paper                       Official code                      Here
best-scored prototypes      the 32 lowest scores of each       the same: stored as projected in evaluation mode, from
                            step's correct voxels              features after dropout, in place of the previous ones
classes are separated       background never gets prototypes,  the same, for classes 1 to K - 1, with the factor 1/K:
                            so nothing repels; factor 1/2      prototypes attract only
weighted prototypes         weights identically 1              left out, so distances are to the mean prototype: no
                                                               voxels-by-prototypes matrix; the selectors are kept
-                           selectors of unused kinds have     no gradient (``dormant``), no weight decay either
                            zero gradient
adversarial perturbation    of norm 10 in 3-D (2-D: 6),        magnitude=10, whatever the patch and dimension; over all
                            labeled images included            channels of an item
-                           Dice of both channels of two       the same over K channels; at no perturbation it is the
                            soft maps                          mean Gini impurity, so it lowers entropy as well
-                           running statistics move in the     the same
                            main pass and the clean one only
-                           float32 throughout                 heads and normalizations also under lower precision; the
                                                               power step's gradient is scaled past float16's limit
two classes                 Dice of the foreground             averaged over the foreground classes
-                           cross entropy logged, not used     left out
-                           ramp of 40 stairs of 150 steps,    40 stairs over the run, from 1 too: the code's first
                            counted from 1; 15 000 steps       6000 steps; ramp_share=0.4 gives its 15 000
-                           lr / 10 every 2500 steps           the protocol's optimizer (la: the same)
-                           2-D: weight 0.1, ramp of 200       as in 3-D: weight 1 and 40 stairs
                            stairs; both Dice losses with
                            squared denominators
best test Dice              best test Dice; largest component  the last weights; the component is the protocol's choice
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.contracts.method import sigmoid_ramp
from segbench.nn.losses import dice, soft_dice

WIDTH = 32  # of projected features


def head(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    """Two linear layers for rows (M, inputs), one per voxel."""
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), activation, nn.Linear(WIDTH, outputs)
    )


@method("ss_net", paper="Wu et al., MICCAI 2022")
class SSNet(Method):
    """Dice, virtual adversarial smoothness and attraction to prototypes, with one network in one stage."""

    class Params(MethodParams):
        weight: float = Field(
            1.0, ge=0, description="weight of the unsupervised terms after their ramp"
        )
        separation_weight: float = Field(
            0.1, ge=0, description="weight of the prototype term relative to smoothness"
        )
        prototypes: int = Field(
            32, ge=2, le=4096, description="number kept for each foreground class"
        )
        magnitude: float = Field(
            10.0, gt=0, description="Euclidean norm of an image's perturbation (2-D code: 6)"
        )
        probe: float = Field(
            10.0, gt=0, description="norm of the random perturbation whose gradient is followed"
        )
        ramp_share: float = Field(
            1.0,
            gt=0,
            le=1,
            description="share of the run after which the weight is full (code: 0.4)",
        )

    needs = frozenset({"features"})
    # Background has no prototypes to be compared with, and weights of prototypes have no effect.
    dormant: ClassVar[tuple[str, ...]] = ("selectors.0.", "memory_selectors.")
    bank: Tensor
    filled: Tensor

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()
        self.projection = head(self.network.width, WIDTH, nn.ReLU())
        self.prediction = head(WIDTH, WIDTH, nn.ReLU())
        self.selectors = nn.ModuleList(
            head(WIDTH, 1, nn.LeakyReLU(0.2)) for _ in range(self.classes)
        )
        self.memory_selectors = nn.ModuleList(
            head(WIDTH, 1, nn.LeakyReLU(0.2)) for _ in range(self.classes)
        )
        self.register_buffer("bank", torch.zeros(self.classes, self.p.prototypes, WIDTH))
        self.register_buffer("filled", torch.zeros(self.classes, dtype=torch.int64))

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        image = torch.cat([batch.x, batch.u])
        count = len(batch.x)
        pyramid = self.network.encode(image)
        features = self.network.decode(pyramid)[0]  # (L + U, F, *S), after dropout
        logits = self.network.head(features)  # (L + U, K, *S)
        with torch.autocast(image.device.type, enabled=False):
            separation = self.separation(wide(features), logits.argmax(1), batch.y)
        stair = (t.step + 1) * 40 // (self.p.ramp_share * t.total)
        weight = self.p.weight * sigmoid_ramp(stair, 40)
        return {
            "dice": dice(wide(logits[:count]).softmax(1), batch.y, squared=False, smooth=1e-8),
            "separation": weight * self.p.separation_weight * separation,
            "smoothness": weight * self.smoothness(image),
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)

    # -- class separation ----------------------------------------------------------------------------------------------

    def separation(self, features: Tensor, guess: Tensor, y: Tensor) -> Tensor:
        """Attraction of labeled voxels by their labels ``y`` (L, *S) plus that of unlabeled ones by ``guess`` (L + U, *S)."""
        rows = features.movedim(1, -1)  # (L + U, *S, F)
        count = len(y)
        self.remember(rows[:count], guess[:count], y)
        labeled = self.attraction(rows[:count].flatten(0, -2), y.flatten())
        unlabeled = self.attraction(rows[count:].flatten(0, -2), guess[count:].flatten())
        return labeled + unlabeled

    @torch.no_grad()
    def remember(self, rows: Tensor, guess: Tensor, y: Tensor) -> None:
        """Replace the prototypes of every foreground class that has correctly segmented voxels."""
        for c in range(1, self.classes):
            correct = rows[(guess == c) & (y == c)]
            if len(correct):
                self.projection.eval()
                projected = self.projection(correct)
                self.projection.train(self.training)
                if len(projected) > self.p.prototypes:
                    lowest = self.score(c, projected).argsort(stable=True)[: self.p.prototypes]
                    projected = projected[lowest]
                self.bank[c, : len(projected)] = projected
                self.filled[c] = len(projected)

    def attraction(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Mean over classes of the distance of the class's ``rows`` (M, F) to its prototypes."""
        predicted = self.prediction(self.projection(rows))  # (M, 32)
        total = predicted.new_zeros(())
        for c in range(1, self.classes):
            mine = predicted[labels == c]
            prototypes = self.bank[c, : self.filled[c]]
            if len(mine) >= 2 and len(prototypes) >= 2:
                total = total + distance(mine, prototypes, self.score(c, mine.detach()))
        return total / self.classes

    def score(self, c: int, rows: Tensor) -> Tensor:
        """Score in (0, 1) of the feature selector of class ``c``; (M, 32) to (M,)."""
        return self.selectors[c](rows).sigmoid().squeeze(1)

    # -- smoothness ----------------------------------------------------------------------------------------------------

    def smoothness(self, image: Tensor) -> Tensor:
        """Difference between the network's predictions for the image and for its worst perturbation.

        The two passes have different dropout masks.
        """
        with torch.no_grad():
            p = wide(self.network(image)).softmax(1)  # moves running statistics again
        with statistics_held(self.network):
            d = worst_direction(self.network, image, p, torch.rand_like(image) - 0.5, self.p.probe)
            return overlap_loss(self.network(image + self.p.magnitude * d), p)


def distance(features: Tensor, prototypes: Tensor, score: Tensor) -> Tensor:
    """Mean of a_i (1 - cos(feature i, prototype j)) over i of M and j, where a = M score / sum(score).

    The mean over j is taken first, so that the memory needed is that of the (M, 32) features.
    """
    mean = F.normalize(prototypes, dim=1).mean(0)
    return (score * (1 - F.normalize(features, dim=1) @ mean)).sum() / score.sum()


def worst_direction(
    network: nn.Module, image: Tensor, p: Tensor, start: Tensor, probe: float
) -> Tensor:
    """One power step from ``start`` toward where the prediction leaves ``p`` (N, K, *S) fastest; norm 1 per item.

    No parameter gets a gradient. The loss is a mean over voxels whose gradient float16 would round to 0.
    """
    d, voxels = unit(start).requires_grad_(), p[:, 0].numel()
    change = overlap_loss(network(image + probe * d), p)
    (gradient,) = torch.autograd.grad(change * voxels, d)
    return unit(gradient / voxels)


def unit(d: Tensor) -> Tensor:
    """Each item of (N, C, *S) divided by its Euclidean norm."""
    norm = torch.linalg.vector_norm(wide(d), dim=tuple(range(1, d.ndim)), keepdim=True)
    return wide(d) / (norm + 1e-8)


def overlap_loss(logits: Tensor, q: Tensor) -> Tensor:
    """1 - 2 sum(p q) / sum(p + q) with p = softmax(logits), over everything: 1 - the mean over voxels of sum_c p_c q_c."""
    return soft_dice(wide(logits).softmax(1), q, squared=False, smooth=1e-8)


@contextmanager
def statistics_held(network: nn.Module) -> Iterator[None]:
    """Restore the running statistics afterwards. Passes inside still normalize by their batch."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(network.buffers(), before, strict=True):
            # Around autograd, which has saved the buffers without need and would refuse the backward pass.
            buffer.data.copy_(value)


def wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
