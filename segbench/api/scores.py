"""Scores of runs and of label files as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from segbench.api.table import Table
from segbench.results.rundir import plain

SHARES = ("dice", "jaccard")  # stored from 0 to 1, shown in percent
DISTANCES = ("hd95", "asd")


def metric_table(metrics: Iterable[Mapping[str, Any]]) -> Table:
    """Return the means of a result, one row per data set and class."""
    rows = []
    for entry in metrics:
        means = {name: column["mean"] for name, column in entry["columns"].items()}
        rows.append(
            {
                "dataset": entry["dataset"],
                "class": entry["class"],
                "cases": entry["counts"]["n"],
                **_scores(means),
                "missed": entry["counts"]["empty_prediction"],
            }
        )
    return Table(rows)


def case_table(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return the scores of cases, one row per case and class."""
    rows = []
    for record in records:
        names = {name: record[name] for name in ("dataset", "case", "class")}
        rows.append({**names, **_scores(record)})
    return Table(rows)


def _scores(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return Dice and Jaccard in percent, and the distances with their unit."""
    unit = "mm" if "hd95_mm" in values else "vox"
    found: dict[str, Any] = {}
    for name in SHARES:
        value = plain(values[name])
        found[name] = None if value is None else 100 * value
    for name in DISTANCES:
        found[name] = plain(values[f"{name}_{unit}"])
    found["unit"] = unit
    return found
