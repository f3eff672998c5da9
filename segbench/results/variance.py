"""Standard errors and intervals of means over cases and replicates.

A score depends on the test case and on the replicate (a training run, or the mean over the runs of
one labeled draw). The variance of a mean over U replicates and N cases is the variance between
cases, plus that between replicates, minus the residual, which both contain: the two-way layout of
multi-reader studies (Obuchowski & Rockette 1995), with Satterthwaite's degrees of freedom. With one
replicate this is the t test over cases; without differences between cases it is Welch's test.

In a cross-validation each case belongs to one fold, in which another training was tested. The
spread of the folds' means contains everything that differs between trainings: the labeled patients,
the seed, and the cases. The variance of the mean over all cases is that of its folds (a cluster
estimate, with one degree of freedom less than there are folds), but at least that of independent
cases. The training sets of folds overlap; what they have in common is not in any spread, and no
estimate of it exists (Bengio & Grandvalet 2004).

Intervals are percentiles of a hierarchical bootstrap over cases and replicates (Davison & Hinkley
1997, section 3.8), scaled to that standard error and to Student's t, because three resampled runs
spread too little. All intervals use the same resamples: equal scores give equal intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf, isnan, nan, sqrt
from typing import NamedTuple

import numpy as np

from segbench.results.distributions import normal_isf, t_isf, t_isf_of_each, t_sf
from segbench.results.scores import Array

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 2000
SEED = 0  # of the resamples
MAX_REPLICATES = 1000  # replicates_needed looks no further


class Contrast(NamedTuple):
    """A sum of the means of independent groups.

    One group is a mean, or a difference whose methods are paired by draw. Two groups, of which
    the second has the opposite sign, are the difference of two independent methods.
    """

    groups: Sequence[Array]  # each (replicate, case), all over the same cases
    folds: tuple[int, ...] = ()  # the fold of each case; one group of one replicate

    @property
    def cases(self) -> int:
        """Number of cases."""
        return int(self.groups[0].shape[1])

    def mean(self) -> float:
        """Return the sum of the means; nan without cases."""
        if not self.groups[0].size:
            return nan
        return sum(float(group.mean()) for group in self.groups)


def fold_scores(values: Array, folds: Sequence[int]) -> Array:
    """Return one score per fold (fold,), whose mean is the mean over all cases.

    Larger folds count for more: a fold's deviation from the mean is weighted with its size. The
    variance of these scores, divided by their number, is the variance of the mean over cases.

    Args:
        values: scores (case,).
        folds: the fold of each case.
    """
    numbers = np.asarray(folds)
    overall = values.mean()
    present = np.unique(numbers)
    scores = []
    for number in present:
        of_fold = values[numbers == number]
        weight = len(present) * len(of_fold) / len(values)
        scores.append(overall + weight * (of_fold.mean() - overall))
    return np.asarray(scores)


class Pool(NamedTuple):
    """The variance between the replicates of a whole family of methods."""

    variance: float = 0.0
    freedom: int = 0


class Moments(NamedTuple):
    """A mean, its standard error and the degrees of freedom of that error."""

    mean: float
    se: float
    df: float


class Components(NamedTuple):
    """The parts of a mean's variance; those of replicates are listed by group."""

    cases: float
    replicates: list[float]
    freedom: list[int]  # degrees of freedom of each entry of `replicates`
    residual: list[float]  # contained in `cases` and in `replicates`


def pooled(replicates: Sequence[Array]) -> Pool:
    """Return the variance between replicates of all methods together.

    Args:
        replicates: scores (replicate, case) of each method.
    """
    squares = 0.0
    freedom = 0
    for values in replicates:
        means = values.mean(1)
        count = len(means)
        if np.isfinite(means).all():
            squares += float(means.var()) * count
            freedom += count - 1
    return Pool(squares / freedom, freedom) if freedom else Pool()


def pooled_pairs(replicates: Sequence[Array]) -> Pool:
    """Return the variance between replicates of the difference of two methods, over all pairs.

    Args:
        replicates: scores (replicate, case) of each method, over the same labeled draws.
    """
    means = np.stack([values.mean(1) for values in replicates])  # (method, replicate)
    if not np.isfinite(means).all():
        return Pool()
    of_methods = means.mean(axis=1, keepdims=True)
    of_replicates = means.mean(axis=0)
    rest = means - of_methods - of_replicates + means.mean()
    squares = float((rest**2).sum())
    methods, count = means.shape
    freedom = (methods - 1) * (count - 1)
    return Pool(2 * squares / freedom, freedom)


def pooled_folds(values: Sequence[Array], folds: Sequence[int]) -> Pool:
    """Return the variance between folds of the difference of two methods, over all pairs.

    Args:
        values: scores (case,) of each method, over the same cases.
        folds: the fold of each case.
    """
    scores = [fold_scores(of_method, folds)[:, None] for of_method in values]
    return pooled_pairs(scores)


def components(contrast: Contrast, pool: Pool) -> Components:
    """Return the variance components of a contrast.

    By chance, three runs may agree, and among many methods some do. No group's variance between
    replicates is therefore taken as less than that of the family.
    """
    if contrast.folds:
        return _components_of_folds(contrast, pool)
    case_means = np.sum([group.mean(0) for group in contrast.groups], axis=0)
    between_cases = float(np.var(case_means, ddof=1))
    found = Components(between_cases / contrast.cases, [], [], [])
    for group in contrast.groups:
        count = len(group)
        own = float(group.mean(1).var(ddof=1)) if count > 1 else 0.0
        found.replicates.append(max(own, pool.variance) / count)
        found.freedom.append(pool.freedom if pool.variance > own else count - 1)
        found.residual.append(_residual(group))
    return found


def _components_of_folds(contrast: Contrast, pool: Pool) -> Components:
    """Return the variance components of a contrast in a cross-validation.

    The spread of folds contains that of their cases, so that the residual is the part of the cases.
    """
    values = contrast.groups[0].mean(0)
    numbers = np.asarray(contrast.folds)
    within = 0.0
    for number in np.unique(numbers):
        of_fold = values[numbers == number]
        within += float(of_fold.var()) * len(of_fold)
    scores = fold_scores(values, contrast.folds)
    count = len(scores)
    freedom = len(values) - count
    if count < 2 or not freedom:
        between_cases = float(np.var(values, ddof=1))
        return Components(between_cases / len(values), [0.0], [0], [0.0])
    cases = within / freedom / len(values)
    own = float(scores.var(ddof=1))
    return Components(
        cases=cases,
        replicates=[max(own, pool.variance) / count],
        freedom=[pool.freedom if pool.variance > own else count - 1],
        residual=[cases],
    )


def _residual(group: Array) -> float:
    """Return the residual's share of the variance of a group's mean; 0 for one replicate."""
    count, cases = group.shape
    if count < 2:
        return 0.0
    of_cases = group.mean(0)
    of_replicates = group.mean(1, keepdims=True)
    rest = group - of_cases - of_replicates + group.mean()
    squares = float((rest**2).sum())
    variance = squares / int((count - 1) * (cases - 1))
    return variance / int(count * cases)


def moments(contrast: Contrast, pool: Pool = Pool()) -> Moments:  # noqa: B008 - immutable
    """Return the mean, standard error and degrees of freedom of a contrast.

    With fewer than two cases nothing can be tested: the error is nan.
    """
    mean = contrast.mean()
    if contrast.cases < 2:
        return Moments(mean, nan, nan)
    parts = components(contrast, pool)
    replicates = sum(parts.replicates)
    variance = max(
        parts.cases + replicates - sum(parts.residual),
        parts.cases,
        replicates,
    )
    spread = parts.cases * parts.cases / (contrast.cases - 1)
    for part, freedom in zip(parts.replicates, parts.freedom, strict=True):
        if freedom > 0:
            spread += part * part / freedom
    df = variance**2 / spread if spread > 0 else inf
    return Moments(mean, sqrt(variance), df)


def p_value(found: Moments) -> float:
    """Return the two-sided p of a mean against 0; nan where nothing can be tested."""
    if isnan(found.se):
        return nan
    if found.se == 0:
        return 1.0 if found.mean == 0 else 0.0
    return float(2 * t_sf(abs(found.mean) / found.se, found.df))


def interval(contrast: Contrast, found: Moments) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a contrast.

    Args:
        found: the contrast's moments, to which the interval is scaled.
    """
    if isnan(found.se):
        return nan, nan
    totals = _resampled_folds(contrast) if contrast.folds else _resampled(contrast)
    spread = float(totals.std())
    if spread == 0 or found.se == 0:
        return found.mean, found.mean
    normal = normal_isf(ALPHA / 2)
    student = t_isf(ALPHA / 2, found.df)
    scale = found.se * student / (spread * normal)
    outside = 100 * ALPHA / 2  # percent on each side
    deviations = totals - totals.mean()
    low, high = np.percentile(deviations, (outside, 100 - outside))
    return found.mean + scale * float(low), found.mean + scale * float(high)


def _resampled(contrast: Contrast) -> Array:
    """Return the contrast in every resample of its cases and replicates (resample,)."""
    weights = _case_weights(contrast.cases, RESAMPLES)
    each = np.arange(RESAMPLES)
    totals = np.zeros(RESAMPLES)
    counts = tuple(len(group) for group in contrast.groups)
    for group, chosen in zip(contrast.groups, _chosen_replicates(counts, RESAMPLES), strict=True):
        means = group @ weights  # (replicate, resample)
        resampled = means[chosen, each]
        totals += resampled.mean(0)
    return totals


def _resampled_folds(contrast: Contrast) -> Array:
    """Return the contrast in every resample of its folds and of the cases in them (resample,)."""
    values = contrast.groups[0].mean(0)
    scores = fold_scores(values, contrast.folds)
    count = len(scores)
    fold_weights = _case_weights(count, RESAMPLES)  # a fold is drawn like a case
    of_folds = (scores - scores.mean()) @ fold_weights
    present = np.unique(contrast.folds)
    places = np.searchsorted(present, contrast.folds)
    fold_means = np.array([values[places == place].mean() for place in range(count)])
    of_cases = (values - fold_means[places]) @ _case_weights(contrast.cases, RESAMPLES)
    return np.asarray(values.mean() + of_folds + of_cases)


@lru_cache(maxsize=2)
def _chosen_replicates(counts: tuple[int, ...], resamples: int) -> list[np.ndarray]:
    """Return which replicates each resample takes, for each group (replicate, resample)."""
    generator = np.random.default_rng(SEED)
    return [generator.integers(count, size=(count, resamples)) for count in counts]


@lru_cache(maxsize=8)
def _case_weights(cases: int, resamples: int) -> Array:
    """Return how often each resample holds each case, as a share (case, resample)."""
    generator = np.random.default_rng(SEED)
    chosen = generator.integers(cases, size=(resamples, cases))
    first_places = cases * np.arange(resamples)  # of the resamples in one flat array of counts
    places = chosen + first_places[:, None]
    counts = np.bincount(places.ravel(), minlength=resamples * cases)
    by_resample = counts.reshape(resamples, cases)
    return np.ascontiguousarray(by_resample.T / cases)


def smallest_found(found: Moments, tests: int = 1) -> float:
    """Return the smallest true value that a test of a mean against 0 finds with 80 % power.

    It depends on the scatter, not on the observed mean, and has the unit of the scores. It is a
    formula, as that of ``replicates_needed``: the quantile of the test plus that of the power,
    times the standard error. nan where nothing can be tested.

    Args:
        found: the moments of the mean.
        tests: number of means that are tested together: the strictest level of Holm's correction is
            assumed.
    """
    if isnan(found.se):
        return nan
    level = ALPHA / max(tests, 1)
    return (t_isf(level / 2, found.df) + normal_isf(1 - POWER)) * found.se


def replicates_needed(contrast: Contrast, pool: Pool, tests: int = 1) -> int | None:
    """Return how many replicates per group find a true difference of the observed size.

    The difference is found when the test has 80 % power; the number of cases stays as it is.
    None if no number suffices, if one group has a single replicate, or in a cross-validation, whose
    number of folds is given.

    Args:
        tests: number of pairs that are tested together: the strictest level of Holm's correction
            is assumed.
    """
    mean = contrast.mean()
    if mean == 0 or isnan(mean) or contrast.cases < 2:
        return None
    if contrast.folds or any(len(group) < 2 for group in contrast.groups):
        return None
    parts = components(contrast, pool)
    between = 0.0  # variance between single replicates, summed over the groups
    residual = 0.0
    for group, own, rest in zip(contrast.groups, parts.replicates, parts.residual, strict=True):
        between += own * len(group)
        residual += rest * len(group)
    fixed = max(parts.cases - sum(parts.residual), 0.0)  # stays however many replicates there are
    noise = max(between - residual, 0.0) + residual  # shrinks with the number of replicates
    counts = np.arange(2, MAX_REPLICATES + 1)
    noise_of_mean = noise / counts
    variance = fixed + noise_of_mean
    spread_of_cases = fixed**2 / (contrast.cases - 1)
    spread_of_noise = noise_of_mean**2 / (len(contrast.groups) * (counts - 1))
    spread = spread_of_cases + spread_of_noise
    tiny = np.finfo(float).tiny
    df = np.where(spread > 0, variance**2 / np.maximum(spread, tiny), inf)
    level = ALPHA / max(tests, 1)
    quantiles = t_isf_of_each(level / 2, df) + normal_isf(1 - POWER)
    detectable = quantiles * np.sqrt(variance)
    found = abs(mean) >= detectable
    return int(counts[found.argmax()]) if found.any() else None
