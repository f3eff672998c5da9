"""What a training reports while it works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segbench.training.setup import Prepared


@dataclass(frozen=True)
class StepReport:
    """The outcome of one training step."""

    step: int  # completed steps, this one included
    total: int
    phase: str
    terms: dict[str, float]  # loss terms, already weighted
    lr: float  # learning rate of the first player


class Reporter:
    """Base class of progress displays. Every method does nothing unless a subclass overrides it."""

    def start(self, run: Prepared) -> None:
        """Called once, when the networks are built and the run directory is written."""

    def schedule(self, text: str) -> None:
        """Called once with the phases of the training and the steps at which the rate drops."""

    def check(self, done: int, total: int, case: str) -> None:
        """Called after the files of a case were compared with their digests."""

    def train(self, report: StepReport) -> None:
        """Called after every training step."""

    def record(self, line: dict[str, Any]) -> None:
        """Called with every line of ``log.jsonl`` when it is written."""

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Called after every case that was predicted and scored."""

    def result(self, result: dict[str, Any]) -> None:
        """Called with the result after it was written; not with that of an earlier attempt."""

    def warn(self, text: str) -> None:
        """Called with a warning that the user should see."""

    def stopping(self, signal_name: str) -> None:
        """Called at once when a signal asks for a stop, within its handler."""

    def end(self, code: int) -> None:
        """Called at the end of the attempt with its exit code: 0 done, 75 and higher stopped."""
