"""SASSNet: a critic judges whether a signed distance map was predicted for a labeled image.

Li, Zhang, He: Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images, MICCAI 2020,
arXiv:2007.10732. Official code: github.com/kleinzcy/SASSnet. The code was consulted through a
written specification; nothing was copied.

The network predicts a mask and a signed distance map. The critic learns to classify pairs of a
distance map and its image as labeled or unlabeled; the adversarial term trains the network so that
the critic classifies its maps of unlabeled images as labeled.

Paper                    Official code                      Here
two classes              one channel per head, sigmoid      each head has one channel per foreground
                                                              class, which gives K - 1 binary
                                                              problems; their losses are averaged;
                                                              the critic gets all maps
distance map of the      of the labeled crop, computed on   the same exact map, computed on the
  mask                     the CPU                            device of the labels
-                        class absent from the crop: 0      absent=0, up to absent=1 for a crop that
                           everywhere; crop filled by it:     is all outside; filled crop: -1
                           NaN                                everywhere
critic gets the image    average pooling of 7x7x5, which    average over all positions, the same for
                           requires one patch size            that patch size; for the critic,
                                                              patches smaller than 16 are padded
                                                              with zeros; 2-D too
labeled or unlabeled     fixed targets 1, 1, 0, 0           any numbers of labeled and unlabeled
                                                              images
-                        critic trained on maps of the      the same
                           updated network in eval mode
-                        network trained with the critic    the same; this pass leaves no gradient
                           in eval mode                       in the critic, where the code discards
                                                              it with the next zero_grad
-                        critic: Adam, lr 1e-4, betas       the same; the network has the protocol's
                           (0.9, 0.99)                        optimizer
-                        weight 0.01; README: 0.015 for 8   weight=0.01 for any number of labeled
                           labeled images                     images
-                        cross entropy is logged, not used  left out
-                        ramp of 40 stairs of 150 steps     40 stairs over the run: ramp_share=1
-                        sigmoid > 0.5 of the mask head     [1 - max p, p_1, ...], the same for one
                                                              class
-                        released weights are named best    the last weights; the protocol decides
                                                              about the largest component
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
from segbench.nn.ops import is_known, one_hot


@method("sassnet", paper="Li et al., MICCAI 2020")
class SASSNet(TwoHeads):
    """A network and a critic that are updated in alternation.

    The engine calls ``train()`` before the update of each player, so eval mode ends with an update.
    """

    skips_ignored = True

    class Params(MethodParams):
        weight: float = Field(
            0.01,
            ge=0,
            description="weight of the adversarial term after the ramp; README: 0.015 for 8 labels",
        )
        distance_weight: float = Field(
            0.3, ge=0, description="weight of the supervised distance term"
        )
        ramp_share: float = Field(
            1.0, gt=0, description="length of the ramp, in runs; above 1, the run ends before it"
        )
        absent: float = Field(
            0.0,
            ge=0,
            le=1,
            description="target distance in crops without the class: 0 (boundary, as in the code) "
            "to 1 (outside)",
        )

    players = ("network", "critic")  # each has its own loss and optimizer

    def build(self, network: Callable[..., Backbone]) -> None:
        super().build(network)
        foreground = self.classes - 1
        self.critic = Critic(foreground, self.setting.channels, self.setting.dims)

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        if player == "critic":
            return Optim(name="adam", lr=1e-4, betas=(0.9, 0.99), weight_decay=0)
        return default

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        distance, p = self.answer(images)  # each (L + U, K-1, *S)
        known = is_known(batch.y).unsqueeze(1)  # (L, 1, *S)
        mask = one_hot(batch.y, self.classes)[:, 1:]  # (L, K-1, *S)
        target = signed_distance(batch.y, self.classes, self.p.absent)  # (L, K-1, *S)
        count = len(batch.x)
        distance_error = squared_error(distance[:count], target, known)

        # The network should make the critic classify its maps of unlabeled images as labeled.
        verdict = self.fixed_verdict(distance[count:], batch.u)  # (U, 2)
        adversarial = verdict_loss(verdict, labeled=len(verdict))
        weight = self.p.weight * t.ramp(40, share=self.p.ramp_share)
        return {
            "dice": soft_dice(p[:count] * known, mask, keep=(1,)),
            "distance": self.p.distance_weight * distance_error,
            "adversarial": weight * adversarial,
        }

    def fixed_verdict(self, distance: Tensor, image: Tensor) -> Tensor:
        """Return the critic's logits (N, 2) in eval mode; its weights get no gradient."""
        weights = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        self.critic.eval()
        return torch.func.functional_call(self.critic, weights, (distance, image))

    def loss_critic(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Return the critic's loss on maps that the updated network predicts."""
        image = torch.cat([batch.x, batch.u])
        self.network.eval()
        with torch.no_grad():
            distance, _ = self.answer(image)
        verdict = self.critic(distance, image)  # (L + U, 2)
        return {"critic": verdict_loss(verdict, labeled=len(batch.x))}


def verdict_loss(verdict: Tensor, labeled: int) -> Tensor:
    """Return the cross entropy of the critic's logits (N, 2).

    The target of the first ``labeled`` items is "labeled", that of the others "unlabeled".
    """
    number = torch.arange(len(verdict), device=verdict.device)
    target = (number < labeled).long()
    return cross_entropy(verdict, target)


class Critic(nn.Module):
    """Predicts whether a distance map belongs to a labeled image: logits (N, 2) for no and yes.

    It has no normalization layers.
    """

    SMALLEST = 16  # edge of a patch that four convolutions of stride 2 reduce to one position

    def __init__(self, maps: int, channels: int, dims: int) -> None:
        """Build the layers for ``maps`` distance maps and ``channels`` of the image, 2-D or 3-D."""
        super().__init__()
        kind: Any = nn.Conv3d if dims == 3 else nn.Conv2d
        conv = partial(kind, kernel_size=4, stride=2, padding=1)
        self.conv0 = conv(maps, 64)
        self.conv1 = conv(channels, 64)
        self.conv2 = conv(64, 128)
        self.conv3 = conv(128, 256)
        self.conv4 = conv(256, 512)
        # Drops whole channels.
        self.dropout = nn.Dropout3d(0.5) if dims == 3 else nn.Dropout2d(0.5)
        self.classifier = nn.Linear(512, 2)

    def forward(self, distance: Tensor, image: Tensor) -> Tensor:
        """Return logits (N, 2) for ``distance`` (N, K-1, *S) and ``image`` (N, C, *S)."""
        distance = self.padded(distance)
        image = self.padded(image)
        x = self.conv0(distance) + self.conv1(image)
        for conv in (self.conv2, self.conv3, self.conv4):
            x = F.leaky_relu(x, 0.2)
            x = self.dropout(x)
            x = conv(x)
        x = F.leaky_relu(x, 0.2)
        pooled = x.flatten(2).mean(2)  # (N, 512)
        return self.classifier(pooled)

    def padded(self, x: Tensor) -> Tensor:
        """Pad ``x`` with zeros at the end of each axis that is shorter than ``SMALLEST``."""
        sides: list[int] = []
        for edge in reversed(x.shape[2:]):
            missing = max(self.SMALLEST - edge, 0)
            sides += [0, missing]
        return F.pad(x, sides)
