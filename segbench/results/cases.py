"""The stored test cases of a run: read, checked and arranged for the statistics.

A run directory may come from anywhere. Whatever is shown is computed from ``cases.csv`` once more and must agree with what
``result.json`` says; values that no pair of masks can give are refused. Only the masks themselves could prove the rest
(``segbench runs verify``).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segbench.errors import IntegrityError
from segbench.identity.run_id import run_id
from segbench.metrics.aggregate import (
    DISTANCE,
    STATUSES,
    aggregate,
    case_value,
    diagonal,
    is_metric,
)
from segbench.storage import json_bytes

MAX_BYTES = 100_000_000
MAX_DEPTH = 25  # a configuration has at most 20
TOLERANCE = 1e-9
Record = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Protocol(_Part):
    name: str
    version: int
    modified: list[str]


class _Science(_Part):
    method: str
    backbone: str
    seed: int
    precision: str
    draw: int = Field(0, ge=0)
    datasets: list[dict[str, Any]]
    protocol: dict[str, Any]


class _Column(_Part):
    mean: float | None


class _Metrics(_Part):
    dataset: str
    policy: str
    both_empty: Literal["exclude"] = "exclude"  # another rule would be another Dice
    counts: dict[str, int]
    columns: dict[str, _Column]


class _Result(_Part):
    """What any result of this schema holds. More keys are allowed: the schema grows by additions."""

    run_id: str = Field(pattern=r"^[0-9a-f]{16}$")
    method: str = Field(min_length=1, max_length=200)
    backbone: str = Field(min_length=1, max_length=200)
    datasets: list[str] = Field(min_length=1)
    labeled: dict[str, int]
    train: dict[str, int]
    partial: list[str] = []
    seed: int = Field(ge=0)
    precision: str = "fp32"
    selection: str = "last"
    protocol: _Protocol
    protocol_sha256: str
    changed_params: dict[str, Any] = {}
    without: list[str] = []
    fingerprints: dict[str, str]
    splits: dict[str, str]
    science: _Science
    metrics: list[_Metrics] = Field(min_length=1)
    cases_sha256: str


def checked(result: Any, where: Path) -> dict[str, Any]:
    """A result whose parts fit together; keys that older versions did not write are filled in.

    Raises:
        IntegrityError: a key is missing or of another type, or the identity is not that of the settings.
    """
    try:
        model = _Result.model_validate(result)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise IntegrityError(
            "the result file is not of its schema",
            where=where,
            found=str(first["input"])[:80],
            expected=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from error
    science = result["science"]
    try:
        data = {d.get("name"): d for d in model.science.datasets}
        told = (
            model.method,
            model.backbone,
            model.seed,
            model.precision,
            list(data),
            model.protocol_sha256,
            model.run_id,
        )
        true = (
            science["method"],
            science["backbone"],
            science["seed"],
            science["precision"],
            model.datasets,
            hashlib.sha256(json_bytes(science["protocol"])).hexdigest(),
            run_id(science),
        )
        fits = told == true and all(
            (data[n]["labeled"], data[n]["fingerprint"], data[n]["split"])
            == (result["labeled"][n], result["fingerprints"][n], result["splits"][n])
            and n in result["train"]
            and any(m.dataset == n for m in model.metrics)
            for n in model.datasets
        )
        protocol = science["protocol"]
        fits &= all(m.policy == protocol["policy"] for m in model.metrics)
        fits &= (protocol["name"], protocol["version"]) == (
            model.protocol.name,
            model.protocol.version,
        )
        if _depth(result) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise IntegrityError("the result file is incomplete", where=where, found=error) from error
    if not fits:
        raise IntegrityError(
            "the result file contradicts itself: its identity is not that of its settings",
            where=where,
        )
    defaults = {
        k: getattr(model, k)
        for k in ("partial", "precision", "selection", "changed_params", "without")
    }
    return {**defaults, **result}


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def read_cases(content: bytes, where: Path) -> list[Record]:
    """The records of a ``cases.csv``, in order, with numbers as numbers and undefined values as None.

    Raises:
        IntegrityError: it cannot be read, or it holds values that no pair of masks has.
    """
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"{len(content)} bytes")
        records = [
            _typed(row)
            for row in csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        ]
        keys = [(r["dataset"], r["case"], r["class"]) for r in records]
        if len(set(keys)) < len(keys):
            raise ValueError("a case twice")
        for record in records:
            _check(record)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise IntegrityError(
            "the case table is not one that segbench writes", where=where, found=error
        ) from error
    return records


def _typed(row: Mapping[str, str]) -> Record:
    record: Record = dict(row)
    for name, text in row.items():
        if name in ("pred_voxels", "ref_voxels"):
            record[name] = int(text)
        elif name in ("shape", "spacing"):
            record[name] = (
                [(int if name == "shape" else float)(n) for n in text.split("x")] if text else None
            )
        elif is_metric(name) and name.endswith("_mm") and not row["spacing"]:
            del record[
                name
            ]  # a column of another data set of a joint run, whose voxels have a size
        elif is_metric(name):
            record[name] = float(text) if text else None
    return record


def _check(r: Record) -> None:
    what = f"case {str(r['case'])[:100]!r}"
    status, shape, dice, jaccard = r["status"], r["shape"], r["dice"], r["jaccard"]
    pred, ref = r["pred_voxels"], r["ref_voxels"]
    if (
        not shape
        or min(shape) < 1
        or not all(0 <= n <= np.prod(shape, dtype=float) for n in (pred, ref))
    ):
        raise ValueError(f"{what}: shape {shape} with {pred} and {ref} voxels")
    if status != STATUSES[(pred == 0) + 2 * (ref == 0)]:
        raise ValueError(f"{what}: status {status} with {pred} and {ref} voxels")
    lacking = {
        f"{m}_{u}" for m in ("hd95", "asd") for u in ("vox", *(("mm",) if r["spacing"] else ()))
    } - set(r)
    if lacking:
        raise ValueError(f"{what}: no column {', '.join(sorted(lacking))}")
    for name, value in r.items():
        if is_metric(name) and value is not None:
            limit = diagonal(r, name) * (1 + TOLERANCE) if DISTANCE.fullmatch(name) else 1
            if not (isfinite(value) and 0 <= value <= limit):
                raise ValueError(f"{what}: {name} {value}, possible are 0 to {limit}")
    if status == "ok" and (
        abs(jaccard - dice / (2 - dice)) > TOLERANCE
        or dice > 2 * min(pred, ref) / (pred + ref) + TOLERANCE
    ):
        raise ValueError(f"{what}: Dice {dice} with Jaccard {jaccard}, {pred} and {ref} voxels")


def check_metrics(result: dict[str, Any], records: Sequence[Record], where: Path) -> None:
    """Does the result hold the means of its cases?

    Raises:
        IntegrityError: it does not.
    """
    for stored in result["metrics"]:
        mine = [
            r
            for r in records
            if (r["dataset"], r["class"]) == (stored["dataset"], stored.get("class"))
        ]
        try:
            true = aggregate(mine, policy=stored["policy"]).to_dict()
        except ValueError as error:
            raise IntegrityError(
                "the result does not fit its case table", where=where, found=error
            ) from error
        means = {
            name: (
                stored["columns"].get(name, {}).get("mean"),
                true["columns"].get(name, {}).get("mean"),
            )
            for name in {**true["columns"], **stored["columns"]}
        }
        wrong = [
            name
            for name, (told, mean) in means.items()
            if (name in stored["columns"]) != (name in true["columns"])
            or (told is None) != (mean is None)
            or (told is not None and abs(told - mean) > TOLERANCE * max(1, mean))
        ]
        if wrong or stored["counts"] != true["counts"]:
            raise IntegrityError(
                "the result does not hold the means of its cases",
                where=where,
                found=f"{wrong[0]} {means[wrong[0]][0]}" if wrong else stored["counts"],
                expected=means[wrong[0]][1] if wrong else true["counts"],
            )
    told = {(m["dataset"], m.get("class")) for m in result["metrics"]}
    if told != {(r["dataset"], r["class"]) for r in records}:
        raise IntegrityError("the result does not name the classes of its case table", where=where)


def by_case(
    records: Sequence[Record], dataset: str, metric: str, policy: str
) -> dict[str, dict[str, float]]:
    """Value of each case and class under the policy; nan where it is not defined."""
    values: dict[str, dict[str, float]] = {}
    for r in records:
        if r["dataset"] == dataset:
            value = case_value(r, metric, policy) if metric in r else None
            values.setdefault(r["case"], {})[r["class"]] = float("nan") if value is None else value
    return values
