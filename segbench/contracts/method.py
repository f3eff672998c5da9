"""Define the interface of a method: its parameters, networks, named loss terms and prediction.

The engine handles everything else: device, precision, training loop, optimizer steps, logging,
checkpoints and evaluation.

Shapes: L labeled and U unlabeled items, C channels, K classes with background as class 0, ``*S``
two or three spatial axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from segbench.contracts.backbone import Backbone
from segbench.contracts.optim import Optim
from segbench.contracts.params import MethodParams

__all__ = [
    "Batch",
    "Clock",
    "Field",
    "Method",
    "MethodParams",
    "Optim",
    "Phase",
    "Setting",
    "Source",
    "sigmoid_ramp",
]


@dataclass(frozen=True)
class Phase:
    """One stage of training.

    ``labeled`` and ``unlabeled`` are the numbers of items per batch. None selects the number of
    the protocol. If ``unlabeled`` is 0 and ``labeled`` is None, labeled items replace the unlabeled
    items of the protocol, so that the cost of a step stays the same, unless the protocol has
    ``batch.fill: false``. ``fresh_optimizer`` restarts the optimizer and its schedule.
    """

    name: str = "train"
    share: float = 1.0  # fraction of the steps of the run
    labeled: int | None = None
    unlabeled: int | None = None
    fresh_optimizer: bool = False


def sigmoid_ramp(position: float, length: float) -> float:
    """Return exp(-5 (1 - clip(position, 0, length) / length)^2).

    This is the ramp-up function of the literature (Laine & Aila, ICLR 2017).
    """
    if length <= 0:
        return 1.0
    return exp(-5.0 * (1.0 - min(max(position, 0.0), length) / length) ** 2)


@dataclass(frozen=True)
class Clock:
    """The current position in a training run.

    Schedules are pure functions of the clock, so a method needs no counters. The engine seeds the
    generators of torch from (seed, step) before every step. Therefore ``torch.randn_like`` in
    ``loss`` is reproducible, and a resumed run draws the same numbers as an uninterrupted run.
    """

    step: int  # from 0, over the whole run
    total: int
    phase: str = "train"
    phase_step: int = 0
    phase_total: int = 1
    epoch: int = 0  # passes over the labeled cases in this phase
    seed: int = 0
    rank: int = 0  # rank of this process in distributed training

    def ramp(
        self, stairs: int = 40, of_phase: bool = False, share: float = 1.0, first: int = 0
    ) -> float:
        """Return the sigmoid ramp in ``stairs`` equal increments over the run or the phase.

        With 40 increments and a run of 6000 steps, the position is floor(step / 150) of 40.

        Args:
            share: part of the run or the phase after which the ramp stays at 1.
            first: number of the first step, 1 in code that counts steps from 1.
        """
        step, total = (self.phase_step, self.phase_total) if of_phase else (self.step, self.total)
        return sigmoid_ramp((step + first) * stairs // (share * total), stairs)

    def smooth_ramp(self) -> float:
        """Return the sigmoid ramp over the run, updated at every step."""
        return sigmoid_ramp(self.step, self.total)

    def generator(self, stream: str, own: bool = False) -> torch.Generator:
        """Return a CPU generator that depends only on (seed, stream, step).

        Use it for draws that must be the same on all devices. All processes of a distributed run
        draw the same numbers, unless ``own`` is set; then each process draws its own numbers.
        """
        place = (self.seed, stream, self.step, *[self.rank] * (own and self.rank > 0))
        key = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


@dataclass(frozen=True)
class Source:
    """Name and foreground classes of a data set; label value i + 1 is ``classes[i]``."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A batch of labeled and unlabeled items.

    The batch contains no labels of the unlabeled images, so a method cannot use them. ``source``
    contains the data set of each item as an index into ``Setting.sources``, labeled items first.
    The index identifies the data set and not the task, because a volume with several annotated
    classes can serve several tasks.
    """

    x: Tensor  # (L, C, *S) float
    y: Tensor  # (L, *S) int64; IGNORED (segbench.contracts.dataset) where no class is known
    u: Tensor  # (U, C, *S) float
    source: Tensor  # (L + U,) int64

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy of the batch on a device."""
        x, y, u, source = (
            v.to(device, non_blocking=non_blocking) for v in (self.x, self.y, self.u, self.source)
        )
        return Batch(x, y, u, source)


@dataclass(frozen=True)
class Setting:
    """The data sets, channels and patch size that a method is built for."""

    sources: tuple[Source, ...]
    channels: int
    patch: tuple[int, ...]

    @property
    def classes(self) -> int:
        """Return K, the number of classes of the first data set, including background."""
        return 1 + len(self.sources[0].classes)

    @property
    def dims(self) -> int:
        """Return the number of spatial axes, 2 or 3."""
        return len(self.patch)


class Method(nn.Module):
    """Base class of all methods. The state dict contains the complete state of a method.

    A subclass defines ``Params``, ``build``, ``loss`` and ``predict``; most need nothing else.
    """

    Params: ClassVar[type[MethodParams]] = MethodParams
    joint: ClassVar[bool] = False  # trains one model on several data sets
    semi_supervised: ClassVar[bool] = True  # uses the unlabeled images of the batch
    # Players are the groups of parameters that are updated in turn in every step, each with its own
    # loss (``loss`` for the first player, ``loss_<player>`` for the others) and its own optimizer.
    players: ClassVar[tuple[str, ...]] = ("network",)
    needs: ClassVar[frozenset[str]] = frozenset()  # required options, see Backbone.provides
    # Backbones that ``build`` asks for by name, beside the one of the run.
    backbones: ClassVar[tuple[str, ...]] = ()
    # Default parameters by backbone name, as used in the paper.
    backbone_defaults: ClassVar[dict[str, dict[str, Any]]] = {}
    # Whether all losses leave out the voxels whose label is ``IGNORED``, as those of
    # ``segbench.nn.losses`` do. Other methods cannot be trained on labels with such voxels.
    skips_ignored: ClassVar[bool] = False
    # Name prefixes of parameters that never receive a gradient, by design of the paper.
    dormant: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str]

    def __init__(self, params: MethodParams, setting: Setting) -> None:
        super().__init__()
        self.p: Any = params
        self.setting = setting
        self.classes = setting.classes

    def build(self, network: Callable[..., Backbone]) -> None:
        """Build the networks.

        ``network()`` returns a new backbone with K output channels. Arguments select a variant, for
        example ``network(heads=(1, 1))``.

        A method with a second architecture names it, ``network(backbone="resvnet")``, and declares
        it in its class, ``backbones = ("resvnet",)``, so that the identity of a run covers its
        source. It has the parameters of the run's backbone (width, depth, normalization, dropout)
        where it knows them, and its defaults elsewhere. With ``--backbone resvnet`` both networks
        have one architecture.
        """
        raise NotImplementedError

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Return the weighted loss terms of the first player by name.

        The engine sums, logs, checks and ablates the terms. At least one term is needed in every
        step, and their sum has a gradient. No term is called step, phase, lr or seconds, which are
        columns of the log.
        """
        raise NotImplementedError

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        """Return class probabilities (B, K, *S) for windows (B, C, *S) of data set ``source``.

        They sum to 1 over the classes. A method that answers one question per class may instead
        return the answers, with 1 - (the largest of them) as the probability of the background.
        """
        raise NotImplementedError

    def after_step(self, t: Clock) -> None:
        """Update state such as moving averages; called after the optimizer steps of all players."""

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of training; their shares add up to 1."""
        return (Phase(),)

    def start_phase(self, phase: Phase) -> None:
        """Prepare a phase; called once at its start, before its optimizers are built.

        For example, BCP initializes both networks with the weights of its first phase.
        """

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        """Return the optimizer settings of a player.

        ``default`` holds the settings of the protocol; override this method if the paper uses other
        settings. The settings take effect in the first phase and in each phase with
        ``fresh_optimizer``. The schedule covers all phases that share an optimizer.
        """
        return default

    def trainable(self, player: str) -> list[nn.Parameter]:
        """Return the trainable parameters of a player.

        A later player owns the submodule with its name; the first player owns all other parameters.
        """
        others = {id(p) for name in self.players[1:] for p in getattr(self, name).parameters()}
        mine = (
            getattr(self, player).parameters() if player in self.players[1:] else self.parameters()
        )
        return [
            p
            for p in mine
            if p.requires_grad and (player in self.players[1:] or id(p) not in others)
        ]
