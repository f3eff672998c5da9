"""Divide a training into its phases, and make the clock that a method sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segbench.contracts.method import Clock, Phase
from segbench.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """A phase with its place in the run and the composition of its batches.

    Consecutive phases that share an optimizer form a stretch, over which its learning-rate schedule
    runs.
    """

    phase: Phase
    index: int
    start: int  # first step
    steps: int
    labeled: int  # items per batch
    unlabeled: int
    origin: int = 0  # first step of the stretch
    span: int = 1  # length of the stretch in steps


def stages(
    phases: Sequence[Phase], total: int, labeled: int, unlabeled: int, fill: bool = True
) -> list[Stage]:
    """Divide ``total`` steps among the phases; every phase gets at least one step.

    Args:
        labeled: the protocol's number of labeled items per batch.
        unlabeled: the protocol's number of unlabeled items per batch.
        fill: if a phase wants no unlabeled items, their places in the batch go to labeled ones, so
            that a step of every phase costs the same. Otherwise the places stay empty.

    Raises:
        UsageError: there are fewer steps than phases, the shares do not add up to 1, or a phase
            cannot have the batch that it wants.
    """
    if abs(sum(phase.share for phase in phases) - 1) > 1e-6:
        raise UsageError(
            "the shares of a method's phases must add up to 1",
            found=[phase.share for phase in phases],
        )
    if total < len(phases):
        raise UsageError(
            f"{total} steps are too few for {len(phases)} phases",
            expected=f"steps >= {len(phases)}",
        )
    plan: list[Stage] = []
    start = 0
    share = 0.0
    for index, phase in enumerate(phases):
        share += phase.share
        is_last = index == len(phases) - 1
        end = total if is_last else round(share * total)
        later_phases = len(phases) - 1 - index
        end = min(max(end, start + 1), total - later_phases)
        own_labeled, own_unlabeled = _batch_of(phase, labeled, unlabeled, fill)
        plan.append(Stage(phase, index, start, end - start, own_labeled, own_unlabeled))
        start = end
    return _with_stretches(plan, total)


def _batch_of(phase: Phase, labeled: int, unlabeled: int, fill: bool) -> tuple[int, int]:
    """Return the labeled and unlabeled items per batch of a phase."""
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
            fix="leave the labeled items out in the loss",
        )
    own_unlabeled = unlabeled if phase.unlabeled is None else phase.unlabeled
    if phase.labeled is not None:
        return phase.labeled, own_unlabeled
    if phase.unlabeled == 0 and fill:
        return labeled + unlabeled, own_unlabeled
    return labeled, own_unlabeled


def _with_stretches(plan: list[Stage], total: int) -> list[Stage]:
    """Set the origin and span of each stage."""
    origins = []
    for stage in plan:
        if stage.start == 0 or stage.phase.fresh_optimizer:
            origins.append(stage.start)
    result = []
    for stage in plan:
        origin = max(step for step in origins if step <= stage.start)
        end = min((step for step in origins if step > stage.start), default=total)
        result.append(replace(stage, origin=origin, span=end - origin))
    return result


def stage_of(plan: Sequence[Stage], step: int) -> Stage:
    """Return the stage that a step, counted from 0, belongs to."""
    return next(stage for stage in reversed(plan) if stage.start <= step)


def clock(stage: Stage, step: int, total: int, epoch: int, seed: int, rank: int = 0) -> Clock:
    """Return the clock of a step in the process ``rank``."""
    return Clock(
        step=step,
        total=total,
        phase=stage.phase.name,
        phase_step=step - stage.start,
        phase_total=stage.steps,
        epoch=epoch,
        seed=seed,
        rank=rank,
    )
