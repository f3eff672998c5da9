"""VerSemi: one network for several partly labeled data sets, asked by prompt where each target is.

Zeng, Xie, Lu, Lu, Wu, Xia: Segment Together: A Versatile Paradigm for Semi-Supervised Medical Image
Segmentation, IEEE TMI 2025, doi 10.1109/TMI.2025.3556310, arXiv:2311.11686. Official code:
github.com/maxwell0027/VerSemi, consulted through a written specification; nothing copied. Of the paper only the
abstracts were at hand: the first column says what they describe.

Paper                    Official code                      Here
several tasks            four data sets of one target       any (data set, class) pairs; an image is asked for each
                                                            class of its data set in turn, lcm(classes) rounds
dynamic task prompts     one run of the network a prompt:   one run for all prompts, which enter the last layers only:
                         20 or 52 volumes a step            12 or 20; running statistics move as often as in the code
synthetic CutMix task    Dice of the united foregrounds;    the same at any patch; corners from the step's generator,
                         edge 96, NumPy's generator         of several processes each its own, with own ratios; an odd
                                                            batch uses its middle item in two pairs
unlabeled data          stage 1 only: the call of stage 2  stage 1, then 2, 55 % : 45 % of the steps (27 000 : 22 000
                         is disabled; 1000 epochs each      at 20 % labels); variant=released: stage 1
aggregate = synthetic    nothing detached                   the same; detach_aggregate=true as an ablation
auxiliary constraint     each box mask falls on all items   an item's own box; aux_mask=pairs as in the code
(reading inferred)       (broadcast)
not mentioned            ramp computed, never used          off; ramp=true applies it in stage 2
not mentioned            tumor branch never used           never computed; its weights stay in the controller, so that
                                                            sizes and initial values agree
not mentioned            moving average, never used         left out
not mentioned            Adam 1e-3, betas (0.5, 0.999)      the same; optimizer=protocol takes the protocol's
not mentioned            batches of 8 + 8, patch 96^3,      the protocol's batch, patch and crops
                         unlabeled crops central
not mentioned            Dice casts its target to float32   the target has the prediction's type
not mentioned            best test Dice of the pancreas     the last weights
not mentioned            V-Net, instance norm, no dropout,  backbone_defaults; any backbone that offers features
                         no last block, no outer skip
not mentioned            argmax of two channels             [1 - max p, p_1, ...]: the same for one class
"""

from __future__ import annotations

from collections.abc import Callable
from math import lcm
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, Optim, Phase, method
from segbench.nn.losses import cross_entropy, soft_dice
from segbench.nn.ops import context_mask, mix

HIDDEN = 8  # channels of the prompted layers
# What the controller writes: W1, W2, W_organ, W_tumor, b1, b2, b_organ, b_tumor.
SIZES = (HIDDEN * HIDDEN, HIDDEN * HIDDEN, 2 * HIDDEN, 2 * HIDDEN, HIDDEN, HIDDEN, 2, 2)
RELEASED = {"stages": 1, "aux_mask": "pairs"}


class View(NamedTuple):
    """All that prompts read of a batch of images: one pass of the backbone."""

    pooled: Tensor  # (N, D) bottleneck
    features: Tensor  # (N, 8, *S)


class PromptedHead(nn.Module):
    """Three 1x1x1 layers, their weights written by a controller from pooled features and a one-hot prompt."""

    MOMENTUM = 0.1

    def __init__(self, deep: int, width: int, prompts: int, dims: int) -> None:
        """``deep`` channels of the bottleneck, ``width`` of the full-resolution features, 2 or 3 ``dims``."""
        super().__init__()
        norm: Any = nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d
        conv: Any = nn.Conv3d if dims == 3 else nn.Conv2d
        self.prompts = prompts
        self.deep_norm = norm(deep)
        self.controller = nn.Linear(deep + prompts, sum(SIZES))
        self.fine_norm = norm(width)
        self.fine_conv = conv(width, HIDDEN, 1)

    def read(self, bottleneck: Tensor, features: Tensor, calls: int = 1) -> View:
        """A view of the images; running statistics move as by ``calls`` equal calls: 1 - m' = (1 - m)^calls."""
        self.deep_norm.momentum = self.fine_norm.momentum = 1 - (1 - self.MOMENTUM) ** calls
        pooled = self.deep_norm(bottleneck).relu().flatten(2).mean(2)
        return View(pooled, self.fine_conv(self.fine_norm(features).relu()))

    def forward(self, view: View, prompts: Tensor) -> Tensor:
        """Logits (N, P, 2, *S) of P prompts an image; ``prompts`` (N, P) count from 0."""
        one_hot = prompts.unsqueeze(2) == torch.arange(
            self.prompts, device=prompts.device
        )  # (N, P, T + 1)
        image = view.pooled.unsqueeze(1).expand(-1, prompts.shape[1], -1)  # (N, P, D)
        return self.layers(
            view.features, self.controller(torch.cat([image, one_hot.to(image.dtype)], 2))
        )

    @staticmethod
    def layers(features: Tensor, theta: Tensor, branch: int = 0) -> Tensor:
        """Logits (N, P, 2, *S) of ``features`` (N, 8, *S) with weights ``theta`` (N, P, 180); branch 1: tumor."""
        n, p = theta.shape[:2]
        w1, w2, w_organ, w_tumor, b1, b2, b_organ, b_tumor = theta.split(SIZES, 2)
        w3, b3 = ((w_organ, b_organ), (w_tumor, b_tumor))[branch]

        def layer(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            return torch.baddbmm(bias.reshape(len(x), -1, 1), weight.reshape(len(x), -1, HIDDEN), x)

        h = layer(
            w1, b1, features.flatten(2)
        ).relu_()  # (N, 8 P, V): one product for all prompts of an image
        h = layer(w2, b2, h.view(n * p, HIDDEN, -1)).relu_()
        return layer(w3, b3, h).view(n, p, 2, *features.shape[2:])


@method("versemi", paper="Zeng et al., IEEE TMI 2025")
class VerSemi(Method):
    """Prompts 0 ... T-1 ask for one class of one data set each, prompt T for any foreground at all."""

    class Params(MethodParams):
        variant: Literal["described", "released"] = Field(
            "described",
            description="defaults after the abstract, or after the code: stages=1, aux_mask=pairs",
        )
        stages: Literal[1, 2] = Field(
            2,
            description="2: labeled pretraining, then mining of unlabeled images; 1: the first only",
        )
        pretrain_share: float = Field(
            0.55, gt=0, lt=1, description="of the steps for stage 1 when there are two"
        )
        weight: float = Field(1.0, ge=0, description="of the consistency and the auxiliary term")
        ramp: bool = Field(
            False, description="sigmoid ramp of 40 stairs over stage 2 on that weight"
        )
        aux_mask: Literal["own", "pairs"] = Field(
            "own", description="auxiliary term in an item's own box, or in the boxes of all items"
        )
        detach_aggregate: bool = Field(
            False, description="no gradient into the maximum over the real prompts"
        )
        repeat_updates: bool = Field(
            True, description="running statistics move once a prompt, not once a pass"
        )
        optimizer: Literal["paper", "protocol"] = Field(
            "paper", description="Adam as published, or the protocol's"
        )

        @model_validator(mode="before")
        @classmethod
        def _defaults_of_variant(cls, data: Any) -> Any:
            released = isinstance(data, dict) and data.get("variant") == "released"
            return {**RELEASED, **data} if released else data

    joint = True
    needs = frozenset({"features"})
    backbone_defaults = {
        "vnet": {"norm": "instance", "last_block": False, "first_skip": False, "dropout": 0.0}
    }
    prompts: Tensor
    values: Tensor

    def build(self, network: Callable[..., Backbone]) -> None:
        self.counts = [len(source.classes) for source in self.setting.sources]
        self.tasks, self.rounds = sum(self.counts), lcm(*self.counts)
        # In round r an image of data set d is asked prompts[d, r], which stands for label values[d, r].
        turn = torch.tensor([[r % count for r in range(self.rounds)] for count in self.counts])
        first = torch.tensor([sum(self.counts[:d]) for d in range(len(self.counts))])
        self.register_buffer("prompts", first[:, None] + turn, persistent=False)
        self.register_buffer("values", 1 + turn, persistent=False)
        self.backbone = network(heads=())
        self.head = PromptedHead(
            self.backbone.channels[-1], self.backbone.width, self.tasks + 1, self.setting.dims
        )

    def phases(self) -> tuple[Phase, ...]:
        if self.p.stages == 1:
            return (Phase("pretrain", unlabeled=0),)
        share = self.p.pretrain_share
        return (
            Phase("pretrain", share, unlabeled=0),
            Phase("mine", 1 - share),
        )  # the optimizer's state is kept

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        adam = Optim(name="adam", lr=1e-3, betas=(0.5, 0.999), weight_decay=0)
        return adam if self.p.optimizer == "paper" else default

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        draw, pretrain = t.generator("mask", own=True), t.phase == "pretrain"
        count = len(batch.x)
        y, source = batch.y, batch.source[:count]
        logits, target = self.ask(
            self.view(batch.x, self.rounds), y, source
        )  # (L, R, 2, *S), (L, R, *S)
        supervised = task_dice(logits, target) + cross_entropy(
            logits.flatten(0, 1), target.long().flatten(0, 1)
        )

        # The synthetic task: a box of one labeled image pasted into another, and every foreground counts.
        half = (count + 1) // 2
        a, b = slice(0, half), slice(count - half, count)
        mask = boxes(
            batch.x[a], 2 / 3 if pretrain else ratio(draw), draw
        )  # (half, *S), false inside
        mixed = self.view(mix(mask, batch.x[a], batch.x[b]), 1 + 2 * self.rounds if pretrain else 1)
        synthetic = soft_dice(self.any_foreground(mixed), mix(mask, y[a], y[b]) > 0)
        terms = {"supervised": supervised, "synthetic": synthetic}
        if not pretrain:
            return terms | self.mine(batch, t, draw)

        # What only one of the two data sets annotates counts as background in the other's part.
        same = (source[a] == source[b]).view(-1, *[1] * self.setting.dims)
        of_a = self.ask(mixed, mix(mask, y[a], y[b] * same), source[a])
        of_b = self.ask(mixed, mix(mask, y[a] * same, y[b]), source[b])
        return terms | {"specific": (task_dice(*of_a) + task_dice(*of_b)) / 2}

    def mine(self, batch: Batch, t: Clock, draw: torch.Generator) -> dict[str, Tensor]:
        """Terms of unlabeled images, each with a box of a labeled one pasted in; partners are taken in turn."""
        partner = torch.arange(len(batch.u), device=batch.u.device) % len(batch.x)
        mask = boxes(batch.u, ratio(draw), draw)  # (U, *S)
        mixed = self.view(mix(mask, batch.u, batch.x[partner]), self.tasks + 1)
        everything = torch.arange(self.tasks + 1, device=batch.u.device).expand(len(batch.u), -1)
        p = self.head(mixed, everything).softmax(2)[:, :, 1]  # (U, T + 1, *S)
        synthetic, aggregate = p[:, -1], p[:, :-1].amax(1)  # each (U, *S)
        if self.p.detach_aggregate:
            aggregate = aggregate.detach()
        box = ~mask if self.p.aux_mask == "own" else (~mask).sum(0)
        weight = self.p.weight * (t.ramp(40, of_phase=True) if self.p.ramp else 1.0)
        return {
            "consistency": weight * soft_dice(synthetic, aggregate),
            "auxiliary": weight * soft_dice(synthetic, batch.y[partner] > 0, weight=box),
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        prompts = self.prompts[source, : self.counts[source]].expand(len(image), -1)
        p = self.head(self.view(image), prompts).softmax(2)[:, :, 1]  # (B, its classes, *S)
        return torch.cat([1 - p.amax(1, keepdim=True), p], 1)

    def view(self, image: Tensor, calls: int = 1) -> View:
        """One backbone pass, where the official code makes ``calls``."""
        pyramid = self.backbone.encode(image)
        features = self.backbone.decode(pyramid)[0]
        return self.head.read(pyramid[-1], features, calls if self.p.repeat_updates else 1)

    def ask(self, view: View, labels: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, R, 2, *S) and masks (N, R, *S) of the classes of each image's data set ``source`` (N,)."""
        values = self.values[source].view(len(source), -1, *[1] * self.setting.dims)
        return self.head(view, self.prompts[source]), labels.unsqueeze(1) == values

    def any_foreground(self, view: View) -> Tensor:
        """Answer (N, *S) to the synthetic prompt, a probability."""
        prompt = torch.full((len(view.pooled), 1), self.tasks, device=view.pooled.device)
        return self.head(view, prompt).softmax(2)[:, 0, 1]


def boxes(like: Tensor, edge: float, draw: torch.Generator) -> Tensor:
    """A context mask (N, *S) for each image of (N, C, *S), on its device."""
    return context_mask(len(like), tuple(like.shape[2:]), edge, draw, like.device)


def ratio(draw: torch.Generator) -> float:
    """Edge of stage 2's boxes relative to the patch's, uniform on [0.3, 0.6)."""
    return 0.3 + 0.3 * torch.rand((), generator=draw).item()


def task_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Foreground Dice of (N, R, 2, *S) and (N, R, *S), joint over the images and averaged over the rounds."""
    return soft_dice(logits.softmax(2)[:, :, 1], target, keep=(1,))
