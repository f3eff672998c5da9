"""The version of the engine's number-deciding code, and the digest that guards it."""

from __future__ import annotations

from pathlib import Path

import segbench
from segbench.identity.modules import ENGINE_MODULES, matches
from segbench.identity.sources import Closure

# Part of every run's identity. Raise it when a change of ``ENGINE_MODULES`` changes numbers: all
# runs count as new then.
ENGINE = 3

# What ``engine_digest`` returned when ENGINE or this line was changed last.
PINNED_DIGEST = "a75d7d4725de98204ccc5669502c04cf9fa3ad7653f25b5b2ead14419a230cfb"


def engine_modules() -> list[str]:
    """Return the names of all modules of the engine that decide numbers."""
    package = Path(segbench.__file__).parent
    found = []
    for file in sorted(package.rglob("*.py")):
        relative = file.relative_to(package).with_suffix("")
        module = ".".join(("segbench", *relative.parts)).removesuffix(".__init__")
        if matches(module, ENGINE_MODULES):
            found.append(module)
    return found


def engine_digest() -> str:
    """Return a digest of the engine's number-deciding code and of all that it uses."""
    closure = Closure({})
    for module in engine_modules():
        closure.add_module(module)
    return closure.digest()
