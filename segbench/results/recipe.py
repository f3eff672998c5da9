"""How the settings of a run differ from the recipe of its method's authors."""

from __future__ import annotations

from typing import Any

from segbench.config import resolve
from segbench.config.protocol import published_recipes
from segbench.config.schema import flatten
from segbench.errors import SegbenchError
from segbench.identity.run_id import protocol_content

DESCRIPTIVE = ("name", "version", "policy")  # keys of a protocol that are no part of a recipe
UNKNOWN = "no recipe of the authors"


def recipe_mark(science: dict[str, Any]) -> str:
    """Return how a run differs from a published one: ``other recipe: 6,000 of 15,000 steps``.

    Args:
        science: what decides the numbers of the run, as stored with it.

    Returns:
        An empty text if the run has the authors' recipe.
    """
    datasets = ",".join(entry["name"] for entry in science["datasets"])
    method = science["method"]
    name = published_recipes(datasets).get(method)
    if name is None:
        return UNKNOWN
    try:
        (wanted,) = resolve(method, dataset=datasets, protocol=name, labeled=1).experiments
    except SegbenchError:  # a plug-in is not available here
        return UNKNOWN
    theirs = protocol_content(wanted.protocol)
    ours = dict(science["protocol"])
    steps, usual_steps = ours.pop("steps"), theirs.pop("steps")
    differing = _differing(flatten(ours), flatten(theirs))
    differing += _differing(science["params"], wanted.params)
    backbones = [science["backbone"], science["backbone_params"]]
    if backbones != [wanted.backbone, wanted.backbone_params]:
        differing.append("backbone")
    parts = []
    if steps != usual_steps:
        parts.append(f"{steps:,} of {usual_steps:,} steps")
    groups = dict.fromkeys(key.split(".")[0] for key in differing)
    parts += [group for group in groups if group not in DESCRIPTIVE]
    return f"other recipe: {', '.join(parts)}" if parts else ""


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return the keys with different values; a key that only one of them has is one."""
    missing = object()
    keys = dict.fromkeys([*ours, *theirs])
    return [key for key in keys if ours.get(key, missing) != theirs.get(key, missing)]
