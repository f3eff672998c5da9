"""Whether one method is better than another, and how sure that is.

Cases and replicates are both samples. Every method is scored on the same cases, so methods are
compared case by case. Where two methods were trained on the same labeled draws, they are paired by
draw as well; otherwise their runs are independent. ``variance`` explains the standard errors.
Ranks follow the tests, see ``ranking``. ``benchmarks/statistics/simulate.py`` measures the coverage
of the intervals and the rate of false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isnan, nan

import numpy as np
from scipy import stats

from segbench.results.scores import Array, Flags, Scores
from segbench.results.variance import (
    ALPHA,
    Contrast,
    Pool,
    interval,
    moments,
    p_value,
    pooled,
    replicates_needed,
)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over cases and replicates; one run: over cases only."""

    mean: float
    low: float
    high: float
    se: float
    df: float


@dataclass(frozen=True)
class Difference:
    """Method ``a`` minus method ``b``, paired by case; cases and replicates are both random."""

    a: str
    b: str
    mean: float
    low: float
    high: float
    se: float
    df: float
    p: float
    p_holm: float  # corrected for the number of pairs tested together
    wilcoxon: float  # p of the signed-rank test over the cases' means: holds for these runs only
    wins: int  # cases in which a is better
    ties: int
    losses: int
    left_out: int  # cases that are not defined in some run
    by_case: Array  # (case,) a - b, mean over replicates; nan where left out
    # Replicates per method with which a true difference of this size shows in 80 of 100 studies.
    # None: there are too few cases, or only one replicate.
    replicates_needed: int | None

    @property
    def distinguishable(self) -> bool:
        """Whether the corrected p is below 5 %."""
        return self.p_holm < ALPHA


def estimate(scores: Scores, limits: tuple[float, float] = (-inf, inf)) -> Estimate:
    """Return the mean with its interval, kept within ``limits``.

    Cases that some run lacks are left out.
    """
    contrast = Contrast([scores.replicates_by_class(shared_cases(scores))], [1])
    found = moments(contrast)
    low, high = interval(contrast, found, scores.name)
    return Estimate(found.mean, max(low, limits[0]), min(high, limits[1]), found.se, found.df)


def compare(
    a: Scores, b: Scores, higher: bool = True, tie: float = 0.0, family: Sequence[Scores] = ()
) -> Difference:
    """Return ``a`` minus ``b``.

    Args:
        higher: larger scores are better.
        tie: cases that differ by no more than this count as ties.
        family: methods whose pooled variance between replicates is the least that is assumed.

    Raises:
        ValueError: the two do not have the same number of cases.
    """
    first, second = a.replicates, b.replicates
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{a.name} has {first.shape[1]} cases, {b.name} {second.shape[1]}: nothing to pair"
        )
    contrast = _contrast(a, b)
    # A paired contrast measures the scatter of differences; the pool is about single methods.
    pool = _pool(family) if len(contrast.groups) == 2 else Pool()
    found = moments(contrast, pool)
    low, high = interval(contrast, found, f"{a.name}\0{b.name}")
    p = p_value(found)
    defined = np.isfinite(first).all(0) & np.isfinite(second).all(0)
    by_case = np.where(defined, first.mean(0) - second.mean(0), nan)
    gains = by_case[defined] if higher else -by_case[defined]
    return Difference(
        a=a.name,
        b=b.name,
        mean=found.mean,
        low=low,
        high=high,
        se=found.se,
        df=found.df,
        p=p,
        p_holm=p,
        wilcoxon=_wilcoxon(gains),
        wins=int((gains > tie).sum()),
        ties=int((abs(gains) <= tie).sum()),
        losses=int((gains < -tie).sum()),
        left_out=int((~defined).sum()),
        by_case=by_case,
        replicates_needed=replicates_needed(contrast, pool),
    )


def _contrast(a: Scores, b: Scores) -> Contrast:
    """Return the difference of two methods, paired by draw where they share their draws."""
    cases = shared_cases(a, b)
    first = a.replicates_by_class(cases)
    second = b.replicates_by_class(cases)
    if len(a.distinct_draws) > 1 and a.distinct_draws == b.distinct_draws:
        return Contrast([first - second], [1])
    return Contrast([first, second], [1, -1])


def pairwise(
    scores: Sequence[Scores], higher: bool = True, tie: float = 0.0, family: Sequence[Scores] = ()
) -> list[Difference]:
    """Return all pairs, in order, with ``p_holm`` corrected for their number.

    Args:
        family: as in ``compare``; the methods themselves if none is given.
    """
    pairs = combinations(scores, 2)
    return corrected([compare(a, b, higher, tie, family or scores) for a, b in pairs])


def swapped(difference: Difference) -> Difference:
    """Return the same difference seen from the other method."""
    return replace(
        difference,
        a=difference.b,
        b=difference.a,
        mean=0.0 - difference.mean,
        low=0.0 - difference.high,
        high=0.0 - difference.low,
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
    replicates = []
    for scores in family:
        cases = shared_cases(scores)
        if cases.any():
            replicates.append(scores.replicates_by_class(cases))
    return pooled(replicates)


def _wilcoxon(differences: Array) -> float:
    if len(differences) < 2:
        return nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
