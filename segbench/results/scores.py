"""The scores of one method in one metric, as the statistics use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    datasets: tuple[int, ...] = ()  # the data set of each case, as a number; empty: all share one
    # The fold in which each case was tested, of a cross-validation; empty without one.
    folds: tuple[int, ...] = ()

    @property
    def has_undefined_classes(self) -> bool:
        """Whether a case that was scored has no value for one of its classes."""
        if self.classes is None or self.missing is None:
            return False
        for cases in self._cases_by_dataset():
            classes = _own_classes(self.classes[:, cases])
            undefined = np.isnan(classes).any(axis=2)
            if (undefined & ~self.missing[:, cases]).any():
                return True
        return False

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

    def folds_of(self, cases: Flags) -> tuple[int, ...]:
        """Return the folds of some cases; empty without a cross-validation."""
        if not self.folds:
            return ()
        return tuple(np.asarray(self.folds)[cases].tolist())

    def single_run(self, index: int, name: str) -> Scores:
        """Return the scores of one run under another name."""
        return replace(self._of_runs([index]), name=name, draws=())

    def single_fold(self, index: int, fold: int, name: str) -> Scores:
        """Return the scores of one run in one fold of a cross-validation under another name."""
        single = self.single_run(index, name)
        assert single.classes is not None and single.missing is not None
        elsewhere = np.asarray(self.folds) != fold
        return replace(
            single,
            values=np.where(elsewhere, nan, single.values),
            classes=np.where(elsewhere[:, None], nan, single.classes),
            missing=single.missing | elsewhere,
        )

    def of_draws(self, draws: Sequence[int]) -> Scores:
        """Return the scores of the runs of some labeled draws."""
        runs = [number for number, draw in enumerate(self.draws) if draw in draws]
        return self._of_runs(runs)

    def _of_runs(self, runs: list[int]) -> Scores:
        return replace(
            self,
            values=self.values[runs],
            draws=tuple(self.draws[i] for i in runs) if self.draws else (),
            classes=None if self.classes is None else self.classes[runs],
            missing=None if self.missing is None else self.missing[runs],
        )

    def scored_cases(self) -> Flags:
        """Return which cases every run has (case,)."""
        if self.missing is None:
            is_defined = np.isfinite(self.replicates)
            return np.asarray(is_defined.all(axis=0))
        return np.asarray(~self.missing.any(axis=0))

    def defined_cases(self) -> Flags:
        """Return which cases have a value in at least one run (case,)."""
        is_defined = np.isfinite(np.atleast_2d(self.values))
        return np.asarray(is_defined.any(axis=0))

    def balanced(self, cases: Flags) -> Array:
        """Return replicates (replicate, case) over some cases, whose mean is the one shown.

        A leaderboard shows the mean over data sets of the mean over classes of each class's mean.
        With one data set whose cases all have every class, that is the mean over cases. Elsewhere
        the values are rearranged so that their mean is the one shown, and so that the variance of
        that mean can be read from them.
        """
        complete = True
        if self.classes is not None:
            complete = bool(np.isfinite(self.classes[:, cases]).all())
        if complete and not self.datasets:
            return self.replicates[:, cases]
        parts = []
        for of_dataset in self._cases_by_dataset():
            parts.append(self._balanced_classes(of_dataset & cases))
        runs = parts[0] if len(parts) == 1 else _equal_weight_of_datasets(parts)
        return self._mean_per_draw(runs)

    def _balanced_classes(self, cases: Flags) -> Array:
        """Return runs (run, case) over some cases of one data set, classes with equal weight."""
        if self.classes is None:
            return np.atleast_2d(self.values)[:, cases]
        classes = _own_classes(self.classes[:, cases])
        return np.stack([_equal_weight_of_classes(run) for run in classes])

    def _cases_by_dataset(self) -> list[Flags]:
        """Return which cases belong to each data set (case,)."""
        if not self.datasets:
            cases = np.atleast_2d(self.values).shape[1]
            return [np.ones(cases, dtype=bool)]
        numbers = np.asarray(self.datasets)
        return [numbers == number for number in sorted(set(self.datasets))]

    def _mean_per_draw(self, values: Array) -> Array:
        if len(set(self.draws)) < 2:
            return values
        draws = np.asarray(self.draws)
        means = []
        for draw in self.distinct_draws:
            of_draw = values[draws == draw]
            means.append(of_draw.mean(0))
        return np.stack(means)


def _own_classes(classes: Array) -> Array:
    """Return the classes (run, case, class) that occur at all; data sets have different ones."""
    occurs = np.isfinite(classes).any(axis=(0, 1))  # (class,)
    return np.asarray(classes[:, :, occurs])


def _equal_weight_of_datasets(parts: Sequence[Array]) -> Array:
    """Return values (run, case) whose mean is the mean over the data sets' means.

    ``parts`` holds each data set's scores (run, case). The data sets are fixed, their cases are a
    sample: the deviations from each data set's mean are scaled so that their variance, divided by
    the number of cases, is the variance of the mean over data sets.
    """
    total = sum(part.shape[1] for part in parts)
    means = [part.mean(axis=1, keepdims=True) for part in parts]
    overall = np.mean(means, axis=0)
    columns = []
    for part, mean in zip(parts, means, strict=True):
        count = part.shape[1]
        weight = 1.0
        if count > 1:
            weight = sqrt(total * (total - 1) / (count * (count - 1))) / len(parts)
        deviations = part - mean
        columns.append(overall + weight * deviations)
    return np.concatenate(columns, axis=1)


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
            scaled = mean + weight * (values - mean)
            parts.append(np.where(defined, scaled, mean))
    if not parts:
        return np.full(cases, nan)
    return np.asarray(np.mean(parts, axis=0))
