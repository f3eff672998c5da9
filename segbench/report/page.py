"""The page: sections of numbers and figures put into the template, with nothing in it that a browser would fetch or run.

Every name is foreign text: the template escapes all of it, and the page's policy lets one script run, known by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from itertools import combinations
from math import isfinite, nan
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from segbench import __version__
from segbench.config import dump_yaml
from segbench.config.schema import flatten
from segbench.report import figures
from segbench.report.commands import command
from segbench.report.content import Content, Section
from segbench.report.cost import Cost, cost_of
from segbench.results.export import footer, number
from segbench.results.leaderboard import TIES, Board, published
from segbench.results.stats import Difference, compare, turned
from segbench.text import safe

Pictures = Mapping[tuple[int, str], Any]  # (section's number, row): pictures, or why there are none


def render(content: Content, pictures: Pictures, title: str, bibtex: str = "") -> str:
    """The report as one HTML document."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else safe_lines(value),
    )
    environment.filters |= {
        "number": _signed,
        "p": lambda p: "p –" if p != p else "p <0.001" if p < 0.001 else f"p {p:.3f}",
    }
    script = _file("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.from_string(_file("report.html")).render(
        title=title,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        policy=policy,
        style=Markup(_file("style.css")),
        script=Markup(script),
        content=content,
        bibtex=bibtex,
        sections=[_section(i, s, pictures) for i, s in enumerate(content.sections, 1)],
    )


def safe_lines(value: object) -> object:
    """Text without control characters, its line breaks kept."""
    return "\n".join(safe(line) for line in value.split("\n")) if isinstance(value, str) else value


def _signed(value: float | None, digits: int, plus: bool = False) -> str:
    """A number with a true minus sign; ``plus`` shows the other sign too."""
    text = number(value, digits)
    return text.replace("-", "−") if text.startswith("-") or not plus or text == "–" else f"+{text}"


def _file(name: str) -> str:
    return (resources.files("segbench") / "report" / "templates" / name).read_text(encoding="utf-8")


def _section(number_: int, section: Section, pictures: Pictures) -> dict[str, Any]:
    board, entries = section.board, section.entries
    costs = {e.name: cost_of(e.members) for e in entries}
    return {
        "id": f"t{number_}",
        "board": board,
        "footer": footer(board),
        "classes": section.classes,
        "rows": list(zip(board.rows, _bars(board), strict=True)),
        "selection": _selection(section),
        "strips": [Markup(figures.strip(section, c)) for c in section.classes],
        "cases": _cases(board),
        "matrix": _matrix(board),
        "costs": [(e.name, costs[e.name]) for e in entries],
        "scatter": _scatter(section, costs) if len(entries) > 1 else "",
        "curves": [Markup(figures.curves(e)) for e in entries if any(m.log for m in e.members)],
        "pictures": [
            (e.name, e.members[0].seed, pictures[number_, e.name])
            for e in entries
            if (number_, e.name) in pictures
        ],
        "leaks": [(e.name, m.seed, m.leak) for e in entries for m in e.members if m.leak],
        "published": published(board.dataset, board.labeled) if board.standard else [],
        "settings": _settings(section),
        "reproduce": [command(e.members) for e in entries],
        "environments": _environments(section),
        "warnings": _warnings(section),
    }


def _bars(board: Board) -> list[tuple[float, float, float] | None]:
    """Low, mean and high of each row's interval on a common scale of 0 to 100; None where a row has none."""
    known = [
        r.intervals["dice"]
        for r in board.rows
        if "dice" in r.intervals and isfinite(sum(r.intervals["dice"]))
    ]
    low, high = min((k[0] for k in known), default=0.0), max((k[1] for k in known), default=1.0)
    scale = 100 / max(high - low, 1e-9)
    return [
        (
            (r.intervals["dice"][0] - low) * scale,
            (r.dice - low) * scale,
            (r.intervals["dice"][1] - low) * scale,
        )
        if r.intervals.get("dice") in known
        else None
        for r in board.rows
    ]


def _selection(section: Section) -> str:
    results = [m.result for e in section.entries for m in e.members]
    rules = sorted({f"{r['selection']} checkpoint" for r in results})
    tests = sorted({str(r["test_evaluations"]) for r in results})
    protocol = flatten(results[0]["science"]["protocol"])
    modified = [
        f"{key} = {protocol[key]}" for key in results[0]["protocol"]["modified"] if key in protocol
    ]
    return (
        f"selection: {', '.join(rules)} · evaluations on the test cases a run: {', '.join(tests)}"
        + (f" · modified: {', '.join(modified)}" if modified else "")
    )


def _cases(board: Board) -> list[tuple[str, list[float]]]:
    """Mean Dice over seeds (and draws) by case (rows) and method (columns); nan where it is not defined."""
    means = []
    for scores in board.scores["dice"]:
        draws = np.asarray(scores.draws)
        means.append(
            _defined_mean(
                np.stack(
                    [_defined_mean(scores.values[draws == d]) for d in sorted(set(scores.draws))]
                )
            )
        )
    return [(case, [float(m[i]) for m in means]) for i, case in enumerate(board.case_ids)]


def _defined_mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis; nan only where all are."""
    defined = np.isfinite(values)
    total = np.where(defined, values, 0).sum(0)
    return np.where(defined.any(0), total / np.maximum(defined.sum(0), 1), np.nan)


def _matrix(board: Board) -> list[tuple[str, list[Difference | None]]]:
    """Differences of the row's method from the column's, in percent of Dice; p only between ranked rows."""
    found = {(d.a, d.b): d for d in board.pairs}
    for a, b in combinations(board.scores["dice"], 2):
        if (a.name, b.name) not in found:
            family = board.family("dice") or (a, b)
            found[a.name, b.name] = replace(
                compare(a, b, tie=TIES["dice"], family=family), p=nan, p_holm=nan
            )
    names = [r.method for r in board.rows]
    return [(a, [_between(found, a, b) for b in names]) for a in names]


def _between(found: Mapping[tuple[str, str], Difference], a: str, b: str) -> Difference | None:
    return turned(found[b, a]) if (b, a) in found else found.get((a, b))


def _scatter(section: Section, costs: Mapping[str, Cost]) -> Markup:
    """One plot a kind of device: a minute of a processor is not one of a GPU."""
    plots = []
    for kind in sorted({c.kind for c in costs.values() if isfinite(c.hours)}):
        points = [
            (e.name, 60 * costs[e.name].hours, e.row.dice)
            for e in section.entries
            if costs[e.name].kind == kind
        ]
        plots.append(figures.scatter(points, f"{kind} minutes of training"))
    return Markup("".join(plots))


def _settings(section: Section) -> dict[str, Any]:
    """The protocol and the parameters that all share once, and what each row has of its own."""
    all_params = []
    for entry in section.entries:
        science = entry.members[0].result["science"]
        all_params.append(
            {
                **science["params"],
                **{f"backbone.{k}": v for k, v in science["backbone_params"].items()},
            }
        )
    shared = {
        k: v
        for k, v in all_params[0].items()
        if len(all_params) > 1 and all(k in p and p[k] == v for p in all_params)
    }
    rows = [
        {
            "name": e.name,
            "runs": [(m.run.run_id, m.seed) for m in e.members],
            "params": _listed({k: v for k, v in p.items() if k not in shared}) or "–",
        }
        for e, p in zip(section.entries, all_params, strict=True)
    ]
    first = section.entries[0].members[0].result
    return {
        "protocol": dump_yaml(first["science"]["protocol"]),
        "rows": rows,
        "shared": _listed(shared),
        "fingerprint": first["fingerprints"][section.board.dataset],
        "split": first["splits"][section.board.dataset],
    }


def _listed(values: Mapping[str, Any]) -> str:
    return " · ".join(f"{k} = {v}" for k, v in values.items())


def _environments(section: Section) -> list[tuple[list[str], int]]:
    """Machine and versions, with the number of runs made there."""
    keys = ("segbench", "python", "torch", "device", "platform", "threads")
    count: dict[tuple[str, ...], int] = {}
    for member in (m for e in section.entries for m in e.members):
        place = tuple(str(member.manifest.get(k, "?")) for k in keys)
        count[place] = count.get(place, 0) + 1
    return [(list(place), n) for place, n in count.items()]


def _warnings(section: Section) -> list[str]:
    found = []
    for entry in section.entries:
        for member in entry.members:
            told = member.manifest.get("warnings", [])
            found += (
                [f"{entry.name}, seed {member.seed}: {w}" for w in told]
                if isinstance(told, list)
                else []
            )
    return found
