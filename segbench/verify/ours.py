"""Our side: the same steps with the engine's own training step."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from segbench import registry
from segbench.config import Experiment, resolve
from segbench.config.protocol import load_protocol
from segbench.contracts.backbone import Backbone
from segbench.contracts.method import Batch, Clock, Method, Setting, Source
from segbench.training.build import network_factory
from segbench.training.plan import Stage, clock, stages
from segbench.training.step import LossTerms, StepSettings, TrainingStep
from segbench.verify.description import Description, Layers
from segbench.verify.draws import EqualDraws
from segbench.verify.examples import example_batch

Terms = dict[str, float]


@dataclass
class Recorded:
    """What our side computed in the steps of one phase."""

    terms: dict[str, list[Terms]] = field(default_factory=dict)  # by player
    gradients: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)  # after the last step


class RecordedStep(TrainingStep):
    """The engine's training step, with a record of terms and gradients."""

    recorded: Recorded

    def update(self, player: str, batch: Batch, t: Clock, stage: Stage) -> list[LossTerms]:
        """Update a player and record its gradients."""
        made = super().update(player, batch, t, stage)
        gradients = {}
        for name, weight in self.method.named_parameters():
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients[name] = gradient.detach().clone()
        self.recorded.gradients.setdefault(player, []).append(gradients)
        return made

    def _loss_terms(self, player: str, batch: Batch, t: Clock) -> dict[str, Tensor]:
        terms = super()._loss_terms(player, batch, t)
        values = {name: value.item() for name, value in terms.items()}
        values["total"] = sum(values.values())
        self.recorded.terms.setdefault(player, []).append(values)
        return terms


class Ours:
    """A method with its published recipe, on a small patch."""

    def __init__(self, name: str, description: Description) -> None:
        self.experiment = published_experiment(name, description)
        protocol = self.experiment.protocol
        self.classes = description.classes
        names = tuple(f"target_{value}" for value in range(1, self.classes))
        sources = tuple(Source(dataset, names) for dataset in self.experiment.datasets)
        setting = Setting(sources, 1, description.small)
        method_class = registry.get("method", name).cls
        self.method: Method = method_class(method_class.Params(**self.experiment.params), setting)
        torch.manual_seed(0)
        self.method.build(
            network_factory(
                self.experiment.backbone,
                self.experiment.backbone_params,
                setting,
                self.method.needs,
                self.method.backbones,
            )
        )
        batch = protocol.batch
        total = protocol.steps * len(sources)
        self.plan = stages(self.method.phases(), total, batch.labeled, batch.unlabeled, batch.fill)
        self.ramps: list[dict[str, Any]] = []  # how the loss of each phase calls the ramp

    def run(self, steps: int, draws: EqualDraws) -> list[Recorded]:
        """Make the first steps of every phase."""
        optimizer = self.experiment.protocol.optim
        step = RecordedStep(self.method, self.plan, StepSettings(optimizer, seed=0))
        records = []
        with draws, self._watched_ramp():
            for stage in self.plan:
                step.recorded = Recorded()
                self.ramps.append({})
                for number in range(steps):
                    place = stage.index * steps + number
                    draws.begin(place)
                    step(stage.start + number, self.batch(place, stage, draws.wide))
                weights = self.method.state_dict().items()
                step.recorded.weights = {name: value.clone() for name, value in weights}
                records.append(step.recorded)
        return records

    def batch(self, place: int, stage: Stage, wide: bool) -> Batch:
        """Return the synthetic batch of a step."""
        sizes = self.experiment.protocol.batch
        sets = len(self.experiment.datasets)
        patch = self.method.setting.patch
        batch, hidden = example_batch(
            place, patch, sizes.labeled, sizes.unlabeled, sets, self.classes
        )
        images = torch.cat([batch.x, batch.u])
        labels = torch.cat([batch.y, hidden])
        if not wide:
            images = images.float()
        # A method without unlabeled images has labels of all images.
        x = images[: stage.labeled]
        y = labels[: stage.labeled]
        u = images[stage.labeled : stage.labeled + stage.unlabeled]
        source = batch.source[: stage.labeled + stage.unlabeled]
        return Batch(x, y, u, source)

    @contextlib.contextmanager
    def _watched_ramp(self) -> Iterator[None]:
        """Record the arguments with which losses call ``Clock.ramp``."""
        usual = Clock.ramp

        def watched(t: Clock, stairs: int = 40, **options: Any) -> float:
            self.ramps[-1] = {"stairs": stairs, **options}
            return usual(t, stairs, **options)

        Clock.ramp = watched  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Clock.ramp = usual  # type: ignore[method-assign]

    # -- schedules -----------------------------------------------------------------------------

    def clocks(self, stage: Stage) -> Iterator[Clock]:
        """Yield the clock of every step of a phase."""
        total = self.plan[-1].start + self.plan[-1].steps
        for step in range(stage.start, stage.start + stage.steps):
            yield clock(stage, step, total, epoch=0, seed=0)

    def rates(self, stage: Stage, player: str) -> list[float]:
        """Return the learning rate at every step of a phase."""
        first = next(other for other in self.plan if other.start == stage.origin)
        spec = self.method.optimizer(player, self.experiment.protocol.optim, first.phase)
        return [spec.lr_at(t.step - stage.origin, stage.span) for t in self.clocks(stage)]

    def weights(self, stage: Stage, parameter: str) -> list[float]:
        """Return a parameter times the ramp of the loss, at every step of a phase."""
        options = self.ramps[stage.index]
        if not options:
            return []
        full = getattr(self.method.p, parameter)
        return [full * t.ramp(**options) for t in self.clocks(stage)]

    def values(self, stage: Stage, function: str) -> list[float]:
        """Return what a function of the method returns for the clock of every step."""
        return [getattr(self.method, function)(t) for t in self.clocks(stage)]


def published_experiment(name: str, description: Description) -> Experiment:
    """Return the experiment that the authors' recipe stands for."""
    published = load_protocol(description.protocol).published
    (datasets,) = [data for data, methods in published.items() if name in methods]
    overrides = [f"{key}={value}" for key, value in description.params.items()]
    resolved = resolve(name, dataset=datasets, protocol=description.protocol, overrides=overrides)
    return resolved.experiments[0]


# -- equal weights -----------------------------------------------------------------------------


def load_networks(
    method: Method,
    networks: Mapping[str, Layers],
    states: Mapping[str, Mapping[str, Tensor]],
    without_counterpart: tuple[str, ...],
) -> None:
    """Load the networks of a script, by its variables, into the modules of a method.

    Raises:
        RuntimeError, IntegrityError: layers differ in name or shape.
    """
    for variable, layers in networks.items():
        state = {}
        for name, value in states[variable].items():
            plain = name.removeprefix("module.")
            if not plain.startswith(without_counterpart or ("\n",)):
                state[plain] = value
        named = {path: f"{prefix}." for path, prefix in layers.items() if prefix}
        for path, prefix in named.items():
            own = {name: value for name, value in state.items() if name.startswith(prefix)}
            state = {name: value for name, value in state.items() if name not in own}
            short = {name.removeprefix(prefix): value for name, value in own.items()}
            _load_layers(method.get_submodule(path), short)
        for path, prefix in layers.items():
            if not prefix:
                _load_layers(method.get_submodule(path), state)


def _load_layers(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load layers: by the backbone's own reader of published weights, or by their names."""
    if isinstance(module, Backbone):
        reader = getattr(sys.modules[type(module).__module__], "load_published", None)
        if reader is not None:
            reader(module, state)
            return
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    fitting = {}
    for name, value in state.items():
        # A 1x1x1 convolution and a linear layer have equal weights of other shapes.
        fits = name in shapes and shapes[name].numel() == value.numel()
        fitting[name] = value.reshape(shapes[name]) if fits else value
    module.load_state_dict(fitting)


def twin(method: Method) -> Method:
    """Return a copy of a method to load other weights into."""
    return copy.deepcopy(method)
