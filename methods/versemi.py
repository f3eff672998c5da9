"""VerSemi: one network for several partially labeled data sets; a prompt selects the target.

Zeng, Xie, Lu, Lu, Wu, Xia: Segment Together: A Versatile Paradigm for Semi-Supervised Medical Image
Segmentation, IEEE TMI 2025, doi 10.1109/TMI.2025.3556310, arXiv:2311.11686. Official code of
January 2024, before the journal version: github.com/maxwell0027/VerSemi. The code was read for
facts, most of it through a written specification; nothing was copied. Only the abstracts of both
versions were available: the first column lists what they describe, and "not mentioned" means not
mentioned in the abstracts.

The file follows the abstract. Each real task is one class of one data set, and a prompt selects it
(``supervised_loss``). A synthetic task segments any foreground in CutMix images
(``synthetic_loss``). On unlabeled images, the prediction for the synthetic task must agree with the
union (maximum) of the predictions for all real tasks (``consistency_loss``). ``loss`` adds them up.

Paper                    Official code                      Here
several tasks            four data sets with one target     any (data set, class) pairs; if a data
                           each                               set has several classes, an image is
                                                              segmented for each of them, for
                                                              lcm(classes) prompts
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
aggregate = synthetic    the loss of both predictions,      the same; detach_aggregate=true as an
                           nothing is detached                ablation
not mentioned            a disabled line: inside the box    unlabeled_target=composed, with the
                           the label, elsewhere the           label inside the box, and without the
                           detached aggregate (with inside    auxiliary term, which it contains
                           and outside exchanged)
not mentioned: an        stage 1: the class-specific        specific in stage 1 and auxiliary in
  auxiliary constraint     prompts on CutMix images, which    stage 2, where each image has its own
                           a comment calls a constraint;      box; aux_mask=pairs applies every box
                           stage 2: a term loss_cons whose    as in the code; the name auxiliary is
                           box masks are applied to all       ours
                           images (by broadcasting)
not mentioned            closing remark, "best setting      recipe=one_gpu; the code does not define
                           with one GPU": stage 1 without     the consistency of unmixed images:
                           the class-specific prompts;        here of aggregate and synthetic
                           stage 2: the supervised term,      prediction; in stage 2 neither the
                           a ramp times an unsupervised       synthetic nor the auxiliary term
                           term, 0.1 ramp times the
                           consistency of mixed images
not mentioned            a ramp is computed but never used  no ramp; ramp=true applies it in stage 2
not mentioned            the controller sees the pooled     the same; condition=prompt hides the
                           image and the prompt               image from it
not mentioned            one Dice ratio over the batch      the same, averaged over the prompts of
                                                              an image; dice_by=prompt has one ratio
                                                              per prompt
not mentioned            tumor branch and moving average    the branch's weights exist, so that
                           are never used                     sizes and initial values agree
not mentioned            Adam, lr 1e-3, betas (0.5, 0.999), the same; optimizer=annealed lets the
                           constant rate                      rate fall to zero (poly);
                                                              optimizer=protocol uses the protocol's
not mentioned            batches of 8 + 8, patch 96^3,      the protocol's batch, patch and crops
                           central crops of unlabeled
                           images
not mentioned            best test Dice of the pancreas     the last weights
not mentioned            V-Net with instance norm, without  backbone_defaults; any backbone that
                           dropout, last block and outer      provides features; the layers at full
                           skip connection                    resolution: backbone.last_block=true,
                                                              backbone.first_skip=true
not mentioned            argmax of two channels             [1 - max p, p_1, ...], the same for one
                                                              class
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import lcm
from typing import Any, Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, Optim, Phase, method
from segbench.contracts.dataset import IGNORED
from segbench.nn.losses import cross_entropy, soft_dice
from segbench.nn.ops import context_mask, is_known, mix, normalizes_items, wide_softmax
from segbench.nn.prompted_head import Encoded, PromptedHead

RELEASED = {"stages": 1, "aux_mask": "pairs"}
ONE_GPU = {"ramp": True}
PRETRAINING_EDGE = 2 / 3  # edge length of a box in stage 1, relative to the patch
ONE_GPU_MIXED_WEIGHT = 0.1


class VerSemiParams(MethodParams):
    """Parameters of VerSemi; ``variant`` and ``recipe`` set defaults of other parameters."""

    variant: Literal["described", "released"] = Field(
        "described",
        description="defaults as in the abstract or as in the code (stages=1, aux_mask=pairs)",
    )
    recipe: Literal["standard", "one_gpu"] = Field(
        "standard",
        description="loss terms of the code, or those of its closing remark (ramp=true; "
        "stage 1: supervised and synthetic; stage 2: supervised, consistency of plain "
        "unlabeled images, and 0.1 times that of mixed ones)",
    )
    stages: Literal[1, 2] = Field(
        2,
        description="2: labeled images first, then unlabeled ones too; 1: first stage only",
    )
    pretrain_share: float = Field(
        0.55, gt=0, lt=1, description="fraction of the steps for stage 1 if there are two"
    )
    weight: float = Field(
        1.0, ge=0, description="weight of the terms on unlabeled images (consistency, auxiliary)"
    )
    ramp: bool = Field(
        False, description="increase this weight in stage 2 by a sigmoid ramp of 40 stairs"
    )
    unlabeled_target: Literal["aggregate", "composed"] = Field(
        "aggregate",
        description="target of the synthetic task on mixed unlabeled images: the union of the "
        "real tasks, with the pasted labels in a term of their own; or the pasted labels inside "
        "the boxes and the detached union outside",
    )
    aux_mask: Literal["own", "pairs"] = Field(
        "own",
        description="auxiliary term inside each image's own box, or inside the boxes of all",
    )
    detach_aggregate: bool = Field(
        False, description="stop the gradient into the maximum over the real tasks"
    )
    dice_by: Literal["batch", "prompt"] = Field(
        "batch",
        description="Dice of the real tasks: one ratio over all images of the batch for each "
        "prompt of an image in turn, or one ratio per prompt",
    )
    condition: Literal["both", "prompt"] = Field(
        "both",
        description="what the controller of the head sees: pooled image features and the "
        "prompt, or the prompt only",
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
    def _fill_in_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        defaults: dict[str, Any] = {}
        if given.get("variant") == "released":
            defaults.update(RELEASED)
        if given.get("recipe") == "one_gpu":
            defaults.update(ONE_GPU)
        return {**defaults, **given}


@method("versemi", paper="Zeng et al., IEEE TMI 2025")
class VerSemi(Method):
    """One network for several data sets; a prompt selects the target of its head.

    Prompts 0 ... T-1 select the real tasks. Prompt T selects the synthetic task.
    """

    skips_ignored = True
    Params = VerSemiParams
    joint = True
    needs = frozenset({"features"})
    backbone_defaults = {
        "vnet": {"norm": "instance", "last_block": False, "first_skip": False, "dropout": 0.0}
    }

    # -- 1. task-prompted segmentation of labeled images -----------------------------------------

    def supervised_loss(self, images: Encoded, labels: Tensor, source: Tensor) -> Tensor:
        """Return Dice + cross entropy of labeled images, each prompted with its own classes.

        ``labels`` is (N, *S); ``source`` (N,) is the data set of each image.
        """
        logits, target = self.own_classes(images, labels, source)
        dice = self.task_dice(logits, target, source)
        return dice + cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))

    def own_classes(self, images: Encoded, labels: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Segment the classes of each image's data set, with R prompts per image.

        Returns logits (N, R, 2, *S) and targets (N, R, *S): 1 where ``labels`` has the class,
        ``IGNORED`` where it is unknown, 0 elsewhere.
        """
        logits = self.head(images, self.prompts[source])
        space = (1,) * self.setting.dims
        values = self.label_values[source]  # (N, R)
        values = values.view(len(source), -1, *space)
        labels = labels.unsqueeze(1)
        target = (labels == values).long()
        return logits, target.masked_fill(~is_known(labels), IGNORED)

    def task_dice(self, logits: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """Return the foreground Dice loss of the results of ``own_classes``."""
        p = wide_softmax(logits, 2)[:, :, 1] * is_known(target)  # (N, R, *S)
        mask = target == 1
        if self.p.dice_by == "prompt":
            return dice_by_prompt(p, mask, self.prompts[source], self.tasks)
        return soft_dice(p, mask, keep=(1,))

    # -- 2. the synthetic task: any foreground in CutMix images ------------------------------------

    def synthetic_loss(self, images: Encoded, labels: Tensor) -> Tensor:
        """Return the Dice loss of any foreground in CutMix images with ``labels`` (N, *S)."""
        prompt = torch.full((len(labels), 1), self.tasks, device=labels.device)
        logits = self.head(images, prompt)
        p = wide_softmax(logits, 2)[:, 0, 1]  # (N, *S)
        known = is_known(labels)
        return soft_dice(p * known, known & (labels > 0))

    def specific_loss(self, images: Encoded, pairs: Pairs) -> Tensor:
        """Return the Dice loss of the real tasks on CutMix images.

        Each image is prompted with the classes of both of its data sets.
        """
        logits, target = self.own_classes(images, pairs.outer_label, pairs.outer_source)
        outer = self.task_dice(logits, target, pairs.outer_source)
        logits, target = self.own_classes(images, pairs.inner_label, pairs.inner_source)
        inner = self.task_dice(logits, target, pairs.inner_source)
        return (outer + inner) / 2

    # -- 3. consistency: aggregated and synthetic predictions agree on unlabeled images ------------

    def foregrounds(self, images: Encoded) -> tuple[Tensor, Tensor]:
        """Return the synthetic prediction and the aggregate of all real tasks, each (N, *S)."""
        features = images.features
        every_prompt = torch.arange(self.tasks + 1, device=features.device)
        logits = self.head(images, every_prompt.expand(len(features), -1))
        p = wide_softmax(logits, 2)[:, :, 1]  # (N, T + 1, *S)
        synthetic = p[:, -1]
        aggregate = p[:, :-1].amax(1)
        if self.p.detach_aggregate:
            aggregate = aggregate.detach()
        return synthetic, aggregate

    def consistency_loss(self, images: Encoded) -> Tensor:
        """Return the Dice loss between synthetic and aggregated predictions."""
        synthetic, aggregate = self.foregrounds(images)
        return soft_dice(synthetic, aggregate)

    def mixed_losses(self, images: Encoded, mixed: Mixed) -> dict[str, Tensor]:
        """Return the terms on unlabeled images with pasted boxes of labeled images.

        Inside the boxes the label is that of the labeled image. It is the target of an auxiliary
        term or, with ``unlabeled_target=composed``, a part of the target of the consistency.
        """
        synthetic, aggregate = self.foregrounds(images)
        known = is_known(mixed.label)
        foreground = known & (mixed.label > 0)
        if self.p.unlabeled_target == "composed":
            inside = foreground.to(aggregate.dtype)
            target = torch.where(mixed.box, inside, aggregate.detach())
            counts = known | ~mixed.box
            return {"consistency": soft_dice(synthetic * counts, target * counts)}
        weight = mixed.box
        if self.p.aux_mask == "pairs":
            weight = weight.sum(0)
        return {
            "consistency": soft_dice(synthetic, aggregate),
            "auxiliary": soft_dice(synthetic, foreground, weight=weight * known),
        }

    # -- the loss ----------------------------------------------------------------------------------

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        if t.phase == "pretrain":
            return self.pretraining_loss(batch, t)
        if self.p.recipe == "one_gpu":
            return self.one_gpu_mining_loss(batch, t)
        return self.mining_loss(batch, t)

    def pretraining_loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Return the terms of stage 1: real and synthetic tasks on labeled images."""
        draw = t.generator("mask", own=True)
        source = batch.source[: len(batch.x)]
        pairs = paste_pairs(batch.x, batch.y, source, PRETRAINING_EDGE, draw)
        with_specific = self.p.recipe == "standard"
        pair_prompts = 1 + 2 * self.prompts_per_image if with_specific else 1
        labeled, synthetic = self.encode(
            [batch.x, pairs.image], prompts=[self.prompts_per_image, pair_prompts]
        )
        terms = {
            "supervised": self.supervised_loss(labeled, batch.y, source),
            "synthetic": self.synthetic_loss(synthetic, pairs.label),
        }
        if with_specific:
            terms["specific"] = self.specific_loss(synthetic, pairs)
        return terms

    def mining_loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Return the terms of stage 2: both tasks on labeled images, consistency on unlabeled."""
        draw = t.generator("mask", own=True)
        source = batch.source[: len(batch.x)]
        pairs = paste_pairs(batch.x, batch.y, source, random_edge(draw), draw)
        mixed = paste_into(batch.u, batch.x, batch.y, random_edge(draw), draw)
        labeled, synthetic, unlabeled = self.encode(
            [batch.x, pairs.image, mixed.image],
            prompts=[self.prompts_per_image, 1, self.tasks + 1],
        )
        terms = {
            "supervised": self.supervised_loss(labeled, batch.y, source),
            "synthetic": self.synthetic_loss(synthetic, pairs.label),
        }
        weight = self.unlabeled_weight(t)
        for name, value in self.mixed_losses(unlabeled, mixed).items():
            terms[name] = weight * value
        return terms

    def one_gpu_mining_loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Return the terms of stage 2 after the closing remark of the official code."""
        draw = t.generator("mask", own=True)
        source = batch.source[: len(batch.x)]
        mixed = paste_into(batch.u, batch.x, batch.y, random_edge(draw), draw)
        labeled, plain_images, mixed_images = self.encode(
            [batch.x, batch.u, mixed.image],
            prompts=[self.prompts_per_image, self.tasks + 1, self.tasks + 1],
        )
        weight = self.unlabeled_weight(t)
        mixed_term = self.mixed_losses(mixed_images, mixed)["consistency"]
        return {
            "supervised": self.supervised_loss(labeled, batch.y, source),
            "plain": weight * self.consistency_loss(plain_images),
            "consistency": ONE_GPU_MIXED_WEIGHT * weight * mixed_term,
        }

    def unlabeled_weight(self, t: Clock) -> float:
        """Return the weight of the terms on unlabeled images."""
        weight: float = self.p.weight
        if self.p.ramp:
            weight = weight * t.ramp(40, of_phase=True)
        return weight

    # -- prediction, stages and optimizer ----------------------------------------------------------

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        classes = self.class_counts[source]
        own_prompts = self.prompts[source, :classes]
        encoded = self.encode_group(image)
        logits = self.head(encoded, own_prompts.expand(len(image), -1))
        p = logits.softmax(2)[:, :, 1]  # (B, classes of the data set, *S)
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

    # -- networks and prompts ----------------------------------------------------------------------

    # An image of data set d is segmented for the prompts ``prompts[d]``; the label value of prompt
    # ``prompts[d, r]`` is ``label_values[d, r]``. Both are (data sets, R).
    prompts: Tensor
    label_values: Tensor

    def build(self, network: Callable[..., Backbone]) -> None:
        self.class_counts = [len(source.classes) for source in self.setting.sources]
        self.tasks = sum(self.class_counts)
        # R: the smallest number of prompts that uses each class of a data set equally often.
        self.prompts_per_image = lcm(*self.class_counts)
        prompts = []
        label_values = []
        first_prompt = 0  # of the data set
        for count in self.class_counts:
            class_index = torch.arange(self.prompts_per_image) % count
            prompts.append(first_prompt + class_index)
            label_values.append(1 + class_index)
            first_prompt += count
        self.register_buffer("prompts", torch.stack(prompts), persistent=False)
        self.register_buffer("label_values", torch.stack(label_values), persistent=False)

        self.backbone = network(heads=())
        self.head = PromptedHead(
            deep=self.backbone.channels[-1],
            width=self.backbone.width,
            prompts=self.tasks + 1,
            dims=self.setting.dims,
            sees_image=self.p.condition == "both",
        )
        self.normalizes_items = normalizes_items(self.backbone)

    def encode(self, groups: Sequence[Tensor], prompts: Sequence[int]) -> list[Encoded]:
        """Return the head's inputs for several groups of images.

        If the backbone normalizes each image separately, images do not influence each other and all
        groups share one pass. The head's batch normalization gets each group separately, as in the
        official code.

        Args:
            groups: images (N, C, *S) of each group.
            prompts: number of prompts that each group is segmented for.
        """
        if not self.normalizes_items:
            pairs = zip(groups, prompts, strict=True)
            return [self.encode_group(group, count) for group, count in pairs]
        sizes = [len(group) for group in groups]
        everything = torch.cat(list(groups))
        bottleneck, features = self.backbone_maps(everything)
        encoded = []
        for deep, fine, count in zip(
            bottleneck.split(sizes), features.split(sizes), prompts, strict=True
        ):
            updates = self.statistics_updates(count)
            encoded.append(self.head.encode(deep, fine, updates))
        return encoded

    def encode_group(self, image: Tensor, prompts: int = 1) -> Encoded:
        """Return the head's inputs for one group of images (N, C, *S)."""
        bottleneck, features = self.backbone_maps(image)
        return self.head.encode(bottleneck, features, self.statistics_updates(prompts))

    def backbone_maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bottleneck (N, D, *s) and the features (N, F, *S) of the backbone."""
        pyramid = self.backbone.encode(image)
        decoded = self.backbone.decode(pyramid)
        return pyramid[-1], decoded[0]

    def statistics_updates(self, prompts: int) -> int:
        """Return how often running statistics are updated: the official code makes one pass, and
        so one update, per prompt."""
        return prompts if self.p.repeat_updates else 1


def dice_by_prompt(p: Tensor, y: Tensor, prompts: Tensor, tasks: int) -> Tensor:
    """Return the foreground Dice loss of p and y (N, R, *S) with one ratio per prompt (N, R).

    A ratio sums over all images of its prompt; the loss is averaged over the prompts in the batch.
    """
    smooth = 1e-5
    p = p.to(torch.promote_types(p.dtype, torch.float32)).flatten(2)
    y = y.to(p.dtype).flatten(2)
    overlap = (p * y).sum(2).flatten()  # (N R,)
    total = (p.square() + y.square()).sum(2).flatten()
    every_prompt = torch.arange(tasks, device=prompts.device)
    has_prompt = prompts.flatten().unsqueeze(1) == every_prompt  # (N R, T)
    overlap_of_prompt = overlap @ has_prompt.to(p.dtype)  # (T,)
    total_of_prompt = total @ has_prompt.to(p.dtype)
    ratios = (2 * overlap_of_prompt + smooth) / (total_of_prompt + smooth)
    losses = 1 - ratios
    occurs = has_prompt.any(0)
    return (losses * occurs).sum() / occurs.sum()


# -- CutMix ----------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """P pairs of labeled images: a box of the inner image replaces that part of the outer one."""

    image: Tensor  # (P, C, *S)
    label: Tensor  # (P, *S), the labels of both images
    outer_label: Tensor  # (P, *S), the classes of the outer image's data set
    inner_label: Tensor  # (P, *S), the classes of the inner image's data set
    outer_source: Tensor  # (P,)
    inner_source: Tensor  # (P,)


class Mixed(NamedTuple):
    """U unlabeled images, each with a pasted box of a labeled image."""

    image: Tensor  # (U, C, *S)
    label: Tensor  # (U, *S), labels of the labeled images
    box: Tensor  # (U, *S), true inside the pasted boxes


def paste_pairs(x: Tensor, y: Tensor, source: Tensor, edge: float, draw: torch.Generator) -> Pairs:
    """Paste a box of each image of the second half of the batch into one of the first half.

    If the number of images is odd, the middle image is in both halves. The images x (N, C, *S) have
    labels y (N, *S); ``edge`` is the edge length of a box relative to the patch.
    """
    half = (len(x) + 1) // 2
    size = tuple(x.shape[2:])
    outside = context_mask(half, size, edge, draw, x.device)  # (P, *S)
    outer = slice(0, half)
    inner = slice(len(x) - half, len(x))
    # If the data sets differ, a data set's labels have background where the other image is; only
    # unknown voxels stay unknown.
    same = source[outer] == source[inner]  # (P,)
    space = (1,) * (y.ndim - 1)
    same = same.view(-1, *space)
    inner_as_outer = y[inner] * (same | ~is_known(y[inner]))
    outer_as_inner = y[outer] * (same | ~is_known(y[outer]))
    return Pairs(
        image=mix(outside, x[outer], x[inner]),
        label=mix(outside, y[outer], y[inner]),
        outer_label=mix(outside, y[outer], inner_as_outer),
        inner_label=mix(outside, outer_as_inner, y[inner]),
        outer_source=source[outer],
        inner_source=source[inner],
    )


def paste_into(u: Tensor, x: Tensor, y: Tensor, edge: float, draw: torch.Generator) -> Mixed:
    """Paste a box of a labeled image into each unlabeled image, with the labeled ones in turn."""
    count = len(u)
    partner = torch.arange(count, device=u.device) % len(x)
    size = tuple(u.shape[2:])
    outside = context_mask(count, size, edge, draw, u.device)  # (U, *S)
    image = mix(outside, u, x[partner])
    return Mixed(image, y[partner], ~outside)


def random_edge(draw: torch.Generator) -> float:
    """Return the edge length of a stage 2 box relative to the patch, uniform on [0.3, 0.6)."""
    return 0.3 + 0.3 * torch.rand((), generator=draw).item()
