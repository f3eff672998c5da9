"""Optimizer and learning-rate schedule as data; no torch here, so that protocols can be read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Optim"]


class Optim(BaseModel):
    """An optimizer and its learning-rate schedule, as data; the engine builds it.

    ``milestones`` are steps of ``reference`` (the protocol's length), scaled when a run is longer or shorter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="kind of optimizer")
    lr: float = Field(default=0.01, gt=0, description="learning rate at the start")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD only")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Adam only")
    weight_decay: float = Field(default=1e-4, ge=0, description="on all parameters")
    schedule: Literal["constant", "step", "poly"] = Field(
        default="constant", description="of the learning rate"
    )
    milestones: tuple[int, ...] = Field(
        default=(), description="steps at which the rate drops by ten (step)"
    )
    reference: int = Field(
        default=1, ge=1, description="length of training the milestones refer to"
    )
    power: float = Field(default=0.9, gt=0, description="exponent (poly)")

    def lr_at(self, step: int, total: int) -> float:
        """Learning rate of ``step`` (from 0) of ``total``; a pure function, so resuming needs no scheduler state."""
        if self.schedule == "step":
            passed = [step * self.reference >= m * total for m in self.milestones]
            return self.lr * float(0.1 ** sum(passed))
        if self.schedule == "poly":
            return self.lr * float((1 - step / total) ** self.power)
        return self.lr
