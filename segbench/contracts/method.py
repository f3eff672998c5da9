"""The contract of a method: parameters, networks, named loss terms, prediction. Nothing else is a method's business.

The engine owns device, precision, loop, optimizer step, logging, checkpoint and evaluation.

Shapes: L labeled and U unlabeled items, C channels, K classes with background as class 0, ``*S`` two or three spatial
axes.
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

    ``labeled`` / ``unlabeled``: items a batch; None takes the protocol's numbers, and where no unlabeled items are
    wanted (0) their places go to labeled ones, so that a step costs the same. ``fresh_optimizer``: start the optimizer
    and its schedule again.
    """

    name: str = "train"
    share: float = 1.0  # of the run's steps
    labeled: int | None = None
    unlabeled: int | None = None
    fresh_optimizer: bool = False


def sigmoid_ramp(position: float, length: float) -> float:
    """exp(-5 (1 - clip(position, 0, length) / length)^2), the literature's ramp-up (Laine & Aila, ICLR 2017)."""
    if length <= 0:
        return 1.0
    return exp(-5.0 * (1.0 - min(max(position, 0.0), length) / length) ** 2)


@dataclass(frozen=True)
class Clock:
    """Where training stands. Schedules are pure functions of it, so a method holds no counters.

    The engine seeds torch's generators from (seed, step) before every step: ``torch.randn_like`` in ``loss`` is
    reproducible and a resumed run draws the same numbers as one never stopped.
    """

    step: int  # from 0, over the whole run
    total: int
    phase: str = "train"
    phase_step: int = 0
    phase_total: int = 1
    epoch: int = 0  # passes over the labeled cases in this phase
    seed: int = 0
    rank: int = 0  # of this process, where several share a training

    def ramp(self, stairs: int = 40, of_phase: bool = False) -> float:
        """Sigmoid ramp in ``stairs`` equal steps over the run: floor(step / 150) of 40 when the run has 6000 steps."""
        step, total = (self.phase_step, self.phase_total) if of_phase else (self.step, self.total)
        return sigmoid_ramp(step * stairs // total, stairs)

    def smooth_ramp(self) -> float:
        """Sigmoid ramp over the run without stairs."""
        return sigmoid_ramp(self.step, self.total)

    def generator(self, stream: str, own: bool = False) -> torch.Generator:
        """A CPU generator that depends on (seed, stream, step) only; for draws that must not differ between devices.

        All processes of a training draw the same, or each its ``own``.
        """
        place = (self.seed, stream, self.step, *[self.rank] * (own and self.rank > 0))
        key = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


@dataclass(frozen=True)
class Source:
    """A data set as a method sees it: its name and foreground classes. Label value i + 1 is ``classes[i]``."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """One two-stream batch. Unlabeled images come without labels: there is nothing a method could peek at.

    ``source`` gives each item's data set as an index into ``Setting.sources``, labeled items first. (A volume with
    several annotated classes serves several tasks at once, so the item names its data set and the tasks follow.)
    """

    x: Tensor  # (L, C, *S) float
    y: Tensor  # (L, *S) int64
    u: Tensor  # (U, C, *S) float
    source: Tensor  # (L + U,) int64

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        x, y, u, source = (
            v.to(device, non_blocking=non_blocking) for v in (self.x, self.y, self.u, self.source)
        )
        return Batch(x, y, u, source)


@dataclass(frozen=True)
class Setting:
    """What a method is built for."""

    sources: tuple[Source, ...]
    channels: int
    patch: tuple[int, ...]

    @property
    def classes(self) -> int:
        """K of the first data set, background included."""
        return 1 + len(self.sources[0].classes)

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.patch)


class Method(nn.Module):
    """Base of every method. Its state dict is all its state.

    A subclass writes ``Params``, ``build``, ``loss`` and ``predict``; most need nothing else.
    """

    Params: ClassVar[type[MethodParams]] = MethodParams
    joint: ClassVar[bool] = False  # one training over several data sets
    semi_supervised: ClassVar[bool] = True  # uses the unlabeled images of the batch
    players: ClassVar[tuple[str, ...]] = (
        "network",
    )  # each with its own optimizer; see ``loss_<player>``
    needs: ClassVar[frozenset[str]] = frozenset()  # of the backbone, see Backbone.provides
    backbone_defaults: ClassVar[
        dict[str, dict[str, Any]]
    ] = {}  # the paper's own variant of a backbone
    dormant: ClassVar[
        tuple[str, ...]
    ] = ()  # prefixes of parameters that by the paper's design never get a gradient
    name: ClassVar[str]

    def __init__(self, params: MethodParams, setting: Setting) -> None:
        super().__init__()
        self.p: Any = params
        self.setting = setting
        self.classes = setting.classes

    def build(self, network: Callable[..., Backbone]) -> None:
        """Make the networks: ``network()`` gives a fresh backbone with K outputs, ``network(heads=(1, 1))`` variants."""
        raise NotImplementedError

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Named, already weighted terms of the first player. The engine sums, logs, checks and ablates them."""
        raise NotImplementedError

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        """Class probabilities (B, K, *S) of a batch of windows (B, C, *S) of data set ``source``."""
        raise NotImplementedError

    def after_step(self, t: Clock) -> None:
        """Called after all players' optimizer steps: moving averages and the like."""

    def phases(self) -> tuple[Phase, ...]:
        """The stages of training; shares add up to 1."""
        return (Phase(),)

    def start_phase(self, phase: Phase) -> None:
        """Called once when a phase begins, before its optimizers are made (BCP: both networks from the first phase's)."""

    def optimizer(self, player: str, default: Optim, phase: Phase) -> Optim:
        """The optimizer of a player; the protocol's unless the method is defined with another.

        Asked again only where a phase wants a fresh one. The schedule runs over all phases that share an optimizer.
        """
        return default

    def trainable(self, player: str) -> list[nn.Parameter]:
        """Parameters of a player: a later player owns the submodule of its name, the first one all the rest."""
        others = {id(p) for name in self.players[1:] for p in getattr(self, name).parameters()}
        mine = (
            getattr(self, player).parameters() if player in self.players[1:] else self.parameters()
        )
        return [
            p
            for p in mine
            if p.requires_grad and (player in self.players[1:] or id(p) not in others)
        ]
