"""VerSemi: one network segments the targets of several partly labeled data sets; a prompt selects the target.

Zeng, Xie, Lu, Lu, Wu, Xia: Segment Together: A Versatile Paradigm for Semi-Supervised Medical Image
Segmentation, IEEE TMI 2025, doi 10.1109/TMI.2025.3556310, arXiv:2311.11686. Official code:
github.com/maxwell0027/VerSemi, consulted through a written specification; nothing copied. Of the paper only the
abstract was available: the first column lists what it describes.

Paper                    Official code                      Here
several tasks            four data sets with one target     any (data set, class) pairs; the classes of an image's
                         each                               data set are asked for in turn, in lcm(classes) rounds
dynamic task prompts     one pass of the network per        one pass per step where every item is normalized for
                         prompt: 20 or 52 images per step   itself: 12 or 20 images; prompts enter the last layers only;
                                                            running statistics move as often as in the code
synthetic CutMix task    Dice of the united foregrounds;    the same at any patch; corners from the step's generator,
                         boxes for a patch of 96, NumPy's   each process of a training draws its own; an odd batch
                         generator                          uses its middle item in two pairs
unlabeled data           stage 1 only: the call of stage 2  stage 1, then 2, with 55 % and 45 % of the steps (27,000 and
                         is disabled; 1000 epochs each      22,000 with 20 % labels); variant=released: stage 1
aggregate = synthetic    nothing is detached                the same; detach_aggregate=true as an ablation
auxiliary constraint     each box mask applies to all       an item's own box; aux_mask=pairs as in the code
(our reading)            items (by broadcasting)
not mentioned            a ramp is computed, never used     off; ramp=true applies it in stage 2
not mentioned            the tumor branch is never used     not computed; its weights stay in the controller, so that
                                                            sizes and initial values agree
not mentioned            a moving average, never used       left out
not mentioned            Adam 1e-3, betas (0.5, 0.999)      the same; optimizer=protocol uses the protocol's
not mentioned            batches of 8 + 8, patch 96^3,      the protocol's batch, patch and crops
                         unlabeled crops are central
not mentioned            Dice casts its target to float32   the target has the prediction's type
not mentioned            best test Dice of the pancreas     the last weights
not mentioned            V-Net, instance norm, no dropout,  backbone_defaults; any backbone that offers features
                         no last block, no outer skip
not mentioned            argmax of two channels             [1 - max p, p_1, ...]: the same for one class
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor, nn

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, Optim, Phase, method
from segbench.nn.losses import cross_entropy, soft_dice
from segbench.nn.ops import context_mask, mix, normalizes_items

RELEASED = {"stages": 1, "aux_mask": "pairs"}


@method("versemi", paper="Zeng et al., IEEE TMI 2025")
class VerSemi(Method):
    """Prompts 0 ... T-1 ask for one class of one data set each; prompt T, the synthetic task, for any foreground."""

    class Params(MethodParams):
        variant: Literal["described", "released"] = Field(
            "described",
            description="defaults after the abstract, or after the code: stages=1, aux_mask=pairs",
        )
        stages: Literal[1, 2] = Field(
            2,
            description="2: train on labeled images, then on unlabeled ones too; 1: the first stage only",
        )
        pretrain_share: float = Field(
            0.55, gt=0, lt=1, description="share of the steps for stage 1 when there are two"
        )
        weight: float = Field(
            1.0, ge=0, description="weight of the consistency and the auxiliary term"
        )
        ramp: bool = Field(
            False, description="sigmoid ramp of that weight in 40 steps over stage 2"
        )
        aux_mask: Literal["own", "pairs"] = Field(
            "own",
            description="auxiliary term inside an item's own box, or inside those of all items",
        )
        detach_aggregate: bool = Field(
            False, description="no gradient into the maximum over the real tasks"
        )
        repeat_updates: bool = Field(
            True, description="running statistics move once per prompt, not once per pass"
        )
        optimizer: Literal["paper", "protocol"] = Field(
            "paper", description="Adam as published, or the protocol's optimizer"
        )

        @model_validator(mode="before")
        @classmethod
        def _defaults_of_variant(cls, data: Any) -> Any:
            if isinstance(data, dict) and data.get("variant") == "released":
                return {**RELEASED, **data}
            return data

    joint = True
    needs = frozenset({"features"})
    backbone_defaults = {
        "vnet": {"norm": "instance", "last_block": False, "first_skip": False, "dropout": 0.0}
    }
    prompts: Tensor
    values: Tensor

    # -- the method ----------------------------------------------------------------------------

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        draw = t.generator("mask", own=True)
        source = batch.source[: len(batch.x)]  # data set of each labeled image

        # CutMix makes the images of the synthetic task: a box of one image pasted into another.
        edge = 2 / 3 if t.phase == "pretrain" else random_edge(draw)
        pairs = paste_pairs(batch.x, batch.y, source, boxes(batch.x, edge, draw))
        if t.phase == "pretrain":
            labeled, synthetic = self.views(
                [batch.x, pairs.image], prompts=[self.rounds, 1 + 2 * self.rounds]
            )
            return {
                **self.supervised_terms(labeled, batch.y, source, synthetic, pairs),
                "specific": self.specific_term(synthetic, pairs),
            }

        # Stage 2 also pastes a box of a labeled image into every unlabeled one.
        mined = paste_into(batch.u, batch.x, batch.y, random_edge(draw), draw)
        labeled, synthetic, unlabeled = self.views(
            [batch.x, pairs.image, mined.image], prompts=[self.rounds, 1, self.tasks + 1]
        )
        weight = self.p.weight
        if self.p.ramp:
            weight = weight * t.ramp(40, of_phase=True)
        return {
            **self.supervised_terms(labeled, batch.y, source, synthetic, pairs),
            **self.unlabeled_terms(unlabeled, mined, weight),
        }

    def unlabeled_terms(self, view: View, mined: Mined, weight: float) -> dict[str, Tensor]:
        """The synthetic task and the union of the real tasks should find the same foreground."""
        everything = torch.arange(self.tasks + 1, device=view.pooled.device)
        logits = self.head(view, everything.expand(len(view.pooled), -1))  # (U, T + 1, 2, *S)
        p = logits.softmax(2)[:, :, 1]  # (U, T + 1, *S)
        synthetic = p[:, -1]  # (U, *S)
        aggregate = p[:, :-1].amax(1)  # (U, *S)
        if self.p.detach_aggregate:
            aggregate = aggregate.detach()

        # Inside the pasted box the label of the labeled image is known.
        known = mined.box if self.p.aux_mask == "own" else mined.box.sum(0)
        return {
            "consistency": weight * soft_dice(synthetic, aggregate),
            "auxiliary": weight * soft_dice(synthetic, mined.label > 0, weight=known),
        }

    def supervised_terms(
        self, labeled: View, y: Tensor, source: Tensor, synthetic: View, pairs: Pairs
    ) -> dict[str, Tensor]:
        """Real tasks on the labeled images, the synthetic task on pairs of them."""
        logits, target = self.ask(labeled, y, source)  # (L, R, 2, *S), (L, R, *S)
        entropy = cross_entropy(logits.flatten(0, 1), target.long().flatten(0, 1))
        return {
            "supervised": task_dice(logits, target) + entropy,
            "synthetic": soft_dice(self.any_foreground(synthetic), pairs.label > 0),
        }

    def specific_term(self, view: View, pairs: Pairs) -> Tensor:
        """Real tasks on pairs: each image's tasks ask for what its data set annotates."""
        outer = task_dice(*self.ask(view, pairs.outer_label, pairs.outer_source))
        inner = task_dice(*self.ask(view, pairs.inner_label, pairs.inner_source))
        return (outer + inner) / 2

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        prompts = self.prompts[source, : self.counts[source]].expand(len(image), -1)
        p = self.head(self.view(image), prompts).softmax(2)[:, :, 1]  # (B, its classes, *S)
        background = 1 - p.amax(1, keepdim=True)
        return torch.cat([background, p], 1)

    def phases(self) -> tuple[Phase, ...]:
        if self.p.stages == 1:
            return (Phase("pretrain", unlabeled=0),)
        share = self.p.pretrain_share
        # The optimizer's state is kept from one stage to the next.
        return (Phase("pretrain", share, unlabeled=0), Phase("mine", 1 - share))

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        if self.p.optimizer == "protocol":
            return default
        return Optim(name="adam", lr=1e-3, betas=(0.5, 0.999), weight_decay=0)

    # -- networks and prompts ------------------------------------------------------------------

    def build(self, network: Callable[..., Backbone]) -> None:
        self.counts = [len(source.classes) for source in self.setting.sources]
        self.tasks = sum(self.counts)
        self.rounds = lcm(*self.counts)  # after which each class was asked for equally often
        # In round r an image of data set d is asked prompts[d, r], which means label values[d, r].
        prompts = torch.empty(len(self.counts), self.rounds, dtype=torch.int64)
        values = torch.empty_like(prompts)
        first = 0  # prompt of the data set's first class
        for d, count in enumerate(self.counts):
            turn = torch.arange(self.rounds) % count
            prompts[d] = first + turn
            values[d] = 1 + turn
            first += count
        self.register_buffer("prompts", prompts, persistent=False)
        self.register_buffer("values", values, persistent=False)

        self.backbone = network(heads=())
        self.head = PromptedHead(
            self.backbone.channels[-1], self.backbone.width, self.tasks + 1, self.setting.dims
        )
        self.normalizes_items = normalizes_items(self.backbone)

    def views(self, groups: Sequence[Tensor], prompts: Sequence[int]) -> list[View]:
        """What the head reads of several groups of images; ``prompts`` as in ``view``.

        Images do not influence each other in a backbone that normalizes every item for itself, so all groups share
        one pass. The head's batch normalization sees each group for itself, as in the official code.
        """
        if not self.normalizes_items:
            return [self.view(group, count) for group, count in zip(groups, prompts, strict=True)]
        sizes = [len(group) for group in groups]
        bottleneck, features = self.maps(torch.cat(list(groups)))
        parts = zip(bottleneck.split(sizes), features.split(sizes), prompts, strict=True)
        return [self.read(*part) for part in parts]

    def view(self, image: Tensor, prompts: int = 1) -> View:
        """What the head reads of images (N, C, *S): one pass, where the official code makes one per prompt."""
        return self.read(*self.maps(image), prompts)

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Bottleneck (N, D, *s) and features (N, F, *S) of the backbone."""
        pyramid = self.backbone.encode(image)
        return pyramid[-1], self.backbone.decode(pyramid)[0]

    def read(self, bottleneck: Tensor, features: Tensor, prompts: int) -> View:
        updates = prompts if self.p.repeat_updates else 1
        return self.head.read(bottleneck, features, updates)

    def ask(self, view: View, labels: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Ask for the classes of each image's data set ``source`` (N,), one per round.

        Returns logits (N, R, 2, *S) and masks (N, R, *S) of these classes in ``labels`` (N, *S).
        """
        space = (1,) * self.setting.dims
        values = self.values[source].view(len(source), -1, *space)  # (N, R, 1, ...)
        return self.head(view, self.prompts[source]), labels.unsqueeze(1) == values

    def any_foreground(self, view: View) -> Tensor:
        """Probability (N, *S) of any foreground: the answer to the synthetic prompt."""
        prompt = torch.full((len(view.pooled), 1), self.tasks, device=view.pooled.device)
        return self.head(view, prompt).softmax(2)[:, 0, 1]


def task_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Foreground Dice loss of (N, R, 2, *S) and (N, R, *S): joint over the images, averaged over the rounds."""
    return soft_dice(logits.softmax(2)[:, :, 1], target, keep=(1,))


# -- CutMix ------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Pairs of labeled images: a box of the inner image replaces that part of the outer one. P pairs."""

    image: Tensor  # (P, C, *S)
    label: Tensor  # (P, *S), of both data sets
    outer_label: Tensor  # (P, *S), as the outer image's data set annotates the pair
    inner_label: Tensor  # (P, *S), as the inner image's data set annotates it
    outer_source: Tensor  # (P,)
    inner_source: Tensor  # (P,)


class Mined(NamedTuple):
    """Unlabeled images, each with a box of a labeled one pasted in."""

    image: Tensor  # (U, C, *S)
    label: Tensor  # (U, *S) of the labeled images
    box: Tensor  # (U, *S) true inside the pasted boxes


def boxes(images: Tensor, edge: float, draw: torch.Generator) -> Tensor:
    """Masks for the pairs of images (N, C, *S), false inside the box: ((N + 1) // 2, *S)."""
    count = (len(images) + 1) // 2
    return context_mask(count, tuple(images.shape[2:]), edge, draw, images.device)


def paste_pairs(x: Tensor, y: Tensor, source: Tensor, outside: Tensor) -> Pairs:
    """Paste a box of each image of the batch's second half into one of its first half.

    ``x`` (N, C, *S), ``y`` (N, *S), ``source`` (N,), and ``outside`` as ``boxes`` returns it. An odd batch uses its
    middle item in both halves.
    """
    half = len(outside)
    outer = slice(0, half)
    inner = slice(len(x) - half, len(x))
    # What only one of the two data sets annotates counts as background in the other's part.
    same = (source[outer] == source[inner]).view(-1, *[1] * (y.ndim - 1))
    return Pairs(
        image=mix(outside, x[outer], x[inner]),
        label=mix(outside, y[outer], y[inner]),
        outer_label=mix(outside, y[outer], y[inner] * same),
        inner_label=mix(outside, y[outer] * same, y[inner]),
        outer_source=source[outer],
        inner_source=source[inner],
    )


def paste_into(u: Tensor, x: Tensor, y: Tensor, edge: float, draw: torch.Generator) -> Mined:
    """Paste a box of a labeled image into each unlabeled one; the labeled images are used in turn."""
    partner = torch.arange(len(u), device=u.device) % len(x)
    outside = context_mask(len(u), tuple(u.shape[2:]), edge, draw, u.device)  # (U, *S)
    return Mined(mix(outside, u, x[partner]), y[partner], ~outside)


def random_edge(draw: torch.Generator) -> float:
    """Edge of stage 2's boxes relative to the patch, uniform on [0.3, 0.6)."""
    return 0.3 + 0.3 * torch.rand((), generator=draw).item()


# -- the prompted head -------------------------------------------------------------------------

HIDDEN = 8  # channels of the prompted layers
# What the controller writes: W1, W2, W_organ, W_tumor, b1, b2, b_organ, b_tumor.
SIZES = (HIDDEN * HIDDEN, HIDDEN * HIDDEN, 2 * HIDDEN, 2 * HIDDEN, HIDDEN, HIDDEN, 2, 2)


class View(NamedTuple):
    """All that the head reads of images; prompts ask for different targets in it."""

    pooled: Tensor  # (N, D) bottleneck
    features: Tensor  # (N, 8, *S)


class PromptedHead(nn.Module):
    """Three 1x1x1 layers whose weights a controller computes from pooled features and a one-hot prompt."""

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

    def read(self, bottleneck: Tensor, features: Tensor, updates: int = 1) -> View:
        """Prepare features for prompts; running statistics move as in that many equal passes.

        A pass keeps 1 - m of them, and n passes keep (1 - m)^n: the momentum of one pass that equals n.
        """
        momentum = 1 - (1 - self.MOMENTUM) ** updates
        self.deep_norm.momentum = momentum
        self.fine_norm.momentum = momentum
        pooled = self.deep_norm(bottleneck).relu().flatten(2).mean(2)
        return View(pooled, self.fine_conv(self.fine_norm(features).relu()))

    def forward(self, view: View, prompts: Tensor) -> Tensor:
        """Logits (N, P, 2, *S) of P prompts per image; ``prompts`` (N, P) count from 0."""
        every = torch.arange(self.prompts, device=prompts.device)
        one_hot = prompts.unsqueeze(2) == every  # (N, P, T + 1)
        image = view.pooled.unsqueeze(1).expand(-1, prompts.shape[1], -1)  # (N, P, D)
        theta = self.controller(torch.cat([image, one_hot.to(image.dtype)], 2))  # (N, P, 180)
        return self.layers(view.features, theta)

    @staticmethod
    def layers(features: Tensor, theta: Tensor, branch: int = 0) -> Tensor:
        """Logits (N, P, 2, *S) of ``features`` (N, 8, *S) with weights ``theta`` (N, P, 180); branch 1: tumor."""
        n, p = theta.shape[:2]
        w1, w2, w_organ, w_tumor, b1, b2, b_organ, b_tumor = theta.split(SIZES, 2)
        w3, b3 = ((w_organ, b_organ), (w_tumor, b_tumor))[branch]

        def layer(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            weight = weight.reshape(len(x), -1, HIDDEN)
            return torch.baddbmm(bias.reshape(len(x), -1, 1), weight, x)

        # The first layer makes one product for all prompts of an image: (N, 8 P, V).
        hidden = layer(w1, b1, features.flatten(2)).relu_()
        hidden = layer(w2, b2, hidden.view(n * p, HIDDEN, -1)).relu_()
        logits = layer(w3, b3, hidden)  # (N P, 2, V)
        return logits.view(n, p, 2, *features.shape[2:])
