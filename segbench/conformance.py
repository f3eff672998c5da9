"""The conformance suite for anybody's method: what the engine promises only holds for methods that keep to the contract.

Each check is a function of a ``Trial`` that raises ``AssertionError`` with what it found. They run on tiny phantoms of their
own, on the CPU, in well under a minute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
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
from segbench.contracts.method import Batch, Method, Optim, Setting, Source
from segbench.data.sampling.batches import TrainingData
from segbench.errors import TrainingError
from segbench.training.build import network_factory
from segbench.training.checkpoint import digest, pack
from segbench.training.loop import Trainer, make_optimizer, step_seed
from segbench.training.plan import Stage, clock, stages
from segbench.training.reporter import StepReport
from segbench.training.setup import Cadence

STEPS = 8


@dataclass(frozen=True)
class Update:
    """One player's update, before its optimizer steps."""

    stage: Stage
    player: str
    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """A method with a backbone, in a setting; ``make`` builds it anew, the same every time."""

    name: str
    backbone: str = "vnet"
    dims: int = 3
    classes: int = 2
    channels: int = 1
    sources: int = 1
    settings: Mapping[str, Any] = field(
        default_factory=dict
    )  # parameters that are not the method's defaults

    @property
    def params(self) -> dict[str, Any]:
        """Small ones of the backbone."""
        fields = registry.get("backbone", self.backbone).cls.Params.model_fields
        return {
            k: max([least, *(m.ge for m in fields[k].metadata if hasattr(m, "ge"))])
            for k, least in (("width", 4), ("depth", 3))
            if k in fields
        }

    @property
    def patch(self) -> tuple[int, ...]:
        """At least 16 voxels, and two at the bottleneck, which instance normalization wants."""
        cls = registry.get("backbone", self.backbone).cls
        unit = cls.multiple(cls.Params(**self.params), self.dims)
        return tuple(-(-max(16, 2 * m if axis == 0 else m) // m) * m for axis, m in enumerate(unit))

    def make(self) -> Method:
        """The method with its networks, in training mode."""
        cls = registry.get("method", self.name).cls
        kinds = tuple(f"class {i}" for i in range(1, self.classes))
        sources = tuple(Source(f"set {i}", kinds) for i in range(self.sources))
        setting = Setting(sources, self.channels, self.patch)
        torch.manual_seed(0)
        method: Method = cls(cls.Params(**self.settings), setting)
        params = {**cls.backbone_defaults.get(self.backbone, {}), **self.params}
        method.build(network_factory(self.backbone, params, setting, cls.needs))
        return method.train()

    def batch(self, labeled: int, unlabeled: int, seed: int = 0) -> Batch:
        """Noise with blocks as labels, each class three deviations brighter; labeled items hold every class."""
        draw, patch = torch.Generator().manual_seed(seed), self.patch
        y = torch.zeros(labeled, *patch, dtype=torch.int64)
        for value in range(1, self.classes):
            y[:, 3 * value : 3 * value + 4, 4:11] = value
        x = torch.randn(labeled + unlabeled, self.channels, *patch, generator=draw)
        x[:labeled] += (
            3 * y[:, None]
        )  # learned within a few steps: some terms need voxels that are right
        return Batch(x[:labeled], y, x[labeled:], torch.arange(labeled + unlabeled) % self.sources)


class Drill:
    """Steps a method as the engine does: seeded, player by player, phase by phase."""

    def __init__(
        self, trial: Trial, method: Method | None = None, labeled: int = 2, unlabeled: int = 2
    ) -> None:
        self.trial, self.method = trial, method or trial.make()
        self.plan = stages(self.method.phases(), STEPS, labeled, unlabeled)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.batches: list[
            tuple[Batch, list[Tensor]]
        ] = []  # of every step, with what it held before
        self.moved: set[str] = set()  # parameters that `after_step` changed

    def steps(self, first: int = 0, last: int = STEPS) -> Iterator[Update]:
        """Updates of steps ``first`` to ``last``."""
        for stage in self.plan:
            for step in range(max(stage.start, first), min(stage.start + stage.steps, last)):
                torch.manual_seed(step_seed(0, step))
                if step == stage.start:
                    self.start(stage)
                yield from self._step(stage, step)

    def start(self, stage: Stage) -> None:
        """Begin a phase."""
        with torch.no_grad():
            self.method.start_phase(stage.phase)
        if stage.phase.fresh_optimizer or stage.start == 0:
            specs = {
                p: self.method.optimizer(p, Optim(lr=0.01), stage.phase)
                for p in self.method.players
            }
            self.optimizers = {
                p: make_optimizer(spec, self.method.trainable(p)) for p, spec in specs.items()
            }

    def _step(self, stage: Stage, step: int) -> Iterator[Update]:
        t, batch = (
            clock(stage, step, STEPS, 0, 0),
            self.trial.batch(stage.labeled, stage.unlabeled, step),
        )
        self.batches.append((batch, [v.clone() for v in vars(batch).values()]))
        for number, player in enumerate(self.method.players):
            self.method.train()
            terms = (self.method.loss if number == 0 else getattr(self.method, f"loss_{player}"))(
                batch, t
            )
            self.optimizers[player].zero_grad(set_to_none=True)
            torch.stack([v.float() for v in terms.values()]).sum().backward()
            yield Update(
                stage,
                player,
                terms,
                {n: p.grad for n, p in self.method.named_parameters() if p.grad is not None},
            )
            self.optimizers[player].step()
        before = {n: p.detach().clone() for n, p in self.method.named_parameters()}
        with torch.no_grad():
            self.method.after_step(t)
        self.moved |= {
            n for n, p in self.method.named_parameters() if not torch.equal(p, before[n])
        }

    def run(self, first: int = 0, last: int = STEPS) -> Drill:
        """Make the steps and forget the updates."""
        for _ in self.steps(first, last):
            pass
        return self


def finite_terms(trial: Trial) -> None:
    """The loss terms of every phase are finite scalars."""
    for update in Drill(trial).steps():
        for key, value in update.terms.items():
            assert value.shape == (), (
                f"term '{key}' has shape {tuple(value.shape)}, expected a scalar"
            )
            assert torch.isfinite(value), (
                f"term '{key}' is {value.item()} in phase '{update.stage.phase.name}'"
            )


def batch_splits(trial: Trial) -> None:
    """Any number of labeled and unlabeled items works."""
    for labeled, unlabeled in ((1, 1), (1, 3), (3, 2)):
        for update in Drill(trial, labeled=labeled, unlabeled=unlabeled).steps():
            assert all(torch.isfinite(v) for v in update.terms.values()), (
                f"{labeled} + {unlabeled} items: not finite"
            )


def probabilities(trial: Trial) -> None:
    """``predict`` gives K finite maps in [0, 1] of the windows' size, the same when asked twice."""
    method = Drill(trial).run(last=2).method.eval()
    image = torch.randn(3, trial.channels, *trial.patch, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = method.predict(image, 0), method.predict(image, 0)
    expected = (3, trial.classes, *trial.patch)
    assert tuple(first.shape) == expected, f"shape {tuple(first.shape)}, expected {expected}"
    assert torch.isfinite(first).all() and first.min() >= 0 and first.max() <= 1 + 1e-5, (
        "not probabilities"
    )
    assert torch.equal(first, second), (
        "two predictions of one image differ: something random is on in eval mode"
    )


def gradients(trial: Trial) -> None:
    """A gradient that is not zero reaches every trainable parameter, and no parameter that `after_step` moves (teachers)."""
    drill = Drill(trial)
    method, reached = drill.method, set()
    for update in drill.steps():
        mine = {id(p) for p in method.trainable(update.player)}
        reached |= {
            n
            for n, p in method.named_parameters()
            if id(p) in mine and n in update.gradients and update.gradients[n].count_nonzero()
        }
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    pulled = sorted(trained & drill.moved)
    assert not pulled, (
        f"`after_step` moves {pulled[0]} ({len(pulled)} in all), which the optimizer trains too: "
        "freeze a teacher with requires_grad_(False)"
    )
    lost = [n for n in sorted(trained - reached) if not n.startswith(method.dormant or ("-",))]
    assert not lost, (
        f"no gradient ever reached {lost[0]} ({len(lost)} in all); declare it in `dormant` if that is meant"
    )


def determinism(trial: Trial) -> None:
    """Two runs with one seed are equal to the last bit."""
    first, second = (digest(Drill(trial).run().method.state_dict()) for _ in range(2))
    assert first == second, (
        "two runs with the same seed differ: use torch's generators or t.generator, nothing else"
    )


def resume(trial: Trial) -> None:
    """Stopping after any step and going on from the stored state changes nothing."""
    straight = digest(Drill(trial).run().method.state_dict())
    for stop in (1, STEPS // 2, STEPS - 1):
        stopped = Drill(trial).run(last=stop)
        state = copy.deepcopy(
            (
                stopped.method.state_dict(),
                {p: o.state_dict() for p, o in stopped.optimizers.items()},
            )
        )
        resumed = Drill(trial)
        for stage in (s for s in resumed.plan if s.start < stop):
            resumed.start(stage)
        resumed.method.load_state_dict(state[0])
        for player, optimizer in resumed.optimizers.items():
            optimizer.load_state_dict(state[1][player])
        assert digest(resumed.run(first=stop).method.state_dict()) == straight, (
            f"resuming after step {stop} gives other weights: some state is neither a parameter nor a buffer"
        )


class _Sealed:
    """Four cases of noise around a ball, two of them labeled; nobody may ask for the labels of the others."""

    labeled = 2

    def __init__(self, trial: Trial) -> None:
        self.channels, self.train = trial.channels, tuple(f"case {i}" for i in range(4))
        self.trial = trial

    def image(self, case: str, /) -> np.ndarray:
        return self.trial.batch(1, 0, self.train.index(case)).x[0].numpy()

    def pad(self, case: str, /) -> tuple[float, ...]:
        return ()

    def label(self, case: str, /) -> np.ndarray:
        assert self.train.index(case) < self.labeled, (
            f"the label of {case}, which is unlabeled, was read"
        )
        return self.trial.batch(1, 0, self.train.index(case)).y[0].numpy().astype(np.uint8)


class _StoppedError(Exception):
    pass


def training_on_disk(trial: Trial) -> None:
    """Trained by the engine, stopped dead and resumed from disk, it ends with the same bytes; no sealed label is read."""
    rule = SimpleNamespace(
        patch=trial.patch,
        sampling="proportional",
        augment="none",
        crop=SimpleNamespace(
            labeled="random", unlabeled="random", pad=1, last_offset=True, foreground=0
        ),
    )
    data = TrainingData({"set": _Sealed(trial)}, {"set": _Sealed.labeled}, rule, seed=0)

    def train(folder: Path, stop: int | None = None) -> str:
        def stop_dead(report: StepReport) -> None:
            if report.step == stop:
                raise _StoppedError  # nothing but the folder is left

        method = trial.make()
        trainer = Trainer(
            method, data, stages(method.phases(), STEPS, 2, 2), Optim(lr=0.01), 0, folder
        )
        try:
            trainer.fit(
                lambda steps: (data.batch(*s) for s in steps),
                folder / "log.jsonl",
                Cadence(2, None),
                stop_dead,
            )
        except TrainingError as error:
            raise AssertionError(error.what) from error
        return digest(method.state_dict())

    with TemporaryDirectory() as straight, TemporaryDirectory() as stopped:
        with suppress(_StoppedError):
            train(Path(stopped), STEPS // 2 + 1)
        assert train(Path(stopped)) == train(Path(straight)), (
            "killed and resumed, it ends with other weights"
        )


def hidden_state(trial: Trial) -> None:
    """A step leaves no new attribute behind, and all state can be stored."""
    drill = Drill(trial)
    before = {n: set(vars(m)) for n, m in drill.method.named_modules()}
    drill.run()
    for name, module in drill.method.named_modules():
        new = set(vars(module)) - before.get(name, set())
        assert not new, (
            f"attribute '{name}.{sorted(new)[0]}' appeared during training; register it as a buffer in build"
        )
    pack(drill.method.state_dict(), {})


def batch_untouched(trial: Trial) -> None:
    """The batch is not changed, in any phase."""
    for batch, before in Drill(trial).run().batches:
        assert all(map(torch.equal, vars(batch).values(), before)), (
            "the method changes the batch in place"
        )


def documented(trial: Trial) -> None:
    """Every parameter has a description, and numbers have a range."""
    for key, info in registry.get("method", trial.name).cls.Params.model_fields.items():
        assert info.description, f"parameter '{key}' has no description"
        bounded = any(hasattr(m, a) for m in info.metadata for a in ("ge", "gt", "le", "lt"))
        assert info.annotation not in (int, float) or bounded, (
            f"parameter '{key}' has no range (ge=, gt=, le=, lt=)"
        )


CHECKS: dict[str, Callable[[Trial], None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        finite_terms,
        batch_splits,
        probabilities,
        gradients,
        determinism,
        resume,
        training_on_disk,
        hidden_state,
        batch_untouched,
        documented,
    )
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"dims": 2},
    {"classes": 4, "channels": 2},
    {"dims": 2, "classes": 4},
)


def trials(name: str, backbone: str = "vnet") -> list[tuple[str, Callable[[], None]]]:
    """All checks of a method as (what, do): everything in the plain setting, terms and predictions in the others."""
    plain = Trial(name, backbone)
    found: list[tuple[str, Callable[[], None]]] = [
        (what, partial(check, plain)) for what, check in CHECKS.items()
    ]
    for setting in SETTINGS[1:]:
        trial = Trial(name, backbone, **setting)
        text = ", ".join(f"{v} {k}" for k, v in setting.items())
        found += [
            (f"{what} ({text})", partial(CHECKS[what], trial))
            for what in ("finite terms", "probabilities")
        ]
    if registry.get("method", name).cls.joint:
        found.append(
            (
                "finite terms (3 data sets)",
                partial(finite_terms, Trial(name, backbone, classes=3, sources=3)),
            )
        )
    return found
