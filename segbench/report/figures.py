"""Figures of a report, as SVG to stand inside the page: their text and axes take the page's colors, light or dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from segbench.report.content import Entry, Section
from segbench.text import safe

# Series of the page's palette: colors that are nowhere else, replaced by the page's variables, which know the dark mode.
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
WIDTH = 5.0  # inches: small enough for its text to be read on a phone


def draw(width: float, height: float, paint: Any, label: str) -> str:
    """An SVG element painted by ``paint(figure)``; ``label`` is read to who cannot see it."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        out = io.StringIO()
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(out.getvalue(), label)


def _inline(text: str, label: str) -> str:
    """The SVG element alone, without addresses (of namespaces and document types) and without names for its groups."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([\d. ]+)"', text)
    text = re.sub(r"^<svg[^>]*>", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    own = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()  # ids of one page must differ
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{own}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
    for number, color in enumerate((*SERIES, MUTED), 1):
        text = text.replace(color, f"var(--s{number})")
    text = text.replace("#000000", "currentColor").replace("xlink:href", "href")
    quoted = (
        safe(label)
        .replace("&", "&amp;")
        .replace('"', "&quot;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    return f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{quoted}">{text}'


def short(text: str, length: int = 24) -> str:
    """A name that fits beside an axis."""
    text = safe(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def strip(section: Section, target: str) -> str:
    """Dice by case: a dot a case and seed, the mean of each method, best method on top."""
    entries = list(reversed(section.entries))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, entry in enumerate(entries):
            cells = entry.dice(section.board.dataset, target)
            points = [
                (v, y + _spread(i, len(values))) for values in cells for i, v in enumerate(values)
            ]
            if points:
                axes.scatter(
                    [x for x, _ in points],
                    [y for _, y in points],
                    s=11,
                    color=SERIES[0],
                    alpha=0.55,
                    linewidths=0,
                )
                mean = fmean(fmean(values) for values in cells if values)
                axes.plot([mean, mean], [y - 0.36, y + 0.36], color=SERIES[1], linewidth=2.2)
        _named(axes, entries)
        axes.set_xlabel("Dice %")

    return draw(
        WIDTH,
        0.65 + 0.3 * len(entries),
        paint,
        f"Dice of every test case and seed by method, class {target}",
    )


def _spread(index: int, count: int) -> float:
    return 0.0 if count < 2 else 0.22 * (2 * index / (count - 1) - 1)


def _named(axes: Axes, entries: Sequence[Entry]) -> None:
    axes.set_yticks(range(len(entries)), [short(e.name) for e in entries])
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=MUTED, alpha=0.35, linewidth=0.5)


def scatter(points: Sequence[tuple[str, float, float]], xlabel: str) -> str:
    """Dice against cost: (name, cost, Dice %) each; a name stands beside its point."""
    shown = [p for p in points if isfinite(p[1]) and isfinite(p[2]) and p[1] > 0]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.scatter([p[1] for p in shown], [p[2] for p in shown], s=26, color=SERIES[0], zorder=3)
        costs = sorted(p[1] for p in shown)
        wide = bool(costs) and costs[-1] > 8 * costs[0]
        if wide:
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
        for name, x, y, shift, right in _apart(shown, np.log if wide else np.asarray):
            axes.annotate(
                short(name),
                (x, y),
                xytext=(-6 if right else 6, shift),
                textcoords="offset points",
                va="center",
                ha="right" if right else "left",
            )
        axes.margins(0.08, 0.12)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("Dice %")
        axes.grid(color=MUTED, alpha=0.35, linewidth=0.5)

    return draw(WIDTH, 3.0, paint, f"Dice against {xlabel}, one point a method")


def _apart(
    points: Sequence[tuple[str, float, float]], scale: Callable[[Any], Any]
) -> list[tuple[str, float, float, float, bool]]:
    """Each point with the upward shift (points) that keeps its name clear of others, and whether that stands to its left."""
    if not points:
        return []
    places = np.array([[float(scale(p[1])), p[2]] for p in points])
    places = (
        (places - places.min(0)) / np.maximum(np.ptp(places, axis=0), 1e-9) * (400, 160)
    )  # as drawn, about
    result: list[tuple[str, float, float, float, bool]] = []
    taken: list[tuple[float, float]] = []
    for i in np.argsort(places[:, 1], kind="stable"):
        (name, x, y), (across, up) = points[i], places[i]
        right, shift = bool(across > 200), 0.0
        left = across - 80 if right else across
        for other, height in taken:  # from below
            if abs(other - left) < 80 and abs(height - up - shift) < 11:
                shift = height + 11 - up
        taken.append((left, up + shift))
        taken.sort(key=lambda t: t[1])
        result.append((name, x, y, shift, right))
    return result


def curves(entry: Entry) -> str:
    """Loss terms over training: each seed thin, their mean thick."""
    logs = [m.log for m in entry.members if m.log]
    terms = [
        k
        for k in dict.fromkeys(k for log in logs for line in log for k in line)
        if k not in ("step", "phase", "lr", "seconds")
    ][: len(SERIES)]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for color, term in zip(SERIES, terms, strict=False):
            series = [
                _smooth([(line["step"], line[term]) for line in log if _number(line.get(term))])
                for log in logs
            ]
            for one in series if len(series) > 1 else ():
                axes.plot(*_columns(one), color=color, linewidth=0.6, alpha=0.5)
            axes.plot(*_columns(_mean(series)), color=color, linewidth=1.6, label=short(term, 20))
        axes.set_title(short(entry.name, 40))
        axes.set_xlabel("step")
        axes.grid(color=MUTED, alpha=0.35, linewidth=0.5)
        heights = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
        if heights and min(heights) > 0:  # terms of very different size
            axes.set_yscale("log")
            axes.set_ylim(max(min(heights), 1e-4 * max(heights)) * 0.8, max(heights) * 1.3)
            _plain_ticks(axes.yaxis)
        if terms:
            figure.legend(
                loc="outside lower left", ncols=3, fontsize=8, handlelength=1.2, columnspacing=1
            )

    return draw(
        3.2, 2.5 + 0.15 * (len(terms) > 3), paint, f"Loss terms of {entry.name} over training"
    )


def _plain_ticks(axis: Axis) -> None:
    """1, 0.1, 0.01 on a logarithmic axis; matplotlib's powers are formulas, which foreign text must never be."""
    low, high = axis.get_view_interval()
    wide = high > 30 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and isfinite(value)


def _smooth(points: list[tuple[int, float]], bins: int = 60) -> list[tuple[float, float]]:
    """Means over equal stretches of the curve, as a single step says little."""
    size = max(1, len(points) // bins)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(fmean(s for s, _ in part), fmean(v for _, v in part)) for part in parts]


def _mean(series: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    return [
        (fmean(p[0] for p in place), fmean(p[1] for p in place))
        for place in zip(*series, strict=False)
    ]


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]
