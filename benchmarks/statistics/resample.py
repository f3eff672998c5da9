"""Check on stored replicates how many draws find a true difference of 2 Dice.

    python benchmarks/statistics/resample.py [--studies 1000]

A formula says how many replicates find a difference in 80 % of studies (``replicates_needed``). It
assumes scatter of a normal shape. Here the scatter is the measured one: each study takes replicates
and test cases at random, with replacement, from the stored runs of suite ``quick-draws``, and the
difference of a method to supervised training is shifted so that it is 2 Dice in all stored runs.
The printed share is that of the studies in which one test finds the difference. It should be near
80 for the number of draws for which the formula asks.
"""

from __future__ import annotations

import argparse

import numpy as np
from segbench.benchmarks.results import tables
from segbench.benchmarks.results.studies import SUPERVISED, Study, draws_needed

from segbench.results import variance
from segbench.results.scores import Array, Scores
from segbench.results.stats import compare

DRAWS = (10, 20, 40)
FEW_STUDIES = 1000
MOST_DRAWS = 400  # for more, the stored replicates would be taken many times each


def share_found(study: Study, name: str, draws: int, studies: int) -> float:
    """Return the share of resampled studies in which one test finds a difference of 2 Dice."""
    rng = np.random.default_rng(0)
    own = study.methods[name].values
    reference = study.supervised.values
    shift = tables.DIFFERENCE - (own - reference).mean()
    count = study.cases_per_dataset
    found = 0
    for _ in range(studies):
        chosen = rng.integers(len(own), size=draws)
        cases = rng.integers(count, size=count)
        places = np.concatenate([cases + count * part for part in range(len(study.datasets))])
        part = np.ix_(chosen, places)
        better = _scores(name, own[part] + shift)
        found += compare(better, _scores(SUPERVISED, reference[part])).p < variance.ALPHA
    return found / studies


def _scores(name: str, values: Array) -> Scores:
    return Scores(name, values, tuple(range(len(values))))


def main() -> None:
    """Print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=FEW_STUDIES)
    options = parser.parse_args()
    study = tables.stored_study("quick-draws")
    if study is None:
        raise SystemExit("quick-draws.json is missing")
    error = 100 * (0.8 * 0.2 / options.studies) ** 0.5
    print(
        f"{options.studies} studies each, from {study.draws} replicates of quick-draws.json; in %, "
        f"standard error of an 80 is {error:.1f}"
    )
    heads = "".join(f"{f'{draws} draws':>10s}" for draws in DRAWS)
    print(f"{'':16s}{heads}{'asked for':>12s}{'with these':>12s}")
    for name in study.names:
        shares = [100 * share_found(study, name, draws, options.studies) for draws in DRAWS]
        needed = draws_needed(study, name, tables.DIFFERENCE)
        line = "".join([f"{name:16s}", *(f"{share:10.1f}" for share in shares)])
        if needed is not None and needed <= MOST_DRAWS:
            with_these = 100 * share_found(study, name, needed, options.studies)
            line += f"{needed:12d}{with_these:12.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
