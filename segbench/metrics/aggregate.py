"""Aggregate the stored results of cases to one row of a table.

The policy decides how cases with empty masks enter:

policy            distances if one mask is empty                     both masks empty
worst_distance    diagonal of the volume                             left out, or rewarded
defined_only      left out; Dice, Jaccard and NSD are 0              left out, or rewarded
literature_zero   empty prediction: 0 in every column; empty         0 in every column
                  reference: an error, as in the published code
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any

import numpy as np

from .grid import longest_distance
from .pair import PairResult

STATUSES = ("ok", "empty_prediction", "empty_reference", "both_empty")
POLICIES = ("worst_distance", "defined_only", "literature_zero")
BOTH_EMPTY = ("exclude", "reward")

DISTANCE = re.compile(r"(hd95|asd|assd|hd|hd95_max|masd)(_vox|_mm)?")
_SCORE = re.compile(r"dice|jaccard|nsd_[^_]+(_vox|_mm)?")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One metric over cases. `n` is the number of cases used; undefined values are nan."""

    n: int
    mean: float
    sd: float  # ddof = 1
    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (ddof = 1) of the `n` defined means of several rows."""

    n: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Row:
    """The columns of one table row, with the policy and the number of cases of each status."""

    policy: str
    both_empty: str
    counts: dict[str, int]  # n, then one count per status
    columns: dict[str, Column]

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    @property
    def empties(self) -> int:
        """Number of cases with at least one empty mask."""
        return self.counts["n"] - self.counts["ok"]

    def cell(self, name: str, digits: int = 2) -> str:
        """Return the mean as text, followed by the number of empty masks where it matters."""
        text = f"{self.columns[name].mean:.{digits}f}"
        needs_mark = bool(DISTANCE.fullmatch(name)) and self.empties > 0
        if needs_mark or self.policy == "literature_zero":
            text += f" ({self.empties}/{self.counts['n']} empty)"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; undefined numbers are None."""
        columns = {
            name: {key: _none_for_nan(value) for key, value in asdict(column).items()}
            for name, column in self.columns.items()
        }
        return {
            "policy": self.policy,
            "both_empty": self.both_empty,
            "counts": dict(self.counts),
            "columns": columns,
        }


def aggregate(
    results: Iterable[PairResult | Record],
    policy: str = "worst_distance",
    both_empty: str = "exclude",
) -> Row:
    """Aggregate the cases of one class.

    Args:
        results: results, or their stored records (`to_dict`).
        policy: how cases with one empty mask enter; see the docstring of the module.
        both_empty: `exclude` leaves out cases with two empty masks; `reward` scores them as
            perfect, for labels in which a class can be absent.

    Returns:
        The row. Its columns have the names of the records, including the unit.

    Raises:
        ValueError: the cases belong to several classes. Aggregate each class, then use `mean_over`.
    """
    _check_choice("policy", policy, POLICIES)
    _check_choice("both_empty", both_empty, BOTH_EMPTY)
    if policy == "literature_zero" and both_empty != "exclude":
        raise ValueError("literature_zero counts two empty masks as 0; it cannot reward them")
    records = [r.to_dict() if isinstance(r, PairResult) else r for r in results]
    _check_records(records)
    if policy == "literature_zero" and any(r["status"] == "empty_reference" for r in records):
        raise ValueError(
            "literature_zero is not defined for an empty reference: the published code fails there"
        )
    counts = {"n": len(records)}
    counts |= {status: sum(r["status"] == status for r in records) for status in STATUSES}
    names = [name for name in records[0] if is_metric(name)]
    columns = {}
    for name in names:
        values = [case_value(record, name, policy, both_empty) for record in records]
        columns[name] = _column([value for value in values if value is not None])
    return Row(policy, both_empty, counts, columns)


def mean_over(rows: Sequence[Row]) -> dict[str, Spread]:
    """Return mean and standard deviation of the means of rows, such as classes or seeds.

    A row whose mean is undefined is left out of that column and not counted in its `n`.
    """
    if not rows:
        raise ValueError("no rows to average, expected at least one")
    first = rows[0]
    for row in rows[1:]:
        if (row.policy, row.both_empty) != (first.policy, first.both_empty):
            raise ValueError(
                f"rows of different policies cannot be averaged, found {first.policy}/"
                f"{first.both_empty} and {row.policy}/{row.both_empty}"
            )
        if set(row.columns) != set(first.columns):
            odd = sorted(set(row.columns) ^ set(first.columns))
            raise ValueError(f"every row must have the same columns, only some have {odd}")
    spreads = {}
    for name in first.columns:
        means = [row[name].mean for row in rows if not isnan(row[name].mean)]
        spreads[name] = Spread(len(means), _mean(means), _sd(means))
    return spreads


def case_value(
    record: Record, name: str, policy: str = "worst_distance", both_empty: str = "exclude"
) -> float | None:
    """Return what the case contributes to the column; None leaves it out."""
    status = record["status"]
    if status == "ok":
        return float(record[name])
    if policy == "literature_zero":
        return 0.0
    is_distance = DISTANCE.fullmatch(name) is not None
    if status == "both_empty":
        if both_empty == "exclude":
            return None
        return 0.0 if is_distance else 1.0
    if not is_distance:
        return 0.0
    return diagonal(record, name) if policy == "worst_distance" else None


def diagonal(record: Record, name: str) -> float:
    """Return the length of the volume's diagonal in the unit of the column."""
    shape, spacing = record.get("shape"), record.get("spacing")
    if shape is None or (name.endswith("_mm") and spacing is None):
        raise ValueError(
            f"worst_distance needs the shape (and for mm the spacing) of a case with an empty "
            f"mask, found shape {shape} and spacing {spacing} for column {name}"
        )
    return longest_distance(record, in_voxels=name.endswith("_vox") or spacing is None)


def _column(values: list[float]) -> Column:
    quartiles = np.percentile(values, (25, 50, 75)) if values else (nan, nan, nan)
    q1, median, q3 = (float(value) for value in quartiles)
    return Column(len(values), _mean(values), _sd(values), median, q1, q3)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else nan


def _sd(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else nan


def is_metric(name: str) -> bool:
    return bool(_SCORE.fullmatch(name) or DISTANCE.fullmatch(name))


def _check_records(records: list[Record]) -> None:
    if not records:
        raise ValueError("no results to aggregate, expected at least one case")
    labels = {record.get("label") for record in records}
    if len(labels) > 1:
        raise ValueError(
            f"results of several classes ({sorted(map(str, labels))}) in one row; aggregate each "
            "class on its own, then use mean_over"
        )
    names = {name for name in records[0] if is_metric(name)}
    for index, record in enumerate(records):
        _check_choice(f"status of case {index}", record.get("status"), STATUSES)
        other = {name for name in record if is_metric(name)}
        if other != names:
            raise ValueError(
                f"case {index} has other columns than case 0, only one has {sorted(other ^ names)}"
            )
        undefined = [name for name in names if record[name] is None or isnan(record[name])]
        if record["status"] == "ok" and undefined:
            raise ValueError(f"case {index} has status ok but no value for {sorted(undefined)}")


def _check_choice(what: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}, expected one of {known}")


def _none_for_nan(value: float) -> float | None:
    return None if isnan(value) else value
