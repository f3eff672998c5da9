"""One training step: seed, batch, one update per player, the method's own bookkeeping.

A step only queues work on its device. The values of its loss terms arrive in main memory later;
``MadeStep.report`` waits for them.

Everything random in a step is a function of (seed, step): the batch, and torch's generators, which
are seeded at the start of the step. So a checkpoint needs no generator state, and evaluation,
logging or a restart cannot change what follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segbench.contracts.method import Batch, Clock, Method, Optim
from segbench.evaluation.precision import autocast
from segbench.nn.compiled import begin_pass
from segbench.training.distributed import World
from segbench.training.gradients import averaged
from segbench.training.loss_checks import (
    GradientWatch,
    require_finite,
    require_graph,
    require_some_left,
    require_terms,
)
from segbench.training.optimizers import make_optimizer
from segbench.training.placement import HostCopy, to_device
from segbench.training.plan import Stage, clock, stage_of
from segbench.training.reporter import StepReport
from segbench.training.signals import CODES

Epoch = Callable[
    [int, int], int
]  # step in the phase and labeled items per batch to passes over the cases

STOP_CODES = sorted(set(CODES.values()))  # each has a flag that processes send one another


@dataclass(frozen=True)
class StepSettings:
    """How to train, apart from the method and its phases."""

    optimizer: Optim  # the protocol's; a method may use another one
    seed: int
    device: str = "cpu"
    precision: str = "fp32"
    without: Collection[str] = ()  # names of loss terms to leave out
    world: World = field(default_factory=World)


@dataclass(frozen=True)
class LossTerms:
    """The loss terms of one player in one step; their values may still be on the device."""

    player: str
    names: tuple[str, ...]
    # One per name, then the stop flags, then how many gradients are not zero while that is watched.
    values: HostCopy
    watch: GradientWatch
    flags: int = 0  # number of stop flags

    def read(self, method: str, t: Clock) -> dict[str, float]:
        """Return the values by name.

        Raises:
            TrainingError: a value is not finite, or nothing has a gradient.
        """
        numbers = self.values.tolist()
        values = dict(zip(self.names, numbers, strict=False))
        require_finite(values, method, self.player, t.step)
        for count in numbers[len(self.names) + self.flags :]:
            self.watch.look(count, method, self.player, t)
        return values

    def stop_code(self) -> int:
        """Return the exit code with which a process was asked to stop; 0 if none was."""
        start = len(self.names)
        flags = self.values.tolist()[start : start + self.flags]
        for code, flag in zip(STOP_CODES, flags, strict=False):
            if flag > 0:
                return code
        return 0


@dataclass(frozen=True)
class MadeStep:
    """A step that was made, or is being made by the device."""

    clock: Clock
    method: str
    lr: float  # learning rate of the first player
    terms: tuple[LossTerms, ...]

    @property
    def completed(self) -> int:
        """Return the number of completed steps, this one included."""
        return self.clock.step + 1

    def report(self) -> StepReport:
        """Wait for the loss terms and return what happened.

        Raises:
            TrainingError: a loss term is not finite, or nothing has a gradient.
        """
        values = _read_all(self.terms, self.method, self.clock)
        return StepReport(self.completed, self.clock.total, self.clock.phase, values, self.lr)

    def stop_code(self) -> int:
        """Wait for the flags; return the exit code with which a process was asked to stop, or 0.

        All processes of a training return the same. A training of one process has no flags.
        """
        return next((terms.stop_code() for terms in self.terms if terms.flags), 0)


def _read_all(terms: Iterable[LossTerms], method: str, t: Clock) -> dict[str, float]:
    values: dict[str, float] = {}
    for one in terms:
        values.update(one.read(method, t))
    return values


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of torch's generators in a step; every process of a training has its own."""
    text = f"model-{seed}-{step}"
    if rank > 0:
        text += f"-{rank}"
    key = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(key, "little") >> 1


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _no_epochs(phase_step: int, labeled: int) -> int:
    return 0


class TrainingStep:
    """Makes the steps of a training. Called with the number of a step and its batch."""

    def __init__(
        self,
        method: Method,
        plan: list[Stage],
        settings: StepSettings,
        epoch: Epoch = _no_epochs,
    ) -> None:
        self.method = to_device(method, settings.device)
        self.plan = plan
        self.settings = settings
        self.epoch = epoch
        self.total = plan[-1].start + plan[-1].steps
        self.optimizers: dict[str, torch.optim.Optimizer] = {}  # by player
        self.specs: dict[str, Optim] = {}  # what the optimizers were made from
        self.watch_gradients = GradientWatch()
        self.stop_code = 0  # of this process, which the others get to know with the loss terms
        self.device = torch.device(settings.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")

    def __call__(self, step: int, batch: Batch) -> MadeStep:
        """Make step number ``step``, counted from 0 over the whole training.

        Whether its loss terms are finite is checked when they are read (``MadeStep.report``).

        Raises:
            TrainingError: a loss is empty or has no gradient; the weights of its player are
                unchanged.
        """
        settings = self.settings
        rank = settings.world.rank
        stage = stage_of(self.plan, step)

        # Seed torch's generators. A phase starts the same in all processes of a training.
        torch.manual_seed(step_seed(settings.seed, step))
        if step == stage.start:
            self.start(stage)
        if rank > 0:
            torch.manual_seed(step_seed(settings.seed, step, rank))

        begin_pass(self.method)

        # Move the batch to the device.
        epoch = self.epoch(step - stage.start, stage.labeled)
        t = clock(stage, step, self.total, epoch, settings.seed, rank)
        batch = batch.to(self.device, non_blocking=True)

        # Update the players in turn, and let the method do its own bookkeeping, such as moving
        # averages.
        terms: list[LossTerms] = []
        try:
            for player in self.method.players:
                self.method.train()
                terms += self.update(player, batch, t, stage)
            self.finish(t)
        except Exception:
            # A loss that is not finite explains the failure better.
            _read_all(terms, self.method.name, t)
            raise
        first_player = self.method.players[0]
        lr = self.optimizers[first_player].param_groups[0]["lr"]
        return MadeStep(t, self.method.name, lr, tuple(terms))

    def start(self, stage: Stage) -> None:
        """Begin a phase: the method prepares for it, then new optimizers are made if needed."""
        with torch.no_grad():
            self.method.start_phase(stage.phase)
        # The optimizers come second because ``start_phase`` may change what is trained.
        if stage.phase.fresh_optimizer or stage.start == 0:
            for player in self.method.players:
                spec = self.method.optimizer(player, self.settings.optimizer, stage.phase)
                self.specs[player] = spec
                self.optimizers[player] = make_optimizer(spec, self.method.trainable(player))

    def update(self, player: str, batch: Batch, t: Clock, stage: Stage) -> list[LossTerms]:
        """Update the weights of one player and return its loss terms; empty if it has none."""
        optimizer = self.optimizers[player]
        lr = self.specs[player].lr_at(t.step - stage.origin, stage.span)
        for group in optimizer.param_groups:
            group["lr"] = lr

        terms = self._loss_terms(player, batch, t)
        if not terms:
            return []
        flags = self._stop_flags(player)
        values = torch.stack([value.detach().float() for value in terms.values()])
        if flags:
            values = torch.cat([values, values.new_tensor(flags)])
        means = self.settings.world.mean(values)
        optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([value.float() for value in terms.values()]).sum()
        require_graph(loss, self.method, player, t)
        with averaged(_parameters(optimizer), self.settings.world):
            self.scaler.scale(loss).backward()
        watch = self.watch_gradients
        count = watch.count(_parameters(optimizer), self.method, player, t)
        if count is not None:
            means = torch.cat([means, count.float().view(1)])
        self.scaler.step(optimizer)
        self.scaler.update()
        return [LossTerms(player, tuple(terms), HostCopy(means), watch, len(flags))]

    def _stop_flags(self, player: str) -> list[float]:
        """Return a flag per stop code, which travels with the terms of the first player."""
        if self.settings.world.size == 1 or player != self.method.players[0]:
            return []
        return [float(code == self.stop_code) for code in STOP_CODES]

    def finish(self, t: Clock) -> None:
        """Call the method's ``after_step``, and make its untrained state equal in all processes."""
        with torch.no_grad():
            self.method.after_step(t)
            self.settings.world.follow_first(self.method)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        optimizers = {
            player: optimizer.state_dict()["state"] for player, optimizer in self.optimizers.items()
        }
        return {
            "method": self.method.state_dict(),
            "scaler": self.scaler.state_dict(),
            "optimizers": optimizers,
        }

    def restore(self, step: int, state: dict[str, Any]) -> None:
        """Continue from the state after ``step`` completed steps."""
        # Begin all phases up to that of the last completed step: they change the method.
        last = stage_of(self.plan, max(step - 1, 0))
        for stage in self.plan[: last.index + 1]:
            self.start(stage)
        self.method.load_state_dict(state["method"])
        if step == self.total:  # of a finished training the weights may be all there is
            return
        self.scaler.load_state_dict(state["scaler"])
        for player, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(
                {"state": state["optimizers"][player], "param_groups": groups}
            )

    def _loss_terms(self, player: str, batch: Batch, t: Clock) -> dict[str, Tensor]:
        """Return the terms of a player's loss, without those that the run leaves out."""
        is_first = player == self.method.players[0]
        loss = self.method.loss if is_first else getattr(self.method, f"loss_{player}")
        without = self.settings.without
        with autocast(self.device, self.settings.precision):
            terms = require_terms(loss(batch, t), self.method, player, t)
        kept = {name: value for name, value in terms.items() if name not in without}
        if is_first:
            require_some_left(kept, without, self.method)
        return kept
