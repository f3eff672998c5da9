"""From a method's phases to steps: which phase a step belongs to, and the clock it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segbench.contracts.method import Clock, Phase
from segbench.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """A phase with its place in the run: steps ``start`` to ``start + steps`` and its batch composition.

    ``origin`` and ``span``: first step and length of the stretch of phases that share one optimizer; the learning-rate
    schedule runs over it.
    """

    phase: Phase
    index: int
    start: int
    steps: int
    labeled: int
    unlabeled: int
    origin: int = 0
    span: int = 1


def stages(phases: Sequence[Phase], total: int, labeled: int, unlabeled: int) -> list[Stage]:
    """Share ``total`` steps out over the phases; every phase gets at least one step.

    Places of unlabeled items that a phase does not want go to labeled ones: a step of every phase costs the same.

    Raises:
        UsageError: fewer steps than phases, or shares that do not add up to 1.
    """
    if abs(sum(p.share for p in phases) - 1) > 1e-6:
        raise UsageError(
            "the shares of a method's phases must add up to 1", found=[p.share for p in phases]
        )
    if total < len(phases):
        raise UsageError(
            f"{total} steps are too few for {len(phases)} phases",
            expected=f"steps >= {len(phases)}",
        )
    result, start, share = [], 0, 0.0
    for i, phase in enumerate(phases):
        share += phase.share
        end = total if i == len(phases) - 1 else round(share * total)
        end = min(max(end, start + 1), total - (len(phases) - 1 - i))
        if phase.unlabeled is None and unlabeled == 0:
            raise UsageError(
                f"phase '{phase.name}' needs unlabeled items, but the batch has none",
                expected="batch.unlabeled >= 1",
                fix="-o batch.unlabeled=2, or the method supervised",
            )
        if phase.labeled is not None and phase.labeled < 1:
            raise UsageError(
                f"phase '{phase.name}' wants {phase.labeled} labeled items",
                expected="at least 1",
                fix="leave out what the phase does not need in the loss",
            )
        u = unlabeled if phase.unlabeled is None else phase.unlabeled
        default = labeled + unlabeled if phase.unlabeled == 0 else labeled
        result.append(
            Stage(
                phase, i, start, end - start, default if phase.labeled is None else phase.labeled, u
            )
        )
        start = end
    return _with_spans(result, total)


def _with_spans(plan: list[Stage], total: int) -> list[Stage]:
    origins = [s.start for s in plan if s.start == 0 or s.phase.fresh_optimizer]
    result = []
    for stage in plan:
        origin = max(o for o in origins if o <= stage.start)
        end = min((o for o in origins if o > stage.start), default=total)
        result.append(replace(stage, origin=origin, span=end - origin))
    return result


def stage_of(plan: Sequence[Stage], step: int) -> Stage:
    """The stage a step (from 0) belongs to."""
    return next(s for s in reversed(plan) if s.start <= step)


def clock(stage: Stage, step: int, total: int, epoch: int, seed: int, rank: int = 0) -> Clock:
    """The clock of a step of a stage, in the process ``rank``."""
    return Clock(step, total, stage.phase.name, step - stage.start, stage.steps, epoch, seed, rank)
