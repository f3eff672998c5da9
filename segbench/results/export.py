"""Leaderboards as text table, CSV, JSON, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from segbench.results.leaderboard import DISTANCES, Board, Row, plain
from segbench.text import safe

SCHEMA = "segbench.leaderboard/1"
LONG_HOURS = 1.5  # from here on training is told in hours
Published = Callable[[str, int], list[dict[str, Any]]]


class Column(NamedTuple):
    """A column of a table."""

    title: str
    align: str  # "<" or ">"
    cell: Callable[[Row], str]


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where it is not defined."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def columns(
    board: Board,
    wide: bool = True,
    published: Published | None = None,
    names: Mapping[str, str] | None = None,
) -> list[Column]:
    """The columns of a board; without ``wide`` those that fit 80 characters, and the sorted one.

    Args:
        names: short forms of long row labels.
    """
    names = names or {}
    unit, hours = (
        board.unit,
        max((r.hours for r in board.rows if r.hours == r.hours), default=0.0) >= LONG_HOURS,
    )
    named = "" if board.sort == "dice" else f"{board.sort.upper()} "
    found = [
        Column("#", ">", lambda r: f"{r.rank}{'=' if r.tied else ''}" if r.rank else "–"),
        Column("method", "<", lambda r: names.get(r.method, r.method)),
        Column(
            "Dice %",
            ">",
            lambda r: number(r.dice, 1) + (f" ± {r.dice_sd:.1f}" if r.dice_sd == r.dice_sd else ""),
        ),
        Column(f"{named}95% CI", ">", lambda r: _interval(r, board.sort)),
        Column("ranks", ">", lambda r: f"{r.rank_low}–{r.rank_high}" if r.rank else "–")
        if wide
        else None,
        Column("group", "<", lambda r: r.letters) if wide else None,
        Column("Jaccard %", ">", lambda r: number(r.jaccard, 1))
        if wide or board.sort == "jaccard"
        else None,
        Column(f"HD95 {unit}", ">", lambda r: number(r.hd95, 2)),
        Column(f"ASD {unit}", ">", lambda r: number(r.asd, 2))
        if wide or board.sort == "asd"
        else None,
        _difference(board, names),
        _beside(board, published),
        Column("missed", ">", lambda r: str(r.missed)),
        Column("seeds", ">", lambda r: str(r.seeds)),
        Column("failed", ">", lambda r: str(r.failed))
        if wide and any(r.failed for r in board.rows)
        else None,
        Column(
            "h" if hours else "min", ">", lambda r: number(r.hours if hours else r.hours * 60, 1)
        ),
        Column("", "<", lambda r: r.note) if any(r.note for r in board.rows) else None,
    ]
    return [c for c in found if c is not None]


def _interval(row: Row, metric: str) -> str:
    low, high = row.intervals.get(metric, (None, None))
    digits = 2 if metric in DISTANCES else 1
    return "–" if low is None or low != low else f"{number(low, digits)}–{number(high, digits)}"


def sorted_title(board: Board) -> str:
    """The title of the column that ranks."""
    return {"dice": "Dice %", "jaccard": "Jaccard %"}.get(
        board.sort, f"{board.sort.upper()} {board.unit}"
    )


def _difference(board: Board, names: Mapping[str, str]) -> Column | None:
    base = next((r.difference["to"] for r in board.rows if r.difference), None)
    digits = 2 if board.sort in DISTANCES else 1

    def cell(row: Row) -> str:
        d = row.difference
        return "" if d is None else f"{d['mean']:+.{digits}f}{'*' if d['p'] < 0.05 else ''}"

    return None if base is None else Column(f"to {names.get(base, base)}", ">", cell)


def _beside(board: Board, published: Published | None) -> Column | None:
    """The literature's range for our methods: a column of its own."""
    if published is None or not board.standard:
        return None
    values: dict[str, list[tuple[float, str]]] = {}
    for row in published(board.dataset, board.labeled):
        if row["ours"] and not row["doubt"]:
            values.setdefault(row["ours"], []).append((row["dice"], row["source"]))

    def cell(row: Row) -> str:
        found = values.get(row.method.split(" @")[0].removesuffix(" (joint)"), [])
        low, high = (f(dice for dice, _ in found) if found else 0.0 for f in (min, max))
        span = f"{low:.1f}" + (f"–{high:.1f}" if high > low else "")
        return f"{span} ({len({source for _, source in found})})" if found else ""

    return Column("published", ">", cell)


def footer(
    board: Board, published: Published | None = None, shown: Iterable[str] | None = None
) -> list[str]:
    """What a reader must know to believe the table; ``shown`` are the columns it has, all if not given."""
    titles = " ".join(["95% CI", "missed", "to ", "published"] if shown is None else shown)
    over = "seeds" if len(board.draws) == 1 else "seeds and draws"
    parts = [
        f"± standard deviation over {over}",
        f"CI over cases and {over}" if "95% CI" in titles else "",
        f"missed: Dice 0, distances by policy '{board.policy}'" if "missed" in titles else "",
    ]
    lines = [" · ".join(filter(None, parts))]
    if any(r.rank for r in board.rows):
        lines.append(
            "= not distinguishable from the first of that rank: paired by case, seeds random, Holm, p > 0.05"
            + ("" if board.cases > 1 else " (one case: no test)")
        )
    if any(r.difference for r in board.rows) and "to " in titles:
        lacking = any("missing" in r.note for r in board.rows)
        lines.append(
            "* p < 0.05 in the tests that rank; rows that are not ranked are not tested"
            + (", and compared over the cases that both have" if lacking else "")
        )
    if _beside(board, published) is not None and "published" in titles:
        lines.append(
            "published: Dice in the literature (number of sources), with its own data, seeds and checkpoint rules"
        )
    if board.dataset.startswith("phantom"):
        lines.append(
            "phantoms are synthetic: they show the tool and the order of methods on them, nothing clinical"
        )
    if board.partial:
        lines.append("made on a partial copy of the data set: never comparable with the whole")
    if board.apart:
        lines.append(board.apart)
    if board.failures:
        lines.append(f"{len(board.failures)} failed: {'; '.join(board.failures)}")
    return lines


def as_csv(boards: Sequence[Board]) -> str:
    """One line a row. Cells that a spreadsheet would take for a formula are quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
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
        ]
    )
    for b in boards:
        for r in b.rows:
            low, high = r.intervals.get(b.sort, (None, None))
            draw = "+".join(map(str, b.draws))
            row = (
                b.dataset,
                b.labeled,
                draw,
                b.train,
                b.cases,
                b.backbone,
                b.protocol,
                b.unit,
                b.policy,
                r.rank,
                r.method,
                r.dice,
                r.dice_sd,
                r.jaccard,
                r.hd95,
                r.asd,
                r.missed,
                r.seeds,
                r.hours,
                b.sort,
                low,
                high,
                r.rank_low,
                r.rank_high,
                r.letters,
                r.failed,
                r.note,
                *(
                    r.difference[k] if r.difference else None
                    for k in ("to", "mean", "low", "high", "p")
                ),
            )
            writer.writerow([_formula(v) for v in row])
    return out.getvalue()


def _formula(value: Any) -> Any:
    value = (
        safe(value) if isinstance(value, str) else "" if value is None or value != value else value
    )
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" and value else value


def as_json(boards: Sequence[Board], published: Published | None) -> dict[str, Any]:
    """One document."""
    tables = []
    for b in boards:
        table = {
            k: getattr(b, k)
            for k in (
                "dataset",
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
            )
        }
        table["draw"] = b.draws[0] if len(b.draws) == 1 else None
        table["rows"] = [r.to_dict() for r in b.rows]
        table["pairs"] = [
            {
                k: getattr(d, k)
                for k in (
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
                )
            }
            for d in b.pairs
        ]
        if published is not None and b.standard:
            table["published"] = published(b.dataset, b.labeled)
        tables.append(plain(table))
    return {"schema": SCHEMA, "status": "ok", "boards": tables}


def as_markdown(boards: Sequence[Board], published: Published | None = None) -> str:
    """Pipe tables."""
    parts = []
    for b in boards:
        cols = columns(b, published=published)
        lines = [
            f"**{_md(b.title)}**",
            "",
            "| " + " | ".join(_md(c.title) for c in cols) + " |",
            "|" + "|".join("---:" if c.align == ">" else "---" for c in cols) + "|",
        ]
        lines += ["| " + " | ".join(_md(c.cell(r)) for c in cols) + " |" for r in b.rows]
        parts.append("\n".join([*lines, "", *(f"{_md(line)}  " for line in footer(b, published))]))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([\\|*_<>\[\]`])", r"\\\1", safe(text))


def as_latex(boards: Sequence[Board], published: Published | None = None) -> str:
    """booktabs tables; in bold what has the first rank, in the metric that ranks."""
    parts = []
    for b in boards:
        left_out = {"failed", "h", "min"} | (set() if any(r.missed for r in b.rows) else {"missed"})
        cols = [c for c in columns(b, published=published) if c.title not in left_out]
        bold = sorted_title(b)
        lines = [
            f"% {_tex(b.title)}",
            rf"\begin{{tabular}}{{{''.join('l' if c.align == '<' else 'r' for c in cols)}}}",
            r"\toprule",
            " & ".join(
                _tex(c.title).capitalize() if c.title == "method" else _tex(c.title) for c in cols
            )
            + r" \\",
            r"\midrule",
        ]
        for r in b.rows:
            texts = {c.title: _tex(c.cell(r)) for c in cols}
            if r.rank == 1:
                texts[bold] = rf"\textbf{{{texts[bold]}}}"
            lines.append(" & ".join(texts.values()) + r" \\")
        parts.append(
            "\n".join(
                [
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    *(f"% {_tex(line)}" for line in footer(b, published)),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _tex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "–": "--",
        "·": r"$\cdot$",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
        **{c: rf"\{c}" for c in "&%$#_{}"},
    }
    return "".join(special.get(c, c) for c in safe(text))


def as_html(boards: Sequence[Board], published: Published | None = None) -> str:
    """A page of plain tables: no script, nothing fetched."""
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;"
        "padding:0 1rem}div{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.25rem .75rem;text-align:left;"
        "border-bottom:1px solid #8888;white-space:nowrap}.n{text-align:right;font-variant-numeric:tabular-nums}"
    )
    parts = []
    for b in boards:
        cols = columns(b, published=published)
        kind = {">": ' class="n"', "<": ""}
        head = "".join(f'<th scope="col"{kind[c.align]}>{_html(c.title)}</th>' for c in cols)
        rows = [
            "<tr>" + "".join(f"<td{kind[c.align]}>{_html(c.cell(r))}</td>" for c in cols) + "</tr>"
            for r in b.rows
        ]
        notes = "".join(f"<li>{_html(line)}</li>" for line in footer(b, published))
        parts.append(
            f"<h2>{_html(b.title)}</h2>\n<div><table>\n<tr>{head}</tr>\n"
            + "\n".join(rows)
            + f"\n</table></div>\n<ul>{notes}</ul>"
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>segbench leaderboard</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head><body>\n'
        "<h1>Leaderboard</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _html(text: str) -> str:
    return escape(safe(text))
