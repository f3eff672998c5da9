"""Leaderboards and comparisons as tables."""

from __future__ import annotations

from pathlib import Path

from segbench.api.machine import settings, warn
from segbench.api.runs import Run
from segbench.api.table import Table
from segbench.errors import unknown
from segbench.results.board import METRICS
from segbench.results.choose import chosen_boards
from segbench.results.export import CSV_COLUMNS, record
from segbench.results.pairs import PAIR_FIELDS, compare_rows
from segbench.results.rundir import plain


def leaderboard(
    dataset: str | None = None,
    *,
    sort: str = "dice",
    against: str | None = None,
    root: str | Path | None = None,
) -> Table:
    """Return the leaderboards of all finished runs as one table, one row per method and board.

    Only rows with equal ``dataset``, ``labeled``, ``draw``, ``backbone`` and ``protocol`` are
    comparable; ``rank`` and the confidence intervals are those of ``segbench leaderboard``. The
    columns are those of its CSV format: Dice and Jaccard in percent, distances in ``unit``.

    Args:
        dataset: only this data set, or several with commas.
        sort: the metric that ranks: "dice", "jaccard", "hd95" or "asd".
        against: a method; ``difference`` is each row's difference to it.
        root: folder of the results [SEGBENCH_ROOT, else segbench-out].

    Raises:
        UsageError: an unknown data set, metric or method.
    """
    if sort not in METRICS:
        raise unknown("metric", sort, METRICS)
    chosen = chosen_boards(settings(root).root, dataset, sort=sort, against=against)
    for warning in chosen.warnings:
        warn(warning)
    rows = []
    for board in chosen.boards:
        for row in board.rows:
            rows.append(plain(record(board, row)))
    return Table(rows, CSV_COLUMNS)


def compare(
    *methods: str | type | Run,
    dataset: str | None = None,
    labeled: int | None = None,
    cases: bool = False,
    root: str | Path | None = None,
) -> Table:
    """Compare methods or single runs pair by pair over the same test cases.

    Args:
        methods: two or more of: names of methods or rows of the leaderboard, runs, and method
            classes, which stand for all versions of the class that were trained.
        dataset: only on this data set.
        labeled: only with this number of labeled cases.
        cases: return one row per pair, metric and case with the difference in this case.
        root: folder of the results [SEGBENCH_ROOT, else segbench-out].

    Returns:
        One row per board, pair and metric: ``mean`` is a minus b (Dice in percent), ``low`` and
        ``high`` the 95 % interval over cases and replicates, ``p`` and ``p_holm`` the test that
        decides ``distinguishable`` (with one seed: for these trainings only), and ``verdict`` what
        it means in words.

    Raises:
        UsageError: fewer than two names, a name that fits nothing, or runs that are not comparable.
    """
    names = [_name(method) for method in methods]
    comparisons, warnings = compare_rows(settings(root).root, names, dataset, labeled)
    for warning in warnings:
        warn(warning)
    rows = []
    for comparison in comparisons:
        board = comparison.board
        for pair in comparison.pairs():
            differences = pair.pop("cases")
            place = {"dataset": board.dataset, "labeled": board.labeled}
            if not cases:
                rows.append(plain({**place, **pair}))
                continue
            for case, difference in differences.items():
                what = {key: pair[key] for key in ("metric", "unit", "a", "b")}
                rows.append(plain({**place, **what, "case": case, "difference": difference}))
    return Table(rows, () if cases else ("dataset", "labeled", "metric", "unit", *PAIR_FIELDS))


def _name(method: str | type | Run) -> str:
    """Return what the results call a method or a run."""
    if isinstance(method, Run):
        return method.id
    if isinstance(method, str):
        return method
    from segbench.api.inline import method_name

    return method_name(method)
