"""SASSNet: a critic judges whether a predicted signed distance map comes from a labeled image.

Li, Zhang, He: Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images, MICCAI 2020,
arXiv:2007.10732. Official code: github.com/kleinzcy/SASSnet, consulted through a written specification; nothing copied.

Paper                       Official code                      Here
two classes                 one channel per head, sigmoid        a channel of each head for each foreground class, K - 1
                                                               binary problems averaged; the critic reads all maps
distance of the mask        of the labeled crop, on the host   the same map, exact, on the labels' device
-                           a crop without the class: 0        absent=0, or up to absent=1, all outside
                            everywhere; full of it: NaN        -1 everywhere
critic sees the image       pools 7x7x5, so one patch size     averages over all positions: the same there; patches
                                                               below 16 are padded with zeros for it, 2-D too
labeled or unlabeled        targets 1, 1, 0, 0                 any numbers of labeled and unlabeled items
-                           critic trained on maps of the      the same
                            updated network in eval mode
-                           network trained with the critic    the same; that pass leaves no gradient in the critic, as
                            in eval mode                       the code's next zero_grad throws it away
-                           critic: Adam 1e-4, (0.9, 0.99)     the same; the network has the protocol's optimizer
-                           weight 0.01; README: 0.015 for 8   weight=0.01 whatever the number of labels
                            labels
-                           cross entropy logged, not used     left out
-                           ramp of 40 stairs of 150 steps     40 stairs over the run
-                           sigmoid > 0.5 of the mask's head   [1 - max p, p_1, ...]: the same for one class
-                           released weights are called best   the last weights; the largest component is the
                                                               protocol's choice
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, MethodParams, Optim, Phase, method
from segbench.nn.bases import TwoHeads
from segbench.nn.distance import signed_distance
from segbench.nn.losses import cross_entropy, soft_dice, squared_error
from segbench.nn.ops import one_hot


@method("sassnet", paper="Li et al., MICCAI 2020")
class SASSNet(TwoHeads):
    """A network and a critic, trained in turn: distance maps of unlabeled images should pass for maps of labeled ones.

    The engine calls train() before each player's update, so eval mode lasts until the end of an update only.
    """

    class Params(MethodParams):
        weight: float = Field(
            0.01,
            ge=0,
            description="weight of the adversarial term after its ramp; 0.015 for 8 labels",
        )
        distance_weight: float = Field(
            0.3, ge=0, description="weight of the supervised distance term"
        )
        absent: float = Field(
            0.0,
            ge=0,
            le=1,
            description="target distance in a crop without the class: 0 (all boundary, as in the code) to 1 (all outside)",
        )

    players = ("network", "critic")  # each has its own loss and optimizer

    def build(self, network: Callable[..., Backbone]) -> None:
        super().build(network)
        self.critic = Critic(self.classes - 1, self.setting.channels, self.setting.dims)

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        adam = Optim(name="adam", lr=1e-4, betas=(0.9, 0.99), weight_decay=0)
        return adam if player == "critic" else default

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        distance, p = self.answer(torch.cat([batch.x, batch.u]))  # each (L + U, K-1, *S)
        count = len(batch.x)
        mask = one_hot(batch.y, self.classes)[:, 1:]  # (L, K-1, *S)
        target = signed_distance(batch.y, self.classes, self.p.absent)  # (L, K-1, *S)

        # The distance maps of unlabeled images should pass for those of labeled ones. The critic is fixed here.
        weights = {name: w.detach() for name, w in self.critic.named_parameters()}
        inputs = (distance[count:], batch.u)
        verdict = torch.func.functional_call(self.critic.eval(), weights, inputs)  # (U, 2)
        return {
            "dice": soft_dice(p[:count], mask, keep=(1,)),
            "distance": self.p.distance_weight * squared_error(distance[:count], target),
            "adversarial": self.p.weight * t.ramp(40) * verdict_loss(verdict, len(batch.u)),
        }

    def loss_critic(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """The critic's update, after the network's: its maps are computed again."""
        image = torch.cat([batch.x, batch.u])
        self.network.eval()
        with torch.no_grad():
            distance, _ = self.answer(image)
        return {"critic": verdict_loss(self.critic(distance, image), len(batch.x))}


def verdict_loss(verdict: Tensor, labeled: int) -> Tensor:
    """Cross entropy of the critic's logits (N, 2) with the verdict that the first ``labeled`` items are labeled."""
    is_labeled = torch.arange(len(verdict), device=verdict.device) < labeled
    return cross_entropy(verdict, is_labeled.long())


class Critic(nn.Module):
    """Judges whether the image of a distance map was labeled: logits (N, 2), no and yes. No normalization anywhere."""

    SMALLEST = 16  # edge of a patch of which four halvings leave one position

    def __init__(self, maps: int, channels: int, dims: int) -> None:
        """``maps`` distance maps, ``channels`` of the image, 2 or 3 ``dims``."""
        super().__init__()
        kind: Any = nn.Conv3d if dims == 3 else nn.Conv2d
        conv = partial(kind, kernel_size=4, stride=2, padding=1)
        self.conv0 = conv(maps, 64)
        self.conv1 = conv(channels, 64)
        self.conv2 = conv(64, 128)
        self.conv3 = conv(128, 256)
        self.conv4 = conv(256, 512)
        self.dropout = nn.Dropout3d(0.5) if dims == 3 else nn.Dropout2d(0.5)  # whole channels
        self.classifier = nn.Linear(512, 2)

    def forward(self, distance: Tensor, image: Tensor) -> Tensor:
        """``distance`` (N, K-1, *S), ``image`` (N, C, *S)."""
        x = self.conv0(self.padded(distance)) + self.conv1(self.padded(image))
        for conv in (self.conv2, self.conv3, self.conv4):
            x = conv(self.dropout(F.leaky_relu(x, 0.2)))
        pooled = F.leaky_relu(x, 0.2).flatten(2).mean(2)  # (N, 512)
        return self.classifier(pooled)

    def padded(self, x: Tensor) -> Tensor:
        """``x`` with zeros behind short axes."""
        sides: list[int] = []
        for edge in reversed(x.shape[2:]):
            sides += [0, max(self.SMALLEST - edge, 0)]
        return F.pad(x, sides)
