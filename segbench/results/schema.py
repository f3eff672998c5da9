"""The schema of ``result.json``, and whether the parts of a result agree with each other."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segbench.errors import IntegrityError
from segbench.identity.run_id import run_id
from segbench.storage import json_bytes

MAX_DEPTH = 25  # a configuration has at most 20


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _StoredProtocol(_Part):
    name: str
    version: int
    modified: list[str]


class _StoredScience(_Part):
    method: str
    backbone: str
    params: dict[str, Any]
    backbone_params: dict[str, Any]
    seed: int
    precision: str
    draw: int = Field(0, ge=0)
    fold: int | None = Field(None, ge=0)
    datasets: list[dict[str, Any]]
    protocol: dict[str, Any]


class _StoredFolds(_Part):
    """What all folds of a cross-validation share."""

    count: int = Field(ge=2, le=1000)
    lists: str
    train: int = Field(ge=1)


class _StoredMean(_Part):
    mean: float | None


class _StoredMetrics(_Part):
    dataset: str
    policy: str
    both_empty: Literal["exclude"] = "exclude"  # another rule would give another Dice
    counts: dict[str, int]
    columns: dict[str, _StoredMean]


class _StoredResult(_Part):
    """What every result of this schema holds; more keys are allowed, as the schema only grows."""

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
    test_evaluations: int = 1
    protocol: _StoredProtocol
    protocol_sha256: str
    changed_params: dict[str, Any] = {}
    without: list[str] = []
    fingerprints: dict[str, str]
    splits: dict[str, str]
    science: _StoredScience
    metrics: list[_StoredMetrics] = Field(min_length=1)
    weights_sha256: str
    cases_sha256: str


ADDED_LATER = (
    "partial",
    "precision",
    "selection",
    "test_evaluations",
    "changed_params",
    "without",
)


def check_result(result: Any, where: Path) -> dict[str, Any]:
    """Return a result whose parts agree, with keys that older versions did not write filled in.

    Raises:
        IntegrityError: a key is missing or of another type, or the run id does not belong to the
            settings.
    """
    try:
        stored = _StoredResult.model_validate(result)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise IntegrityError(
            "the result file is not of its schema",
            where=where,
            found=str(first["input"])[:80],
            expected=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from error
    try:
        agree = (
            _settings_agree(stored, result["science"])
            and _datasets_agree(stored)
            and _protocol_agrees(stored)
        )
        if _depth(result) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise IntegrityError("the result file is incomplete", where=where, found=error) from error
    if not agree:
        raise IntegrityError(
            "the result file contradicts itself: its run id does not belong to its settings",
            where=where,
        )
    defaults = {key: getattr(stored, key) for key in ADDED_LATER}
    return {**defaults, **result}


def _settings_agree(stored: _StoredResult, science: dict[str, Any]) -> bool:
    """Return whether the result repeats the settings that its run id is made of."""
    protocol_digest = _digest_of_text(json.dumps(science["protocol"]))
    return (
        stored.method == science["method"]
        and stored.backbone == science["backbone"]
        and stored.seed == science["seed"]
        and stored.precision == science["precision"]
        and stored.protocol_sha256 == protocol_digest
        and stored.run_id == run_id(science)
    )


@lru_cache(maxsize=64)
def _digest_of_text(text: str) -> str:
    """Return the digest of a JSON text's content; thousands of runs have the same protocol."""
    return hashlib.sha256(json_bytes(json.loads(text))).hexdigest()


def _datasets_agree(stored: _StoredResult) -> bool:
    """Return whether each data set has the labeled count, data and split of the settings."""
    settings = {entry.get("name"): entry for entry in stored.science.datasets}
    if list(settings) != stored.datasets:
        return False
    scored = {metrics.dataset for metrics in stored.metrics}
    for name in stored.datasets:
        entry = settings[name]
        if (
            entry["labeled"] != stored.labeled[name]
            or entry["fingerprint"] != stored.fingerprints[name]
            or entry["split"] != stored.splits[name]
            or name not in stored.train
            or name not in scored
        ):
            return False
        if stored.science.fold is not None:
            folds = _StoredFolds.model_validate(entry["folds"])
            if stored.science.fold >= folds.count:
                return False
    return True


def _protocol_agrees(stored: _StoredResult) -> bool:
    """Return whether name, version and policy are those of the protocol in the settings."""
    protocol = stored.science.protocol
    if any(metrics.policy != protocol["policy"] for metrics in stored.metrics):
        return False
    return (stored.protocol.name, stored.protocol.version) == (
        protocol["name"],
        protocol["version"],
    )


def _depth(value: Any) -> int:
    """Return the number of levels, one for a plain value; stops above ``MAX_DEPTH``."""
    depth = 0
    level = [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                below += part.values()
            elif isinstance(part, list):
                below += part
        level = below
    return depth
