"""Checks of a method: the engine's promises hold only for methods that keep the contract.

Each check is a function of a ``Trial`` and raises ``AssertionError`` with what it found. The checks
run on small synthetic images on the CPU, in less than a minute altogether.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segbench import registry
from segbench.config.machine import Cadence
from segbench.contracts.dataset import IGNORED
from segbench.contracts.method import Batch, Clock, Method, Optim, Setting, Source
from segbench.data.sampling.batches import TrainingData
from segbench.errors import TrainingError
from segbench.evaluation.checks import require_probabilities, require_shape
from segbench.training.build import network_factory
from segbench.training.checkpoint import digest, pack
from segbench.training.loop import Trainer
from segbench.training.plan import Stage, stages
from segbench.training.reporter import StepReport
from segbench.training.step import LossTerms, StepSettings, TrainingStep

STEPS = 8
SETTINGS = StepSettings(Optim(lr=0.01), seed=0)
SMALLEST = {"width": 4, "depth": 3}  # parameters of a backbone, where it has them

Check = Callable[["Trial"], None]


@dataclass(frozen=True)
class Trial:
    """A method with a backbone and the data it is tried on."""

    name: str
    backbone: str = "vnet"
    dims: int = 3
    classes: int = 2
    channels: int = 1
    sources: int = 1  # data sets
    settings: Mapping[str, Any] = field(default_factory=dict)  # the method's parameters

    @property
    def params(self) -> dict[str, Any]:
        """Parameters that make the backbone small."""
        fields = registry.get("backbone", self.backbone).cls.Params.model_fields
        params = {}
        for name, smallest in SMALLEST.items():
            if name not in fields:
                continue
            limits = [limit.ge for limit in fields[name].metadata if hasattr(limit, "ge")]
            params[name] = max([smallest, *limits])
        return params

    @property
    def patch(self) -> tuple[int, ...]:
        """A small patch that fits the backbone.

        Its edges are 16 voxels or more, and the first one leaves two voxels at the bottleneck,
        which instance normalization needs.
        """
        backbone_class = registry.get("backbone", self.backbone).cls
        unit = backbone_class.multiple(backbone_class.Params(**self.params), self.dims)
        patch = []
        for axis, multiple in enumerate(unit):
            least = max(16, 2 * multiple) if axis == 0 else 16
            units = -(-least // multiple)  # rounded up
            patch.append(units * multiple)
        return tuple(patch)

    def make(self) -> Method:
        """Return the method with its networks, in training mode, with the same weights always."""
        method_class = registry.get("method", self.name).cls
        classes = tuple(f"class {number}" for number in range(1, self.classes))
        sources = tuple(Source(f"set {number}", classes) for number in range(self.sources))
        setting = Setting(sources, self.channels, self.patch)
        torch.manual_seed(0)
        method: Method = method_class(method_class.Params(**self.settings), setting)
        backbone_params = {**method_class.backbone_defaults.get(self.backbone, {}), **self.params}
        network = network_factory(
            self.backbone,
            backbone_params,
            setting,
            method_class.needs,
            method_class.backbones,
        )
        method.build(network)
        return method.train()

    def batch(self, labeled: int, unlabeled: int, seed: int = 0) -> Batch:
        """Return noise with a block per class, whose label every labeled item has.

        Each class is three standard deviations brighter than the one before, so that it is learned
        within a few steps: some loss terms need voxels that are predicted correctly.
        """
        generator = torch.Generator().manual_seed(seed)
        patch = self.patch
        labels = torch.zeros(labeled, *patch, dtype=torch.int64)
        for value in range(1, self.classes):
            labels[:, 3 * value : 3 * value + 4, 4:11] = value
        images = torch.randn(labeled + unlabeled, self.channels, *patch, generator=generator)
        images[:labeled] += 3 * labels[:, None]
        source = torch.arange(labeled + unlabeled) % self.sources
        return Batch(images[:labeled], labels, images[labeled:], source)


@dataclass(frozen=True)
class Update:
    """One player's update in a step."""

    stage: Stage
    player: str
    terms: tuple[str, ...]  # their names
    reached: frozenset[str]  # the player's parameters whose gradient is not zero


class Drill(TrainingStep):
    """The engine's training step on the batches of a trial, with a record of what happens."""

    def __init__(self, trial: Trial, labeled: int = 2, unlabeled: int = 2) -> None:
        method = trial.make()
        plan = stages(method.phases(), STEPS, labeled, unlabeled)
        super().__init__(method, plan, SETTINGS)
        self.trial = trial
        self.updates: list[Update] = []
        self.batches: list[tuple[Batch, list[Tensor]]] = []  # with copies made before the step
        self.moved: set[str] = set()  # parameters that ``after_step`` changed

    def run(self, first: int = 0, last: int = STEPS) -> Drill:
        """Make the steps from ``first`` up to but not including ``last``."""
        for stage in self.plan:
            for step in range(stage.start, stage.start + stage.steps):
                if not first <= step < last:
                    continue
                batch = self.trial.batch(stage.labeled, stage.unlabeled, step)
                self.batches.append((batch, [value.clone() for value in vars(batch).values()]))
                self(step, batch).report()  # which refuses a loss that is not finite
        return self

    def update(self, player: str, batch: Batch, t: Clock, stage: Stage) -> list[LossTerms]:
        """Update a player and record its terms and gradients."""
        terms = super().update(player, batch, t, stage)
        own = {id(parameter) for parameter in self.method.trainable(player)}
        reached = set()
        for name, parameter in self.method.named_parameters():
            if id(parameter) not in own or parameter.grad is None:
                continue
            if parameter.grad.count_nonzero() > 0:
                reached.add(name)
        names = [name for one in terms for name in one.names]
        self.updates.append(Update(stage, player, tuple(names), frozenset(reached)))
        return terms

    def finish(self, t: Clock) -> None:
        """Call ``after_step`` and record the parameters that it changes."""
        before = {name: value.detach().clone() for name, value in self.method.named_parameters()}
        super().finish(t)
        for name, value in self.method.named_parameters():
            if not torch.equal(value, before[name]):
                self.moved.add(name)


CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check under its name; an error that the engine raises counts as a failed check."""

    @functools.wraps(function)
    def checked(trial: Trial) -> None:
        try:
            function(trial)
        except TrainingError as error:
            raise AssertionError(
                f"{error.what} ({error.details['where']}): {error.details['found']}"
            ) from error

    CHECKS[function.__name__.replace("_", " ")] = checked
    return checked


@check
def finite_terms(trial: Trial) -> None:
    """The loss terms of every phase are finite scalars."""
    drill = Drill(trial).run()  # the engine refuses any other term
    for update in drill.updates:
        assert update.terms, (
            f"no loss term for player '{update.player}' in phase '{update.stage.phase.name}'"
        )


@check
def batch_splits(trial: Trial) -> None:
    """Any number of labeled and unlabeled items works."""
    for labeled, unlabeled in ((1, 1), (1, 3), (3, 2)):
        try:
            Drill(trial, labeled, unlabeled).run()
        except TrainingError as error:
            raise AssertionError(
                f"{labeled} labeled and {unlabeled} unlabeled items: {error.what}"
            ) from error


@check
def probabilities(trial: Trial) -> None:
    """``predict`` returns one probability map per class, the same when called again."""
    method = Drill(trial).run(last=2).method.eval()
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, trial.channels, *trial.patch, generator=generator)
    with torch.no_grad():
        first = method.predict(image, 0)
        second = method.predict(image, 0)
    require_probabilities(require_shape(first, image, method, 0), method)
    assert torch.equal(first, second), (
        "two predictions of one image differ: something random is active in eval mode"
    )


@check
def gradients(trial: Trial) -> None:
    """A gradient reaches every trainable parameter, and ``after_step`` changes none."""
    drill = Drill(trial).run()
    method = drill.method
    reached: set[str] = set()
    for update in drill.updates:
        reached |= update.reached
    trained = {name for name, value in method.named_parameters() if value.requires_grad}

    moved = sorted(trained & drill.moved)
    assert not moved, (
        f"`after_step` changes {moved[0]} ({len(moved)} in all), which the optimizer trains too: "
        "freeze a teacher with requires_grad_(False)"
    )
    missed = [name for name in sorted(trained - reached) if not _is_dormant(name, method)]
    assert not missed, (
        f"no gradient ever reached {missed[0]} ({len(missed)} in all); "
        "declare it in `dormant` if that is intended"
    )


def _is_dormant(parameter: str, method: Method) -> bool:
    return any(parameter.startswith(prefix) for prefix in method.dormant)


@check
def determinism(trial: Trial) -> None:
    """Two runs with one seed are equal to the last bit."""
    first = _weights(Drill(trial).run())
    second = _weights(Drill(trial).run())
    assert first == second, (
        "two runs with the same seed differ: use torch's generators or t.generator, nothing else"
    )


@check
def resume(trial: Trial) -> None:
    """Stopping after any step and continuing from the stored state changes nothing."""
    straight = _weights(Drill(trial).run())
    for stop in (1, STEPS // 2, STEPS - 1):
        state = copy.deepcopy(Drill(trial).run(last=stop).state())
        resumed = Drill(trial)
        resumed.restore(stop, state)
        assert _weights(resumed.run(first=stop)) == straight, (
            f"resuming after step {stop} gives other weights: "
            "some state is neither a parameter nor a buffer"
        )


def _weights(drill: Drill) -> str:
    return digest(drill.method.state_dict())


class _SealedStore:
    """Four training cases, two of them labeled; reading the label of another one fails."""

    labeled = 2

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.channels = trial.channels
        self.train = tuple(f"case {number}" for number in range(4))

    def image(self, case: str, /) -> np.ndarray[Any, Any]:
        return self._batch(case).x[0].numpy()

    def pad(self, case: str, /) -> tuple[float, ...]:
        return ()

    def label(self, case: str, /) -> np.ndarray[Any, Any]:
        assert self.train.index(case) < self.labeled, (
            f"the label of {case}, which is unlabeled, was read"
        )
        return self._batch(case).y[0].numpy().astype(np.uint8)

    def _batch(self, case: str) -> Batch:
        return self.trial.batch(1, 0, seed=self.train.index(case))


class _StoppedError(Exception):
    """Ends a training as a kill would: only its folder is left."""


@check
def training_on_disk(trial: Trial) -> None:
    """Killed and resumed from disk, a training ends the same; no hidden label is read."""
    protocol = SimpleNamespace(
        patch=trial.patch,
        sampling="proportional",
        augment="none",
        crop=SimpleNamespace(
            labeled="random", unlabeled="random", pad=1, last_offset=True, foreground=0
        ),
    )
    data = TrainingData(
        {"set": _SealedStore(trial)}, {"set": _SealedStore.labeled}, protocol, seed=0
    )

    def train(folder: str, stop: int | None = None) -> str:
        def stop_dead(report: StepReport) -> None:
            if report.step == stop:
                raise _StoppedError

        method = trial.make()
        plan = stages(method.phases(), STEPS, 2, 2)
        trainer = Trainer(TrainingStep(method, plan, SETTINGS, data.epoch), Path(folder))
        cadence = Cadence(steps=2, seconds=None)
        trainer.fit(lambda steps: (data.batch(*step) for step in steps), cadence, stop_dead)
        return digest(method.state_dict())

    with TemporaryDirectory() as straight, TemporaryDirectory() as stopped:
        with suppress(_StoppedError):
            train(stopped, stop=STEPS // 2 + 1)
        assert train(stopped) == train(straight), "killed and resumed, it ends with other weights"


@check
def hidden_state(trial: Trial) -> None:
    """A step leaves no new attribute behind, and all state can be stored."""
    drill = Drill(trial)
    before = {name: set(vars(module)) for name, module in drill.method.named_modules()}
    drill.run()
    for name, module in drill.method.named_modules():
        new = sorted(set(vars(module)) - before.get(name, set()))
        assert not new, (
            f"attribute '{name}.{new[0]}' appeared during training; "
            "register it as a buffer in build"
        )
    pack(drill.method.state_dict(), {})


@check
def batch_untouched(trial: Trial) -> None:
    """The batch is not changed, in any phase."""
    for batch, copies in Drill(trial).run().batches:
        for value, before in zip(vars(batch).values(), copies, strict=True):
            assert torch.equal(value, before), "the method changes the batch in place"


@check
def voxels_left_out(trial: Trial) -> None:
    """The losses of a method with ``skips_ignored`` leave out voxels of the label ``IGNORED``.

    They are finite, and differ from those that any class in these voxels would give.
    """
    if not registry.get("method", trial.name).cls.skips_ignored:
        return
    for stage in Drill(trial).plan:
        step = stage.start + stage.steps - 1
        try:
            left_out = _loss_with_slab(trial, stage, step, IGNORED)
        except (RuntimeError, IndexError) as error:
            raise AssertionError(f"labels with voxels to leave out: {error}") from error
        for value in range(trial.classes):
            assert left_out != _loss_with_slab(trial, stage, step, value), (
                f"phase '{stage.phase.name}': voxels to leave out count as class {value}"
            )


def _loss_with_slab(trial: Trial, stage: Stage, step: int, value: int) -> float:
    """Return the sum of a step's loss terms if a slab of the labels has one value."""
    drill = Drill(trial).run(last=step)
    batch = trial.batch(stage.labeled, stage.unlabeled, step)
    batch.y[:, -6:] = value
    return sum(drill(step, batch).report().terms.values())


@check
def documented(trial: Trial) -> None:
    """Every parameter has a description, and numbers have a range."""
    for name, info in registry.get("method", trial.name).cls.Params.model_fields.items():
        assert info.description, f"parameter '{name}' has no description"
        if info.annotation in (int, float):
            assert any(_is_limit(limit) for limit in info.metadata), (
                f"parameter '{name}' has no range (ge=, gt=, le=, lt=)"
            )


def _is_limit(metadata: object) -> bool:
    return any(hasattr(metadata, name) for name in ("ge", "gt", "le", "lt"))


VARIANTS: tuple[dict[str, Any], ...] = (
    {"dims": 2},
    {"classes": 4, "channels": 2},
    {"dims": 2, "classes": 4},
)


def trials(name: str, backbone: str = "vnet") -> list[tuple[str, Callable[[], None]]]:
    """Return all checks of a method as (description, function to call).

    All checks run on one data set of one class in 3-D; loss terms and predictions also run in other
    variants.
    """
    plain = Trial(name, backbone)
    found: list[tuple[str, Callable[[], None]]] = []
    for what, function in CHECKS.items():
        found.append((what, partial(function, plain)))
    for variant in VARIANTS:
        trial = Trial(name, backbone, **variant)
        text = ", ".join(f"{value} {key}" for key, value in variant.items())
        for what in ("finite terms", "probabilities"):
            found.append((f"{what} ({text})", partial(CHECKS[what], trial)))
    if registry.get("method", name).cls.joint:
        joint = Trial(name, backbone, classes=3, sources=3)
        found.append(("finite terms (3 data sets)", partial(finite_terms, joint)))
    return found
