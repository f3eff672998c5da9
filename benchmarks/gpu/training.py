"""Make training steps of one method at the size of a protocol.

The data are noise with a block per class: time and memory of a step do not depend on the data, so
no data set is needed.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from segbench import Batch, registry
from segbench.config.protocol import Protocol, load_protocol
from segbench.contracts.method import Method, Setting, Source
from segbench.nn.inspect import recompute
from segbench.training.build import network_factory
from segbench.training.plan import Stage, stages
from segbench.training.step import MadeStep, StepSettings, TrainingStep

STEPS = 1000  # of the training whose steps are made


@dataclass(frozen=True)
class Work:
    """What is trained, and how."""

    method: str
    protocol: str
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 0
    recompute: bool = False
    patch: tuple[int, ...] = ()  # empty: the protocol's
    backbone_params: dict[str, Any] = field(default_factory=dict)
    method_params: dict[str, Any] = field(default_factory=dict)


class Training:
    """A method with its optimizers and one batch per phase."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.protocol = load_protocol(work.protocol)
        self.method = _method(work, self.protocol)
        if work.recompute:
            recompute(self.method)
        batch = self.protocol.batch
        self.plan = stages(self.method.phases(), STEPS, batch.labeled, batch.unlabeled)
        settings = StepSettings(self.protocol.optim, work.seed, work.device, work.precision)
        self.train = TrainingStep(self.method, self.plan, settings)
        self.batches: dict[int, Batch] = {}  # by phase
        self.made = 0

    def step(self, stage: Stage) -> MadeStep:
        """Make the next step of a phase; the first call prepares the phases before it, too."""
        if not self.train.optimizers:
            for earlier in self.plan[: stage.index]:
                self.train.start(earlier)
            self.train.start(stage)
        batch = self.batch(stage)
        number = stage.start + 1 + self.made % max(1, stage.steps - 1)
        self.made += 1
        return self.train(number, batch)

    def batch(self, stage: Stage) -> Batch:
        """Return the batch of a phase, on the CPU."""
        if stage.index not in self.batches:
            self.batches[stage.index] = _batch(self.method, stage, self.work.seed)
        return self.batches[stage.index]


def wait_for(device: str) -> None:
    """Wait until the device has done everything that was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """Return the most memory used so far: of the GPU, or of this process."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def seconds_of(training: Training, stage: Stage, steps: int) -> float:
    """Return the wall seconds per step of several steps."""
    wait_for(training.work.device)
    started = time.perf_counter()
    for _ in range(steps):
        made = training.step(stage)
    made.report()
    wait_for(training.work.device)
    return (time.perf_counter() - started) / steps


def _method(work: Work, protocol: Protocol) -> Method:
    """Return the method as the engine builds it; a joint one gets all data sets of the protocol."""
    method_class = registry.get("method", work.method).cls
    names = protocol.datasets or (work.protocol,)
    sources = []
    for name in names if method_class.joint else names[:1]:
        classes = registry.get("dataset", name).cls.classes
        sources.append(Source(name, tuple(classes)))
    setting = Setting(tuple(sources), 1, tuple(work.patch or protocol.patch))
    params = {**protocol.methods.get(work.method, {}), **work.method_params}
    torch.manual_seed(work.seed)
    method: Method = method_class(method_class.Params(**params), setting)
    backbone = protocol.backbone.name
    own = method_class.backbone_defaults.get(backbone, {})
    chosen = {**own, **protocol.backbone.params, **work.backbone_params}
    others = method_class.backbones
    method.build(network_factory(backbone, chosen, setting, method.needs, others))
    return method


def _batch(method: Method, stage: Stage, seed: int) -> Batch:
    """Return noise with a block per class in the labeled items; blocks are brighter."""
    patch = method.setting.patch
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(stage.labeled, *patch, dtype=torch.int64)
    for value in range(1, method.classes):
        start = value * patch[0] // (method.classes + 1)
        middle = slice(patch[1] // 4, 3 * patch[1] // 4)
        labels[:, start : start + max(2, patch[0] // 8), middle] = value
    items = stage.labeled + stage.unlabeled
    images = torch.randn(items, method.setting.channels, *patch, generator=generator)
    images[: stage.labeled] += 3 * (labels[:, None] > 0)
    source = torch.arange(items) % len(method.setting.sources)
    return Batch(images[: stage.labeled], labels, images[stage.labeled :], source)
