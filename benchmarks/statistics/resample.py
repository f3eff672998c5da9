"""Check on stored replicates how many draws find a true difference of 2 Dice.

    python benchmarks/statistics/resample.py [--studies 1000]

A formula says how many replicates find a difference in 80 % of studies (``replicates_needed``). It
assumes scatter of a normal shape. Here the scatter is the measured one: each study takes replicates
and, in each data set, test cases at random, with replacement, from the stored runs of suite
``quick-draws``, and the difference of a method to supervised training is shifted so that it is 2
Dice in all stored runs. The printed share is that of the studies in which one test finds the
difference. It should be near 80 for the number of draws for which the formula asks.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from segbench.benchmarks.results import tables
from segbench.benchmarks.results.studies import Study, draws_needed

from segbench.results import variance
from segbench.results.scores import Scores
from segbench.results.stats import compare

DRAWS = (10, 20, 40, 60)
STUDIES = 1000
MOST_DRAWS = 400  # for more, the stored replicates would be taken many times each


def share_found(study: Study, name: str, draws: int, studies: int) -> float:
    """Return the share of resampled studies in which one test finds a difference of 2 Dice."""
    rng = np.random.default_rng(0)
    method = study.methods[name]
    supervised = study.supervised
    shift = tables.DIFFERENCE - (method.values - supervised.values).mean()
    better = replace(method, values=method.values + shift)
    found = 0
    for _ in range(studies):
        replicates = rng.integers(len(method.values), size=draws)
        shape = (len(study.datasets), study.cases_per_dataset)
        first_cases = study.cases_per_dataset * np.arange(shape[0])
        cases = rng.integers(study.cases_per_dataset, size=shape) + first_cases[:, None]
        chosen = np.ix_(replicates, cases.ravel())
        difference = compare(_part(better, chosen), _part(supervised, chosen))
        found += difference.p < variance.ALPHA
    return found / studies


def _part(scores: Scores, chosen: tuple[np.ndarray, ...]) -> Scores:
    """Return some replicates and cases, as many of each data set as there are."""
    values = scores.values[chosen]
    return replace(scores, values=values, draws=tuple(range(len(values))))


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=STUDIES)
    options = parser.parse_args()
    study = tables.stored_study("quick-draws")
    if study is None:
        raise SystemExit("quick-draws.json is missing")
    error = 100 * (0.8 * 0.2 / options.studies) ** 0.5
    print(
        f"{options.studies} studies each, from {study.draws} replicates of quick-draws.json; in %, "
        f"standard error of an 80 is {error:.1f}"
    )
    print(" " * 16 + "".join(f"{draws:4d} draws" for draws in DRAWS) + "   asked for  with these")
    for name in study.names:
        shares = [100 * share_found(study, name, draws, options.studies) for draws in DRAWS]
        line = f"{name:16s}" + "".join(f"{share:10.1f}" for share in shares)
        needed = draws_needed(study, name, tables.DIFFERENCE)
        if needed is not None and needed <= MOST_DRAWS:
            with_these = 100 * share_found(study, name, needed, options.studies)
            line += f"{needed:12d}{with_these:12.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
