"""The stored test cases of a run: read, checked and arranged for the statistics.

A run directory may come from anywhere. Whatever is shown is computed again from ``cases.csv`` and
must agree with ``result.json``; values that no pair of masks can give are refused. Only the masks
themselves could prove the rest (``segbench runs verify``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from segbench.errors import IntegrityError
from segbench.metrics.aggregate import (
    DISTANCE,
    POLICIES,
    STATUSES,
    case_value,
    diagonal,
    is_metric,
)

MAX_BYTES = 100_000_000
TOLERANCE = 1e-9
Record = dict[str, Any]  # one test case and class


def read_cases(content: bytes, where: Path) -> list[Record]:
    """Return the records of a ``cases.csv``, in order; undefined values are None.

    Raises:
        IntegrityError: it cannot be read, or it holds values that no pair of masks has.
    """
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"{len(content)} bytes")
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        columns = MetricColumns.of(reader.fieldnames or ())
        records = [_typed(row, columns) for row in reader]
        keys = {(record["dataset"], record["case"], record["class"]) for record in records}
        if len(keys) < len(records):
            raise ValueError("a case is listed twice")
        for record in records:
            _check(record, columns)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise IntegrityError(
            "the case table was not written by segbench", where=where, found=error
        ) from error
    return records


class MetricColumns(NamedTuple):
    """The columns of a table that hold metrics."""

    scores: list[str]  # between 0 and 1
    distances: list[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> MetricColumns:
        """Return the metrics among column names."""
        found = cls([], [])
        for name in names:
            if DISTANCE.fullmatch(name):
                found.distances.append(name)
            elif is_metric(name):
                found.scores.append(name)
        return found


def _typed(row: Mapping[str, str], columns: MetricColumns) -> Record:
    """Return a line of the table with numbers as numbers."""
    record: Record = dict(row)
    if None in record:
        raise ValueError("a line has more values than there are columns")
    for name in ("pred_voxels", "ref_voxels"):
        record[name] = int(row[name])
    shape = row["shape"]
    record["shape"] = None
    if shape:
        record["shape"] = [int(size) for size in shape.split("x")]
    spacing = row["spacing"]
    record["spacing"] = None
    if spacing:
        record["spacing"] = [float(size) for size in spacing.split("x")]
    rule = record.pop("surface_rule", "")
    if rule:
        record["surface_rule"] = int(rule)
    if row.get("skewed"):
        record["skewed"] = [float(step) for step in row["skewed"].split("x")]
    for name in columns.scores + columns.distances:
        if name.endswith("_mm") and not spacing:
            # The column belongs to another data set of a joint run, whose voxel size is known.
            del record[name]
        else:
            record[name] = float(row[name]) if row[name] else None
    return record


def _check(record: Record, columns: MetricColumns) -> None:
    """Raise ValueError unless some pair of masks can have these values."""
    case = f"case {str(record['case'])[:100]!r}"
    _check_voxels(record, case)
    units = ("vox", "mm") if record["spacing"] else ("vox",)
    for unit in units:
        for name in (f"hd95_{unit}", f"asd_{unit}"):
            if name not in record:
                raise ValueError(f"{case}: no column {name}")
    for name in columns.scores:
        _check_range(record, name, 1, case)
    longest_vox = diagonal(record, "_vox") * (1 + TOLERANCE)
    longest_mm = 0.0
    if record["spacing"]:
        longest_mm = diagonal(record, "_mm") * (1 + TOLERANCE)
    for name in columns.distances:
        in_mm = record["spacing"] is not None and not name.endswith("_vox")
        longest = longest_mm if in_mm else longest_vox
        _check_range(record, name, longest, case)
    if record["status"] == "ok":
        _check_overlap(record, case)


def _check_range(record: Record, name: str, limit: float, case: str) -> None:
    """Raise ValueError unless a value is undefined or between 0 and a limit."""
    value = record.get(name)
    if value is None:
        return
    if not isfinite(value) or not 0 <= value <= limit:
        raise ValueError(f"{case}: {name} {value}, possible are 0 to {limit}")


def _check_voxels(record: Record, case: str) -> None:
    """Check that the voxel counts fit into the volume and give the status."""
    shape = record["shape"]
    pred = record["pred_voxels"]
    ref = record["ref_voxels"]
    volume = -1.0
    if shape and min(shape) >= 1:
        volume = float(np.prod(shape, dtype=float))
    fewest = min(pred, ref)
    most = max(pred, ref)
    if fewest < 0 or most > volume:
        raise ValueError(f"{case}: shape {shape} with {pred} and {ref} voxels")
    number = int(pred == 0) + 2 * int(ref == 0)
    if record["status"] != STATUSES[number]:
        raise ValueError(f"{case}: status {record['status']} with {pred} and {ref} voxels")


def _check_overlap(record: Record, case: str) -> None:
    """Check that Dice, Jaccard and the voxel counts are those of one overlap."""
    dice = record["dice"]
    jaccard = record["jaccard"]
    pred = record["pred_voxels"]
    ref = record["ref_voxels"]
    jaccard_of_dice = dice / (2 - dice)
    difference = abs(jaccard - jaccard_of_dice)
    highest_dice = 2 * min(pred, ref) / (pred + ref)
    if difference > TOLERANCE or dice > highest_dice + TOLERANCE:
        raise ValueError(f"{case}: Dice {dice} with Jaccard {jaccard}, {pred} and {ref} voxels")


def check_metrics(result: dict[str, Any], records: Sequence[Record], where: Path) -> None:
    """Check that the result holds the means of its cases.

    Raises:
        IntegrityError: it does not.
    """
    for stored in result["metrics"]:
        key = (stored["dataset"], stored.get("class"))
        own = [record for record in records if (record["dataset"], record["class"]) == key]
        try:
            true = means_of(own, stored["policy"])
        except (ValueError, TypeError, KeyError) as error:
            raise IntegrityError(
                "the result does not fit its case table", where=where, found=error
            ) from error
        _check_means(stored, true, where)
    in_result = {(stored["dataset"], stored.get("class")) for stored in result["metrics"]}
    in_cases = {(record["dataset"], record["class"]) for record in records}
    if in_result != in_cases:
        raise IntegrityError("the result does not name the classes of its case table", where=where)


class Means(NamedTuple):
    """What ``aggregate`` gives of a class, without what takes it long, such as quartiles."""

    counts: dict[str, int]
    columns: dict[str, float | None]  # None without a value


def means_of(records: Sequence[Record], policy: str) -> Means:
    """Return the counts and means of the checked records of one class.

    Raises:
        ValueError: there are none, or the policy does not fit them.
        TypeError: a case with two masks has no value.
        KeyError: cases have different columns.
    """
    if not records or policy not in POLICIES:
        raise ValueError(f"{len(records)} cases, policy {policy!r}")
    statuses = [record["status"] for record in records]
    if policy == "literature_zero" and "empty_reference" in statuses:
        raise ValueError("literature_zero is not defined for an empty reference")
    counts = {"n": len(records)}
    counts |= {status: statuses.count(status) for status in STATUSES}
    columns: dict[str, float | None] = {}
    for name in filter(is_metric, records[0]):
        values = [case_value(record, name, policy) for record in records]
        defined = [value for value in values if value is not None]
        columns[name] = fmean(defined) if defined else None
    return Means(counts, columns)


def _check_means(stored: dict[str, Any], true: Means, where: Path) -> None:
    """Compare the stored columns and counts of one class with those of its cases."""
    problem = "the result does not hold the means of its cases"
    stored_columns = stored["columns"]
    for name in {**true.columns, **stored_columns}:
        stored_mean = stored_columns.get(name, {}).get("mean")
        true_mean = true.columns.get(name)
        in_both = name in stored_columns and name in true.columns
        if not in_both or not _equal_means(stored_mean, true_mean):
            raise IntegrityError(
                problem, where=where, found=f"{name} {stored_mean}", expected=true_mean
            )
    if stored["counts"] != true.counts:
        raise IntegrityError(problem, where=where, found=stored["counts"], expected=true.counts)


def _equal_means(stored: float | None, true: float | None) -> bool:
    if stored is None or true is None:
        return stored is true
    return abs(stored - true) <= TOLERANCE * max(1, true)


def by_case(
    records: Sequence[Record], dataset: str, metric: str, policy: str
) -> dict[str, dict[str, float]]:
    """Return the value of each case and class under the policy; nan where it is not defined."""
    values: dict[str, dict[str, float]] = {}
    for record in records:
        if record["dataset"] != dataset:
            continue
        value = case_value(record, metric, policy) if metric in record else None
        classes = values.setdefault(record["case"], {})
        classes[record["class"]] = nan if value is None else value
    return values
