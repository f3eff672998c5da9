"""Leaderboards as text table, CSV, JSON, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from math import nan
from typing import Any, NamedTuple

from segbench.results.board import DISTANCES, Board, MethodRow, ranges
from segbench.results.comparable import CONTROL, ORACLE, PUBLISHED
from segbench.results.overview import overview
from segbench.results.published import Published, all_published
from segbench.results.ranking import MOST_ROWS
from segbench.results.reference import Effect
from segbench.results.rundir import plain
from segbench.text import first_few, safe

SCHEMA = "segbench.leaderboard/1"
OTHER_RECIPE = "≠"  # mark of rows that were not trained as the published ones
# Which parts of a prediction distances are of, and the words of their columns.
COMPONENT_CHOICES = {"all": "all parts", "largest": "largest"}
LONG_HOURS = 1.5  # from this longest training on, the column is in hours instead of minutes
BOARD_FIELDS = (
    "dataset",
    "datasets",
    "labeled",
    "train",
    "cases",
    "backbone",
    "protocol",
    "unit",
    "policy",
    "partial",
    "failures",
    "sort",
    "apart",
    "draws",
    "left_out_draws",
    "folds",
    "unfinished",
    "hidden",
)
PAIR_FIELDS = (
    "a",
    "b",
    "mean",
    "low",
    "high",
    "p",
    "p_holm",
    "wins",
    "ties",
    "losses",
    "distinguishable",
    "paired",
    "replicates",
    "replicates_needed",
)
GAP_TITLE = "gap closed %"
GAIN_TITLE = "unlabeled gain"
CSV_COLUMNS = (
    "dataset",
    "labeled",
    "draw",
    "train",
    "cases",
    "backbone",
    "protocol",
    "unit",
    "policy",
    "rank",
    "method",
    "dice",
    "dice_sd",
    "jaccard",
    "hd95",
    "asd",
    "missed",
    "seeds",
    "train_hours",
    "sort",
    "ci_low",
    "ci_high",
    "rank_low",
    "rank_high",
    "group",
    "failed",
    "note",
    "against",
    "difference",
    "difference_low",
    "difference_high",
    "difference_p",
    "kind",
    "replicates",
    "gap_closed",
    "gap_closed_low",
    "gap_closed_high",
    "unlabeled_gain",
    "unlabeled_gain_low",
    "unlabeled_gain_high",
    "folds",
)


HOURS = "train h"
MINUTES = "train min"
TIME_TITLES = (HOURS, MINUTES)  # of the mean time of a training


class TableColumn(NamedTuple):
    """A column of a table."""

    title: str
    align: str  # "<" or ">"
    cell: Callable[[MethodRow], str]


def number(value: float | None, digits: int) -> str:
    """Return a number, or a dash where it is not defined."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def columns(
    board: Board,
    wide: bool = True,
    published: Published | None = None,
    names: Mapping[str, str] | None = None,
) -> list[TableColumn]:
    """Return the columns of a board.

    Args:
        wide: all columns; otherwise those that fit 80 characters, and the one that ranks.
        published: adds a column with the literature's numbers.
        names: short forms of long row labels.
    """
    short_names = names or {}
    metric = "" if board.sort == "dice" else f"{board.sort.upper()} "
    found = [
        TableColumn("#", ">", _rank_cell),
        TableColumn("method", "<", lambda row: short_names.get(row.method, row.method)),
        TableColumn("Dice %", ">", _dice_cell),
        TableColumn(f"{metric}95% CI", ">", lambda row: _interval_cell(row, board.sort)),
    ]
    if wide:
        found.append(TableColumn("ranks", ">", _rank_interval_cell))
        found.append(TableColumn("group", "<", lambda row: row.letters))
    if wide or board.sort == "jaccard":
        found.append(TableColumn("Jaccard %", ">", lambda row: number(row.jaccard, 1)))
    found.append(TableColumn(f"HD95 {board.unit}", ">", lambda row: number(row.hd95, 2)))
    if wide or board.sort == "asd":
        found.append(TableColumn(f"ASD {board.unit}", ">", lambda row: number(row.asd, 2)))
    found += _component_columns(board)
    found += _difference_column(board, short_names)
    found += _effect_columns(board, wide)
    if published is not None and board.standard:
        found.append(_published_column(board, published))
    found.append(TableColumn("missed", ">", lambda row: str(row.missed)))
    if board.folds:
        found.append(TableColumn("folds", ">", lambda row: str(row.replicates)))
    if len(board.draws) > 1 and not board.folds:
        found.append(TableColumn("draws", ">", lambda row: str(row.replicates)))
    else:
        found.append(TableColumn("seeds", ">", lambda row: str(row.seeds)))
    if wide and any(row.failed for row in board.rows):
        found.append(TableColumn("failed", ">", lambda row: str(row.failed)))
    found.append(_time_column(board))
    if any(row.note for row in board.rows):
        found.append(TableColumn("", "<", lambda row: row.note))
    return found


def sorted_title(board: Board) -> str:
    """Return the title of the column that ranks."""
    titles = {"dice": "Dice %", "jaccard": "Jaccard %"}
    return titles.get(board.sort, f"{board.sort.upper()} {board.unit}")


def _rank_cell(row: MethodRow) -> str:
    if not row.rank:
        return "–"
    return f"{row.rank}=" if row.tied else str(row.rank)


def _dice_cell(row: MethodRow) -> str:
    deviation = f" ± {row.dice_sd:.1f}" if row.dice_sd == row.dice_sd else ""
    return number(row.dice, 1) + deviation


def _interval_cell(row: MethodRow, metric: str) -> str:
    low, high = row.intervals.get(metric, (None, None))
    if low is None or low != low:
        return "–"
    digits = 2 if metric in DISTANCES else 1
    return f"{number(low, digits)}–{number(high, digits)}"


def _rank_interval_cell(row: MethodRow) -> str:
    return f"{row.rank_low}–{row.rank_high}" if row.rank else "–"


def _time_column(board: Board) -> TableColumn:
    """Return the training time, in minutes or, where some row takes long, in hours."""
    longest = max((row.hours for row in board.rows if row.hours == row.hours), default=0.0)
    if longest >= LONG_HOURS:
        return TableColumn(HOURS, ">", lambda row: number(row.hours, 1))
    return TableColumn(MINUTES, ">", lambda row: number(row.hours * 60, 1))


def _difference_column(board: Board, names: Mapping[str, str]) -> list[TableColumn]:
    """Return the column of the differences to one row; empty if none was asked for."""
    bases = [row.difference["to"] for row in board.rows if row.difference]
    if not bases:
        return []
    digits = 2 if board.sort in DISTANCES else 1

    def cell(row: MethodRow) -> str:
        if row.difference is None:
            return ""
        star = "*" if row.difference["p"] < 0.05 else ""
        return f"{row.difference['mean']:+.{digits}f}{star}"

    return [TableColumn(f"to {names.get(bases[0], bases[0])}", ">", cell)]


def _effect_columns(board: Board, wide: bool) -> list[TableColumn]:
    """Return the columns that the reference rows make possible.

    Args:
        wide: with intervals.
    """
    found = []
    if any(row.gap_closed for row in board.rows):
        found.append(
            TableColumn(GAP_TITLE, ">", lambda row: effect_text(row.gap_closed, 0, False, wide))
        )
    if any(row.unlabeled_gain for row in board.rows):
        found.append(
            TableColumn(GAIN_TITLE, ">", lambda row: effect_text(row.unlabeled_gain, 1, True, wide))
        )
    return found


def effect_text(effect: Effect | None, digits: int, signed: bool, interval: bool = True) -> str:
    """Return an effect with its interval, such as ``+1.2 (+0.3 to +2.1)``; empty without one."""
    if effect is None:
        return ""
    if effect.mean != effect.mean:
        return "–"
    sign = "+" if signed else ""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in effect)
    known = effect.low == effect.low and effect.high == effect.high
    return f"{mean} ({low} to {high})" if interval and known else mean


def _published_column(board: Board, published: Published) -> TableColumn:
    """Return the literature's range of Dice for our methods, with the number of sources."""
    dice: dict[str, list[float]] = {}
    sources: dict[str, set[str]] = {}
    for row in published(board.dataset, board.labeled):
        if row["ours"] and not row["doubt"]:
            dice.setdefault(row["ours"], []).append(row["dice"])
            sources.setdefault(row["ours"], set()).add(row["source"])

    def cell(row: MethodRow) -> str:
        result = row.runs[0].result
        method = result["method"]
        is_other = result["changed_params"] or result["without"] or row.kind in (CONTROL, ORACLE)
        if is_other or method not in dice:
            return ""
        low = min(dice[method])
        high = max(dice[method])
        span = f"{low:.1f}–{high:.1f}" if high > low else f"{low:.1f}"
        mark = f" {OTHER_RECIPE}" if row.recipe else ""
        return f"{span} ({len(sources[method])}){mark}"

    return TableColumn("published", ">", cell)


def footer(
    board: Board, published: Published | None = None, shown: Iterable[str] | None = None
) -> list[str]:
    """Return what a reader needs to know about the table, one line per remark.

    Args:
        shown: titles of the columns that the table has; None: all.
    """
    all_titles = ["95% CI", "missed", "to ", "published", GAP_TITLE, GAIN_TITLE]
    titles = " ".join(all_titles if shown is None else shown)
    lines = [_explain_numbers(board, titles)]
    if any(row.rank for row in board.rows):
        replicates = "paired by draw" if len(board.draws) > 1 else "seeds random"
        if board.folds:
            replicates = "folds random"
        line = (
            "= not distinguishable from the first method of that rank "
            f"(paired by case, {replicates}, Holm, p > 0.05)"
        )
        lines.append(line if board.cases > 1 else f"{line}; with one case nothing can be tested")
        if len(board.family(board.sort)) > MOST_ROWS:
            lines.append(
                f"more than {MOST_ROWS} ranked rows: each is compared with the best only, and "
                "those that are worse share a rank"
            )
    if any(row.difference for row in board.rows) and "to " in titles:
        lines.append(_explain_stars(board))
    if any(row.components for row in board.rows):
        lines.append(
            f"all parts, largest: distances in {board.unit} of the whole prediction, and of the "
            "largest component of each class"
        )
    lines += _explain_counts(board)
    lines += _explain_references(board)
    lines += _explain_effects(board, titles)
    lines += _explain_left_out(board)
    if published is not None and board.standard and "published" in titles:
        lines.append(
            "published: Dice in the literature (number of sources); "
            "each source has its own data, seeds and checkpoint rule"
        )
        lines += _explain_recipes(board)
    if board.dataset.startswith("phantom"):
        lines.append(
            "phantoms are synthetic: they compare methods on synthetic images "
            "and show nothing about patients"
        )
    if board.hidden:
        names = first_few(board.hidden, 3)
        lines.append(f"not shown: {names} (other parameters or without a loss term); --all")
    if board.partial:
        lines.append("partial copy of the data set: not comparable with the whole data set")
    if board.apart:
        lines.append(board.apart)
    if board.failures:
        lines.append(f"{len(board.failures)} failed: {'; '.join(board.failures)}")
    return lines


def _explain_left_out(board: Board) -> list[str]:
    """Return which draws and seeds count nowhere."""
    lines = []
    if board.left_out_draws:
        lines.append(f"draws {ranges(board.left_out_draws)} left out: not all methods have them")
    if board.unfinished:
        lines.append(f"left out: {'; '.join(board.unfinished)}")
    return lines


def _explain_numbers(board: Board, titles: str) -> str:
    parts = [f"± standard deviation over {board.replicate_word}"]
    if "95% CI" in titles:
        parts.append(f"CI over cases and {board.replicate_word}")
    if "missed" in titles:
        parts.append(f"missed: Dice 0, distances by policy '{board.policy}'")
    return " · ".join(parts)


def _component_columns(board: Board) -> list[TableColumn]:
    """Return two pairs of columns, of all parts and of the largest component, if known."""
    found: list[TableColumn] = []
    if not any(row.components for row in board.rows):
        return found
    for choice, words in COMPONENT_CHOICES.items():
        for metric in DISTANCES:
            key = f"{metric} {choice}"

            def cell(row: MethodRow, key: str = key) -> str:
                return number(row.components.get(key), 2)

            found.append(TableColumn(f"{metric.upper()} {words}", ">", cell))
    return found


def _explain_recipes(board: Board) -> list[str]:
    """Return a line about the rows that were not trained as the published ones."""
    parts = [f"{row.method} ({row.recipe})" for row in board.rows if row.recipe]
    return [f"{OTHER_RECIPE} not trained as published: {'; '.join(parts)}"] if parts else []


def _explain_counts(board: Board) -> list[str]:
    """Return a line for each class whose mean is taken over fewer cases than the table has.

    A case that has a class neither in the reference nor in the prediction is not scored.
    """
    counts: dict[tuple[str, str], list[tuple[int, int]]] = {}
    groups = [group for row in board.rows for group in row.run_groups]
    for group in groups:
        for run, dataset in zip(group, board.datasets, strict=True):
            for entry in run.metrics(dataset):
                pair = (int(entry["columns"]["dice"]["n"]), int(entry["counts"]["n"]))
                counts.setdefault((dataset, entry["class"]), []).append(pair)
    lines = []
    for (dataset, name), pairs in counts.items():
        scored = [count for count, _ in pairs]
        total = max(cases for _, cases in pairs)
        what = f"{dataset}/{name}" if board.is_mean else name
        if max(scored) == 0:
            lines.append(f"class {what} is in no test case: left out of the mean over classes")
        elif min(scored) < total:
            lines.append(
                f"class {what}: mean over {ranges(sorted(set(scored)))} of {total} cases; "
                "the others have it neither in the reference nor in the prediction"
            )
    return lines


def _explain_references(board: Board) -> list[str]:
    kinds = {row.kind for row in board.rows}
    parts = []
    if PUBLISHED in kinds:
        parts.append("(as published): with the recipe and the network of the method's authors")
    if CONTROL in kinds:
        parts.append(
            "(no unlabeled): the same method, its unlabeled stream shows labeled images only"
        )
    if ORACLE in kinds:
        parts.append("oracle: supervised with all training cases labeled")
    return [f"not ranked: {'; '.join(parts)}"] if parts else []


def _explain_effects(board: Board, titles: str) -> list[str]:
    lines = []
    if any(row.gap_closed for row in board.rows) and GAP_TITLE in titles:
        lines.append(f"{GAP_TITLE}: (method - supervised) / (oracle - supervised), in Dice")
    if any(row.unlabeled_gain for row in board.rows) and GAIN_TITLE in titles:
        lines.append(f"{GAIN_TITLE}: Dice minus that of the same method (no unlabeled)")
    return lines


def _explain_stars(board: Board) -> str:
    line = "* p < 0.05 in the tests that rank; rows that are not ranked are not tested"
    if any("missing" in row.note for row in board.rows):
        line += ", and compared over the cases that both have"
    return line


def as_csv(boards: Sequence[Board]) -> str:
    """Return one line per row. Cells that a spreadsheet would take for a formula are quoted."""
    records = [record(board, row) for board in boards for row in board.rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for values in records:
        writer.writerow([_csv_cell(values[name]) for name in CSV_COLUMNS])
    return out.getvalue()


def record(board: Board, row: MethodRow) -> dict[str, Any]:
    """Return a row with what identifies its board: the columns ``CSV_COLUMNS``."""
    low, high = row.intervals.get(board.sort, (None, None))
    difference = row.difference or {}
    gap_closed = row.gap_closed or Effect(nan)
    unlabeled_gain = row.unlabeled_gain or Effect(nan)
    return {
        **{name: getattr(board, name) for name in CSV_COLUMNS if hasattr(board, name)},
        **{name: getattr(row, name) for name in CSV_COLUMNS if hasattr(row, name)},
        "draw": "+".join(map(str, board.draws)),
        "train_hours": row.hours,
        "ci_low": low,
        "ci_high": high,
        "group": row.letters,
        "against": difference.get("to"),
        "difference": difference.get("mean"),
        "difference_low": difference.get("low"),
        "difference_high": difference.get("high"),
        "difference_p": difference.get("p"),
        "gap_closed": gap_closed.mean,
        "gap_closed_low": gap_closed.low,
        "gap_closed_high": gap_closed.high,
        "unlabeled_gain": unlabeled_gain.mean,
        "unlabeled_gain_low": unlabeled_gain.low,
        "unlabeled_gain_high": unlabeled_gain.high,
    }


def _csv_cell(value: Any) -> Any:
    if isinstance(value, str):
        text = safe(value)
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    if value is None or value != value:
        return ""
    return value


def as_json(
    boards: Sequence[Board],
    published: Published | None,
    alone: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    """Return one document.

    Args:
        alone: data sets and labeled counts whose published numbers are added without a run.
    """
    tables = []
    for board in boards:
        table = {name: getattr(board, name) for name in BOARD_FIELDS}
        table["draw"] = board.draws[0] if len(board.draws) == 1 else None
        table["rows"] = [row.to_dict() for row in board.rows]
        table["pairs"] = [_pair_record(pair) for pair in board.pairs]
        if published is not None and board.standard:
            table["published"] = published(board.dataset, board.labeled)
        tables.append(plain(table))
    document: dict[str, Any] = {"schema": SCHEMA, "status": "ok", "boards": tables}
    found = overview(boards)
    if found is not None:
        document["overview"] = plain(asdict(found))
    if alone:
        document["published"] = [_published_record(*setting) for setting in alone]
    return document


def _published_record(dataset: str, labeled: int) -> dict[str, Any]:
    rows = all_published(dataset, labeled)
    return {"dataset": dataset, "labeled": labeled, "rows": plain(rows)}


def _pair_record(pair: object) -> dict[str, Any]:
    return {name: getattr(pair, name) for name in PAIR_FIELDS}


def as_markdown(boards: Sequence[Board], published: Published | None = None) -> str:
    """Return pipe tables."""
    parts = []
    for board in boards:
        shown = columns(board, published=published)
        rules = ["---:" if column.align == ">" else "---" for column in shown]
        lines = [
            f"**{_markdown(board.title)}**",
            "",
            _pipe_line([_markdown(column.title) for column in shown]),
            f"|{'|'.join(rules)}|",
        ]
        for row in board.rows:
            lines.append(_pipe_line([_markdown(column.cell(row)) for column in shown]))
        lines.append("")
        lines += [f"{_markdown(line)}  " for line in footer(board, published)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _pipe_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", safe(text))


STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "div{overflow-x:auto}"
    "table{border-collapse:collapse}"
    "th,td{padding:.25rem .75rem;text-align:left;border-bottom:1px solid #8888;white-space:nowrap}"
    ".n{text-align:right;font-variant-numeric:tabular-nums}"
)


def as_html(boards: Sequence[Board], published: Published | None = None) -> str:
    """Return a page of plain tables: no script, nothing is fetched."""
    tables = "\n".join(_html_table(board, published) for board in boards)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>segbench leaderboard</title>\n"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n'
        f"<h1>Leaderboard</h1>\n{tables}\n</body></html>\n"
    )


def _html_table(board: Board, published: Published | None) -> str:
    shown = columns(board, published=published)
    kinds = [' class="n"' if column.align == ">" else "" for column in shown]
    heads = []
    for column, kind in zip(shown, kinds, strict=True):
        heads.append(f'<th scope="col"{kind}>{_html(column.title)}</th>')
    lines = [f"<tr>{''.join(heads)}</tr>"]
    for row in board.rows:
        cells = []
        for column, kind in zip(shown, kinds, strict=True):
            cells.append(f"<td{kind}>{_html(column.cell(row))}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    notes = "".join(f"<li>{_html(line)}</li>" for line in footer(board, published))
    return f"<h2>{_html(board.title)}</h2>\n<div><table>\n{body}\n</table></div>\n<ul>{notes}</ul>"


def _html(text: str) -> str:
    return escape(safe(text))
