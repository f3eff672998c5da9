"""Designs of simulated studies: how many methods, cases and draws, and how scores scatter.

``simulate.py`` measures with them how good intervals and tests are, and pages of results name the
power of the last ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from segbench.results.scores import Array, Scores

TRUTH = 80.0  # mean Dice of every method


@dataclass(frozen=True)
class Design:
    """Design of a study: counts, and standard deviations in Dice points."""

    name: str
    cases: tuple[int, ...] = (20,)  # per data set
    runs: int = 3  # seeds per labeled draw
    methods: int = 4
    case: float = 5.0  # variation between cases
    method_case: float = 2.0  # interaction of method and case
    run: float = 0.5
    first_run: float | None = None  # ``run`` of the first method, if it differs
    rest: float = 1.0
    skewed: bool = False  # a few cases fail badly, as in real studies
    draws: int = 1
    draw: float = 0.0  # effect of a draw on all methods
    method_draw: float = 0.0  # effect of a draw on one method
    better: tuple[float, ...] = ()  # by how much each method is better than TRUTH
    folds: int = 0  # of a cross-validation, each with a draw of its own; 0 without

    @property
    def paired_scatter(self) -> float:
        """The standard deviation over draws of the difference of two methods, one data set."""
        (cases,) = self.cases
        of_method = (
            self.method_draw**2 + self.run**2 / self.runs + self.rest**2 / (cases * self.runs)
        )
        return float(np.sqrt(2 * of_method))

    def study(self, rng: np.random.Generator) -> list[Scores]:
        """Return the scores of all methods in one study."""
        if self.folds:
            return self._cross_validation(rng)
        dataset_of_case = np.repeat(np.arange(len(self.cases)), self.cases)
        draw_of_run = np.repeat(np.arange(self.draws), self.runs)
        shifts = 10.0 * (np.arange(len(self.cases)) - (len(self.cases) - 1) / 2)
        common = shifts[dataset_of_case] + self.case * self._deviation(rng, len(dataset_of_case))
        draw = self.draw * self._draw_effects(rng)
        result = []
        for method in range(self.methods):
            draw_effects = draw + self.method_draw * self._draw_effects(rng)
            scatter = self.run
            if method == 0 and self.first_run is not None:
                scatter = self.first_run
            run = scatter * rng.standard_normal(len(draw_of_run))
            method_case = self.method_case * self._deviation(rng, len(dataset_of_case))
            rest = self.rest * rng.standard_normal((len(draw_of_run), len(dataset_of_case)))
            values = TRUTH + common + method_case + run[:, None] + rest
            values += draw_effects[np.ix_(draw_of_run, dataset_of_case)]
            if self.better:
                values += self.better[method]
            scores = Scores(
                name=f"m{method}",
                values=values,
                draws=tuple(draw_of_run.tolist()) if self.draws > 1 else (),
                datasets=tuple(dataset_of_case.tolist()) if len(self.cases) > 1 else (),
            )
            result.append(scores)
        return result

    def _cross_validation(self, rng: np.random.Generator) -> list[Scores]:
        """Return the scores of all methods in one cross-validation; a run is one training per fold.

        Runs of a fold share its labeled draw.
        """
        (cases,) = self.cases
        fold_of_case = np.arange(cases) % self.folds
        common = self.case * self._deviation(rng, cases)
        common += self.draw * rng.standard_normal(self.folds)[fold_of_case]
        result = []
        for method in range(self.methods):
            own = self.method_case * self._deviation(rng, cases)
            own += self.method_draw * rng.standard_normal(self.folds)[fold_of_case]
            of_training = self.run * rng.standard_normal((self.runs, self.folds))
            rest = self.rest * rng.standard_normal((self.runs, cases))
            values = TRUTH + common + own + of_training[:, fold_of_case] + rest
            if self.better:
                values += self.better[method]
            result.append(Scores(f"m{method}", values, folds=tuple(fold_of_case.tolist())))
        return result

    def _draw_effects(self, rng: np.random.Generator) -> Array:
        """Return random effects (draw, data set); those of the same draw have correlation 1/2."""
        shared = rng.standard_normal((self.draws, 1))
        own = rng.standard_normal((self.draws, len(self.cases)))
        return np.asarray((shared + own) / np.sqrt(2))

    def _deviation(self, rng: np.random.Generator, count: int) -> Array:
        """Return random numbers with mean 0 and variance 1."""
        if self.skewed:
            return np.asarray(2 - rng.gamma(4, 0.5, count))
        return rng.standard_normal(count)


DRAWS = Design("20 draws", cases=(60,), runs=1, draws=20, draw=3.0, method_draw=2.0)
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
    Design("8 cases", cases=(8,)),
    Design("50 cases", cases=(50,)),
    Design("4 draws x 2 seeds", draws=4, runs=2, draw=1.0, method_draw=0.5),
    replace(DRAWS, name="3 draws", draws=3),
    replace(DRAWS, name="5 draws", draws=5),
    replace(DRAWS, name="10 draws", draws=10),
    DRAWS,
    replace(DRAWS, name="20 draws, skewed", skewed=True),
    replace(DRAWS, name="3 draws, 8 methods", draws=3, methods=8),
    replace(DRAWS, name="10 draws, 11 methods", draws=10, methods=11),
    replace(DRAWS, name="20 draws, 11 methods", methods=11),
    replace(DRAWS, name="5 draws, 2 data sets", draws=5, cases=(60, 20)),
    replace(DRAWS, name="20 draws, 2 data sets", cases=(60, 20)),
    Design("5 folds, no fold effect", cases=(60,), runs=1, run=0.0, folds=5),
    replace(DRAWS, name="5 folds", draws=1, folds=5),
    replace(DRAWS, name="5 folds, skewed", draws=1, folds=5, skewed=True),
    replace(DRAWS, name="5 folds, 23 cases", draws=1, folds=5, cases=(23,)),
    replace(DRAWS, name="5 folds, 11 methods", draws=1, folds=5, methods=11),
    replace(DRAWS, name="5 folds, 3 seeds", draws=1, folds=5, runs=3, run=2.0),
]

# Supervised, oracle, a method and its control, with the standard deviations of DRAWS.
BETTER = (0.0, 12.0, 5.0, 4.0)
EFFECT_DESIGNS = [
    replace(DRAWS, name=f"{draws} draws", draws=draws, better=BETTER) for draws in (3, 5, 10, 20)
]
EFFECT_DESIGNS += [
    replace(DRAWS, name="20 draws, 2 data sets", cases=(60, 20), better=BETTER),
    # One draw says nothing about others: its effects are part of the truth, here 0.
    Design("3 seeds of one draw", cases=(60,), runs=3, run=1.0, better=BETTER),
]

# One of the methods of the quick suite is better by 2 Dice.
POWER_DESIGNS = []
for method_draw in (1.5, 3.0):
    for draws in (5, 10, 20, 40):
        POWER_DESIGNS.append(
            replace(
                DRAWS,
                name=f"{draws} draws, scatter {method_draw}",
                draws=draws,
                method_draw=method_draw,
                methods=11,
                better=(2.0, *[0.0] * 10),
            )
        )
