"""Check what a method's ``loss`` returns, before a step is made with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from segbench.contracts.method import Clock, Method
from segbench.errors import TrainingError

RESERVED = ("step", "phase", "lr", "seconds")  # columns of the log
PATIENCE = (
    10  # steps of a phase in which a gradient may be zero, such as before a first pseudo label
)
EXPECTED = 'named scalar tensors, such as {"supervised": dice_ce(logits, batch.y)}'


def require_terms(terms: object, method: Method, player: str, t: Clock) -> dict[str, Tensor]:
    """Return the terms of a loss if there is at least one, and each is a scalar tensor with a name.

    Args:
        terms: what the loss of ``player`` returned.

    Raises:
        TrainingError: it is anything else.
    """
    where = f"step {t.step}, {player}"
    if not isinstance(terms, Mapping):
        raise TrainingError(
            f"the loss of {method.name} is not a dictionary of terms",
            where=where,
            found=f"a {type(terms).__name__}",
            expected=EXPECTED,
            fix="return a dictionary from the loss",
        )
    if not terms:
        raise TrainingError(
            f"the loss of {method.name} has no term, so nothing would be trained",
            where=where,
            found="an empty dictionary",
            expected=EXPECTED,
            fix="return at least one term in every step",
        )
    for name, value in terms.items():
        _require_name(name, method, where)
        _require_scalar(name, value, method, where)
    return dict(terms)


def _require_name(name: object, method: Method, where: str) -> None:
    if isinstance(name, str) and name not in RESERVED:
        return
    raise TrainingError(
        f"a loss term of {method.name} has a name that it cannot have",
        where=where,
        found=repr(name),
        expected=f"a text other than {', '.join(RESERVED)}, which are columns of the log",
        fix="rename the term",
    )


def _require_scalar(name: str, value: object, method: Method, where: str) -> None:
    if isinstance(value, Tensor) and value.shape == ():
        return
    found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise TrainingError(
        f"the loss term '{name}' of {method.name} is not a scalar tensor",
        where=where,
        found=found,
        expected="one number per term, as a tensor",
        fix="return its mean or its sum",
    )


def require_some_left(
    terms: Mapping[str, Tensor], without: Collection[str], method: Method
) -> None:
    """Refuse to train without any term of the first player, as an ablation may ask for.

    Raises:
        TrainingError: no term is left.
    """
    if not terms:
        raise TrainingError(
            f"no loss term of {method.name} is left, so nothing would be trained",
            found=f"left out: {', '.join(sorted(without))}",
            expected="at least one term",
        )


def require_finite(values: Mapping[str, float], method: str, player: str, step: int) -> None:
    """Refuse a step with a term that is NaN or infinite.

    Raises:
        TrainingError: a term is not finite.
    """
    if all(math.isfinite(value) for value in values.values()):
        return
    fix = "lower the learning rate (-o optim.lr=...), or use --precision fp32"
    if step == 0:
        fix = f"check the loss itself: no weight has been changed yet; segbench test {method}"
    raise TrainingError(
        f"the loss of {method} is not finite",
        where=f"step {step}, {player}",
        found=", ".join(f"{name} = {value}" for name, value in values.items()),
        expected="finite terms",
        fix=fix,
    )


def require_graph(loss: Tensor, method: Method, player: str, t: Clock) -> None:
    """Refuse a loss that does not depend on any parameter.

    Raises:
        TrainingError: it has no gradient.
    """
    if not loss.requires_grad:
        raise _no_gradient(method.name, f"step {t.step}, {player}", "a sum of constants")


class GradientWatch:
    """Looks at a player's gradients in each phase until one is not zero.

    Like loss terms, the numbers are counted on the device and looked at when they have arrived.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], int] = {}  # steps without a gradient
        self._reached: set[tuple[str, str]] = set()

    def count(
        self, parameters: Iterable[nn.Parameter], method: Method, player: str, t: Clock
    ) -> Tensor | None:
        """Return how many gradients of a step are not zero; None once there were some.

        Raises:
            TrainingError: no parameter of the player has a gradient.
        """
        if (t.phase, player) in self._reached:
            return None
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            found = "a loss that depends on other parameters only"
            raise _no_gradient(method.name, f"step {t.step}, {player}", found)
        counts = [gradient.count_nonzero() for gradient in gradients]
        return torch.stack(counts).sum()

    def look(self, count: float, method: str, player: str, t: Clock) -> None:
        """Look at the count of a step.

        Raises:
            TrainingError: all gradients were zero in the first steps of the phase.
        """
        key = (t.phase, player)
        if count > 0:
            self._reached.add(key)
        if key in self._reached:
            return
        steps = self._waiting.get(key, 0) + 1
        self._waiting[key] = steps
        if steps >= min(PATIENCE, t.phase_total):
            found = f"gradients of zero in {steps} steps"
            raise _no_gradient(method, f"step {t.step}, {player}", found)


def _no_gradient(method: str, where: str, found: str) -> TrainingError:
    return TrainingError(
        f"the loss of {method} has no gradient, so nothing would be trained",
        where=where,
        found=found,
        expected="terms that are computed from the network's output without detach, item or argmax",
        fix=f"segbench test {method} shows which parameters have no gradient",
    )
