"""The identity of a run: a hash of everything that can change its numbers and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segbench.config.experiment import Experiment

__all__ = ["ENGINE", "run_id", "science"]

ENGINE = 1  # raise when a change of the engine changes numbers: every run counts as new then
SPEED_KEYS = frozenset({"inference.batch"})  # protocol keys that decide speed and memory only


def science(
    experiment: Experiment,
    fingerprints: Mapping[str, str],
    splits: Mapping[str, str],
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """What decides a run's numbers.

    Args:
        fingerprints: of each data set's prepared store.
        splits: digest of each data set's split.
        sources: digest of the source of every plug-in used, by a name of the caller's choice.

    Raises:
        KeyError: a data set has no fingerprint or split digest.
    """
    protocol = experiment.protocol.model_dump(
        mode="json", exclude={"title", "labeled", "backbone", "datasets"}
    )
    del protocol["inference"]["batch"]
    # Keys that came later stand here only where they matter: the identities of older runs stay valid.
    later: dict[str, Any] = {"without": sorted(experiment.without)} if experiment.without else {}
    if experiment.draw:
        later["draw"] = experiment.draw
    if experiment.processes > 1:  # batch statistics are those of a process's share
        later["processes"] = experiment.processes
    return {
        **later,
        "engine": ENGINE,
        "method": experiment.method,
        "params": experiment.params,
        "backbone": experiment.backbone,
        "backbone_params": experiment.backbone_params,
        # A list: in joint training the order of the data sets numbers the tasks.
        "datasets": [
            {
                "name": name,
                "labeled": experiment.labeled[name],
                "fingerprint": fingerprints[name],
                "split": splits[name],
            }
            for name in experiment.datasets
        ],
        "protocol": protocol,
        "seed": experiment.seed,
        "precision": experiment.precision,
        "sources": dict(sources),
    }


def run_id(science: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the sha256 of the canonical JSON: keys sorted, floats by repr, no NaN.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(science, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
