"""The scores of one method in one metric, as the statistics use them."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """One method's scores in one metric.

    All compared methods have the same cases in the same columns.
    """

    name: str
    values: Array  # (runs, cases); nan where not defined
    draws: tuple[int, ...] = ()  # the labeled draw of each run; empty: all runs share one
    classes: Array | None = None  # (runs, cases, classes) behind `values`; nan where not defined
    missing: Flags | None = None  # (runs, cases), given with `classes`: the run lacks the case

    @property
    def has_undefined_classes(self) -> bool:
        """Whether a case that was scored has no value for one of its classes."""
        if self.classes is None or self.missing is None:
            return False
        undefined = np.isnan(self.classes).any(axis=2)
        return bool((undefined & ~self.missing).any())

    @property
    def distinct_draws(self) -> list[int]:
        """The labeled draws of the runs, in rising order."""
        return sorted(set(self.draws))

    @property
    def replicates(self) -> Array:
        """Independent repetitions (replicate, case).

        Runs with the same labeled cases are not independent of each other where other draws are
        compared with them. With several draws, a replicate is therefore the mean over the runs
        of one draw; with a single draw, it is one run.
        """
        return self._mean_per_draw(np.atleast_2d(np.asarray(self.values, dtype=float)))

    def single_run(self, index: int, name: str) -> Scores:
        """Return the scores of one run under another name."""
        classes = None if self.classes is None else self.classes[[index]]
        missing = None if self.missing is None else self.missing[[index]]
        return Scores(name, self.values[[index]], (), classes, missing)

    def scored_cases(self) -> Flags:
        """Return which cases every run has (case,)."""
        if self.missing is None:
            return np.asarray(np.isfinite(self.replicates).all(axis=0))
        return np.asarray(~self.missing.any(axis=0))

    def defined_cases(self) -> Flags:
        """Return which cases have a value in at least one run (case,)."""
        return np.asarray(np.isfinite(np.atleast_2d(self.values)).any(axis=0))

    def replicates_by_class(self, cases: Flags) -> Array:
        """Return replicates (replicate, case) over some cases, each class with equal weight.

        A leaderboard shows the mean over classes of each class's mean. Where every case has every
        class, that is the mean over cases. Elsewhere the values are rearranged so that their mean
        is the one shown.
        """
        if self.classes is None or np.isfinite(self.classes[:, cases]).all():
            return self.replicates[:, cases]
        runs = [_equal_weight_of_classes(run) for run in self.classes[:, cases]]
        return self._mean_per_draw(np.stack(runs))

    def _mean_per_draw(self, values: Array) -> Array:
        if len(set(self.draws)) < 2:
            return values
        draws = np.asarray(self.draws)
        return np.stack([values[draws == draw].mean(0) for draw in self.distinct_draws])


def _equal_weight_of_classes(run: Array) -> Array:
    """Return values (case,) with the mean and the variance of the mean over class means.

    ``run`` holds the classes of one run (case, class). Where only some cases have a class, its
    mean is a ratio: a case without the class is given that mean, and the deviations of the others
    count for more. A single case has no measurable variance; its whole value is used instead,
    which is conservative.
    """
    cases = len(run)
    parts = []
    for values in run.T:
        defined = np.isfinite(values)
        count = int(defined.sum())
        if count == cases and cases > 1:
            parts.append(values)
        elif count == 1:
            parts.append(np.where(defined, cases * values, 0.0))
        elif count:
            mean = values[defined].mean()
            weight = sqrt(cases * (cases - 1) / (count * (count - 1)))
            parts.append(np.where(defined, mean + weight * (values - mean), mean))
    if not parts:
        return np.full(cases, nan)
    return np.asarray(np.mean(parts, axis=0))
