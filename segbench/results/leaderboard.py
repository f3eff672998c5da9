"""Leaderboards: finished runs in tables, so that only comparable runs share one.

A table holds runs of one data set (fingerprint and split), labeled count, backbone and protocol
(its content, not just its name). For each run, the mean over cases is taken per class, then over
classes; a row shows mean and standard deviation of its runs. ``stats`` decides which method is
better than which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, nan
from statistics import fmean, stdev
from typing import Any

import numpy as np

from segbench import registry
from segbench.config import load_protocol
from segbench.errors import SegbenchError
from segbench.results import stats
from segbench.results.cases import by_case
from segbench.results.comparable import (
    KEY_WORDS,
    FailedRun,
    RowKey,
    Rows,
    SortedRuns,
    TableKey,
    sort_runs,
    tables_over_draws,
)
from segbench.results.finished import FinishedRun
from segbench.results.ranking import ranking
from segbench.results.rundir import RunDir, is_number, plain
from segbench.results.scores import Scores
from segbench.results.stats import Difference

RANKED_SEEDS = 3  # rows with fewer seeds are shown, but not ranked
DISTANCES = ("hd95", "asd")
METRICS = ("dice", "jaccard", *DISTANCES)
# Cases that differ by less than the last digit shown count as ties.
TIES = {"dice": 0.05, "jaccard": 0.05, "hd95": 0.005, "asd": 0.005}


@dataclass
class MethodRow:
    """A method in a table. Dice and Jaccard are percent; distances have the table's unit."""

    method: str
    dice: float
    dice_sd: float
    jaccard: float
    hd95: float
    asd: float
    missed: int  # predictions without the target, over all runs
    seeds: int  # number of different seeds, summed over the labeled draws
    hours: float  # of training, mean over runs
    rank: int | None = None  # of the first method that it is not distinguishable from
    note: str = ""  # why it is not ranked
    failed: int = 0  # number of failed runs
    tied: bool = False
    letters: str = ""  # rows that share a letter are not distinguishable
    rank_low: int | None = None
    rank_high: int | None = None
    # 95 % intervals over cases and runs, by metric
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    # Difference to the row named with --against, in the metric that ranks.
    difference: dict[str, Any] | None = None
    runs: list[FinishedRun] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)  # (runs, cases), by metric

    @property
    def run_ids(self) -> list[str]:
        """The first eight digits of the runs' identities."""
        return [run.folder.run_id for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; undefined numbers are None."""
        shown = {key: value for key, value in vars(self).items() if key not in ("runs", "scores")}
        found: dict[str, Any] = plain({**shown, "runs": self.run_ids})
        return found


@dataclass
class Board:
    """One table."""

    dataset: str
    labeled: int
    train: int
    backbone: str
    protocol: str
    policy: str
    unit: str
    partial: bool
    standard: bool  # the unmodified default protocol on all data: comparable with publications
    case_ids: list[str]
    rows: list[MethodRow] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    sort: str = "dice"
    draws: tuple[int, ...] = (0,)  # the labeled draws
    apart: str = ""  # why this table is not merged with the one before
    pairs: list[Difference] = field(default_factory=list)  # ranked rows, in the metric that ranks
    network: str = ""  # backbone parameters that were set by hand

    @property
    def cases(self) -> int:
        """Number of test cases."""
        return len(self.case_ids)

    @property
    def classes(self) -> list[str]:
        """The classes that are scored, in the order of the data set."""
        return [entry["class"] for entry in self.rows[0].runs[0].metrics(self.dataset)]

    @property
    def title(self) -> str:
        """What the table is about, in one line."""
        labeled = f"{self.labeled} of {self.train} labeled"
        if self.draws != (0,):
            word = "draws" if len(self.draws) > 1 else "draw"
            labeled += f" ({word} {', '.join(map(str, self.draws))})"
        network = f" ({self.network})" if self.network else ""
        partial = " · PARTIAL COPY" if self.partial else ""
        return (
            f"{self.dataset} · {labeled} · {self.backbone}{network} · "
            f"protocol {self.protocol} · test ({self.cases} cases){partial}"
        )

    def scores(self, metric: str) -> list[Scores]:
        """Return the scores of each row."""
        return [row.scores[metric] for row in self.rows]

    def family(self, metric: str) -> list[Scores]:
        """Return the scores of the ranked rows: only these show how much runs scatter."""
        return [row.scores[metric] for row in self.rows if not row.note]


def boards(
    runs: Iterable[RunDir],
    dataset: str | None = None,
    sort: str = "dice",
    against: str | None = None,
) -> tuple[list[Board], list[str]]:
    """Return all tables, and warnings about runs that were left out.

    Args:
        dataset: only tables of this data set.
        sort: the metric that ranks, one of ``METRICS``.
        against: a row or method; every other row shows its difference to it.
    """
    found = sort_runs(runs)
    tables = {key: rows for key, rows in found.tables.items() if dataset in (None, key.dataset)}
    tables.update(dict(tables_over_draws(tables)))
    made = []
    for key, rows in tables.items():
        failures = [failed for failed in found.failures if _belongs(failed, key)]
        made.append((key, _board(key, rows, sort, failures)))
    made.sort(key=_table_order)
    for (first_key, first), (second_key, second) in pairwise(made):
        if first.dataset == second.dataset:
            second.apart = _why_apart(first_key, second_key)
    warnings = found.warnings + _failures_without_table(found, dataset)
    if against is not None:
        for _, board in made:
            warnings += _compare_with(board, against)
    return [board for _, board in made], warnings


def _belongs(failed: FailedRun, key: TableKey) -> bool:
    """Return whether a failed run belongs to a table, which may be one over several draws."""
    same_table = failed.table._replace(draws=()) == key._replace(draws=())
    return same_table and failed.table.draws[0] in key.draws


def _table_order(made: tuple[TableKey, Board]) -> tuple[Any, ...]:
    board = made[1]
    return board.dataset, board.labeled, board.protocol, board.backbone, board.draws


def _why_apart(first: TableKey, second: TableKey) -> str:
    """Return in which properties two tables of one data set differ."""
    differing = [
        KEY_WORDS[name]
        for name in TableKey._fields
        if getattr(first, name) != getattr(second, name)
    ]
    return f"not one ranking with the table above: other {', '.join(differing)}"


def _failures_without_table(found: SortedRuns, dataset: str | None) -> list[str]:
    warnings = []
    for failed in found.failures:
        if failed.table not in found.tables and dataset in (None, failed.table.dataset):
            warnings.append(f"{failed.folder.path}: failed, and no run of its table is finished")
    return warnings


def _board(key: TableKey, rows: Rows, sort: str, failures: Sequence[FailedRun]) -> Board:
    """Return one table with its rows ranked."""
    every_run = [run for runs in rows.values() for run in runs]
    # Numbers that were only reported decide nothing about the table.
    trusted = [run for run in every_run if not run.folder.reported] or every_run
    first = trusted[0].result
    partial = key.dataset in first["partial"]
    unmodified = _is_standard(key, first["protocol"])
    board = Board(
        dataset=key.dataset,
        labeled=key.labeled,
        train=first["train"][key.dataset],
        backbone=key.backbone,
        protocol=key.protocol,
        policy=trusted[0].metrics(key.dataset)[0]["policy"],
        unit=_unit(trusted, key.dataset),
        partial=partial,
        standard=unmodified and not partial and key.draws == (0,),
        case_ids=_case_ids(trusted, key.dataset),
        failures=[
            f"{failed.folder.path.parts[-2]} {failed.folder.path.name}" for failed in failures
        ],
        sort=sort,
        draws=key.draws,
        network=_set_by_hand(first),
    )
    failed_variants = [failed.variant for failed in failures]
    for row_key, name in _names(list(rows)).items():
        runs = sorted(rows[row_key], key=lambda run: (run.draw, run.seed))
        board.rows.append(_row(name, board, runs, failed_variants.count(row_key.variant)))
    _rank(board)
    return board


def _names(keys: Sequence[RowKey]) -> dict[RowKey, str]:
    """Return the name of each row; where a label has several variants, with the variant."""
    labels = [key.label for key in keys]
    names = {}
    for key in keys:
        several = labels.count(key.label) > 1
        names[key] = f"{key.label} @{key.variant}" if several else key.label
    return names


def _unit(runs: Sequence[FinishedRun], dataset: str) -> str:
    """Return the unit of distances: mm where all runs know the size of a voxel."""
    columns = [entry["columns"] for run in runs for entry in run.metrics(dataset)]
    return "mm" if all("hd95_mm" in names for names in columns) else "vox"


def _case_ids(runs: Sequence[FinishedRun], dataset: str) -> list[str]:
    """Return the test cases, in the order in which they first occur."""
    found: dict[str, None] = {}
    for run in runs:
        found.update(dict.fromkeys(record["case"] for record in run.cases_of(dataset)))
    return list(found)


def _set_by_hand(result: dict[str, Any]) -> str:
    """Return the backbone parameters that the user changed."""
    modified = result["protocol"]["modified"]
    params = sorted(result["science"]["backbone_params"].items())
    return ", ".join(f"{name} {value}" for name, value in params if f"backbone.{name}" in modified)


def _is_standard(key: TableKey, protocol: dict[str, Any]) -> bool:
    """Return whether the run used the unmodified default protocol and backbone."""
    try:
        name = registry.get("dataset", key.dataset).cls.protocol
        backbone = load_protocol(name).backbone.name
    except SegbenchError:  # the plug-in is not available here
        return False
    return protocol["name"] == name and not protocol["modified"] and key.backbone == backbone


def _column(metric: str, unit: str) -> str:
    return f"{metric}_{unit}" if metric in DISTANCES else metric


def _scale(metric: str) -> float:
    """Return the factor from the stored values to the shown ones."""
    return 1 if metric in DISTANCES else 100


def _row(name: str, board: Board, runs: list[FinishedRun], failed: int) -> MethodRow:
    """Return a row without its rank."""
    run_means = {metric: _run_means(board, runs, metric) for metric in METRICS}
    means = {metric: _mean_over_draws(runs, values) for metric, values in run_means.items()}
    seconds = [run.manifest.get("train_seconds") for run in runs]
    hours = [value / 3600 if is_number(value) else nan for value in seconds]
    missed = 0
    for run in runs:
        missed += sum(m["counts"]["empty_prediction"] for m in run.metrics(board.dataset))
    row = MethodRow(
        method=name,
        dice=means["dice"],
        dice_sd=stdev(run_means["dice"]) if len(runs) > 1 else nan,
        jaccard=means["jaccard"],
        hd95=means["hd95"],
        asd=means["asd"],
        missed=missed,
        seeds=len({(run.draw, run.seed) for run in runs}),
        hours=fmean(hours),
        note=_why_not_ranked(board, runs),
        failed=failed,
        runs=runs,
    )
    for metric in METRICS:
        row.scores[metric] = _scores(name, board, runs, metric)
        interval = _interval(row.scores[metric], metric)
        if interval is not None:
            row.intervals[metric] = interval
    return row


def _run_means(board: Board, runs: Sequence[FinishedRun], metric: str) -> list[float]:
    """Return each run's mean over cases and classes."""
    column = _column(metric, board.unit)
    found = []
    for run in runs:
        means = [m["columns"].get(column, {}).get("mean") for m in run.metrics(board.dataset)]
        defined = [_scale(metric) * mean for mean in means if mean is not None]
        found.append(fmean(defined) if defined else nan)
    return found


def _mean_over_draws(runs: Sequence[FinishedRun], values: Sequence[float]) -> float:
    """Return the mean over draws of the mean over each draw's runs."""
    by_draw: dict[int, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        by_draw.setdefault(run.draw, []).append(value)
    return fmean(fmean(by_draw[draw]) for draw in sorted(by_draw))


def _interval(scores: Scores, metric: str) -> tuple[float, float] | None:
    """Return the interval of a row's mean; None where it would be the interval of another mean.

    Runs that lack different cases share fewer cases than the mean is taken over.
    """
    assert scores.missing is not None
    same_cases = bool((scores.missing == scores.missing[0]).all())
    if len(scores.values) < 2 or not same_cases:
        return None
    found = stats.estimate(scores, (0, inf if metric in DISTANCES else 100))
    return found.low, found.high


def _scores(name: str, board: Board, runs: Sequence[FinishedRun], metric: str) -> Scores:
    """Return what the statistics take from a row's runs."""
    column = _column(metric, board.unit)
    tables = [by_case(run.cases, board.dataset, column, board.policy) for run in runs]
    class_names: dict[str, None] = {}
    for table in tables:
        for classes in table.values():
            class_names.update(dict.fromkeys(classes))
    by_class = np.full((len(runs), board.cases, len(class_names)), nan)
    missing = np.zeros((len(runs), board.cases), dtype=bool)
    for i, table in enumerate(tables):
        for j, case in enumerate(board.case_ids):
            missing[i, j] = case not in table
            for k, class_name in enumerate(class_names):
                by_class[i, j, k] = table.get(case, {}).get(class_name, nan)
    values = np.full((len(runs), board.cases), nan)
    for place in np.ndindex(values.shape):
        defined = by_class[place][np.isfinite(by_class[place])]
        if defined.size:
            values[place] = np.mean(defined)
    scale = _scale(metric)
    draws = tuple(run.draw for run in runs)
    return Scores(name, scale * values, draws, scale * by_class, missing)


def _why_not_ranked(board: Board, runs: Sequence[FinishedRun]) -> str:
    """Return why a row is not ranked; empty if it is."""
    missing = 0
    for run in runs:
        scored = {record["case"] for record in run.cases_of(board.dataset)}
        missing = max(missing, len(set(board.case_ids) - scored))
    if missing:
        return f"{missing} test case{'s' if missing > 1 else ''} missing: not ranked"
    if any("test" in run.result["selection"].replace("_", " ").split() for run in runs):
        return "checkpoint picked on the test cases: not ranked"
    if any(run.folder.reported for run in runs):
        return "reported, not verified: not ranked"
    return _too_few_seeds(board, runs)


def _too_few_seeds(board: Board, runs: Sequence[FinishedRun]) -> str:
    counts = {}
    for draw in board.draws:
        counts[draw] = len({run.seed for run in runs if run.draw == draw})
    fewest = min(counts, key=lambda draw: counts[draw])
    if counts[fewest] >= RANKED_SEEDS:
        return ""
    where = f" of draw {fewest}" if len(counts) > 1 else ""
    return f"{counts[fewest]} seed{'s' if counts[fewest] > 1 else ''}{where}: not ranked"


def _rank(board: Board) -> None:
    """Rank the rows and put them in order: ranked rows first, best first."""
    higher = board.sort not in DISTANCES
    by_name = {row.method: row for row in board.rows}
    ranked = [row.scores[board.sort] for row in board.rows if not row.note]
    places, board.pairs = ranking(ranked, higher, tie=TIES[board.sort])
    ordered = []
    for place in places:
        row = by_name.pop(place.name)
        row.rank = place.rank
        row.tied = place.tied
        row.letters = place.letters
        row.rank_low = place.low
        row.rank_high = place.high
        ordered.append(row)

    def badness(row: MethodRow) -> float:
        value = getattr(row, board.sort)
        if value != value:
            return inf
        return float(-value if higher else value)

    board.rows = ordered + sorted(by_name.values(), key=badness)


def is_called(name: str, label: str) -> bool:
    """Return whether a name means a row: it is the whole label or the method's name."""
    return name in (label, label.split("[")[0].split(" ")[0])


def _compare_with(board: Board, name: str) -> list[str]:
    """Fill in the differences to a row; warn where the name fits no row or several."""
    fits = [row for row in board.rows if is_called(name, row.method)]
    exact = [row for row in fits if row.method == name]
    if exact:
        fits = exact
    if not fits:
        return [f"{board.title}: no row is {name!r}"]
    if len(fits) > 1:
        names = ", ".join(row.method for row in fits)
        return [f"{board.title}: several rows are '{name}': {names}"]
    base = fits[0]
    for row in board.rows:
        if row is not base:
            row.difference = _difference(board, row, base)
    return []


def _difference(board: Board, row: MethodRow, base: MethodRow) -> dict[str, Any]:
    """Return a row's difference to another one.

    Between ranked rows it is the test that ranks them, so that a star and a rank never
    contradict each other; other rows are compared, but not tested.
    """
    tested = tested_pair(board.pairs, row.method, base.method)
    found = tested
    if found is None:
        first, second = row.scores[board.sort], base.scores[board.sort]
        found = stats.compare(first, second, family=board.family(board.sort))
    return {
        "to": base.method,
        "metric": board.sort,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p": nan if tested is None else tested.p_holm,
    }


def tested_pair(pairs: Iterable[Difference], a: str, b: str) -> Difference | None:
    """Return the difference of two methods, in this order, from a list of pairs."""
    for pair in pairs:
        if (pair.a, pair.b) == (a, b):
            return pair
        if (pair.a, pair.b) == (b, a):
            return stats.swapped(pair)
    return None
