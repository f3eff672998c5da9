"""Figures of a report, as SVG inside the page.

Text and axes take the page's colors, so that they follow its light or dark mode.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from segbench.results.board import Board, MethodRow
from segbench.results.overview import Overview
from segbench.text import safe

# Placeholder colors of the series, used for nothing else. They are replaced by the page's own
# color variables, which know the dark mode.
SERIES = tuple(f"#01020{i}" for i in range(1, 7))
MUTED = "#010207"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "segbench",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
}
WIDTH = 5.0  # inches: small enough that the text can be read on a phone
NOT_LOSSES = ("step", "phase", "lr", "seconds")  # keys of a log's lines
CURVE_POINTS = 60  # most points of a smoothed curve

# The names of a scatter plot are placed on a canvas of about this size, in points.
PLOT_WIDTH = 400
PLOT_HEIGHT = 160
NAME_WIDTH = 80
NAME_HEIGHT = 11

Point = tuple[float, float]


def draw(width: float, height: float, paint: Callable[[Figure], None], label: str) -> str:
    """Return an SVG element.

    Args:
        width: in inches, like the height.
        paint: draws into the figure.
        label: is read to people who cannot see the figure.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        out = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    return _inline(out.getvalue(), label)


def _inline(text: str, label: str) -> str:
    """Return the SVG element alone, to stand inside a page.

    Addresses of namespaces and document types and the names of groups are removed.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([\d. ]+)"', text)
    text = re.sub(r"^<svg[^>]*>", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # Ids must be unique within a page, which has several figures.
    prefix = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
    for number, color in enumerate((*SERIES, MUTED), 1):
        text = text.replace(color, f"var(--s{number})")
    text = text.replace("#000000", "currentColor").replace("xlink:href", "href")
    quoted = safe(label)
    for character, entity in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;"), (">", "&gt;")):
        quoted = quoted.replace(character, entity)
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{quoted}">{text}'


def short(text: str, length: int = 24) -> str:
    """Return a name that fits beside an axis."""
    text = safe(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def short_names(names: Sequence[str], length: int = 24) -> list[str]:
    """Return names that fit beside an axis, different ones for different names.

    Where shortened names would be the same, their ends are kept as well.
    """
    shortened = [short(name, length) for name in names]
    result = []
    for name, shown in zip(names, shortened, strict=True):
        if shortened.count(shown) > 1:
            half = length // 2
            shown = f"{safe(name)[: half - 1]}…{safe(name)[-half:]}"
        result.append(shown)
    return result


def strip(board: Board, class_name: str) -> str:
    """Draw Dice by case: one dot per case and run, a bar at each method's mean, best on top."""
    rows = list(reversed(board.rows))
    names = short_names([row.method for row in rows])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for height, row in enumerate(rows):
            cases = dice_by_case(row, board.dataset, class_name)
            _draw_strip(axes, height, [values for values in cases if values])
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=MUTED, alpha=0.35, linewidth=0.5)
        axes.set_xlabel("Dice %")

    label = f"Dice of every test case and run by method, class {class_name}"
    return draw(WIDTH, 0.65 + 0.3 * len(rows), paint, label)


def dice_by_case(row: MethodRow, dataset: str, class_name: str) -> list[list[float]]:
    """Return Dice in percent of one class by case, one value per run.

    A run in which Dice is not defined adds no value.
    """
    found: dict[str, list[float]] = {}
    for run in row.runs:
        for record in run.cases_of(dataset):
            if record["class"] == class_name:
                values = found.setdefault(record["case"], [])
                if record["dice"] is not None:
                    values.append(100 * record["dice"])
    return [found[case] for case in sorted(found)]


def _draw_strip(axes: Axes, height: float, cases: Sequence[Sequence[float]]) -> None:
    """Draw the dots and the mean of one method."""
    if not cases:
        return
    across: list[float] = []
    up: list[float] = []
    for values in cases:
        for index, value in enumerate(values):
            across.append(value)
            up.append(height + _jitter(index, len(values)))
    axes.scatter(across, up, s=11, color=SERIES[0], alpha=0.55, linewidths=0)
    mean = fmean(fmean(values) for values in cases)
    axes.plot([mean, mean], [height - 0.36, height + 0.36], color=SERIES[1], linewidth=2.2)


def _jitter(index: int, count: int) -> float:
    """Return the vertical offset that keeps the dots of one case apart."""
    if count < 2:
        return 0.0
    return 0.22 * (2 * index / (count - 1) - 1)


def ranks(found: Overview) -> str:
    """Draw the mean ranks of an overview, each with a bar of the critical difference around it.

    The bars of methods that are not distinguishable overlap.
    """
    standings = list(reversed(found.ranked))
    names = short_names([standing.method for standing in standings])
    reach = found.critical_difference / 2

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for height, standing in enumerate(standings):
            low = max(standing.mean_rank - reach, 0.6)
            high = min(standing.mean_rank + reach, len(standings) + 0.4)
            axes.plot([low, high], [height, height], color=SERIES[0], linewidth=2, alpha=0.5)
            axes.scatter([standing.mean_rank], [height], s=30, color=SERIES[0], zorder=3)
        axes.set_yticks(range(len(standings)), names)
        axes.set_ylim(-0.6, len(standings) - 0.4)
        axes.set_xlim(0.5, len(standings) + 0.5)
        axes.set_xticks(range(1, len(standings) + 1))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=MUTED, alpha=0.35, linewidth=0.5)
        axes.set_xlabel("mean rank (1 is best)")

    label = "Mean rank of each method over the tables, with the critical difference"
    return draw(WIDTH, 0.65 + 0.27 * len(standings), paint, label)


def scatter(points: Sequence[tuple[str, float, float]], xlabel: str) -> str:
    """Draw Dice against cost.

    Args:
        points: (name, cost, Dice %) each; undefined ones are left out.
    """
    shown = []
    names = short_names([name for name, _, _ in points])
    for name, (_, cost, dice) in zip(names, points, strict=True):
        if isfinite(cost) and isfinite(dice) and cost > 0:
            shown.append((name, cost, dice))
    costs = [cost for _, cost, _ in shown]
    logarithmic = bool(costs) and max(costs) > 8 * min(costs)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.scatter(costs, [dice for _, _, dice in shown], s=26, color=SERIES[0], zorder=3)
        if logarithmic:
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
        for place in name_places(shown, np.log if logarithmic else np.asarray):
            axes.annotate(
                place.name,
                (place.x, place.y),
                xytext=(-6 if place.left else 6, place.shift),
                textcoords="offset points",
                va="center",
                ha="right" if place.left else "left",
            )
        axes.margins(0.08, 0.12)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("Dice %")
        axes.grid(color=MUTED, alpha=0.35, linewidth=0.5)

    return draw(WIDTH, 3.0, paint, f"Dice against {xlabel}, one point per method")


class NamePlace(NamedTuple):
    """A point of a scatter plot and where its name stands."""

    name: str
    x: float
    y: float
    shift: float  # upward, in points
    left: bool  # the name stands to the left of its point


def name_places(
    points: Sequence[tuple[str, float, float]], scale: Callable[[Any], Any]
) -> list[NamePlace]:
    """Return where the names stand so that they do not overlap.

    Args:
        scale: the scale of the horizontal axis.
    """
    if not points:
        return []
    drawn = np.array([[float(scale(x)), y] for _, x, y in points])
    extent = np.maximum(np.ptp(drawn, axis=0), 1e-9)
    drawn = (drawn - drawn.min(0)) / extent * (PLOT_WIDTH, PLOT_HEIGHT)
    result: list[NamePlace] = []
    taken: list[Point] = []  # lower left corners of the names placed so far, from below
    for index in np.argsort(drawn[:, 1], kind="stable"):
        name, x, y = points[index]
        across, up = drawn[index]
        left = bool(across > PLOT_WIDTH / 2)
        start = across - NAME_WIDTH if left else across
        shift = 0.0
        for other_start, other_height in taken:
            beside = abs(other_start - start) >= NAME_WIDTH
            if not beside and abs(other_height - up - shift) < NAME_HEIGHT:
                shift = other_height + NAME_HEIGHT - up
        taken.append((start, up + shift))
        taken.sort(key=lambda corner: corner[1])
        result.append(NamePlace(name, x, y, shift, left))
    return result


def curves(name: str, logs: Sequence[list[dict[str, Any]]]) -> str:
    """Draw the loss terms over training: each run thin, the mean over runs thick.

    Args:
        name: of the method.
        logs: the lines of each run's log.
    """
    terms = _loss_terms(logs)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for color, term in zip(SERIES, terms, strict=False):
            _draw_term(axes, color, term, logs)
        axes.set_title(short(name, 40))
        axes.set_xlabel("step")
        axes.grid(color=MUTED, alpha=0.35, linewidth=0.5)
        _scale_losses(axes)
        if terms:
            figure.legend(
                loc="outside lower left", ncols=3, fontsize=8, handlelength=1.2, columnspacing=1
            )

    height = 2.65 if len(terms) > 3 else 2.5
    return draw(3.2, height, paint, f"Loss terms of {name} over training")


def _loss_terms(logs: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Return the names of the loss terms, in the order of the logs; no more than colors."""
    names: dict[str, None] = {}
    for log in logs:
        for line in log:
            names.update(dict.fromkeys(line))
    return [name for name in names if name not in NOT_LOSSES][: len(SERIES)]


def _draw_term(axes: Axes, color: str, term: str, logs: Sequence[list[dict[str, Any]]]) -> None:
    series = []
    for log in logs:
        points = [(line["step"], line[term]) for line in log if _is_finite(line.get(term))]
        series.append(_smooth(points))
    if len(series) > 1:
        for points in series:
            axes.plot(*_coordinates(points), color=color, linewidth=0.6, alpha=0.5)
    mean = _mean_curve(series)
    axes.plot(*_coordinates(mean), color=color, linewidth=1.6, label=short(term, 20))


def _scale_losses(axes: Axes) -> None:
    """Use a logarithmic axis for positive terms, whose sizes differ widely."""
    heights: list[float] = []
    for line in axes.lines:
        heights += np.asarray(line.get_ydata(), dtype=float).tolist()
    if heights and min(heights) > 0:
        axes.set_yscale("log")
        lowest = max(min(heights), 1e-4 * max(heights))
        axes.set_ylim(lowest * 0.8, max(heights) * 1.3)
        _plain_ticks(axes.yaxis)


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 1, 0.1, 0.01.

    matplotlib's powers of ten are formulas; text of unknown origin must never be parsed as one.
    """
    low, high = axis.get_view_interval()
    wide = high > 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


def _smooth(points: list[Point]) -> list[Point]:
    """Return means over equal stretches of the curve, as a single step says little."""
    size = max(1, len(points) // CURVE_POINTS)
    stretches = [points[start : start + size] for start in range(0, len(points), size)]
    return [_mean_point(stretch) for stretch in stretches]


def _mean_curve(series: Sequence[Sequence[Point]]) -> list[Point]:
    return [_mean_point(points) for points in zip(*series, strict=False)]


def _mean_point(points: Sequence[Point]) -> Point:
    return fmean(x for x, _ in points), fmean(y for _, y in points)


def _coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
