"""Define the base classes of declared parameters.

This module does not import torch, so that configuration can be read without it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["BackboneParams", "MethodParams"]


class MethodParams(BaseModel):
    """Base class of the hyperparameters of a method.

    Each parameter has a type, a range and a description. The configuration, the CLI, the
    documentation and the run hash are derived from them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneParams(BaseModel):
    """Base class of the parameters of a backbone, each with a type, a range and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
