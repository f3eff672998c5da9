"""Coverage of the intervals and false positives of the tests, in simulated studies.

    python benchmarks/statistics/simulate.py [--studies 2000] [--only NAME]

A score is the sum of the mean, a case effect, a method x case effect, a run effect and a rest, all
of them random. All methods are equally good, so every difference that a test finds is false. Tests
over cases alone, which mistake the runs for the method, are shown for comparison. 95 of 100
intervals should contain the truth; 5 of 100 tests, and 5 of 100 families of tests, should err.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before NumPy starts its threads

import numpy as np  # noqa: E402
from scipy import stats as scipy_stats  # noqa: E402

from segbench.results import variance  # noqa: E402
from segbench.results.ranking import ranking  # noqa: E402
from segbench.results.scores import Array, Scores  # noqa: E402
from segbench.results.stats import estimate, holm  # noqa: E402

TRUTH = 80.0  # mean Dice of every method
FEW_RESAMPLES = 500  # of the bootstrap: enough for shares, and four times as fast


@dataclass(frozen=True)
class Design:
    """A study: counts, and standard deviations in Dice points."""

    name: str
    cases: int = 20
    runs: int = 3
    methods: int = 4
    case: float = 5.0  # how much cases differ
    method_case: float = 2.0  # how much methods differ in which cases they find hard
    run: float = 0.5
    first_run: float | None = None  # of the first method, if its runs scatter differently
    rest: float = 1.0
    skewed: bool = False  # a few cases fail badly, as in real studies
    draws: int = 1  # labeled draws, each with ``runs`` seeds
    draw: float = 0.0  # effect of a draw on all methods

    def study(self, rng: np.random.Generator) -> list[Scores]:
        """Return the scores of all methods in one study."""
        case = self.case * self._deviation(rng, self.cases)
        total = self.runs * self.draws
        drawn = np.repeat(rng.standard_normal(self.draws) * self.draw, self.runs)
        draws: tuple[int, ...] = ()
        if self.draws > 1:
            draws = tuple(np.repeat(np.arange(self.draws), self.runs).tolist())
        result = []
        for method in range(self.methods):
            own_draw = np.repeat(rng.standard_normal(self.draws) * self.draw / 2, self.runs)
            scatter = self.run
            if method == 0 and self.first_run is not None:
                scatter = self.first_run
            run = scatter * rng.standard_normal(total) + drawn + own_draw
            method_case = self.method_case * self._deviation(rng, self.cases)
            rest = self.rest * rng.standard_normal((total, self.cases))
            values = TRUTH + case + method_case + run[:, None] + rest
            result.append(Scores(f"m{method}", values, draws))
        return result

    def _deviation(self, rng: np.random.Generator, count: int) -> Array:
        """Return random numbers with mean 0 and variance 1."""
        if self.skewed:
            return np.asarray(2 - rng.gamma(4, 0.5, count))
        return rng.standard_normal(count)


DESIGNS = [
    Design("usual"),
    Design("runs agree", run=0.0, rest=0.5),
    Design("runs scatter", run=2.0),
    Design("runs scatter, 5 runs", run=2.0, runs=5),
    Design("runs scatter, 2 runs", run=2.0, runs=2),
    Design("8 methods, scatter", run=2.0, methods=8),
    Design("one scatters more", first_run=2.0),
    Design("skewed", skewed=True),
    Design("skewed, runs scatter", skewed=True, run=2.0),
    Design("8 cases", cases=8),
    Design("50 cases", cases=50),
    Design("4 draws x 2 seeds", draws=4, runs=2, draw=1.0),
]


class Shares(NamedTuple):
    """Shares of the studies."""

    mean: float  # intervals of means that contain the truth
    difference: float  # intervals of differences that contain 0
    single: float  # single tests that err
    family: float  # families of all pairs with an error after Holm's correction
    ranks: float  # studies in which some rank interval leaves out a possible rank
    paired_t: float  # scipy's tests over cases, on the means over runs
    wilcoxon: float
    naive: float  # families of Wilcoxon tests over cases, with Holm's correction


def measure(design: Design, studies: int, seed: int = 0) -> Shares:
    """Simulate ``studies`` studies."""
    rng = np.random.default_rng(seed)
    rows = [_measure_one(design, rng) for _ in range(studies)]
    return Shares(*np.mean(rows, axis=0).tolist())


def _measure_one(design: Design, rng: np.random.Generator) -> Shares:
    """Return what happens in one study: 1.0 for yes, 0.0 for no."""
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
        f"{'design':24s} {'mean':>8s}{'differ.':>9s}{'test':>8s}{'family':>8s}{'ranks':>8s}  "
        f"{'t':>8s}{'Wilcoxon':>9s}{'family':>8s}"
    )
    for design in DESIGNS:
        if options.only in design.name:
            found = measure(design, options.studies)
            print(_line(design.name, found), flush=True)


def _line(name: str, found: Shares) -> str:
    s = Shares(*(100 * share for share in found))
    ours = f"{s.mean:8.1f}{s.difference:9.1f}{s.single:8.1f}{s.family:8.1f}{s.ranks:8.1f}"
    return f"{name:24s} {ours}  {s.paired_t:8.1f}{s.wilcoxon:9.1f}{s.naive:8.1f}"


if __name__ == "__main__":
    main()
