"""Leaderboards: finished runs in tables, so that only comparable runs share one.

A table holds runs of one data set (fingerprint and split), labeled count, backbone and protocol
(its content, not just its name); ``tables`` decides which tables there are. A row's replicates are
its labeled draws or, with one draw, its seeds. For each run, the mean over cases is taken per
class, then over classes, then over data sets; a row shows mean and standard deviation of its
replicates. In a cross-validation the cases of all folds are pooled; the replicates are the folds.
``stats`` decides which method is better than which; reference rows are shown, but not ranked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf, nan
from statistics import fmean, stdev
from typing import Any

import numpy as np

from segbench import registry
from segbench.config import load_protocol
from segbench.config.protocol import published_recipes
from segbench.errors import SegbenchError
from segbench.results import stats
from segbench.results.board import (
    DISTANCES,
    METRICS,
    TIES,
    Board,
    MethodRow,
    ranges,
    tested_pair,
)
from segbench.results.cases import by_case
from segbench.results.comparable import (
    BASELINE,
    CONTROL,
    KEY_WORDS,
    METHOD,
    ORACLE,
    PUBLISHED,
    FailedRun,
    Loader,
    RowKey,
    SortedRuns,
    TableKey,
    settings_digest,
    sort_runs,
)
from segbench.results.finished import FinishedRun
from segbench.results.folds import CrossValidated
from segbench.results.names import is_called
from segbench.results.ranking import ranking
from segbench.results.recipe import recipe_mark
from segbench.results.reference import gap_closed, unlabeled_gain
from segbench.results.rundir import RunDir, is_number
from segbench.results.scores import Scores
from segbench.results.tables import (
    RANKED_REPLICATES,
    Replicate,
    TableContent,
    arrange,
    hide_variants,
)


def boards(
    runs: Iterable[RunDir],
    sort: str = "dice",
    against: str | None = None,
    variants: bool = True,
    load: Loader = FinishedRun.load,
) -> tuple[list[Board], list[str]]:
    """Return all tables, and warnings about runs that were left out.

    Args:
        sort: the metric that ranks, one of ``METRICS``.
        against: a row or method; every other row shows its difference to it.
        variants: False leaves out ablations, and methods with other parameters than their own where
            the method itself has a row; ``Board.hidden`` names them.
        load: reads a finished run.
    """
    found = sort_runs(runs, load)
    tables = arrange(found.tables)
    made = []
    for table in tables:
        failures = [failed for failed in found.failures if table.holds(failed)]
        hidden = [] if variants else hide_variants(table)
        board = _board(table, sort, failures)
        board.hidden = hidden
        made.append((table.keys[0], board))
    made.sort(key=_table_order)
    for (first_key, first), (second_key, second) in pairwise(made):
        if first.dataset == second.dataset:
            second.apart = _why_apart(first_key, second_key)
    warnings = found.warnings + _failures_without_table(found, tables)
    if against is not None:
        for _, board in made:
            warnings += _compare_with(board, against)
    return [board for _, board in made], warnings


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


def _failures_without_table(found: SortedRuns, tables: Sequence[TableContent]) -> list[str]:
    warnings = []
    for failed in found.failures:
        if not any(table.holds(failed) for table in tables):
            warnings.append(f"{failed.folder.path}: failed, and no run of its table is finished")
    return warnings


def _board(table: TableContent, sort: str, failures: Sequence[FailedRun]) -> Board:
    """Return one table with its rows ranked."""
    key = table.keys[0]
    groups: list[Replicate] = []
    for row_key, replicates in table.rows.items():
        if row_key.kind not in (ORACLE, PUBLISHED):
            groups += replicates
    # Numbers that were only reported decide nothing about the table.
    trusted = [group for group in groups if not _is_reported(group)] or groups
    first = trusted[0][0].result
    partial = any(dataset in first["partial"] for dataset in table.datasets)
    unmodified = len(table.datasets) == 1 and _is_standard(key, first["protocol"])
    board = Board(
        dataset=table.name,
        datasets=table.datasets,
        labeled=key.labeled,
        train=first["train"][key.dataset],
        backbone=key.backbone,
        protocol=key.protocol,
        policy=trusted[0][0].metrics(key.dataset)[0]["policy"],
        unit=_unit(trusted, table.datasets),
        partial=partial,
        standard=unmodified and not partial and key.draws == (0,) and not key.folds,
        case_keys=_case_keys(trusted, table.datasets),
        failures=[f"{f.folder.path.parts[-2]} {f.folder.path.name}" for f in failures],
        sort=sort,
        draws=key.draws,
        folds=key.folds,
        fold_of_case=_fold_of_case(trusted),
        left_out_draws=table.left_out_draws,
        network=_set_by_hand(first),
    )
    failed_variants = [failed.variant for failed in failures]
    for row_key, name in _names(list(table.rows)).items():
        replicates, unfinished = _complete(table.rows[row_key])
        board.unfinished += [f"{name} {text}" for text in unfinished]
        row = _row(name, row_key.kind, board, replicates)
        variants = {settings_digest(run.science) for run in row.runs}
        row.failed = sum(failed_variants.count(variant) for variant in variants)
        if board.standard:
            row.recipe = recipe_mark(row.runs[0].science)
        board.rows.append(row)
    _rank(board)
    _add_effects(board)
    return board


def _is_reported(group: Replicate) -> bool:
    return any(part.reported for run in group for part in run.parts)


def _fold_of_case(groups: Sequence[Replicate]) -> dict[str, int]:
    """Return the fold in which each case was tested; empty without a cross-validation."""
    found: dict[str, int] = {}
    for group in groups:
        for run in group:
            if isinstance(run, CrossValidated):
                found.update(run.fold_of_case)
    return found


def _complete(groups: list[Replicate]) -> tuple[list[Replicate], list[str]]:
    """Return the seeds with a run of every fold, and texts about those that are left out.

    If no seed has all folds, all of them are returned: the row is shown, but not ranked.
    """
    complete = []
    texts = []
    for group in groups:
        missing = _missing_folds([group])
        if missing:
            texts.append(f"seed {group[0].seed} without fold {ranges(missing)}")
        else:
            complete.append(group)
    return (complete, texts) if complete else (groups, [])


def _names(keys: Sequence[RowKey]) -> dict[RowKey, str]:
    """Return the name of each row; where a label has several variants, with the variant."""
    labels = [key.label for key in keys]
    names = {}
    for key in keys:
        several = labels.count(key.label) > 1
        names[key] = f"{key.label} @{key.variant[:4]}" if several else key.label
    return names


def _unit(groups: Sequence[Replicate], datasets: Sequence[str]) -> str:
    """Return the unit of distances: mm where all runs know the size of a voxel."""
    for group in groups:
        for run, dataset in zip(group, datasets, strict=True):
            if not all("hd95_mm" in entry["columns"] for entry in run.metrics(dataset)):
                return "vox"
    return "mm"


def _case_keys(groups: Sequence[Replicate], datasets: Sequence[str]) -> list[tuple[str, str]]:
    """Return the test cases of each data set, in the order in which they first occur."""
    found: dict[tuple[str, str], None] = {}
    for number, dataset in enumerate(datasets):
        for group in groups:
            for record in group[number].cases_of(dataset):
                found[dataset, record["case"]] = None
    return list(found)


def _set_by_hand(result: dict[str, Any]) -> str:
    """Return the backbone parameters that the user changed."""
    modified = result["protocol"]["modified"]
    params = sorted(result["science"]["backbone_params"].items())
    return ", ".join(f"{name} {value}" for name, value in params if f"backbone.{name}" in modified)


def _is_standard(key: TableKey, protocol: dict[str, Any]) -> bool:
    """Return whether the run used a protocol whose numbers may stand beside published ones.

    It is the data set's own protocol or the recipe of a method's authors, unmodified, with the
    backbone of that protocol.
    """
    try:
        names = {registry.get("dataset", key.dataset).cls.protocol}
        names.update(published_recipes(key.dataset).values())
        if protocol["name"] not in names or protocol["modified"]:
            return False
        return key.backbone == load_protocol(protocol["name"]).backbone.name
    except SegbenchError:  # the plug-in is not available here
        return False


def _column(metric: str, unit: str) -> str:
    return f"{metric}_{unit}" if metric in DISTANCES else metric


def _scale(metric: str) -> float:
    """Return the factor from the stored values to the shown ones."""
    return 1 if metric in DISTANCES else 100


def _row(name: str, kind: str, board: Board, groups: Sequence[Replicate]) -> MethodRow:
    """Return a row without its rank."""
    groups = sorted(groups, key=lambda group: (group[0].draw, group[0].seed))
    means = {metric: _replicate_means(board, groups, metric) for metric in METRICS}
    repeated = _means_of_folds(board, groups) if board.folds else means["dice"]
    hours = []
    for group in groups:
        for run in group:
            seconds = run.manifest.get("train_seconds")
            hours.append(seconds / 3600 if is_number(seconds) else nan)
    row = MethodRow(
        method=name,
        kind=kind,
        dice=fmean(means["dice"]),
        dice_sd=stdev(repeated) if len(repeated) > 1 else nan,
        jaccard=fmean(means["jaccard"]),
        hd95=fmean(means["hd95"]),
        asd=fmean(means["asd"]),
        missed=_missed(board, groups),
        seeds=len({(group[0].draw, group[0].seed) for group in groups}),
        replicates=len(repeated),
        hours=fmean(hours),
        note=_why_not_ranked(board, kind, groups),
        run_groups=groups,
    )
    for metric in METRICS:
        row.scores[metric] = _scores(row, board, metric)
        interval = _interval(row.scores[metric], metric)
        if interval is not None:
            row.intervals[metric] = interval
    return row


def _missed(board: Board, groups: Sequence[Replicate]) -> int:
    """Return the number of predictions without the target."""
    missed = 0
    for group in groups:
        for run, dataset in zip(group, board.datasets, strict=True):
            missed += sum(m["counts"]["empty_prediction"] for m in run.metrics(dataset))
    return missed


def _replicate_means(board: Board, groups: Sequence[Replicate], metric: str) -> list[float]:
    """Return the mean of each replicate: over classes, then over data sets, then over seeds."""
    column = _column(metric, board.unit)
    by_draw: dict[int, list[float]] = {}
    for group in groups:
        means = []
        for run, dataset in zip(group, board.datasets, strict=True):
            means.append(_run_mean(run, dataset, column))
        mean = _scale(metric) * fmean(means)
        by_draw.setdefault(group[0].draw, []).append(mean)
    if len(by_draw) == 1:
        (means,) = by_draw.values()
        return means
    return [fmean(values) for values in by_draw.values()]


def _means_of_folds(board: Board, groups: Sequence[Replicate]) -> list[float]:
    """Return the mean Dice of each fold: over the fold's cases, then over classes and runs."""
    by_fold: dict[int, list[float]] = {}
    for group in groups:
        for run in group:
            for part in run.parts:
                mean = _scale("dice") * _run_mean(part, board.dataset, "dice")
                by_fold.setdefault(part.fold or 0, []).append(mean)
    return [fmean(values) for values in by_fold.values()]


def _run_mean(run: FinishedRun, dataset: str, column: str) -> float:
    """Return a run's mean over classes of the mean over cases, as stored."""
    means = [entry["columns"].get(column, {}).get("mean") for entry in run.metrics(dataset)]
    defined = [mean for mean in means if mean is not None]
    return fmean(defined) if defined else nan


def _interval(scores: Scores, metric: str) -> tuple[float, float] | None:
    """Return the interval of a row's mean; None where it would be the interval of another mean.

    Runs that lack different cases share fewer cases than the mean is taken over.
    """
    assert scores.missing is not None
    same_cases = bool((scores.missing == scores.missing[0]).all())
    is_replicated = len(scores.values) > 1 or scores.folds
    if not is_replicated or not same_cases:
        return None
    found = stats.estimate(scores, (0, inf if metric in DISTANCES else 100))
    return found.low, found.high


def _scores(row: MethodRow, board: Board, metric: str) -> Scores:
    """Return what the statistics take from a row's runs."""
    column = _column(metric, board.unit)
    tables = [_values_by_case(group, board, column) for group in row.run_groups]
    class_names = _class_names(tables)
    by_class = np.full((len(tables), board.cases, len(class_names)), nan)
    missing = np.zeros((len(tables), board.cases), dtype=bool)
    for i, table in enumerate(tables):
        for j, case in enumerate(board.case_keys):
            missing[i, j] = case not in table
            for class_name, value in table.get(case, {}).items():
                by_class[i, j, class_names[class_name]] = value
    defined = np.isfinite(by_class)
    sums = np.where(defined, by_class, 0.0).sum(axis=2)
    counts = defined.sum(axis=2)
    values = np.where(counts > 0, sums / np.maximum(counts, 1), nan)
    datasets: tuple[int, ...] = ()
    if board.is_mean:
        numbers = {dataset: number for number, dataset in enumerate(board.datasets)}
        datasets = tuple(numbers[dataset] for dataset, _ in board.case_keys)
    return Scores(
        name=row.method,
        values=_scale(metric) * values,
        draws=_draws(row, board),
        classes=_scale(metric) * by_class,
        missing=missing,
        datasets=datasets,
        folds=tuple(board.fold_of_case[case] for _, case in board.case_keys if board.folds),
    )


CaseValues = dict[tuple[str, str], dict[str, float]]  # by data set and case, then by class


def _values_by_case(group: Replicate, board: Board, column: str) -> CaseValues:
    values: CaseValues = {}
    for run, dataset in zip(group, board.datasets, strict=True):
        for case, classes in by_case(run.cases, dataset, column, board.policy).items():
            values[dataset, case] = classes
    return values


def _class_names(tables: Sequence[CaseValues]) -> dict[str, int]:
    """Return a number for each class name."""
    numbers: dict[str, int] = {}
    for table in tables:
        for classes in table.values():
            for name in classes:
                numbers.setdefault(name, len(numbers))
    return numbers


def _draws(row: MethodRow, board: Board) -> tuple[int, ...]:
    """Return the labeled draws by which a row is paired.

    An oracle without the draws of the table is independent of the other rows; all of its cases are
    labeled, so that its own draws are just numbers.
    """
    draws = tuple(group[0].draw for group in row.run_groups)
    if row.kind == ORACLE and set(draws) != set(board.draws):
        return ()
    return draws


def _why_not_ranked(board: Board, kind: str, groups: Sequence[Replicate]) -> str:
    """Return why a method is not ranked, empty if it is; the same problems of a reference row."""
    unfinished = _missing_folds(groups)
    if unfinished:
        word = "folds" if len(unfinished) > 1 else "fold"
        return f"no run of {word} {ranges(unfinished)}: not ranked"
    missing = max(_missing_cases(board, group) for group in groups)
    if missing:
        return f"{missing} test case{'s' if missing > 1 else ''} missing: not ranked"
    runs = _single_runs(groups)
    if any("test" in run.result["selection"].replace("_", " ").split() for run in runs):
        return "checkpoint picked on the test cases: not ranked"
    if any(run.reported for run in runs):
        return "reported, not verified: not ranked"
    return _too_few_replicates(board, groups) if kind == METHOD else ""


def _single_runs(groups: Sequence[Replicate]) -> list[FinishedRun]:
    """Return all runs of a row; of a cross-validation those of each fold."""
    return [part for group in groups for run in group for part in run.parts]


def _missing_folds(groups: Sequence[Replicate]) -> list[int]:
    """Return the folds that a draw and seed of a cross-validation has no finished run of."""
    missing: set[int] = set()
    for group in groups:
        for run in group:
            if isinstance(run, CrossValidated):
                missing.update(run.missing_folds)
    return sorted(missing)


def _missing_cases(board: Board, group: Replicate) -> int:
    scored: set[tuple[str, str]] = set()
    for run, dataset in zip(group, board.datasets, strict=True):
        for record in run.cases_of(dataset):
            scored.add((dataset, record["case"]))
    missing = set(board.case_keys) - scored
    return len(missing)


def _too_few_replicates(board: Board, groups: Sequence[Replicate]) -> str:
    """Return why a row has too few replicates to be ranked; empty if it has enough.

    Enough are three draws, or three seeds of each draw, or three folds of a cross-validation.
    """
    if board.folds >= RANKED_REPLICATES:
        return ""
    seeds: dict[int, set[int]] = {draw: set() for draw in board.draws}
    for group in groups:
        seeds.setdefault(group[0].draw, set()).add(group[0].seed)
    without_runs = [draw for draw in board.draws if not seeds[draw]]
    if without_runs:
        word = "draws" if len(without_runs) > 1 else "draw"
        return f"no run of {word} {ranges(without_runs)}: not ranked"
    counts = {draw: len(own) for draw, own in seeds.items()}
    draws = len(board.draws)
    fewest = min(counts.values())
    if draws >= RANKED_REPLICATES or fewest >= RANKED_REPLICATES:
        return ""
    text = "1 seed" if fewest == 1 else f"{fewest} seeds"
    if draws < 2:
        return f"{text}: not ranked"
    if max(counts.values()) == 1:
        return f"{draws} draws: not ranked"
    draw = min(counts, key=lambda number: counts[number])
    return f"{text} of draw {draw}: not ranked"


def _rank(board: Board) -> None:
    """Rank the rows and put them in order: ranked rows first, reference rows last."""
    higher = board.sort not in DISTANCES
    by_name = {row.method: row for row in board.rows}
    ranked = board.family(board.sort)
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

    def order(row: MethodRow) -> tuple[int, float]:
        kind = (METHOD, PUBLISHED, CONTROL, ORACLE).index(row.kind)
        value = getattr(row, board.sort)
        if value != value:
            return kind, inf
        return kind, float(-value if higher else value)

    board.rows = ordered + sorted(by_name.values(), key=order)


def _add_effects(board: Board) -> None:
    """Add what the reference rows say about the methods: gap closed and unlabeled gain, in Dice."""
    controls = {_identity(row, "unlabeled"): row for row in board.rows if row.kind == CONTROL}
    ends = _ends_of_gap(board)
    for row in board.rows:
        dice = row.scores["dice"]
        if ends is not None and not any(row is end for end in ends):
            supervised, oracle = ends
            row.gap_closed = gap_closed(dice, supervised.scores["dice"], oracle.scores["dice"])
        control = controls.get(_identity(row, "unlabeled"))
        if control is not None and row.kind == METHOD:
            row.unlabeled_gain = unlabeled_gain(dice, control.scores["dice"])


def _ends_of_gap(board: Board) -> list[MethodRow] | None:
    """Return the rows of supervised and oracle; None unless there is one such pair.

    They have the same settings but for the labeled cases. Of several pairs, those with the
    method's default parameters are taken.
    """
    supervised = [
        row for row in board.rows if row.kind == METHOD and is_called(BASELINE, row.method)
    ]
    by_identity = {_identity(row, "labeled"): row for row in supervised}
    pairs = []
    for oracle in board.rows:
        partner = by_identity.get(_identity(oracle, "labeled"))
        if oracle.kind == ORACLE and partner is not None:
            pairs.append([partner, oracle])
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if not pair[0].runs[0].result["changed_params"]]
    return pairs[0] if len(pairs) == 1 else None


def _identity(row: MethodRow, ignored: str) -> str:
    """Return a digest of a row's settings but one."""
    return settings_digest(row.runs[0].science, (ignored,))


def _compare_with(board: Board, name: str) -> list[str]:
    """Fill in the differences to a row; warn where the name fits no row or several."""
    fits = board.find(name)
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
