"""VerSemi: one network for several partially labeled data sets; a prompt selects the target.

Zeng, Xie, Lu, Lu, Wu, Xia: Segment Together: A Versatile Paradigm for Semi-Supervised Medical Image
Segmentation, IEEE TMI 2025, doi 10.1109/TMI.2025.3556310, arXiv:2311.11686. Official code:
github.com/maxwell0027/VerSemi. The code was consulted through a written specification; nothing was
copied. Only the abstract of the paper was available: the first column lists what it describes.

Each real task is one class of one data set. The synthetic task segments any foreground in CutMix
images. On unlabeled images, the prediction for the synthetic task must agree with the union
(maximum) of the predictions for all real tasks.

Paper                    Official code                      Here
several tasks            four data sets with one target     any (data set, class) pairs; if a data
                           each                               set has several classes, they are used
                                                              as targets in turn, in lcm(classes)
                                                              rounds
dynamic task prompts     one pass of the network per        one pass per step if the backbone
                           prompt: 20 or 52 images per        normalizes each image separately: 12
                           step                               or 20 images; prompts enter only the
                                                              last layers; running statistics are
                                                              updated as often as in the code
synthetic CutMix task    Dice of the united foregrounds;    the same for any patch size; box corners
                           boxes for a patch of 96;           come from the step's generator, with
                           NumPy's generator                  different draws in each process of a
                                                              distributed training; an odd batch
                                                              uses its middle image in two pairs
unlabeled data           stage 1 only, because the call of  stage 1, then stage 2, with 55 % and 45
                           stage 2 is disabled; 1000          % of the steps (27,000 and 22,000 with
                           epochs each                        20 % labels); variant=released: stage
                                                              1
aggregate = synthetic    nothing is detached                the same; detach_aggregate=true as an
                                                              ablation
auxiliary constraint     each box mask is applied to all    each image's own box; aux_mask=pairs as
  (our interpretation)     images (by broadcasting)           in the code
not mentioned            a ramp is computed but never used  no ramp; ramp=true applies it in stage 2
not mentioned            the tumor branch is never used     not computed; the controller keeps its
                                                              weights, so that sizes and initial
                                                              values agree
not mentioned            a moving average is never used     left out
not mentioned            Adam, lr 1e-3, betas (0.5, 0.999), the same; optimizer=annealed lets the rate
                           constant rate                      fall to zero (poly), optimizer=protocol
                                                              uses the protocol's
not mentioned            batches of 8 + 8, patch 96^3,      the protocol's batch, patch and crops
                           central crops of unlabeled
                           images
not mentioned            Dice converts its target to        the target gets the type of the
                           float32                            prediction
not mentioned            best test Dice of the pancreas     the last weights
not mentioned            V-Net with instance norm, without  backbone_defaults; any backbone that
                           dropout, last block and outer      provides features
                           skip connection
not mentioned            argmax of two channels             [1 - max p, p_1, ...], the same for one
                                                              class
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
from segbench.nn.ops import context_mask, mix, normalizes_items, wide_softmax

RELEASED = {"stages": 1, "aux_mask": "pairs"}


@method("versemi", paper="Zeng et al., IEEE TMI 2025")
class VerSemi(Method):
    """One network with a prompted head.

    Each prompt 0 ... T-1 selects one class of one data set as the target. Prompt T selects the
    synthetic task: any foreground.
    """

    class Params(MethodParams):
        variant: Literal["described", "released"] = Field(
            "described",
            description="defaults as in the abstract or as in the code (stages=1, aux_mask=pairs)",
        )
        stages: Literal[1, 2] = Field(
            2,
            description="2: labeled images first, then unlabeled ones too; 1: first stage only",
        )
        pretrain_share: float = Field(
            0.55, gt=0, lt=1, description="fraction of the steps for stage 1 if there are two"
        )
        weight: float = Field(
            1.0, ge=0, description="weight of the consistency term and of the auxiliary term"
        )
        ramp: bool = Field(
            False, description="increase this weight in stage 2 by a sigmoid ramp of 40 stairs"
        )
        aux_mask: Literal["own", "pairs"] = Field(
            "own",
            description="auxiliary term inside each image's own box, or inside the boxes of all",
        )
        detach_aggregate: bool = Field(
            False, description="stop the gradient into the maximum over the real tasks"
        )
        repeat_updates: bool = Field(
            True, description="update running statistics once per prompt, not once per pass"
        )
        optimizer: Literal["paper", "annealed", "protocol"] = Field(
            "paper",
            description="Adam as in the official code, the same with a rate that falls to zero "
            "(poly), or the protocol's optimizer",
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
        source = batch.source[: len(batch.x)]  # index of each labeled image's data set

        # CutMix images for the synthetic task: a box of one image is pasted into another.
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

        # Stage 2 also pastes a box of a labeled image into each unlabeled image.
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
        """Return the terms on unlabeled images.

        Consistency: the synthetic task and the union of the real tasks should find the same
        foreground. Auxiliary: supervision of the synthetic task inside the pasted boxes.
        """
        everything = torch.arange(self.tasks + 1, device=view.pooled.device)
        logits = self.head(view, everything.expand(len(view.pooled), -1))  # (U, T + 1, 2, *S)
        p = wide_softmax(logits, 2)[:, :, 1]  # (U, T + 1, *S)
        synthetic = p[:, -1]  # (U, *S)
        aggregate = p[:, :-1].amax(1)  # (U, *S)
        if self.p.detach_aggregate:
            aggregate = aggregate.detach()

        # Inside the pasted box the label is known: it comes from the labeled image.
        known = mined.box if self.p.aux_mask == "own" else mined.box.sum(0)
        return {
            "consistency": weight * soft_dice(synthetic, aggregate),
            "auxiliary": weight * soft_dice(synthetic, mined.label > 0, weight=known),
        }

    def supervised_terms(
        self, labeled: View, y: Tensor, source: Tensor, synthetic: View, pairs: Pairs
    ) -> dict[str, Tensor]:
        """Return the losses of real tasks on labeled images and of the synthetic task on pairs."""
        logits, target = self.ask(labeled, y, source)  # (L, R, 2, *S), (L, R, *S)
        entropy = cross_entropy(logits.flatten(0, 1), target.long().flatten(0, 1))
        return {
            "supervised": task_dice(logits, target) + entropy,
            "synthetic": soft_dice(self.any_foreground(synthetic), pairs.label > 0),
        }

    def specific_term(self, view: View, pairs: Pairs) -> Tensor:
        """Return the loss of the real tasks on pairs, with the tasks of both images' data sets."""
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
        # Stage 2 keeps the optimizer's state.
        return (Phase("pretrain", share, unlabeled=0), Phase("mine", 1 - share))

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        if self.p.optimizer == "protocol":
            return default
        schedule: Literal["constant", "poly"] = "constant"
        if self.p.optimizer == "annealed":
            schedule = "poly"
        return Optim(name="adam", lr=1e-3, betas=(0.5, 0.999), weight_decay=0, schedule=schedule)

    # -- networks and prompts ------------------------------------------------------------------

    def build(self, network: Callable[..., Backbone]) -> None:
        self.counts = [len(source.classes) for source in self.setting.sources]
        self.tasks = sum(self.counts)
        self.rounds = lcm(*self.counts)  # after them, each class was the target equally often
        # In round r, an image of data set d gets prompt prompts[d, r], for label values[d, r].
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
        """Return the head's inputs for several groups of images; ``prompts`` as in ``view``.

        If the backbone normalizes each image separately, images do not influence each other and all
        groups share one pass. The head's batch normalization gets each group separately, as in the
        official code.
        """
        if not self.normalizes_items:
            return [self.view(group, count) for group, count in zip(groups, prompts, strict=True)]
        sizes = [len(group) for group in groups]
        bottleneck, features = self.maps(torch.cat(list(groups)))
        parts = zip(bottleneck.split(sizes), features.split(sizes), prompts, strict=True)
        return [self.read(*part) for part in parts]

    def view(self, image: Tensor, prompts: int = 1) -> View:
        """Return the head's inputs for images (N, C, *S), computed in one pass.

        The official code makes one pass per prompt; ``prompts`` is their number.
        """
        return self.read(*self.maps(image), prompts)

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bottleneck (N, D, *s) and the features (N, F, *S) of the backbone."""
        pyramid = self.backbone.encode(image)
        return pyramid[-1], self.backbone.decode(pyramid)[0]

    def read(self, bottleneck: Tensor, features: Tensor, prompts: int) -> View:
        updates = prompts if self.p.repeat_updates else 1
        return self.head.read(bottleneck, features, updates)

    def ask(self, view: View, labels: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Segment the classes of each image's data set ``source`` (N,), one class per round.

        Returns logits (N, R, 2, *S) and masks (N, R, *S) of these classes in ``labels`` (N, *S).
        """
        space = (1,) * self.setting.dims
        values = self.values[source].view(len(source), -1, *space)  # (N, R, 1, ...)
        return self.head(view, self.prompts[source]), labels.unsqueeze(1) == values

    def any_foreground(self, view: View) -> Tensor:
        """Return the probability (N, *S) of any foreground, which the synthetic prompt selects."""
        prompt = torch.full((len(view.pooled), 1), self.tasks, device=view.pooled.device)
        return wide_softmax(self.head(view, prompt), 2)[:, 0, 1]


def task_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return the foreground Dice loss of logits (N, R, 2, *S) and masks (N, R, *S).

    Its sums run over all images; it is averaged over the rounds.
    """
    return soft_dice(wide_softmax(logits, 2)[:, :, 1], target, keep=(1,))


# -- CutMix ------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """P pairs of labeled images: a box of the inner image replaces that part of the outer one."""

    image: Tensor  # (P, C, *S)
    label: Tensor  # (P, *S), the labels of both images
    outer_label: Tensor  # (P, *S), the classes of the outer image's data set
    inner_label: Tensor  # (P, *S), the classes of the inner image's data set
    outer_source: Tensor  # (P,)
    inner_source: Tensor  # (P,)


class Mined(NamedTuple):
    """Unlabeled images, each with a pasted box of a labeled image."""

    image: Tensor  # (U, C, *S)
    label: Tensor  # (U, *S), labels of the labeled images
    box: Tensor  # (U, *S), true inside the pasted boxes


def boxes(images: Tensor, edge: float, draw: torch.Generator) -> Tensor:
    """Return masks ((N + 1) // 2, *S) for pairs of images (N, C, *S), false inside the box."""
    count = (len(images) + 1) // 2
    return context_mask(count, tuple(images.shape[2:]), edge, draw, images.device)


def paste_pairs(x: Tensor, y: Tensor, source: Tensor, outside: Tensor) -> Pairs:
    """Paste a box of each image of the second half of the batch into one of the first half.

    ``x`` is (N, C, *S), ``y`` (N, *S), ``source`` (N,), and ``outside`` the result of ``boxes``. If
    N is odd, the middle image is in both halves.
    """
    half = len(outside)
    outer = slice(0, half)
    inner = slice(len(x) - half, len(x))
    # If the data sets differ, a data set's labels have background where the other image is.
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
    """Paste a box of a labeled image into each unlabeled image, with the labeled ones in turn."""
    partner = torch.arange(len(u), device=u.device) % len(x)
    outside = context_mask(len(u), tuple(u.shape[2:]), edge, draw, u.device)  # (U, *S)
    return Mined(mix(outside, u, x[partner]), y[partner], ~outside)


def random_edge(draw: torch.Generator) -> float:
    """Return the edge length of a stage 2 box relative to the patch, uniform on [0.3, 0.6)."""
    return 0.3 + 0.3 * torch.rand((), generator=draw).item()


# -- the prompted head -------------------------------------------------------------------------

HIDDEN = 8  # channels of the prompted layers
# Sizes of what the controller computes: W1, W2, W_organ, W_tumor, b1, b2, b_organ, b_tumor.
SIZES = (HIDDEN * HIDDEN, HIDDEN * HIDDEN, 2 * HIDDEN, 2 * HIDDEN, HIDDEN, HIDDEN, 2, 2)


class View(NamedTuple):
    """The head's inputs for some images, which all prompts share."""

    pooled: Tensor  # (N, D), from the bottleneck
    features: Tensor  # (N, 8, *S)


class PromptedHead(nn.Module):
    """Three 1x1x1 layers with weights that a controller computes for each image and prompt.

    The inputs of the controller are pooled features and a one-hot prompt.
    """

    MOMENTUM = 0.1

    def __init__(self, deep: int, width: int, prompts: int, dims: int) -> None:
        """Build the layers.

        Args:
            deep: channels of the bottleneck.
            width: channels of the full-resolution features.
            prompts: number of prompts.
            dims: 2 or 3.
        """
        super().__init__()
        norm: Any = nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d
        conv: Any = nn.Conv3d if dims == 3 else nn.Conv2d
        self.prompts = prompts
        self.deep_norm = norm(deep)
        self.controller = nn.Linear(deep + prompts, sum(SIZES))
        self.fine_norm = norm(width)
        self.fine_conv = conv(width, HIDDEN, 1)

    def read(self, bottleneck: Tensor, features: Tensor, updates: int = 1) -> View:
        """Return the head's inputs; update running statistics as ``updates`` equal passes would.

        One pass keeps a fraction 1 - m of the statistics and n passes keep (1 - m)^n, so one pass
        with momentum 1 - (1 - m)^n is equivalent to n passes.
        """
        momentum = 1 - (1 - self.MOMENTUM) ** updates
        self.deep_norm.momentum = momentum
        self.fine_norm.momentum = momentum
        pooled = self.deep_norm(bottleneck).relu().flatten(2).mean(2)
        return View(pooled, self.fine_conv(self.fine_norm(features).relu()))

    def forward(self, view: View, prompts: Tensor) -> Tensor:
        """Return logits (N, P, 2, *S) for P prompts per image; ``prompts`` (N, P) count from 0."""
        every = torch.arange(self.prompts, device=prompts.device)
        one_hot = prompts.unsqueeze(2) == every  # (N, P, T + 1)
        image = view.pooled.unsqueeze(1).expand(-1, prompts.shape[1], -1)  # (N, P, D)
        theta = self.controller(torch.cat([image, one_hot.to(image.dtype)], 2))  # (N, P, 180)
        return self.layers(view.features, theta)

    @staticmethod
    def layers(features: Tensor, theta: Tensor, branch: int = 0) -> Tensor:
        """Return logits (N, P, 2, *S) for ``features`` (N, 8, *S), weights ``theta`` (N, P, 180).

        Branch 0 is the organ branch, branch 1 the tumor branch.
        """
        n, p = theta.shape[:2]
        w1, w2, w_organ, w_tumor, b1, b2, b_organ, b_tumor = theta.split(SIZES, 2)
        w3, b3 = ((w_organ, b_organ), (w_tumor, b_tumor))[branch]

        def layer(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            weight = weight.reshape(len(x), -1, HIDDEN)
            return torch.baddbmm(bias.reshape(len(x), -1, 1), weight, x)

        # The first layer is one matrix product for all prompts of an image: (N, 8 P, V).
        hidden = layer(w1, b1, features.flatten(2)).relu_()
        hidden = layer(w2, b2, hidden.view(n * p, HIDDEN, -1)).relu_()
        logits = layer(w3, b3, hidden)  # (N P, 2, V)
        return logits.view(n, p, 2, *features.shape[2:])
