"""Which parameters of an experiment differ from those that its protocol and method suggest."""

from __future__ import annotations

from typing import Any

from segbench import registry
from segbench.config.experiment import Experiment


def changed_params(experiment: Experiment) -> dict[str, Any]:
    """Return the parameters of method and backbone that are not those of the protocol."""
    usual = registry.get("method", experiment.method).cls.Params().model_dump(mode="json")
    usual.update(experiment.protocol.methods.get(experiment.method, {}))
    changed = {}
    for key, value in experiment.params.items():
        if usual.get(key) != value:
            changed[key] = value
    changed = _without_implied(changed, experiment)
    for key, value in experiment.backbone_params.items():
        if f"backbone.{key}" in experiment.modified:
            changed[f"backbone.{key}"] = value
    return changed


def _without_implied(changed: dict[str, Any], experiment: Experiment) -> dict[str, Any]:
    """Return changed parameters without those that follow from the others.

    For example, ``variant=released`` of VerSemi sets the defaults of two other parameters.
    """
    params_class = registry.get("method", experiment.method).cls.Params
    preset = experiment.protocol.methods.get(experiment.method, {})
    kept = dict(changed)
    for key in changed:
        others = {name: value for name, value in kept.items() if name != key}
        given = {**preset, **others}
        try:
            same = params_class(**given).model_dump(mode="json") == experiment.params
        except ValueError:  # the parameters are not allowed without this one
            same = False
        if same:
            kept = others
    return kept
