"""Weights & Biases. Its own variables decide where records go: WANDB_MODE=offline keeps them here.

Online, a resumed run continues the run of its first attempt. Offline, every attempt writes a folder
of its own that holds all steps, and the last folder is complete.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from segbench.tracking.base import FIRST_STOP_CODE, PROJECT, TrackedRun, Tracker


class WandB(Tracker):
    """One run of the project that WANDB_PROJECT names, ``segbench`` without it."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        import wandb

        own_folder = os.environ.get("WANDB_DIR")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.known_as or f"{run.run_id}-{secrets.token_hex(2)}",
            resume="allow",
            name=run.name,
            group=run.group,
            config=run.settings,
            dir=own_folder or str(run.root),
            settings=wandb.Settings(console="off", quiet=True),
        )

    @property
    def known_as(self) -> str:
        """The id of the run."""
        return str(self._run.id)

    @property
    def last_step(self) -> int:
        """The last step of earlier attempts; online only."""
        return int(self._run.starting_step) - 1

    def record(self, step: int, values: dict[str, float]) -> None:
        """Send the values of a step."""
        self._run.log(values, step=step)

    def result(self, step: int, values: dict[str, float]) -> None:
        """Put the means over the test cases into the run's summary."""
        self._run.summary.update(values)

    def close(self, code: int) -> None:
        """End the attempt; one that was stopped is marked as such."""
        if code >= FIRST_STOP_CODE:
            self._run.mark_preempting()
        self._run.finish(exit_code=code)
