"""The stored test cases of a run: read, checked and arranged for the statistics.

A run directory may come from anywhere. Whatever is shown is computed again from ``cases.csv`` and
must agree with ``result.json``; values that no pair of masks can give are refused. Only the masks
themselves could prove the rest (``segbench runs verify``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from segbench.errors import IntegrityError
from segbench.metrics.aggregate import (
    DISTANCE,
    STATUSES,
    aggregate,
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
        lines = io.StringIO(content.decode(), newline="")
        records = [_typed(row) for row in csv.DictReader(lines, strict=True)]
        keys = {(record["dataset"], record["case"], record["class"]) for record in records}
        if len(keys) < len(records):
            raise ValueError("a case is listed twice")
        for record in records:
            _check(record)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise IntegrityError(
            "the case table was not written by segbench", where=where, found=error
        ) from error
    return records


def _typed(row: Mapping[str, str]) -> Record:
    """Return a line of the table with numbers as numbers."""
    record: Record = dict(row)
    for name, text in row.items():
        if name in ("pred_voxels", "ref_voxels"):
            record[name] = int(text)
        elif name == "shape":
            record[name] = [int(size) for size in text.split("x")] if text else None
        elif name == "spacing":
            record[name] = [float(size) for size in text.split("x")] if text else None
        elif is_metric(name) and name.endswith("_mm") and not row["spacing"]:
            # The column belongs to another data set of a joint run, whose voxel size is known.
            del record[name]
        elif is_metric(name):
            record[name] = float(text) if text else None
    return record


def _check(record: Record) -> None:
    """Raise ValueError unless some pair of masks can have these values."""
    case = f"case {str(record['case'])[:100]!r}"
    _check_voxels(record, case)
    units = ("vox", "mm") if record["spacing"] else ("vox",)
    required = {f"{metric}_{unit}" for metric in ("hd95", "asd") for unit in units}
    missing = required - set(record)
    if missing:
        raise ValueError(f"{case}: no column {', '.join(sorted(missing))}")
    for name, value in record.items():
        if not is_metric(name) or value is None:
            continue
        is_distance = DISTANCE.fullmatch(name) is not None
        limit = diagonal(record, name) * (1 + TOLERANCE) if is_distance else 1
        if not (isfinite(value) and 0 <= value <= limit):
            raise ValueError(f"{case}: {name} {value}, possible are 0 to {limit}")
    if record["status"] == "ok":
        _check_overlap(record, case)


def _check_voxels(record: Record, case: str) -> None:
    """Check that the voxel counts fit into the volume and give the status."""
    shape = record["shape"]
    pred, ref = record["pred_voxels"], record["ref_voxels"]
    volume = np.prod(shape, dtype=float) if shape and min(shape) >= 1 else -1
    if not (0 <= pred <= volume and 0 <= ref <= volume):
        raise ValueError(f"{case}: shape {shape} with {pred} and {ref} voxels")
    status = STATUSES[(pred == 0) + 2 * (ref == 0)]
    if record["status"] != status:
        raise ValueError(f"{case}: status {record['status']} with {pred} and {ref} voxels")


def _check_overlap(record: Record, case: str) -> None:
    """Check that Dice, Jaccard and the voxel counts are those of one overlap."""
    dice, jaccard = record["dice"], record["jaccard"]
    pred, ref = record["pred_voxels"], record["ref_voxels"]
    jaccard_of_dice = dice / (2 - dice)
    highest_dice = 2 * min(pred, ref) / (pred + ref)
    if abs(jaccard - jaccard_of_dice) > TOLERANCE or dice > highest_dice + TOLERANCE:
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
            true = aggregate(own, policy=stored["policy"]).to_dict()
        except ValueError as error:
            raise IntegrityError(
                "the result does not fit its case table", where=where, found=error
            ) from error
        _check_means(stored, true, where)
    in_result = {(stored["dataset"], stored.get("class")) for stored in result["metrics"]}
    in_cases = {(record["dataset"], record["class"]) for record in records}
    if in_result != in_cases:
        raise IntegrityError("the result does not name the classes of its case table", where=where)


def _check_means(stored: dict[str, Any], true: dict[str, Any], where: Path) -> None:
    """Compare the stored columns and counts of one class with those of its cases."""
    problem = "the result does not hold the means of its cases"
    for name in {**true["columns"], **stored["columns"]}:
        stored_mean = stored["columns"].get(name, {}).get("mean")
        true_mean = true["columns"].get(name, {}).get("mean")
        in_both = name in stored["columns"] and name in true["columns"]
        if not in_both or not _equal_means(stored_mean, true_mean):
            raise IntegrityError(
                problem, where=where, found=f"{name} {stored_mean}", expected=true_mean
            )
    if stored["counts"] != true["counts"]:
        raise IntegrityError(problem, where=where, found=stored["counts"], expected=true["counts"])


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
