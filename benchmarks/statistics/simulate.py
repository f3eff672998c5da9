"""Measure the coverage of the intervals and the false positives of the tests in simulated studies.

    python benchmarks/statistics/simulate.py [--studies 2000] [--only NAME]

A score is the sum of the mean, a case effect, a method x case effect, effects of the labeled draw
(one common to all methods, one per method), a run effect and a residual. All effects are random. In
a cross-validation each fold has a draw of its own, and each case belongs to one fold.

1. All methods are equally good, so each difference that a test finds is a false positive. Tests
   over cases only, which confuse run effects with method effects, are shown for comparison. 95 % of
   the intervals should contain the true value; 5 % of the tests, and 5 % of the families of tests,
   should have a false positive.
2. Supervised, oracle, a method and its control differ by known amounts: 95 % of the intervals of
   *gap closed* and of *unlabeled gain* should contain the true value.
3. One method is better by 2 Dice points: how often is this found, depending on the number of draws?
"""

from __future__ import annotations

import argparse
import os
from typing import NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before NumPy starts its threads

import numpy as np  # noqa: E402
from scipy import stats as scipy_stats  # noqa: E402
from segbench.benchmarks.statistics.designs import (  # noqa: E402
    DESIGNS,
    EFFECT_DESIGNS,
    POWER_DESIGNS,
    TRUTH,
    Design,
)

from segbench.results import variance  # noqa: E402
from segbench.results.ranking import ranking  # noqa: E402
from segbench.results.reference import gap_closed, unlabeled_gain  # noqa: E402
from segbench.results.stats import compare, estimate, holm, pairwise  # noqa: E402

FEW_RESAMPLES = 500  # for the bootstrap: enough for these shares, and four times as fast


class Shares(NamedTuple):
    """Fractions of the studies with equally good methods."""

    mean: float  # intervals of means that contain the true value
    difference: float  # intervals of differences that contain 0
    single: float  # single tests with a false positive
    family: float  # families of all pairs with a false positive after Holm's correction
    ranks: float  # studies in which a rank interval misses a possible rank
    paired_t: float  # SciPy's tests over cases, on means over runs
    wilcoxon: float
    naive: float  # families of Wilcoxon tests over cases, with Holm's correction


def measure(design: Design, studies: int, seed: int = 0) -> Shares:
    """Simulate ``studies`` studies and return the shares."""
    rng = np.random.default_rng(seed)
    rows = [_measure_one(design, rng) for _ in range(studies)]
    return Shares(*np.mean(rows, axis=0).tolist())


def _measure_one(design: Design, rng: np.random.Generator) -> Shares:
    """Return the outcomes of one study: 1.0 for yes, 0.0 for no."""
    scores = design.study(rng)
    mean = estimate(scores[0])
    places, differences = ranking(scores)
    difference = next(d for d in differences if {d.a, d.b} == {"m0", "m1"})
    case_means = [method.values.mean(0) for method in scores]
    pairs = []
    for i in range(design.methods):
        pairs += [case_means[i] - case_means[j] for j in range(i)]
    naive = scipy_stats.wilcoxon(pairs, axis=1).pvalue.tolist()
    return Shares(
        mean=float(mean.low <= TRUTH <= mean.high),
        difference=float(difference.low <= 0 <= difference.high),
        single=float(difference.p < variance.ALPHA),
        family=float(any(d.distinguishable for d in differences)),
        ranks=float(any((p.low, p.high) != (1, design.methods) for p in places)),
        paired_t=float(scipy_stats.ttest_rel(*case_means[:2]).pvalue < variance.ALPHA),
        wilcoxon=float(difference.wilcoxon < variance.ALPHA),
        naive=float(min(holm(naive)) < variance.ALPHA),
    )


class EffectShares(NamedTuple):
    """Fractions of the studies with known effects."""

    gap: float  # intervals of the gap closed that contain the true value
    no_interval: float  # studies whose gap is too uncertain for an interval; counted in ``gap``
    gain: float  # intervals of the unlabeled gain that contain the true value


def measure_effects(design: Design, studies: int, seed: int = 0) -> EffectShares:
    """Simulate studies with supervised, oracle, a method and its control."""
    rng = np.random.default_rng(seed)
    supervised, oracle, method, control = design.better
    true_gap = 100 * (method - supervised) / (oracle - supervised)
    rows = []
    for _ in range(studies):
        scores = design.study(rng)
        gap = gap_closed(scores[2], scores[0], scores[1])
        gain = unlabeled_gain(scores[2], scores[3])
        unclear = bool(np.isnan(gap.low) or np.isnan(gap.high))
        row = EffectShares(
            gap=float(unclear or gap.low <= true_gap <= gap.high),
            no_interval=float(unclear),
            gain=float(gain.low <= method - control <= gain.high),
        )
        rows.append(row)
    return EffectShares(*np.mean(rows, axis=0).tolist())


class PowerShares(NamedTuple):
    """Fractions of the studies with one better method, and a number of draws."""

    single: float  # tests of one pair that find the difference
    family: float  # the same after Holm's correction for all pairs of methods
    needed: float  # median of the draws that ``compare`` recommends, one pair


def measure_power(design: Design, studies: int, seed: int = 0) -> PowerShares:
    """Simulate studies in which the first method is better than the others."""
    rng = np.random.default_rng(seed)
    rows = []
    needed = []
    for _ in range(studies):
        scores = design.study(rng)
        pair = compare(scores[0], scores[1])
        family = pairwise(scores)
        found = [d.distinguishable for d in family if "m0" in (d.a, d.b)]
        rows.append((float(pair.p < variance.ALPHA), float(np.mean(found))))
        needed.append(pair.replicates_needed or variance.MAX_REPLICATES)
    single, holm_share = np.mean(rows, axis=0).tolist()
    return PowerShares(single, holm_share, float(np.median(needed)))


def main() -> None:
    """Print one line per design."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", default="", help="designs whose name contains this text")
    options = parser.parse_args()
    variance.RESAMPLES = FEW_RESAMPLES
    error = 100 * (0.05 * 0.95 / options.studies) ** 0.5
    print(f"{options.studies} studies per design, in %; standard error of a 5 is {error:.1f}")
    print(f"{'':24s} {'--------------- ours ---------------':>41s}  {'---- cases only ----':>24s}")
    print(
        f"{'equally good methods':24s} {'mean':>8s}{'differ.':>9s}{'test':>8s}{'family':>8s}"
        f"{'ranks':>8s}  {'t':>8s}{'Wilcoxon':>9s}{'family':>8s}"
    )
    for design in DESIGNS:
        if options.only in design.name:
            print(_line(design.name, measure(design, options.studies)), flush=True)
    print(f"\n{'known effects':24s} {'gap closed':>11s}{'unclear':>9s}{'gain':>8s}")
    for design in EFFECT_DESIGNS:
        if options.only in design.name:
            effects = [100 * share for share in measure_effects(design, options.studies)]
            gap, unclear, gain = effects
            print(f"{design.name:24s} {gap:11.1f}{unclear:9.1f}{gain:8.1f}", flush=True)
    variance.RESAMPLES = 2  # no interval is used
    print(f"\n{'a difference of 2 Dice':24s} {'one pair':>11s}{'11 methods':>12s}{'needed':>8s}")
    for design in POWER_DESIGNS:
        if options.only in design.name:
            power = measure_power(design, options.studies)
            shares = f"{100 * power.single:11.1f}{100 * power.family:12.1f}{power.needed:8.0f}"
            print(f"{design.name:24s} {shares}", flush=True)


def _line(name: str, found: Shares) -> str:
    s = Shares(*(100 * share for share in found))
    ours = f"{s.mean:8.1f}{s.difference:9.1f}{s.single:8.1f}{s.family:8.1f}{s.ranks:8.1f}"
    return f"{name:24s} {ours}  {s.paired_t:8.1f}{s.wilcoxon:9.1f}{s.naive:8.1f}"


if __name__ == "__main__":
    main()
