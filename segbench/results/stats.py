"""Is one method better than another, and how sure is that? Cases and training runs both are samples.

A score depends on the test case and on the run (seed, labeled draw). Every method is scored on the same cases, so methods
are compared case by case; runs of two methods are independent. The variance of a mean over U runs and N cases is that
between cases, plus that between runs, minus the residual which both contain (the two-way layout of multi-reader studies:
Obuchowski & Rockette 1995), with Satterthwaite's degrees of freedom. One run each: this is the paired t test over cases. No
differences between cases: it is Welch's test over runs. Three runs may agree by chance, and with many methods some do: in a
family of methods no one's runs are taken to scatter less than those of all together.

Intervals are percentiles of a hierarchical bootstrap (cases and runs; where there are labeled draws, these with all their
seeds: Davison & Hinkley 1997, 3.8), scaled to that variance and to Student's t: three runs resampled spread too little.
Ranks follow the tests (Mogstad et al. 2024): a bootstrap of ranks is wrong near ties. Same numbers in, same numbers out:
the generator is seeded from the content. Coverage and false positives: ``benchmarks/statistics/simulate.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf, isnan, nan, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ALPHA = 0.05
POWER = 0.8
REPLICATES = 2000
MAX_SEEDS = 1000
NO_POOL = (0.0, 0)
Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """One method's scores in one metric; of all methods that are compared the columns are the same cases."""

    name: str
    values: Array  # (runs, cases), nan where not defined
    draws: tuple[int, ...] = ()  # labeled draw of each run; empty: all the same
    classes: Array | None = (
        None  # (runs, cases, classes), of which the values are the means; nan where not defined
    )
    lacking: Flags | None = None  # (runs, cases), with classes: is there no record of the case?

    @property
    def patchy(self) -> bool:
        """Does some case lack a class in some run that has the case?"""
        if self.classes is None or self.lacking is None:
            return False
        return bool((np.isnan(self.classes).any(2) & ~self.lacking).any())

    def run(self, index: int, name: str) -> Scores:
        """One of the runs alone."""
        return Scores(
            name,
            self.values[[index]],
            (),
            None if self.classes is None else self.classes[[index]],
            None if self.lacking is None else self.lacking[[index]],
        )

    @property
    def units(self) -> Array:
        """Independent repetitions (U, cases): the means of the labeled draws where there are several, else the runs."""
        return self._units(np.atleast_2d(np.asarray(self.values, dtype=float)))

    def counted(self, cases: Flags) -> Array:
        """Units over some cases, with values whose mean is that of a table: the mean over classes of each class's mean."""
        if self.classes is None or np.isfinite(self.classes[:, cases]).all():
            return self.units[:, cases]
        return self._units(np.stack([_by_class(run) for run in self.classes[:, cases]]))

    def _units(self, values: Array) -> Array:
        if len(set(self.draws)) < 2:
            return values
        draws = np.asarray(self.draws)
        return np.stack([values[draws == d].mean(0) for d in sorted(set(self.draws))])


def _by_class(run: Array) -> Array:
    """Values (cases,) whose mean is the mean over the class means of ``run`` (cases, classes) and has their variance.

    Where not every case has a class, its mean is a ratio: a case without it stands for that mean, the deviations of the
    others count for more. One case alone tells no scatter: all of its value counts as scatter, which can but hide an effect.
    """
    n, parts = len(run), []
    for values in run.T:
        defined = np.isfinite(values)
        count = int(defined.sum())
        if count == 1:
            parts.append(np.where(defined, n * values, 0.0))
        elif count:
            mean, weight = values[defined].mean(), sqrt(n * (n - 1) / (count * (count - 1)))
            parts.append(
                values if count == n else np.where(defined, mean + weight * (values - mean), mean)
            )
    return np.mean(parts, 0) if parts else np.full(n, nan)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over cases and runs; one run: over cases only."""

    mean: float
    low: float
    high: float
    se: float
    df: float


@dataclass(frozen=True)
class Difference:
    """Method ``a`` minus method ``b``, paired by case; ``p`` takes cases and runs as random, ``p_holm`` is corrected."""

    a: str
    b: str
    mean: float
    low: float
    high: float
    se: float
    df: float
    p: float
    p_holm: float
    wilcoxon: float  # p of scipy's signed-rank test over the cases' means: these runs only
    wins: int  # cases in which a is better
    ties: int
    losses: int
    left_out: int  # cases not defined in some run
    by_case: Array  # (cases,) a - b, mean over runs; nan where left out
    # Runs a method with which a true difference of this size shows in 80 of 100 studies; None: too few cases, or one run.
    seeds_needed: int | None

    @property
    def distinguishable(self) -> bool:
        """Is the corrected p below 5 %?"""
        return self.p_holm < ALPHA


@dataclass(frozen=True)
class Place:
    """A method's place in a ranking."""

    name: str
    rank: int  # of the first of its group
    tied: bool  # it shares its rank
    letters: str  # two methods that share a letter are not distinguishable
    low: int  # the rank lies in low ... high, for all methods at once with 95 %
    high: int
    estimate: Estimate


def estimate(scores: Scores, limits: tuple[float, float] = (-inf, inf)) -> Estimate:
    """Mean over cases and runs with its interval, kept within ``limits``; cases that some run lacks are left out."""
    values = scores.counted(_cases(scores))
    mean, se, df = _moments([values], [1])
    low, high = _interval([values], [1], mean, se, df, scores.name)
    return Estimate(mean, max(low, limits[0]), min(high, limits[1]), se, df)


def compare(
    a: Scores, b: Scores, higher: bool = True, tie: float = 0.0, family: Sequence[Scores] = ()
) -> Difference:
    """``a`` minus ``b``.

    Args:
        higher: larger scores are better.
        tie: cases that differ by no more count as ties.
        family: methods from which is taken how much runs scatter at least.

    Raises:
        ValueError: the two have not the same number of cases.
    """
    first, second = a.units, b.units
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{a.name} has {first.shape[1]} cases, {b.name} {second.shape[1]}: nothing to pair"
        )
    defined, cases = np.isfinite(first).all(0) & np.isfinite(second).all(0), _cases(a, b)
    groups, signs = [a.counted(cases), b.counted(cases)], [1, -1]
    if len(set(a.draws)) > 1 and set(a.draws) == set(
        b.draws
    ):  # the same labeled cases: paired by draw, too
        groups, signs = [groups[0] - groups[1]], [1]
    pool = _pool(family) if len(groups) == 2 else NO_POOL
    mean, se, df = _moments(groups, signs, pool)
    low, high = _interval(groups, signs, mean, se, df, f"{a.name}\0{b.name}")
    by_case = np.where(defined, first.mean(0) - second.mean(0), nan)
    p = _p(mean, se, df)
    better = by_case[defined] if higher else -by_case[defined]
    return Difference(
        a.name,
        b.name,
        mean,
        low,
        high,
        se,
        df,
        p,
        p,
        _wilcoxon(better),
        int((better > tie).sum()),
        int((abs(better) <= tie).sum()),
        int((better < -tie).sum()),
        int((~defined).sum()),
        by_case,
        _seeds_needed(groups, signs, mean, pool),
    )


def pairwise(
    scores: Sequence[Scores], higher: bool = True, tie: float = 0.0, family: Sequence[Scores] = ()
) -> list[Difference]:
    """All pairs, in order; ``p_holm`` is corrected for their number. The family is theirs if none is given."""
    return corrected(
        [compare(a, b, higher, tie, family or scores) for a, b in combinations(scores, 2)]
    )


def turned(d: Difference) -> Difference:
    """The same difference from the other side."""
    return replace(
        d,
        a=d.b,
        b=d.a,
        mean=0.0 - d.mean,
        low=0.0 - d.high,
        high=0.0 - d.low,
        wins=d.losses,
        losses=d.wins,
        by_case=0.0 - d.by_case,
    )


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences with ``p_holm`` as of one family."""
    return [
        replace(d, p_holm=p)
        for d, p in zip(differences, holm([d.p for d in differences]), strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the order given; nan stays nan and counts as a test."""
    adjusted, highest = [nan] * len(p), 0.0
    for position, index in enumerate(sorted(range(len(p)), key=lambda i: (isnan(p[i]), p[i]))):
        if not isnan(p[index]):
            highest = max(highest, min(1.0, (len(p) - position) * p[index]))
            adjusted[index] = highest
    return adjusted


def ranking(
    scores: Sequence[Scores],
    higher: bool = True,
    limits: tuple[float, float] = (-inf, inf),
    tie: float = 0.0,
) -> tuple[list[Place], list[Difference]]:
    """Places, best first, and all pairwise differences.

    A group takes in every method that is not distinguishable from its first; all of it has the first one's rank.
    """
    estimates = {s.name: estimate(s, limits) for s in scores}
    ordered = sorted(scores, key=lambda s: (-1 if higher else 1) * estimates[s.name].mean)
    differences = pairwise(ordered, higher, tie)
    # Cases that one lacks count in its own mean, not in the pair: a test that says the contrary of the order parts nobody.
    apart = {
        frozenset((d.a, d.b)) for d in differences if d.distinguishable and (d.mean > 0) == higher
    }
    names = [s.name for s in ordered]
    ranks: list[int] = []
    for position, name in enumerate(names, 1):
        joins = bool(ranks) and frozenset((names[ranks[-1] - 1], name)) not in apart
        ranks.append(ranks[-1] if joins else position)
    signs = letters(names, apart)
    places = []
    for position, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        better = sum(frozenset((name, other)) in apart for other in names[:position])
        worse = sum(frozenset((name, other)) in apart for other in names[position + 1 :])
        places.append(
            Place(
                name,
                rank,
                ranks.count(rank) > 1,
                signs[name],
                1 + better,
                len(names) - worse,
                estimates[name],
            )
        )
    return places, differences


def letters(names: Sequence[str], apart: set[frozenset[str]]) -> dict[str, str]:
    """Compact letter display (Piepho 2004): two names share a letter if and only if their pair is not in ``apart``."""
    columns = [frozenset(names)]
    for pair in combinations(names, 2):
        if frozenset(pair) in apart:
            split = [
                part
                for c in columns
                for part in ((c - {pair[0]}, c - {pair[1]}) if c >= set(pair) else (c,))
            ]
            columns = [
                c
                for i, c in enumerate(split)
                if not any(c < o or (c == o and i > j) for j, o in enumerate(split))
            ]
    columns.sort(key=lambda c: [name not in c for name in names])
    return {name: "".join(_letter(i) for i, c in enumerate(columns) if name in c) for name in names}


def _letter(index: int) -> str:
    return chr(ord("a") + index % 26) + (str(index // 26) if index >= 26 else "")


def _cases(*scores: Scores) -> Flags:
    """The cases that all runs of these methods have and in which any of them is defined."""
    whole = [
        np.isfinite(s.units).all(0) if s.lacking is None else ~s.lacking.any(0) for s in scores
    ]
    return np.all(whole, 0) & np.any(
        [np.isfinite(np.atleast_2d(s.values)).any(0) for s in scores], 0
    )


def _pool(family: Sequence[Scores]) -> tuple[float, int]:
    """Variance between the runs of all methods together, and its degrees of freedom."""
    units = [s.counted(cases).mean(1) for s in family if (cases := _cases(s)).any()]
    units = [u for u in units if np.isfinite(u).all()]
    df = sum(len(u) - 1 for u in units)
    return (sum(float(u.var()) * len(u) for u in units) / df, df) if df else NO_POOL


def _moments(
    groups: Sequence[Array], signs: Sequence[int], pool: tuple[float, int] = NO_POOL
) -> tuple[float, float, float]:
    """Mean, standard error and degrees of freedom of the signed sum of the groups' means."""
    mean = (
        float(sum(sign * g.mean() for g, sign in zip(groups, signs, strict=True)))
        if groups[0].size
        else nan
    )
    if groups[0].shape[1] < 2:
        return mean, nan, nan
    cases, runs, freedom, residual = _parts(groups, signs, pool)
    parts = [(cases, groups[0].shape[1] - 1), *zip(runs, freedom, strict=True)]
    variance = max(cases + sum(runs) - sum(residual), cases, sum(runs))
    spread = sum(v * v / d for v, d in parts if d > 0)
    return mean, sqrt(variance), variance**2 / spread if spread > 0 else inf


def _parts(
    groups: Sequence[Array], signs: Sequence[int], pool: tuple[float, int]
) -> tuple[float, list[float], list[int], list[float]]:
    """Variance of the mean from cases; for each group that from runs, its degrees of freedom, the residual in both."""
    n = groups[0].shape[1]
    cases = sum(sign * g.mean(0) for g, sign in zip(groups, signs, strict=True))
    runs, freedom, residual = [], [], []
    for g in groups:
        u = len(g)
        own = float(g.mean(1).var(ddof=1)) if u > 1 else 0.0
        rest = g - g.mean(0) - g.mean(1, keepdims=True) + g.mean()
        runs.append(max(own, pool[0]) / u)
        freedom.append(pool[1] if pool[0] > own else u - 1)
        residual.append(float((rest**2).sum()) / ((u - 1) * (n - 1)) / (u * n) if u > 1 else 0.0)
    return float(np.var(cases, ddof=1)) / n, runs, freedom, residual


def _p(mean: float, se: float, df: float) -> float:
    if isnan(se):
        return nan
    if se == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / se, df))


def _interval(
    groups: Sequence[Array], signs: Sequence[int], mean: float, se: float, df: float, name: str
) -> tuple[float, float]:
    if isnan(se):
        return nan, nan
    rng, n, each = _generator(name, groups), groups[0].shape[1], np.arange(REPLICATES)
    cases = rng.integers(n, size=(REPLICATES, n))
    total = np.zeros(REPLICATES)
    for g, sign in zip(groups, signs, strict=True):
        runs = rng.integers(len(g), size=(len(g), REPLICATES))
        total += sign * g[:, cases].mean(2)[runs, each].mean(0)
    spread = float(total.std())
    if spread == 0 or se == 0:
        return mean, mean
    scale = se * float(stats.t.isf(ALPHA / 2, df)) / (spread * float(stats.norm.isf(ALPHA / 2)))
    low, high = np.percentile(total - total.mean(), (100 * ALPHA / 2, 100 - 100 * ALPHA / 2))
    return mean + scale * float(low), mean + scale * float(high)


def _generator(name: str, groups: Sequence[Array]) -> np.random.Generator:
    digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=16)
    for g in groups:
        digest.update(np.ascontiguousarray(g).tobytes())
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest.digest(), "big")))


def _wilcoxon(differences: Array) -> float:
    if len(differences) < 2:
        return nan
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def _seeds_needed(
    groups: Sequence[Array], signs: Sequence[int], mean: float, pool: tuple[float, int]
) -> int | None:
    """Runs a method so that a true difference of ``mean`` is found with 80 % power, the cases staying as many."""
    n = groups[0].shape[1]
    if mean == 0 or isnan(mean) or n < 2 or any(len(g) < 2 for g in groups):
        return None
    cases, runs, _, residual = _parts(groups, signs, pool)
    single = sum(v * len(g) for v, g in zip(runs, groups, strict=True))  # of one run
    rest = sum(v * len(g) for v, g in zip(residual, groups, strict=True))
    fixed = max(cases - sum(residual), 0.0)  # of the cases, with endless runs
    noise = max(single - rest, 0.0) + rest
    u = np.arange(2, MAX_SEEDS + 1)
    variance = fixed + noise / u
    spread = fixed**2 / (n - 1) + (noise / u) ** 2 / (len(groups) * (u - 1))
    df = np.where(
        spread > 0, variance**2 / np.maximum(spread, np.finfo(float).tiny), inf
    )  # nothing scatters: two suffice
    shown = abs(mean) >= (stats.t.isf(ALPHA / 2, df) + stats.norm.isf(1 - POWER)) * np.sqrt(
        variance
    )
    return int(u[shown.argmax()]) if shown.any() else None
