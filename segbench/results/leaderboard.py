"""Leaderboards: finished runs put together so that only comparable ones share a table.

A table holds runs of one data set (fingerprint and split), labeled count, backbone and protocol (content, not just name).
Per run the mean over cases is taken per class, then over classes; over seeds mean and standard deviation of those. Who is
better than whom is decided in ``stats``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import resources
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from segbench import registry
from segbench.config import load_protocol, load_yaml
from segbench.errors import SegbenchError
from segbench.results import stats
from segbench.results.cases import by_case
from segbench.results.comparable import WORDS, Finished, Key, Rows, draw_of, pooled, sorted_out
from segbench.results.rundir import RunDir, is_number
from segbench.results.stats import Difference, Scores

RANKED_SEEDS = 3  # fewer are shown, not ranked
DISTANCES = ("hd95", "asd")
METRICS = ("dice", "jaccard", *DISTANCES)
TIES = {
    "dice": 0.05,
    "jaccard": 0.05,
    "hd95": 0.005,
    "asd": 0.005,
}  # less than what is shown is no difference


@dataclass
class Row:
    """A method in a table. Dice and Jaccard in percent; distances in the table's unit."""

    method: str
    dice: float
    dice_sd: float
    jaccard: float
    hd95: float
    asd: float
    missed: int  # predictions without the target, over all seeds
    seeds: int  # of several labeled draws: of all together
    hours: float  # of training, mean over seeds
    rank: int | None = None  # of the first of those it is not distinguishable from
    note: str = ""  # why it is not ranked
    runs: list[str] = field(default_factory=list)
    failed: int = 0
    tied: bool = False
    letters: str = ""  # rows that share a letter are not distinguishable
    rank_low: int | None = None
    rank_high: int | None = None
    intervals: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # 95 % over cases and seeds, by metric
    difference: dict[str, Any] | None = (
        None  # to the row named with --against, in the sorted metric
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; undefined numbers are None."""
        return plain(asdict(self))


@dataclass
class Board:
    """One table."""

    dataset: str
    labeled: int
    train: int
    cases: int
    backbone: str
    protocol: str
    policy: str
    unit: str
    partial: bool
    standard: bool  # the data set's own protocol, unmodified, on all of it: published numbers may stand beside it
    rows: list[Row]
    failures: list[str] = field(default_factory=list)
    sort: str = "dice"
    draws: tuple[int, ...] = (0,)  # which labeled cases; several: a table over all of them
    apart: str = ""  # why this is not one table with the one before
    case_ids: list[str] = field(default_factory=list)
    scores: dict[str, list[Scores]] = field(
        default_factory=dict
    )  # by metric; (seeds, cases) of each row, in its order
    runs: list[list[Finished]] = field(default_factory=list)  # of each row, in its order
    pairs: list[Difference] = field(
        default_factory=list
    )  # of the ranked rows, in the sorted metric
    network: str = ""  # the backbone's parameters that were set by hand

    @property
    def title(self) -> str:
        """What the table is about, in one line."""
        part = " · PARTIAL COPY" if self.partial else ""
        which = f" (draw{'s' if len(self.draws) > 1 else ''} {', '.join(map(str, self.draws))})"
        network = f" ({self.network})" if self.network else ""
        return (
            f"{self.dataset} · {self.labeled} of {self.train} labeled{which if self.draws != (0,) else ''} · "
            f"{self.backbone}{network} · protocol {self.protocol} · test ({self.cases} cases){part}"
        )

    def family(self, metric: str) -> list[Scores]:
        """Scores of the ranked rows: they alone say how much runs scatter; nobody can vouch for the others."""
        return [s for s, r in zip(self.scores[metric], self.rows, strict=True) if not r.note]


def plain(value: Any) -> Any:
    """JSON types; undefined and endless numbers are None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and (value != value or abs(value) == inf) else value


def boards(
    runs: Iterable[RunDir],
    dataset: str | None = None,
    sort: str = "dice",
    against: str | None = None,
) -> tuple[list[Board], list[str]]:
    """All tables, and warnings on runs that were left out.

    Args:
        sort: the metric that ranks, one of ``METRICS``.
        against: a row or method whose difference to every other row is wanted.
    """
    groups, failures, warnings = sorted_out(runs)
    wanted = {key: rows for key, rows in groups.items() if dataset in (None, key.dataset)}
    wanted |= dict(pooled(wanted))
    tables = {
        key: _board(
            key,
            rows,
            sort,
            [
                (r, v)
                for r, k, v in failures
                if k._replace(draws=()) == key._replace(draws=()) and k.draws[0] in key.draws
            ],
        )
        for key, rows in wanted.items()
    }
    warnings += [
        f"{r.path}: failed, and no run of its table is finished"
        for r, k, _ in failures
        if k not in groups and dataset in (None, k.dataset)
    ]
    found = sorted(
        tables.items(),
        key=lambda t: (t[1].dataset, t[1].labeled, t[1].protocol, t[1].backbone, t[1].draws),
    )
    for (first, _), (second, board) in pairwise(found):
        if first.dataset == second.dataset:
            other = [WORDS[f] for f, a, b in zip(Key._fields, first, second, strict=True) if a != b]
            board.apart = f"not one ranking with the table above: other {', '.join(other)}"
    for _, board in found:
        warnings += _compare_with(board, against) if against is not None else []
    return [board for _, board in found], warnings


def _board(key: Key, methods: Rows, sort: str, failures: list[tuple[RunDir, str]]) -> Board:
    """One table; where one label has several variants (its code was changed), each row says which it is."""
    labels = [label for label, _ in methods]
    named = {
        (label + (f" @{variant}" if labels.count(label) > 1 else ""), variant): sorted(
            runs, key=lambda f: (draw_of(f), f.result["seed"])
        )
        for (label, variant), runs in methods.items()
    }
    everything = [f for runs in named.values() for f in runs]
    own = [
        f for f in everything if not f.run.reported
    ] or everything  # what is only reported decides nothing for others
    first = own[0].result
    mine = [m for m in first["metrics"] if m["dataset"] == key.dataset]
    unit = (
        "mm"
        if all(
            "hd95_mm" in m["columns"]
            for f in own
            for m in f.result["metrics"]
            if m["dataset"] == key.dataset
        )
        else "vox"
    )
    partial = key.dataset in first["partial"]
    board = Board(
        key.dataset,
        key.labeled,
        first["train"][key.dataset],
        0,
        key.backbone,
        key.protocol,
        mine[0]["policy"],
        unit,
        partial,
        not partial and key.draws == (0,) and _standard(key, first["protocol"]),
        [],
        [_failure(run) for run, _ in failures],
        sort,
        key.draws,
        network=_set_by_hand(first),
    )
    board.case_ids = list(
        dict.fromkeys(c["case"] for f in own for c in f.cases if c["dataset"] == key.dataset)
    )
    board.cases = len(board.case_ids)
    rows = [
        _row(label, board, runs, [v for _, v in failures].count(variant))
        for (label, variant), runs in named.items()
    ]
    order = _rank(rows, board)
    board.rows = [rows[i] for i in order]
    board.runs = [list(named.values())[i] for i in order]
    board.scores = {m: [scores[i] for i in order] for m, scores in board.scores.items()}
    return board


def _set_by_hand(result: dict[str, Any]) -> str:
    return ", ".join(
        f"{k} {v}"
        for k, v in sorted(result["science"]["backbone_params"].items())
        if f"backbone.{k}" in result["protocol"]["modified"]
    )


def _failure(run: RunDir) -> str:
    return f"{run.path.parts[-2]} {run.path.name}"


def _standard(key: Key, protocol: dict[str, Any]) -> bool:
    """The data set's own protocol as it is, with the network that it names?"""
    try:
        name = registry.get("dataset", key.dataset).cls.protocol
        return (protocol["name"], protocol["modified"], key.backbone) == (
            name,
            [],
            load_protocol(name).backbone.name,
        )
    except SegbenchError:  # a plug-in that is not here now
        return False


def _column(metric: str, unit: str) -> str:
    return f"{metric}_{unit}" if metric in DISTANCES else metric


def _scale(metric: str) -> float:
    return 1 if metric in DISTANCES else 100


def _row(label: str, board: Board, runs: list[Finished], failed: int) -> Row:
    """A row without its rank; its scores are appended to those of the board."""
    per_seed: dict[str, list[float]] = {m: [] for m in METRICS}
    missed, intervals = 0, dict[str, tuple[float, float]]()
    for f in runs:
        classes = [m for m in f.result["metrics"] if m["dataset"] == board.dataset]
        missed += sum(m["counts"]["empty_prediction"] for m in classes)
        for metric, values in per_seed.items():
            means = [m["columns"].get(_column(metric, board.unit), {}).get("mean") for m in classes]
            defined = [_scale(metric) * v for v in means if v is not None]
            values.append(fmean(defined) if defined else nan)
    for metric in METRICS:
        scores = _scores(label, board, runs, metric)
        board.scores.setdefault(metric, []).append(scores)
        found = stats.estimate(scores, (0, inf if metric in DISTANCES else 100))
        # Runs that lack different cases: an interval over those that all have would be one of another mean.
        alike = scores.lacking is not None and (scores.lacking == scores.lacking[0]).all()
        intervals |= {metric: (found.low, found.high)} if len(runs) > 1 and alike else {}
    draws = sorted({draw_of(f) for f in runs})
    mean = {
        metric: fmean(
            fmean(v for v, f in zip(values, runs, strict=True) if draw_of(f) == d) for d in draws
        )
        for metric, values in per_seed.items()
    }
    seconds = [f.run.manifest().get("train_seconds") for f in runs]
    hours = fmean(s / 3600 if is_number(s) else nan for s in seconds)
    seeds = len({(draw_of(f), f.result["seed"]) for f in runs})
    return Row(
        label,
        mean["dice"],
        stdev(per_seed["dice"]) if len(runs) > 1 else nan,
        mean["jaccard"],
        mean["hd95"],
        mean["asd"],
        missed,
        seeds,
        hours,
        note=_why_not(board, runs),
        failed=failed,
        intervals=intervals,
        runs=[f.run.run_id for f in runs],
    )


def _scores(label: str, board: Board, runs: list[Finished], metric: str) -> Scores:
    """What the statistics take from a row's runs."""
    tables = [
        by_case(f.cases, board.dataset, _column(metric, board.unit), board.policy) for f in runs
    ]
    names = list(dict.fromkeys(name for t in tables for case in t.values() for name in case))
    classes = np.array(
        [[[t.get(c, {}).get(n, nan) for n in names] for c in board.case_ids] for t in tables]
    )
    values = [
        [float(np.mean(v)) if (v := case[np.isfinite(case)]).size else nan for case in run]
        for run in classes
    ]
    lacking = np.array([[c not in t for c in board.case_ids] for t in tables])
    scale = _scale(metric)
    return Scores(
        label, scale * np.array(values), tuple(draw_of(f) for f in runs), scale * classes, lacking
    )


def _why_not(board: Board, runs: list[Finished]) -> str:
    """Why a row is not ranked; empty if it is."""
    lacking = max(
        len(set(board.case_ids) - {c["case"] for c in f.cases if c["dataset"] == board.dataset})
        for f in runs
    )
    if lacking:
        return f"{lacking} test case{'s' if lacking > 1 else ''} missing: not ranked"
    if any("test" in f.result["selection"].replace("_", " ").split() for f in runs):
        return "checkpoint picked on the test cases: not ranked"
    if any(f.run.reported for f in runs):
        return "reported, not verified: not ranked"
    counts = {d: len({f.result["seed"] for f in runs if draw_of(f) == d}) for d in board.draws}
    few = min(counts, key=lambda d: counts[d])
    where = f" of draw {few}" if len(counts) > 1 else ""
    return (
        ""
        if counts[few] >= RANKED_SEEDS
        else f"{counts[few]} seed{'s' if counts[few] > 1 else ''}{where}: not ranked"
    )


def _rank(rows: list[Row], board: Board) -> list[int]:
    """Give the rows their ranks; their order: ranked ones first, best first."""
    higher, scores = board.sort not in DISTANCES, board.scores[board.sort]
    ranked = [i for i, row in enumerate(rows) if not row.note]
    places, board.pairs = stats.ranking([scores[i] for i in ranked], higher, tie=TIES[board.sort])
    index = {scores[i].name: i for i in ranked}
    for place in places:
        row = rows[index[place.name]]
        row.rank, row.tied, row.letters = place.rank, place.tied, place.letters
        row.rank_low, row.rank_high = place.low, place.high

    def badness(i: int) -> float:
        value = getattr(rows[i], board.sort)
        return inf if value != value else -value if higher else value

    return [index[p.name] for p in places] + sorted(
        (i for i in range(len(rows)) if i not in index.values()), key=badness
    )


def called(name: str, label: str) -> bool:
    """Does a row's label answer to a name: all of it, or the method's?"""
    return name in (label, label.split("[")[0].split(" ")[0])


def _compare_with(board: Board, name: str) -> list[str]:
    """Fill in the differences to a row; warns where there is no such row."""
    fits = [i for i, r in enumerate(board.rows) if called(name, r.method)]
    exact = [i for i in fits if board.rows[i].method == name] or fits
    if len(exact) != 1:
        several = f"several rows are '{name}': {', '.join(board.rows[i].method for i in exact)}"
        return [f"{board.title}: {several if exact else f'no row is {name!r}'}"]
    base, scores = exact[0], board.scores[board.sort]
    found = {
        d.a: d
        for pair in board.pairs
        for d in (pair, stats.turned(pair))
        if d.b == scores[base].name
    }
    for i, row in enumerate(board.rows):
        tested = found.get(
            scores[i].name
        )  # the test that ranks them: a star and a rank never contradict each other
        d = tested or stats.compare(scores[i], scores[base], family=board.family(board.sort))
        if i != base:
            row.difference = {
                "to": board.rows[base].method,
                "metric": board.sort,
                "mean": d.mean,
                "low": d.low,
                "high": d.high,
                "p": tested.p_holm if tested else nan,
            }
    return []


def published(dataset: str, labeled: int) -> list[dict[str, Any]]:
    """The literature's numbers for a data set and labeled count under comparable protocols, with source and rule."""
    content = load_yaml(
        Path(str(resources.files("segbench.benchmarks") / "published" / "results.yaml"))
    )
    doubts = {
        (d["source"], d["dataset"], d["labeled"], d["method"]): d["why"]
        for d in content.get("suspicious", [])
    }
    comparable = content["comparable"].get(
        dataset, [None]
    )  # elsewhere a row that names a protocol has other test cases
    rows = []
    for row in content["results"]:
        source = content["sources"][row["source"]]
        protocol = row.get("protocol", source.get(f"{dataset}_protocol"))
        if (row["dataset"], row["labeled"]) == (dataset, labeled) and protocol in comparable:
            rows.append(
                {
                    "method": row["method"],
                    **{k: row[k] for k in METRICS},
                    "selection": row.get("checkpoint", source.get("checkpoint", "not_stated")),
                    "relation": row["relation"],
                    "source": row["source"],
                    "work": source["work"],
                    "url": source["url"],
                    "protocol": protocol,
                    "distances": content["distances"],
                    "postprocessing": source.get("postprocessing", "not_stated"),
                    "note": row.get("note"),
                    "doubt": doubts.get((row["source"], dataset, labeled, row["method"])),
                    "ours": content["ours"].get(row["method"]),
                }
            )
    return sorted(rows, key=lambda r: -r["dice"])
