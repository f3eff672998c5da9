"""Which stored results were computed by older code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from segbench.errors import SegbenchError
from segbench.identity.engine import ENGINE
from segbench.identity.sources import source_digest


def outdated_parts(science: Mapping[str, Any]) -> list[str]:
    """Return what has changed since a result was computed.

    Examples are ``engine 1, now 2`` and ``method bcp``.

    ``science`` is the stored identity of the result. A plug-in that is not here any more cannot be
    compared and is not listed.
    """
    changed = []
    engine = science.get("engine")
    if engine != ENGINE:
        changed.append(f"engine {engine}, now {ENGINE}")
    for kind, stored in science.get("sources", {}).items():
        plugin_kind, _, named = kind.partition(" ")  # such as "backbone", or "backbone resvnet"
        name = named or str(science.get(kind, ""))
        current = _current_digest(plugin_kind, name)
        if current is not None and current != stored:
            changed.append(f"{plugin_kind} {name}")
    return changed


@cache
def _current_digest(kind: str, name: str) -> str | None:
    try:
        return source_digest(kind, name)
    except SegbenchError:
        return None
