"""Whether one method is better than another, and how sure that is.

Cases and replicates are both samples. Every method is scored on the same cases, so methods are
compared case by case. Where two methods were trained on the same labeled draws, they are paired by
draw as well; otherwise their runs are independent. In a cross-validation they are compared fold by
fold. ``variance`` explains the standard errors.
Ranks follow the tests, see ``ranking``. ``benchmarks/statistics/simulate.py`` measures the coverage
of the intervals and the rate of false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np
import scipy

from segbench.results.scores import Array, Flags, Scores
from segbench.results.variance import (
    ALPHA,
    Contrast,
    Moments,
    Pool,
    interval,
    moments,
    p_value,
    pooled,
    pooled_folds,
    pooled_pairs,
    replicates_needed,
)

MANY_DRAWS = 10  # from here on, a pair's own variance between draws is used as it is


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over cases and replicates; one run: over cases only."""

    mean: float
    low: float
    high: float
    se: float
    df: float


@dataclass(frozen=True)
class Basis:
    """What a difference was computed from."""

    contrast: Contrast
    moments: Moments
    pool: Pool
    tests: int  # number of pairs that are tested together
    is_swapped: bool = False  # the difference is seen from the other method

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, not swapped."""
        return interval(self.contrast, self.moments)


@dataclass(frozen=True)
class Difference:
    """Method ``a`` minus method ``b``, paired by case; cases and replicates are both random.

    A ranking tests all pairs of its rows but shows few of them. What takes long and decides no
    rank, such as the interval, is therefore computed when it is first asked for.
    """

    a: str
    b: str
    mean: float
    se: float
    df: float
    p: float
    p_holm: float  # corrected for the number of pairs tested together
    wins: int  # cases in which a is better
    ties: int
    losses: int
    left_out: int  # cases that are not defined in some run
    by_case: Array  # (case,) a - b, mean over replicates; nan where left out
    paired: bool  # by labeled draw: both methods had the same labeled cases
    replicates: int  # of the method that has fewer; in a cross-validation the folds
    basis: Basis = field(repr=False, compare=False)

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        low, high = self.basis.interval
        return 0.0 - high if self.basis.is_swapped else low

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        low, high = self.basis.interval
        return 0.0 - low if self.basis.is_swapped else high

    @cached_property
    def wilcoxon(self) -> float:
        """The p of the signed-rank test over the cases' means: holds for these runs only."""
        return _wilcoxon(self.by_case[np.isfinite(self.by_case)])

    @cached_property
    def replicates_needed(self) -> int | None:
        """Replicates per method with which a difference of this size shows in 80 of 100 studies.

        None: no number suffices with so few cases, or there is only one replicate.
        """
        return replicates_needed(self.basis.contrast, self.basis.pool, self.basis.tests)

    @property
    def distinguishable(self) -> bool:
        """Whether the corrected p is below 5 %."""
        return self.p_holm < ALPHA


def estimate(scores: Scores, limits: tuple[float, float] = (-inf, inf)) -> Estimate:
    """Return the mean with its interval, kept within ``limits``.

    Cases that some run lacks are left out.
    """
    aligned = align([scores])
    contrast = aligned.contrast([1])
    found = moments(contrast)
    low, high = interval(contrast, found)
    return Estimate(found.mean, max(low, limits[0]), min(high, limits[1]), found.se, found.df)


def compare(
    a: Scores,
    b: Scores,
    higher: bool = True,
    tie: float = 0.0,
    family: Sequence[Scores] | Family = (),
    tests: int = 1,
) -> Difference:
    """Return ``a`` minus ``b``.

    Methods that share labeled draws are compared over these draws only.

    Args:
        higher: larger scores are better.
        tie: cases that differ by no more than this count as ties.
        family: methods whose pooled variance between replicates is the least that is assumed;
            with many shared draws, each pair's own variance is used.
        tests: number of pairs that are tested together, for ``replicates_needed``.

    Raises:
        ValueError: the two do not have the same number of cases.
    """
    first, second = (scores.replicates for scores in on_shared_draws([a, b]))
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{a.name} has {first.shape[1]} cases, {b.name} {second.shape[1]}: nothing to pair"
        )
    contrast = align([a, b]).contrast([1, -1])
    paired = len(contrast.groups) == 1
    known = family if isinstance(family, Family) else Family(family)
    pool = known.of_pairs if paired else known.of_methods
    found = moments(contrast, pool)
    p = p_value(found)
    defined = np.isfinite(first).all(0) & np.isfinite(second).all(0)
    by_case = np.where(defined, first.mean(0) - second.mean(0), nan)
    gains = by_case[defined] if higher else -by_case[defined]
    return Difference(
        a=a.name,
        b=b.name,
        mean=found.mean,
        se=found.se,
        df=found.df,
        p=p,
        p_holm=p,
        wins=int((gains > tie).sum()),
        ties=int((abs(gains) <= tie).sum()),
        losses=int((gains < -tie).sum()),
        left_out=int((~defined).sum()),
        by_case=by_case,
        paired=paired,
        replicates=len(set(contrast.folds)) or min(len(first), len(second)),
        basis=Basis(contrast, found, pool, tests),
    )


class Family:
    """The methods of a table, with their pooled variances, which are computed once."""

    def __init__(self, methods: Sequence[Scores]) -> None:
        self.methods = methods

    @cached_property
    def of_methods(self) -> Pool:
        """The variance between the replicates of all methods."""
        return _pool(self.methods)

    @cached_property
    def of_pairs(self) -> Pool:
        """The variance between the draws of differences of two methods."""
        return _pool_of_pairs(self.methods)


class Aligned(NamedTuple):
    """Replicates of several methods over the same cases, ready for contrasts."""

    replicates: list[Array]  # (replicate, case) of each method
    keys: list[tuple[int, ...]]  # methods with equal keys are paired by draw, or by fold
    folds: tuple[int, ...] = ()  # the fold of each case

    def contrast(self, weights: Sequence[float]) -> Contrast:
        """Return the weighted sum of the methods' means.

        The replicates of paired methods are added up: what a draw does to all of them cancels.
        """
        groups: dict[tuple[int, ...], Array] = {}
        for key, values, weight in zip(self.keys, self.replicates, weights, strict=True):
            weighted = weight * values
            groups[key] = groups[key] + weighted if key in groups else weighted
        return Contrast(list(groups.values()), self.folds)


def align(methods: Sequence[Scores]) -> Aligned:
    """Return the replicates of methods over the cases that all of them have.

    Methods with the same labeled draws are paired by draw. Where all methods have at least two
    draws in common, only these are used. In a cross-validation all methods are paired by fold, and
    the runs of a fold are averaged: they have the fold in common.
    """
    methods = on_shared_draws(methods)
    cases = shared_cases(*methods)
    folds = methods[0].folds_of(cases)
    if folds:
        means = [scores.balanced(cases).mean(axis=0, keepdims=True) for scores in methods]
        return Aligned(means, [()] * len(methods), folds)
    keys: list[tuple[int, ...]] = []
    for number, scores in enumerate(methods):
        # Runs of one draw are independent of each other: such a method is not paired.
        several = len(scores.distinct_draws) > 1
        keys.append(tuple(scores.distinct_draws) if several else (-1, number))
    return Aligned([scores.balanced(cases) for scores in methods], keys)


def on_shared_draws(methods: Sequence[Scores]) -> list[Scores]:
    """Return the methods over the labeled draws that all methods with several draws share.

    With fewer than two such draws nothing can be paired, and all runs are kept.
    """
    several = [set(scores.draws) for scores in methods if len(scores.distinct_draws) > 1]
    shared = set.intersection(*several) if several else set()
    found = []
    for scores in methods:
        restrict = len(shared) > 1 and len(scores.distinct_draws) > 1
        found.append(scores.of_draws(sorted(shared)) if restrict else scores)
    return found


def pairwise(
    scores: Sequence[Scores],
    higher: bool = True,
    tie: float = 0.0,
    family: Sequence[Scores] = (),
    only_first: bool = False,
) -> list[Difference]:
    """Return all pairs, in order, with ``p_holm`` corrected for their number.

    Args:
        family: as in ``compare``; the methods themselves if none is given.
        only_first: compare all methods with the first one only.
    """
    pairs = list(combinations(scores, 2))
    if only_first:
        pairs = pairs[: len(scores) - 1]
    tests = len(pairs)
    known = Family(family or scores)
    return corrected([compare(a, b, higher, tie, known, tests) for a, b in pairs])


def swapped(difference: Difference) -> Difference:
    """Return the same difference seen from the other method."""
    return replace(
        difference,
        a=difference.b,
        b=difference.a,
        mean=0.0 - difference.mean,
        basis=replace(difference.basis, is_swapped=not difference.basis.is_swapped),
        wins=difference.losses,
        losses=difference.wins,
        by_case=0.0 - difference.by_case,
    )


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Return the same differences with ``p_holm`` corrected for all of them together."""
    adjusted = holm([difference.p for difference in differences])
    return [
        replace(difference, p_holm=p) for difference, p in zip(differences, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values (1979), in the order given.

    nan stays nan and counts as a test.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda i: (isnan(p_values[i]), p_values[i]))
    adjusted = [nan] * count
    highest = 0.0
    for position, index in enumerate(order):
        if isnan(p_values[index]):
            continue
        highest = max(highest, min(1.0, (count - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def shared_cases(*methods: Scores) -> Flags:
    """Return the cases that all runs of these methods have and in which some run is defined."""
    scored = np.all([scores.scored_cases() for scores in methods], axis=0)
    defined = np.any([scores.defined_cases() for scores in methods], axis=0)
    return np.asarray(scored & defined)


def _pool(family: Sequence[Scores]) -> Pool:
    """Return the pooled variance between the replicates of all methods."""
    return pooled(_replicates(family))


def _pool_of_pairs(family: Sequence[Scores]) -> Pool:
    """Return the pooled variance between the draws of differences of two methods.

    With many draws each pair shows its own variance, and methods differ in how much they scatter:
    then nothing is pooled.
    """
    if any(scores.folds for scores in family):
        return _pool_of_folds(family)
    paired = [scores for scores in family if len(scores.distinct_draws) > 1]
    if len(paired) < 2 or len(paired[0].distinct_draws) >= MANY_DRAWS:
        return Pool()
    replicates = _replicates(on_shared_draws(paired))
    if len({len(values) for values in replicates}) != 1:  # no draws in common
        return Pool()
    return pooled_pairs(replicates)


def _pool_of_folds(family: Sequence[Scores]) -> Pool:
    """Return the pooled variance between the folds of differences of two methods."""
    if len(family) < 2:
        return Pool()
    aligned = align(family)
    values = [means[0] for means in aligned.replicates]
    if not aligned.folds or len(set(aligned.folds)) >= MANY_DRAWS:
        return Pool()
    return pooled_folds(values, aligned.folds)


def _replicates(family: Sequence[Scores]) -> list[Array]:
    """Return the replicates (replicate, case) of the methods with any shared case."""
    replicates = []
    for scores in family:
        cases = shared_cases(scores)
        if cases.any():
            replicates.append(scores.balanced(cases))
    return replicates


def _wilcoxon(differences: Array) -> float:
    if len(differences) < 2:
        return nan
    return float(scipy.stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
