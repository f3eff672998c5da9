"""Bases of declared parameters; no torch here, so that configuration can be read without it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["BackboneParams", "MethodParams"]


class MethodParams(BaseModel):
    """Typed, ranged, documented hyper-parameters. Configuration, CLI, documentation and run hash come from them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneParams(BaseModel):
    """Typed, ranged, documented parameters of a backbone."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
