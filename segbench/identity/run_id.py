"""The identity of a run: a hash of everything that can change its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from segbench.config.experiment import Experiment
from segbench.config.protocol import Protocol
from segbench.identity.engine import ENGINE

# Parts of a protocol that describe it, or choices the experiment makes itself.
NOT_PART_OF_IDENTITY = {
    "title",
    "labeled",
    "methods",
    "backbone",
    "datasets",
    "expected",
    "published",
    "planned",
}
# Keys that protocols did not have from the start. With these values they change nothing, and are
# left out, so that earlier runs keep their identity.
LATER_KEYS = {"batch.fill": True, "optim.scale_milestones": True, "inference.precision": None}


def science(
    experiment: Experiment,
    fingerprints: Mapping[str, str],
    splits: Mapping[str, str],
    sources: Mapping[str, str],
    surface_rule: int | None = None,
    folds: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return everything that decides a run's numbers, as plain JSON values.

    Args:
        fingerprints: digest of the prepared data, by data set.
        splits: digest of the train and test lists, by data set.
        sources: digest of the source code of every plug-in, by kind.
        surface_rule: version of the rule for surfaces in volumes of one slice, None if no test case
            is one.
        folds: what all folds of each data set share, None without a cross-validation.

    Raises:
        KeyError: a data set has no fingerprint or split digest.
    """
    protocol = protocol_content(experiment.protocol)
    datasets = []
    for name in experiment.datasets:  # their order numbers the sources of a joint training
        entry: dict[str, Any] = {
            "name": name,
            "labeled": experiment.labeled[name],
            "fingerprint": fingerprints[name],
            "split": splits[name],
        }
        if folds is not None:
            entry["folds"] = dict(folds[name])
        datasets.append(entry)
    content = {
        "engine": ENGINE,
        "method": experiment.method,
        "params": experiment.params,
        "without": sorted(experiment.without),
        "backbone": experiment.backbone,
        "backbone_params": experiment.backbone_params,
        "datasets": datasets,
        "draw": experiment.draw,
        "unlabeled": experiment.unlabeled,
        "protocol": protocol,
        "seed": experiment.seed,
        "precision": experiment.precision,
        "processes": experiment.processes,  # batch statistics are those of a process's share
        "sources": dict(sources),
    }
    if surface_rule is not None:
        content["surface_rule"] = surface_rule
    if experiment.fold is not None:
        content["fold"] = experiment.fold
    return content


def protocol_content(protocol: Protocol) -> dict[str, Any]:
    """Return what of a protocol decides numbers, as plain JSON values."""
    content = protocol.model_dump(mode="json", exclude=NOT_PART_OF_IDENTITY)
    del content["inference"]["batch"]  # decides speed and memory only
    for key, default in LATER_KEYS.items():
        group, name = key.split(".")
        if content[group][name] == default:
            del content[group][name]
    return content


def run_id(content: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of the canonical JSON of ``science``.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
