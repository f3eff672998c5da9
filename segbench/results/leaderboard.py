"""Leaderboards: finished runs put together so that only comparable ones share a table.

A table holds runs of one data set (fingerprint and split), labelled count, backbone and protocol (content, not just name).
Per run the mean over cases is taken per class, then over classes; over seeds mean and standard deviation of those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import resources
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from segbench import registry
from segbench.config import load_yaml
from segbench.errors import IntegrityError, SegbenchError
from segbench.files import json_bytes
from segbench.results.rundir import RunDir

RANKED_SEEDS = 3  # fewer are shown, not ranked
DISTANCES = ("hd95", "asd")
Runs = list[tuple[dict[str, Any], RunDir]]


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
    seeds: int
    hours: float  # of training, mean over seeds
    rank: int | None = None
    note: str = ""
    runs: list[str] = field(default_factory=list)
    failed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; undefined numbers are None."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


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
    draw: int = 0  # which cases are the labelled ones

    @property
    def title(self) -> str:
        """What the table is about, in one line."""
        part = " · PARTIAL COPY" if self.partial else ""
        draw = f" (draw {self.draw})" if self.draw else ""
        return (f"{self.dataset} · {self.labeled} of {self.train} labelled{draw} · {self.backbone} · "
                f"protocol {self.protocol} · test ({self.cases} cases){part}")


def boards(runs: Iterable[RunDir], dataset: str | None = None) -> tuple[list[Board], list[str]]:
    """All tables, and warnings on runs that were left out."""
    groups: dict[tuple[Any, ...], dict[tuple[str, str], Runs]] = {}
    failures: dict[str, list[str]] = {}
    warnings = []
    for run in runs:
        try:
            result = run.result()
        except IntegrityError as error:
            warnings.append(f"{run.path}: {error.what}; left out")
            continue
        if result is None:
            if (run.path / "failed.json").exists():
                failures.setdefault(run.path.parts[-3], []).append(f"{run.path.parts[-2]} {run.path.name}")
            continue
        for name in result["datasets"]:
            if dataset in (None, name):
                methods = groups.setdefault(_key(result, name), {})
                methods.setdefault((_label(result), _variant(result)), []).append((result, run))
    tables = [_board(key, _named(methods)) for key, methods in groups.items()]
    for table in tables:
        table.failures = [f for group, lines in failures.items() if table.dataset in group.split("+") for f in lines]
    return sorted(tables, key=lambda b: (b.dataset, b.labeled, b.draw, b.protocol, b.backbone)), warnings


def _key(result: dict[str, Any], name: str) -> tuple[Any, ...]:
    protocol = result["protocol"]
    text = f"{protocol['name']} {protocol['version']}" + (f" (modified: {', '.join(protocol['modified'])})"
                                                          if protocol["modified"] else "")
    return (name, result["labeled"][name], result["train"][name], result["backbone"], text, result["protocol_sha256"],
            result["fingerprints"][name], result["splits"][name], name in result["partial"], result["precision"],
            result.get("draw", 0))


def _variant(result: dict[str, Any]) -> str:
    """Digest of what makes two runs of one method different but for the seed: code, parameters, network."""
    return hashlib.sha256(json_bytes({**result["science"], "seed": None})).hexdigest()[:4]


def _named(methods: dict[tuple[str, str], Runs]) -> dict[str, Runs]:
    """Rows by label; where one label has several variants (its code was changed), each says which it is."""
    labels = [label for label, _ in methods]
    return {label + (f" @{variant}" if labels.count(label) > 1 else ""): runs
            for (label, variant), runs in methods.items()}


def _label(result: dict[str, Any]) -> str:
    """The method's name with the parameters that are not its defaults."""
    changed = ",".join(f"{k}={v}" for k, v in sorted(result["changed_params"].items()))
    dropped = "".join(f" without {term}" for term in result["without"])
    return result["method"] + (f"[{changed}]" if changed else "") + dropped


def _board(key: tuple[Any, ...], methods: dict[str, Runs]) -> Board:
    name, labeled, train, backbone, protocol = key[:5]
    any_result = next(iter(methods.values()))[0][0]
    mine = [m for m in any_result["metrics"] if m["dataset"] == name]
    unit = "mm" if "hd95_mm" in mine[0]["columns"] else "vox"
    rows = [_row(label, name, unit, runs) for label, runs in methods.items()]
    rows.sort(key=lambda r: (r.seeds < RANKED_SEEDS, -r.dice if r.dice == r.dice else 0.0))
    for position, row in enumerate(rows, 1):
        if row.seeds >= RANKED_SEEDS:
            row.rank = position
        else:
            row.note = f"{row.seeds} seed{'s' if row.seeds > 1 else ''}: not ranked"
    return Board(name, labeled, train, mine[0]["counts"]["n"], backbone, protocol, mine[0]["policy"], unit, key[8],
                 not key[8] and not key[10] and _standard(name, any_result["protocol"]), rows, draw=key[10])


def _standard(name: str, protocol: dict[str, Any]) -> bool:
    try:
        return not protocol["modified"] and protocol["name"] == registry.get("dataset", name).cls.protocol
    except SegbenchError:  # a plug-in that is not here now
        return False


def _row(label: str, name: str, unit: str, runs: Runs) -> Row:
    per_seed: dict[str, list[float]] = {}
    missed, hours = 0, []
    for result, run in runs:
        classes = [m for m in result["metrics"] if m["dataset"] == name]
        missed += sum(m["counts"]["empty_prediction"] for m in classes)
        hours.append(run.manifest().get("train_seconds", nan) / 3600)
        for metric in ("dice", "jaccard", *(f"{d}_{unit}" for d in DISTANCES)):
            values = [m["columns"][metric]["mean"] for m in classes]
            defined = [v for v in values if v is not None]
            per_seed.setdefault(metric, []).append(fmean(defined) if defined else nan)
    mean = {metric: fmean(values) for metric, values in per_seed.items()}
    spread = stdev(per_seed["dice"]) if len(runs) > 1 else nan
    return Row(label, 100 * mean["dice"], 100 * spread, 100 * mean["jaccard"], mean[f"hd95_{unit}"], mean[f"asd_{unit}"],
               missed, len({r["seed"] for r, _ in runs}), fmean(hours), runs=[run.run_id for _, run in runs])


def published(dataset: str, labeled: int) -> list[dict[str, Any]]:
    """The literature's numbers for a data set and labelled count, with source and selection rule."""
    content = load_yaml(Path(str(resources.files("segbench.benchmarks") / "published" / "results.yaml")))
    rows = []
    for row in content["results"]:
        if row["dataset"] == dataset and row["labelled"] == labeled:
            source = content["sources"][row["source"]]
            rows.append({"method": row["method"], **{k: row[k] for k in ("dice", "jaccard", "hd95", "asd")},
                         "selection": row.get("checkpoint", source.get("checkpoint", "not_stated")),
                         "relation": row["relation"], "source": row["source"], "work": source["work"]})
    return sorted(rows, key=lambda r: -r["dice"])
