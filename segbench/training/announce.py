"""What a training says before its first step: its phases, their batches and the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from segbench.contracts.method import Method, Optim
from segbench.training.plan import Stage


def schedule_text(plan: Sequence[Stage], method: Method, default: Optim) -> str:
    """Return one line about the phases of a training and the steps at which the rate drops.

    Args:
        default: the optimizer of the protocol, which the method may replace.
    """
    parts = []
    for _, group in groupby(plan, lambda stage: stage.origin):
        stretch = list(group)  # phases that share an optimizer
        first = stretch[0]
        spec = method.optimizer(method.players[0], default, first.phase)
        parts.append(f"{_phases_text(stretch)}: {_rate_text(spec, first)}")
    return " · ".join(parts)


def _phases_text(stretch: Sequence[Stage]) -> str:
    texts = []
    for stage in stretch:
        batch = f"batch {stage.labeled} + {stage.unlabeled}"
        texts.append(f"{stage.phase.name} ({stage.steps:,} steps, {batch})")
    return ", ".join(texts)


def _rate_text(spec: Optim, first: Stage) -> str:
    """Return the rate of a stretch that begins with a stage, in steps of the whole run."""
    if spec.falls:
        return f"rate {spec.lr:g}, falling to {spec.lr_at(first.span, first.span):.2g}"
    drops = [first.origin + drop for drop in spec.drops(first.span) if drop < first.span]
    if not drops:
        return f"constant rate {spec.lr:g}"
    steps = ", ".join(f"{drop:,}" for drop in drops)
    return f"rate {spec.lr:g}, divided by 10 after step {steps}"


def warn_of_single_items(method: Method, warn: Callable[[str], None]) -> None:
    """Warn once if a training pass through batch normalization holds a single image.

    Its statistics are then those of one image, which is seldom what a paper did. The hooks read
    shapes only.
    """
    layers = [module for module in method.modules() if isinstance(module, _BatchNorm)]
    handles: list[RemovableHandle] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        (maps,) = inputs
        is_image = maps.ndim > 3  # rows of features have two axes
        if not module.training or not is_image or len(maps) > 1:
            return
        while handles:
            handles.pop().remove()
        warn(
            f"a pass of {method.name} through batch normalization holds one image: its statistics "
            "are those of that image alone (larger batches: -o batch.labeled=4 "
            "-o batch.unlabeled=4; or -o backbone.norm=instance)"
        )

    for layer in layers:
        handles.append(layer.register_forward_pre_hook(look))
