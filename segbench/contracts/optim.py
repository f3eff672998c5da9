"""Define the optimizer and the learning-rate schedule as data.

This module does not import torch, so that protocols can be read without it.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Optim"]


class Optim(BaseModel):
    """Settings of an optimizer and its learning-rate schedule; the engine builds both.

    ``milestones`` are step numbers in a run of ``reference`` steps, the length that the protocol
    defines. They are scaled if a run is longer or shorter, unless ``scale_milestones`` is false.
    In a phase with an optimizer of its own, steps count from the start of that phase.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["sgd", "nesterov", "adam", "adamw"] = Field(
        default="sgd", description="optimizer algorithm; nesterov: SGD with Nesterov momentum"
    )
    lr: float = Field(default=0.01, gt=0, description="initial learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum (sgd and nesterov)")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="decay rates of the moment estimates (Adam and AdamW)"
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="weight decay of all parameters")
    schedule: Literal["constant", "step", "poly", "poly_late"] = Field(
        default="constant",
        description="learning-rate schedule; poly_late: poly one step later, as in code that sets "
        "the rate after a step with the number of that step",
    )
    milestones: tuple[int, ...] = Field(
        default=(), description="steps that divide the learning rate by 10 (schedule step)"
    )
    reference: int = Field(
        default=1, ge=1, description="number of training steps that the milestones refer to"
    )
    scale_milestones: bool = Field(
        default=True,
        description="scale milestones to the length of the run; false: they are its step numbers",
    )
    power: float = Field(default=0.9, gt=0, description="exponent (poly and poly_late)")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "nesterov" and self.momentum == 0:
            raise ValueError("Nesterov momentum needs a momentum above 0")
        return self

    @property
    def falls(self) -> bool:
        """Whether the rate falls at every step."""
        return self.schedule in ("poly", "poly_late")

    def drops(self, total: int) -> list[int]:
        """Return the steps (from 0) of a run of ``total`` steps that divide the rate by 10."""
        if self.schedule != "step":
            return []
        if not self.scale_milestones:
            return list(self.milestones)
        # The first step s with s / total >= milestone / reference.
        return [-(-milestone * total // self.reference) for milestone in self.milestones]

    def lr_at(self, step: int, total: int) -> float:
        """Return the learning rate at ``step`` (from 0) of a run of ``total`` steps.

        This is a pure function, so a resumed run needs no scheduler state.
        """
        if self.schedule == "step":
            drops = [step >= drop for drop in self.drops(total)]
            return self.lr * float(0.1 ** sum(drops))
        if self.falls:
            passed = max(step - 1, 0) if self.schedule == "poly_late" else step
            return self.lr * float((1 - passed / total) ** self.power)
        return self.lr
