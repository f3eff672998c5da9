"""Do the statistics keep their promises? Studies with known truth, the shares in which intervals hold it and tests err.

    python benchmarks/statistics/simulate.py [--studies 2000] [--only NAME]

A score is the mean + case + method x case + run + rest, each random. All methods are equally good, so every difference that
a test finds is false. Beside ours stand the tests over cases alone, which take the runs at hand for the method itself.
95 of 100 intervals should hold the truth; 5 of 100 tests, and 5 of 100 families of them, should err.
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
from segbench.results.scores import Scores  # noqa: E402
from segbench.results.stats import estimate, holm  # noqa: E402


@dataclass(frozen=True)
class Design:
    """A study: numbers of things and standard deviations in Dice points."""

    name: str
    cases: int = 20
    runs: int = 3
    methods: int = 4
    case: float = 5.0  # how much cases differ
    method_case: float = 2.0  # how much methods differ in which cases they find hard
    run: float = 0.5
    first_run: float | None = None  # of the first method, where its runs scatter otherwise
    rest: float = 1.0
    skewed: bool = False  # a few cases fail badly, as they do
    draws: int = 1  # labeled draws; the runs are then that many draws x ``runs`` seeds
    draw: float = 0.0

    def study(self, rng: np.random.Generator) -> list[Scores]:
        """Scores of all methods; the true mean of each is 80."""

        def deviation(*shape: int) -> np.ndarray:
            return 2 - rng.gamma(4, 0.5, shape) if self.skewed else rng.standard_normal(shape)

        case = self.case * deviation(self.cases)
        total, result = self.runs * self.draws, []
        drawn = np.repeat(rng.standard_normal(self.draws) * self.draw, self.runs)
        for i in range(self.methods):
            own = np.repeat(rng.standard_normal(self.draws) * self.draw / 2, self.runs)
            scatter = self.run if i or self.first_run is None else self.first_run
            run = scatter * rng.standard_normal(total) + drawn + own
            values = (
                80
                + case
                + self.method_case * deviation(self.cases)
                + run[:, None]
                + self.rest * rng.standard_normal((total, self.cases))
            )
            draws = (
                tuple(np.repeat(np.arange(self.draws), self.runs).tolist())
                if self.draws > 1
                else ()
            )
            result.append(Scores(f"m{i}", values, draws))
        return result


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

    mean: float  # intervals of means that hold the truth
    difference: float  # intervals of differences that hold 0
    single: float  # single tests that err
    family: float  # families of all pairs with an error after Holm's correction
    ranks: float  # studies in which some rank interval leaves out a rank that may be true
    paired_t: float  # scipy's tests over cases, on the means over runs
    wilcoxon: float
    naive: float  # families, Wilcoxon over cases with Holm


def measure(design: Design, studies: int, seed: int = 0) -> Shares:
    """Simulate ``studies`` studies."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(studies):
        scores = design.study(rng)
        mean, (places, differences) = estimate(scores[0]), ranking(scores)
        difference = next(d for d in differences if {d.a, d.b} == {"m0", "m1"})
        case_means = [s.values.mean(0) for s in scores]
        naive = scipy_stats.wilcoxon(
            [case_means[i] - case_means[j] for i in range(design.methods) for j in range(i)], axis=1
        ).pvalue.tolist()
        rows.append(
            (
                mean.low <= 80 <= mean.high,
                difference.low <= 0 <= difference.high,
                difference.p < 0.05,
                any(d.distinguishable for d in differences),
                any((p.low, p.high) != (1, design.methods) for p in places),
                scipy_stats.ttest_rel(*case_means[:2]).pvalue < 0.05,
                difference.wilcoxon < 0.05,
                min(holm(naive)) < 0.05,
            )
        )
    return Shares(*np.mean(rows, axis=0).tolist())


def main() -> None:
    """Print a line a design."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", default="", help="designs whose name contains this text")
    options = parser.parse_args()
    variance.RESAMPLES = 500  # enough for shares, four times as fast
    error = 100 * (0.05 * 0.95 / options.studies) ** 0.5
    print(f"{options.studies} studies a design, in %; standard error of a 5 is {error:.1f}")
    print(f"{'':22s} {'--------------- ours ---------------':>41s}  {'---- cases only ----':>24s}")
    print(
        f"{'design':22s} {'mean':>8s}{'differ.':>9s}{'test':>8s}{'family':>8s}{'ranks':>8s}  "
        f"{'t':>8s}{'Wilcoxon':>9s}{'family':>8s}"
    )
    for design in DESIGNS:
        if options.only in design.name:
            s = Shares(*(100 * share for share in measure(design, options.studies)))
            print(
                f"{design.name:22s} {s.mean:8.1f}{s.difference:9.1f}{s.single:8.1f}{s.family:8.1f}{s.ranks:8.1f}  "
                f"{s.paired_t:8.1f}{s.wilcoxon:9.1f}{s.naive:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
