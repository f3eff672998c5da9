"""The page of a report: numbers and figures of its tables in the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from math import isfinite, nan
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from segbench import registry
from segbench.config import dump_yaml
from segbench.config.schema import flatten
from segbench.errors import SegbenchError
from segbench.report import figures
from segbench.report.commands import command
from segbench.report.content import Content
from segbench.report.cost import RowCost, cost_of
from segbench.report.overlay import ChosenCase, Picture
from segbench.report.templating import rendered
from segbench.results.board import TIES, Board, MethodRow, tested_pair
from segbench.results.comparable import METHOD
from segbench.results.export import footer
from segbench.results.finished import FinishedRun
from segbench.results.overview import overview
from segbench.results.published import published
from segbench.results.scores import Array
from segbench.results.stats import Difference, compare
from segbench.results.verdict import verdict
from segbench.text import first_few

# By number of the table and name of the row: pictures, or why there are none.
Pictures = dict[tuple[int, str], list[Picture] | str]
ENVIRONMENT = ("segbench", "python", "torch", "device", "platform", "threads")  # of a manifest


class IntervalBar(NamedTuple):
    """A row's interval on the common scale of its table, 0 to 100."""

    low: float
    mean: float
    high: float


def render(
    content: Content,
    pictures: Pictures,
    title: str = "",
    bibtex: str = "",
    cases: Sequence[Sequence[ChosenCase]] = (),
) -> str:
    """Return the report as one HTML document.

    Args:
        title: heading of the page; by default it says what the page is about.
        cases: the cases of which there are pictures, by table.
    """
    common = common_remarks(content.boards)
    return rendered(
        "report.html",
        title=title or _heading(content.boards),
        overview=overview_of(content.boards),
        common=common,
        content=content,
        bibtex=bibtex,
        sections=table_sections(content.boards, pictures, common, cases),
        links={},
    )


def table_sections(
    boards: Sequence[Board],
    pictures: Pictures,
    common: Sequence[str] = (),
    cases: Sequence[Sequence[ChosenCase]] = (),
) -> list[dict[str, Any]]:
    """Return what the templates show of tables, one section per table.

    Args:
        common: remarks that stand elsewhere on the page.
        cases: the cases of which there are pictures, by table.
    """
    sections = []
    for i, board in enumerate(boards, 1):
        own = [line for line in footer(board) if line not in common]
        chosen = cases[i - 1] if cases else ()
        sections.append(_section(i, board, pictures, own, chosen))
    return sections


def _heading(boards: Sequence[Board]) -> str:
    """Return the title of a page in words."""
    datasets = list(dict.fromkeys(board.dataset for board in boards if not board.is_mean))
    methods = {row.method for board in boards for row in board.rows if row.kind == METHOD}
    if not datasets:
        return "segbench: no finished runs"
    count = f"{len(methods)} method" if len(methods) == 1 else f"{len(methods)} methods"
    return f"{count} compared on {first_few(datasets, 4)}"


def common_remarks(boards: Sequence[Board]) -> list[str]:
    """Return the remarks that all of several tables have."""
    if len(boards) < 2:
        return []
    remarks = [footer(board) for board in boards]
    return [line for line in remarks[0] if all(line in lines for lines in remarks)]


def overview_of(boards: Sequence[Board]) -> dict[str, Any] | None:
    """Return what the template shows above the tables; None if there is nothing to compare."""
    found = overview(boards)
    if found is None:
        return None
    wins = max(standing.wins for standing in found.standings)
    best = found.ranked[0].method if found.ranked else ""
    return {
        "found": found,
        "best": best,
        "most_wins": wins,
        "has_oracle": any(isfinite(value) for value in found.oracle),
        "figure": Markup(figures.ranks(found)) if len(found.ranked) > 1 else "",
    }


def _side_by_side(
    index: int, rows: Sequence[MethodRow], pictures: Pictures, cases: Sequence[ChosenCase]
) -> dict[str, Any]:
    """Return the pictures of a table case by case, and the rows that have none with the reason."""
    shown = []
    missing = []
    for row in rows:
        found = pictures.get((index, row.method))
        if isinstance(found, str):
            missing.append((row.method, found))
    for place, chosen in enumerate(cases):
        views = []
        for row in rows:
            found = pictures.get((index, row.method))
            if isinstance(found, list):
                views.append((row.method, found[place]))
        if views:
            shown.append((chosen, views))
    return {"cases": shown, "missing": missing}


def _costs(rows: Sequence[MethodRow], costs: Mapping[str, RowCost]) -> dict[str, Any]:
    """Return titles and cells of the costs, without columns that nothing was measured for."""
    columns: list[tuple[str, int, Callable[[RowCost], float]]] = [
        ("s per step", 3, lambda cost: cost.seconds_per_step),
        ("volumes per step", 1, lambda cost: cost.volumes),
        ("hours", 3, lambda cost: cost.hours),
        ("peak GiB", 2, lambda cost: cost.peak_gib),
        ("kWh", 3, lambda cost: cost.kwh),
        ("million weights", 2, lambda cost: cost.parameters / 1e6),
        ("evaluation s", 1, lambda cost: cost.evaluation_seconds),
    ]
    measured = []
    for title, digits, value in columns:
        if any(isfinite(value(cost)) for cost in costs.values()):
            measured.append((title, digits, value))
    lines = []
    for row in rows:
        cost = costs[row.method]
        cells = []
        for title, digits, value in measured:
            unit = f" {cost.kind}" if title == "hours" else ""
            cells.append((value(cost), digits, unit))
        lines.append((row.method, cells))
    return {"titles": [title for title, _, _ in measured], "lines": lines}


def in_words(board: Board) -> str:
    """Return the heading of a table: the data set and how many of its cases have labels."""
    name = board.dataset
    with suppress(SegbenchError):  # the plug-in is not available here
        name = registry.get("dataset", name).cls.title or name
    shown = name if name == board.dataset else f"{name} ({board.dataset})"
    return f"{shown}: {board.labeled} of {board.train} training cases labeled"


def _section(
    index: int,
    board: Board,
    pictures: Pictures,
    remarks: Sequence[str],
    cases: Sequence[ChosenCase],
) -> dict[str, Any]:
    """Return what the template shows of one table.

    Args:
        remarks: below the table.
        cases: of which there are pictures.
    """
    rows = board.rows
    costs = {row.method: cost_of(row.runs) for row in rows}
    bars = _bars(board)
    return {
        "id": f"t{index}",
        "board": board,
        "verdict": verdict(board),
        "title": in_words(board),
        "footer": remarks,
        "classes": board.classes,
        "rows": list(zip(rows, bars, strict=True)),
        "deviations": any(row.dice_sd == row.dice_sd for row in rows),
        "intervals": any(bar is not None for bar in bars),
        "notes": any(row.note or row.failed or row.rank_low != row.rank_high for row in rows),
        "selection": _selection(board),
        "gaps": any(row.gap_closed for row in rows),
        "gains": any(row.unlabeled_gain for row in rows),
        "strips": [Markup(figures.strip(board, name)) for name in board.classes],
        "cases": _cases(board),
        "matrix": _matrix(board),
        "costs": _costs(rows, costs),
        "scatter": _scatter(rows, costs) if len(rows) > 1 else "",
        "curves": [] if board.is_mean else _curves(rows),
        "pictures": _side_by_side(index, rows, pictures, cases),
        "leaks": [(name, run.seed, run.leak) for name, run in _runs(board) if run.leak],
        "published": published(board.dataset, board.labeled) if board.standard else [],
        "settings": _settings(board),
        "reproduce": [] if board.is_mean else [_commands(row) for row in rows],
        "environments": _environments(board),
        "warnings": _warnings(board),
    }


def _curves(rows: Sequence[MethodRow]) -> list[Markup]:
    found = []
    for row in rows:
        logs = [run.log for run in row.runs if run.log]
        if logs:
            found.append(Markup(figures.curves(row.method, logs)))
    return found


def _commands(row: MethodRow) -> str:
    """Return the lines that repeat a row's runs, one per labeled draw."""
    by_draw: dict[int, list[FinishedRun]] = {}
    for run in row.runs:
        by_draw.setdefault(run.draw, []).append(run)
    return "\n".join(command(runs) for runs in by_draw.values())


def _runs(board: Board) -> list[tuple[str, FinishedRun]]:
    """Return all runs of a table with the names of their rows."""
    return [(row.method, run) for row in board.rows for run in row.runs]


def _bars(board: Board) -> list[IntervalBar | None]:
    """Return each row's interval of Dice on a common scale; None where a row has none."""
    intervals = []
    for row in board.rows:
        low, high = row.intervals.get("dice", (nan, nan))
        intervals.append((low, high) if isfinite(low + high) else None)
    lows = [interval[0] for interval in intervals if interval]
    highs = [interval[1] for interval in intervals if interval]
    start = min(lows, default=0.0)
    scale = 100 / max(max(highs, default=1.0) - start, 1e-9)
    bars: list[IntervalBar | None] = []
    for row, interval in zip(board.rows, intervals, strict=True):
        if interval is None:
            bars.append(None)
            continue
        low, mean, high = (
            (value - start) * scale for value in (interval[0], row.dice, interval[1])
        )
        bars.append(IntervalBar(low, mean, high))
    return bars


def _selection(board: Board) -> str:
    """Return how checkpoints were selected and which protocol values were modified."""
    results = [run.result for _, run in _runs(board)]
    rules = sorted({f"{result['selection']} checkpoint" for result in results})
    tests = sorted({str(result["test_evaluations"]) for result in results})
    text = (
        f"selection: {', '.join(rules)} · evaluations on the test cases per run: {', '.join(tests)}"
    )
    protocol = flatten(results[0]["science"]["protocol"])
    modified = []
    for key in results[0]["protocol"]["modified"]:
        if key in protocol:
            modified.append(f"{key} = {protocol[key]}")
    return f"{text} · modified: {', '.join(modified)}" if modified else text


def _cases(board: Board) -> list[tuple[str, list[float]]]:
    """Return the mean Dice over runs by case (rows) and method (columns); nan if undefined."""
    means = []
    for scores in board.scores("dice"):
        by_draw = [scores.of_draws([draw]).values for draw in scores.distinct_draws]
        parts = [_defined_mean(values) for values in by_draw or [scores.values]]
        means.append(_defined_mean(np.stack(parts)))
    return [(case, [float(m[i]) for m in means]) for i, case in enumerate(board.case_ids)]


def _defined_mean(values: Array) -> Array:
    """Return the mean over the first axis of the defined values; nan where there are none."""
    defined = np.isfinite(values)
    total = np.where(defined, values, 0).sum(axis=0)
    mean = total / np.maximum(defined.sum(axis=0), 1)
    return np.asarray(np.where(defined.any(axis=0), mean, np.nan))


def _matrix(board: Board) -> list[tuple[str, list[Difference | None]]]:
    """Return the differences in Dice of each row's method from each column's, in percent.

    Only ranked rows are tested; other pairs have no p.
    """
    pairs = list(board.pairs) if board.sort == "dice" else []
    for a, b in combinations(board.scores("dice"), 2):
        if tested_pair(pairs, a.name, b.name) is None:
            family = board.family("dice") or (a, b)
            difference = compare(a, b, tie=TIES["dice"], family=family)
            pairs.append(replace(difference, p=nan, p_holm=nan))
    names = [row.method for row in board.rows]
    return [(a, [tested_pair(pairs, a, b) for b in names]) for a in names]


def _scatter(rows: Sequence[MethodRow], costs: Mapping[str, RowCost]) -> Markup:
    """Draw one plot per kind of device: a CPU minute is not comparable with a GPU minute."""
    plots = []
    for kind in sorted({cost.kind for cost in costs.values() if isfinite(cost.hours)}):
        points = []
        for row in rows:
            cost = costs[row.method]
            if cost.kind == kind:
                points.append((row.method, 60 * cost.hours, row.dice))
        plots.append(figures.scatter(points, f"{kind} minutes of training"))
    return Markup("".join(plots))


def _settings(board: Board) -> dict[str, Any]:
    """Return the protocol, the parameters that all rows share, and each row's own."""
    params = {row.method: _params(row.runs[0]) for row in board.rows}
    shared = _shared(list(params.values()))
    rows = []
    for row in board.rows:
        own = {key: value for key, value in params[row.method].items() if key not in shared}
        entry = {
            "name": row.method,
            "runs": [(run.folder.run_id, run.seed) for run in row.runs],
            "params": _listed(own) or "–",
        }
        rows.append(entry)
    first = board.rows[0].runs[0].result
    return {
        "protocol": dump_yaml(first["science"]["protocol"]),
        "rows": rows,
        "shared": _listed(shared),
        "data": _data(board),
    }


def _data(board: Board) -> list[dict[str, str]]:
    """Return fingerprint and split of each data set."""
    found = []
    for dataset, run in zip(board.datasets, board.rows[0].run_groups[0], strict=True):
        fingerprint = run.result["fingerprints"][dataset]
        split = run.result["splits"][dataset]
        found.append({"name": dataset, "fingerprint": fingerprint, "split": split})
    return found


def _params(run: FinishedRun) -> dict[str, Any]:
    """Return the parameters of method and backbone."""
    found = dict(run.science["params"])
    for key, value in run.science["backbone_params"].items():
        found[f"backbone.{key}"] = value
    return found


def _shared(all_params: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parameters with the same value in every row; none of a single row."""
    shared = {}
    for key, value in all_params[0].items():
        if all(key in params and params[key] == value for params in all_params):
            shared[key] = value
    return shared if len(all_params) > 1 else {}


def _listed(values: Mapping[str, Any]) -> str:
    return " · ".join(f"{key} = {value}" for key, value in values.items())


def _environments(board: Board) -> list[tuple[list[str], int]]:
    """Return machine and versions, with the number of runs made there."""
    counts: dict[tuple[str, ...], int] = {}
    for _, run in _runs(board):
        place = tuple(str(run.manifest.get(key, "?")) for key in ENVIRONMENT)
        counts[place] = counts.get(place, 0) + 1
    return [(list(place), count) for place, count in counts.items()]


def _warnings(board: Board) -> list[str]:
    found = []
    for name, run in _runs(board):
        warnings = run.manifest.get("warnings", [])
        if isinstance(warnings, list):
            found += [f"{name}, seed {run.seed}: {warning}" for warning in warnings]
    return found
