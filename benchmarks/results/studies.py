"""Read stored suites: which runs belong to a table, and what the statistics say about them.

The statistics are those of ``segbench leaderboard``: the same tests, ranks and intervals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from segbench import registry
from segbench.config import load_protocol
from segbench.config.changed import changed_method_params
from segbench.results import reference
from segbench.results.ranking import Place, ranking
from segbench.results.scores import Scores
from segbench.results.stats import Difference, compare, corrected
from segbench.results.variance import Contrast, Pool, replicates_needed, smallest_found

HERE = Path(__file__).resolve().parent
SUPERVISED = "supervised"
ORACLE = "oracle"
NO_UNLABELED = " without unlabeled images"  # ends the name of such a row
# Earlier versions of protocols which differ from the current one in parameters of methods only.
SAME_BUT_PARAMS = {("phantom2d", 1)}
Run = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """The runs of a suite that make one table."""

    title: str
    datasets: tuple[str, ...]
    labeled: int | None = None  # only runs with this many labeled cases, and the oracle
    augment: str | None = None  # instead of the protocol's own
    rows_of_first_file: bool = False  # leave out the rows that the first file does not have
    as_stored: bool = False  # name the rows as the version of the protocol that trained them did

    def holds(self, run: Run) -> bool:
        """Whether a run belongs to this part."""
        if "+".join(run["datasets"]) not in self.datasets:
            return False
        return run["modified"].get("augment") == self.augment and self._has_labels(run)

    def _has_labels(self, run: Run) -> bool:
        if self.labeled is None or has_all_labels(run):
            return True
        return all(count == self.labeled for count in run["labeled"].values())


@dataclass
class Study:
    """Runs of a suite with replicates and reference rows."""

    title: str
    origins: list[str]  # how the runs of each file were made
    datasets: list[str]
    # Scores in percent by method: one row per replicate, with the cases of all data sets.
    methods: dict[str, Scores] = field(default_factory=dict)
    without_unlabeled: dict[str, Scores] = field(default_factory=dict)
    # CPU time of a training as a multiple of supervised training's in the same file, and the CPU
    # seconds of supervised training in each file.
    costs: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cases_per_dataset: int = 0
    runs: list[Run] = field(default_factory=list)  # of the replicates that all rows have

    @property
    def draws(self) -> int:
        """Return the number of replicates."""
        return len(self.supervised.distinct_draws)

    @property
    def supervised(self) -> Scores:
        """Return the scores of supervised training with few labels."""
        return self.methods[SUPERVISED]

    @property
    def oracle(self) -> Scores | None:
        """Return the scores of supervised training with all labels, if there are any."""
        return self.methods.get(ORACLE)

    @property
    def names(self) -> list[str]:
        """Return the semi-supervised methods, the highest mean first."""
        names = [name for name in self.methods if name not in (ORACLE, SUPERVISED)]
        return sorted(names, key=lambda name: -self.methods[name].values.mean())

    @property
    def ranked(self) -> list[Scores]:
        """Return the rows that a leaderboard ranks: all but the oracle."""
        return [scores for name, scores in self.methods.items() if name != ORACLE]

    @cached_property
    def _ranking(self) -> tuple[list[Place], list[Difference]]:
        return ranking(self.ranked)

    @property
    def places(self) -> dict[str, Place]:
        """Return the place of each method and of supervised training."""
        return {place.name: place for place in self._ranking[0]}

    @property
    def pairs(self) -> list[Difference]:
        """Return the differences of all pairs of ranked rows, corrected for their number."""
        return self._ranking[1]

    @cached_property
    def gains(self) -> dict[str, Difference]:
        """Return each method's difference to supervised training, corrected for their number."""
        found = corrected([self.against_supervised(name) for name in self.names])
        return dict(zip(self.names, found, strict=True))

    def against_supervised(self, name: str) -> Difference:
        """Return the difference of a row to supervised training, uncorrected."""
        return compare(self.methods[name], self.supervised, family=self.ranked)

    @cached_property
    def contributions(self) -> dict[str, Difference]:
        """Return what the unlabeled images give, corrected for the number of methods."""
        names = [name for name in self.names if name in self.without_unlabeled]
        found = [compare(self.methods[name], self.without_unlabeled[name]) for name in names]
        return dict(zip(names, corrected(found), strict=True))

    def of_dataset(self, scores: Scores, dataset: str) -> Scores:
        """Return the part of the scores that belongs to one data set."""
        start = self.datasets.index(dataset) * self.cases_per_dataset
        return Scores(
            scores.name, scores.values[:, start : start + self.cases_per_dataset], scores.draws
        )


def load_study(sources: Path | Sequence[Path], part: Part) -> Study:
    """Read the runs of one part of a suite, whose data sets have equally many test cases.

    Only replicates that all rows have are used, so that all rows are compared with the same labeled
    cases. Several files make one table if their runs saw the same images, labels and seeds.
    """
    files = [sources] if isinstance(sources, Path) else sources
    runs = distinct_runs(files, part)
    dice: dict[tuple[str, str], dict[tuple[int, str], list[float]]] = {}
    for run in runs:
        row = dice.setdefault((row_name(run), run["unlabeled"]), {})
        row[run["draw"], "+".join(run["datasets"])] = case_scores(run)
    shared = set.intersection(*(complete_draws(row, part.datasets) for row in dice.values()))
    draws = tuple(sorted(shared))
    study = Study(part.title, [origin(file) for file in files], list(part.datasets))
    for (name, unlabeled), row in dice.items():
        values = np.array([joined(row, draw, part.datasets) for draw in draws])
        target = study.methods if unlabeled == "all" else study.without_unlabeled
        study.cases_per_dataset = values.shape[1] // len(part.datasets)
        owners = np.repeat(np.arange(len(part.datasets)), study.cases_per_dataset)
        several = len(part.datasets) > 1
        target[name] = Scores(name, values, draws, datasets=tuple(owners) if several else ())
    for file in files:
        add_costs(study, file, part)
    study.runs = [run for run in runs if run["draw"] in shared]
    return study


def add_costs(study: Study, file: Path, part: Part) -> None:
    """Add the cost of the rows that no earlier file has.

    Files were trained beside different work, so their seconds cannot be compared. Rows without
    unlabeled images are left out: many were trained later than the others of their file. Runs from
    another machine than the others of their file have no seconds.
    """
    seconds: dict[str, list[float]] = {}
    for run in read_runs(file, part):
        if run["unlabeled"] == "all" and "cpu_seconds" in run["cost"]:
            seconds.setdefault(row_name(run), []).append(run["cost"]["cpu_seconds"])
    if SUPERVISED not in seconds:
        return
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    study.seconds[file.name] = means[SUPERVISED]
    for name, mean in means.items():
        if name in study.methods and name not in study.costs:
            study.costs[name] = mean / means[SUPERVISED]


def distinct_runs(files: Sequence[Path], part: Part) -> list[Run]:
    """Return the runs of a part from all files, without those that an earlier file has.

    Raises:
        ValueError: if two files hold the same run with different results.
    """
    found: dict[tuple[Any, ...], Run] = {}
    rows: set[tuple[str, str]] = set()
    for file in files:
        for run in read_runs(file, part):
            row = (row_name(run), run["unlabeled"])
            if file == files[0]:
                rows.add(row)
            elif part.rows_of_first_file and row not in rows:
                continue
            key = (*row, run["draw"], *run["datasets"])
            stored = found.setdefault(key, run)
            if stored["cases"]["dice"] != run["cases"]["dice"]:
                raise ValueError(f"{file.name} has other results than an earlier file for {key}")
    return list(found.values())


def read_runs(file: Path, part: Part) -> list[Run]:
    """Return the runs of a file that belong to a part."""
    runs = [run for run in json.loads(file.read_text())["runs"] if part.holds(run)]
    return runs if part.as_stored else [as_of_now(run) for run in runs]


def as_of_now(run: Run) -> Run:
    """Return a run with the version of its protocol that segbench has, if the runs are the same.

    The name of its row changes with the version: a parameter that is named is one that differs from
    the protocol.
    """
    name = run["protocol"]["name"]
    if (name, run["protocol"]["version"]) not in SAME_BUT_PARAMS:
        return run
    protocol = load_protocol(name)
    preset = protocol.methods.get(run["method"], {})
    if not preset.keys() <= run["params"].keys():
        raise ValueError(f"a run of {run['method']} does not store all of {sorted(preset)}")
    # Parameters that a method has since a later commit have their defaults.
    defaults = registry.get("method", run["method"]).cls.Params(**preset).model_dump(mode="json")
    changed = changed_method_params(run["method"], preset, {**defaults, **run["params"]})
    for key, value in run.get("changed_params", {}).items():
        if key.startswith("backbone."):
            changed[key] = value
    return {
        **run,
        "changed_params": dict(sorted(changed.items())),
        "protocol": {**run["protocol"], "version": protocol.version},
    }


def origin(file: Path) -> str:
    """Return the sentence that says how the runs of a file were made."""
    content = json.loads(file.read_text())
    return f"`{content['command']}` at commit `{content['commit'][:10]}`. {content['note']}".strip()


def row_name(run: Run) -> str:
    """Return the name of the row that a run belongs to."""
    return ORACLE if has_all_labels(run) else method_name(run)


def method_name(run: Run) -> str:
    """Return the name of a run's method, with the parameters that the suite changed in brackets.

    Files from before these were stored have one such parameter, VerSemi's variant.
    """
    variant = run["params"].get("variant", "described")
    older = {} if variant == "described" else {"variant": variant}
    changed = run.get("changed_params", older)
    settings = ",".join(f"{key}={value}" for key, value in changed.items())
    return f"{run['method']}[{settings}]" if settings else str(run["method"])


def split_name(row: str) -> tuple[str, str]:
    """Return the method of a row, and the parameters in its brackets."""
    method, _, settings = row.partition("[")
    return method, settings.removesuffix("]")


def has_all_labels(run: Run) -> bool:
    """Whether a run was trained with the labels of all training cases."""
    return all(run["labeled"][name] == run["train"][name] for name in run["datasets"])


def case_scores(run: Run, dataset: str | None = None) -> list[float]:
    """Return the Dice of each test case in percent: the mean over its classes.

    ``dataset`` chooses the cases of one data set of a joint run.
    """
    values: dict[str, list[float]] = {}
    for owner, case, _, dice in case_rows(run):
        if dataset in (None, owner):
            values.setdefault(case, []).append(dice)
    return [float(np.mean(of_case)) for of_case in values.values()]


def case_rows(run: Run) -> list[tuple[str, str, str, float]]:
    """Return data set, case, class and Dice in percent of each scored class of each test case."""
    cases = run["cases"]
    count = len(cases["dice"])
    owners, classes = (
        [cases[key]] * count if isinstance(cases[key], str) else cases[key]
        for key in ("dataset", "class")
    )
    dice = [100 * value for value in cases["dice"]]
    return list(zip(owners, cases["case"], classes, dice, strict=True))


def class_means(run: Run) -> dict[tuple[str, str], float]:
    """Return the mean Dice over the test cases, in percent, by data set and class."""
    values: dict[tuple[str, str], list[float]] = {}
    for owner, _, name, dice in case_rows(run):
        values.setdefault((owner, name), []).append(dice)
    return {key: float(np.mean(of_class)) for key, of_class in values.items()}


def joined(
    row: dict[tuple[int, str], list[float]], draw: int, datasets: Sequence[str]
) -> list[float]:
    """Return the scores of one replicate over the cases of all data sets."""
    scores: list[float] = []
    for dataset in datasets:
        scores += row[draw, dataset]
    return scores


def complete_draws(row: dict[tuple[int, str], list[float]], datasets: Sequence[str]) -> set[int]:
    """Return the replicates in which a row has all data sets."""
    found = {draw for draw, _ in row}
    return {draw for draw in found if all((draw, dataset) in row for dataset in datasets)}


def scores_by_draw(name: str, draws: dict[int, list[float]]) -> Scores:
    """Return the scores of runs with different labeled draws."""
    order = tuple(sorted(draws))
    return Scores(name, np.array([draws[draw] for draw in order]), order)


# -- how well the replicates decide ----------------------------------------------------------------


def draws_needed(study: Study, name: str, difference: float, tests: int = 1) -> int | None:
    """Return how many replicates show a true difference to supervised training in 80 % of studies.

    The scatter over replicates and cases is the measured one. ``tests``: number of pairs that are
    tested together; the strictest step of Holm's correction is assumed.
    """
    contrast = study.against_supervised(name).basis.contrast
    shifted = [group - contrast.mean() + difference for group in contrast.groups]
    return replicates_needed(Contrast(shifted), Pool(), tests)


def smallest_difference(study: Study, name: str, tests: int = 1) -> float:
    """Return the smallest true difference to supervised training that is found in 80 % of studies.

    The scatter and the number of replicates are those of the study; ``tests`` as above.
    """
    return smallest_found(study.against_supervised(name).basis.moments, tests)


def paired_scatter(study: Study, name: str) -> float:
    """Return the standard deviation, over replicates, of the difference to supervised training."""
    gains = study.methods[name].replicates - study.supervised.replicates
    return float(gains.mean(axis=1).std(ddof=1))


def gap_is_known(study: Study) -> bool:
    """Whether shares of the gap between supervised training and the oracle say anything.

    The gap's 95 % interval must be narrower than the gap itself.
    """
    if study.oracle is None:
        return False
    gap = study.against_supervised(ORACLE)
    return gap.high - gap.low < gap.mean


def gap_closed(study: Study, name: str) -> reference.Effect | None:
    """Return (method - supervised) / (oracle - supervised) in percent, with Fieller's interval.

    None where the gap is not known well enough, or where the interval has no end.
    """
    if study.oracle is None or not gap_is_known(study):
        return None
    found = reference.gap_closed(study.methods[name], study.supervised, study.oracle)
    ends = (found.mean, found.low, found.high)
    return None if any(isnan(end) or abs(end) == inf for end in ends) else found


def is_usual(row: str) -> bool:
    """Whether a row has the protocol's parameters; VerSemi's variants count as methods."""
    _, changed = split_name(row)
    return not changed or changed.startswith("variant=")


def authors_rows(names: Iterable[str]) -> dict[str, str]:
    """Return the names of the rows with their authors' weights, by method."""
    rows: dict[str, str] = {}
    for name in names:
        if not is_usual(name):
            method = split_name(name)[0]
            if method in rows:
                raise ValueError(
                    f"{method} has two rows with other parameters: {name}, {rows[method]}"
                )
            rows[method] = name
    return rows


def with_authors_weights(study: Study) -> Study:
    """Return a study whose methods have their authors' weights where it has such rows.

    They take the place of the rows with the settings of the protocol.
    """
    methods = {name: scores for name, scores in study.methods.items() if is_usual(name)}
    for method, row in authors_rows(study.methods).items():
        methods[method] = study.methods[row]
    return replace(study, methods=methods)


def rank_correlation(first: Study, second: Study) -> str:
    """Return the rank correlation of the means of the methods that two studies share, as text.

    Only rows with the protocol's parameters count, so that each method has one value.
    """
    names = [name for name in first.names if name in second.methods and is_usual(name)]
    means = [[study.methods[name].values.mean() for name in names] for study in (first, second)]
    return f"{spearmanr(*means).statistic:.2f} over {len(names)} methods"


# -- texts -----------------------------------------------------------------------------------------


def spread(scores: Scores) -> float:
    """Return the standard deviation of the replicates' means."""
    return float(scores.replicates.mean(axis=1).std(ddof=1))


def shown(scores: Scores) -> str:
    """Return the text of a mean and its standard deviation over replicates."""
    return f"{scores.values.mean():.1f} ± {spread(scores):.1f}"


def signed(difference: Difference) -> str:
    """Return the text of a difference and its interval."""
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def gap_text(study: Study, name: str) -> str:
    """Return the text of the share of the gap that a method closes."""
    found = gap_closed(study, name)
    if found is None:
        return "–"
    return f"{found.mean:.0f} % [{found.low:.0f}, {found.high:.0f}]"


def rank_text(study: Study, name: str) -> str:
    """Return the rank of a method; ``=`` follows a rank that several methods share."""
    place = study.places.get(name)
    if place is None:
        return "–"
    return f"{place.rank}=" if place.tied else str(place.rank)


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    if len(names) < 2:
        return "".join(names) or "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"
