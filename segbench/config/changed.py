"""Which parameters of an experiment differ from those that its protocol and method suggest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segbench import registry
from segbench.config.experiment import Experiment


def changed_params(experiment: Experiment) -> dict[str, Any]:
    """Return the parameters of method and backbone that are not those of the protocol."""
    preset = experiment.protocol.methods.get(experiment.method, {})
    changed = changed_method_params(experiment.method, preset, experiment.params)
    for key, value in experiment.backbone_params.items():
        if f"backbone.{key}" in experiment.modified:
            changed[f"backbone.{key}"] = value
    return changed


def changed_method_params(
    method: str, preset: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters of a method that are not the usual ones.

    Args:
        method: name of the method.
        preset: the parameters that the protocol sets; all others have the method's defaults.
        params: the parameters of a run.
    """
    usual = registry.get("method", method).cls.Params().model_dump(mode="json")
    usual.update(preset)
    changed = {}
    for key, value in params.items():
        if usual.get(key) != value:
            changed[key] = value
    return _without_implied(changed, method, preset, params)


def _without_implied(
    changed: dict[str, Any], method: str, preset: Mapping[str, Any], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Return changed parameters without those that follow from the others.

    For example, ``variant=released`` of VerSemi sets the defaults of two other parameters.
    """
    params_class = registry.get("method", method).cls.Params
    kept = dict(changed)
    for key in changed:
        others = {name: value for name, value in kept.items() if name != key}
        given = {**preset, **others}
        try:
            same = params_class(**given).model_dump(mode="json") == params
        except ValueError:  # the parameters are not allowed without this one
            same = False
        if same:
            kept = others
    return kept
