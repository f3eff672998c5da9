"""What surrounds a run while it works: the request to stop, which every report looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segbench.training.reporter import Reporter, StepReport
from segbench.training.signals import StopRequest

if TYPE_CHECKING:
    from segbench.training.setup import Prepared


class WatchedReporter(Reporter):
    """Passes reports on, and ends the run between two cases if a stop was requested.

    The training loop looks at the request itself, because it has to save first.

    Args:
        reporter: shows the progress.
        alone: whether no other process of this training waits for this one.
    """

    def __init__(self, reporter: Reporter, stop: StopRequest, alone: bool) -> None:
        self.shown = reporter
        self.stop = stop
        self.alone = alone

    def leave_before_training(self) -> None:
        """End the run before its training. Others would wait for this process, so it stays then.

        Raises:
            Interrupted: a stop was requested.
        """
        if self.alone:
            self.stop.leave("before the training")

    def start(self, run: Prepared) -> None:
        """Called once, when the networks are built."""
        self.shown.start(run)
        self.leave_before_training()

    def schedule(self, text: str) -> None:
        """Called once with the phases of the training."""
        self.shown.schedule(text)
        self.leave_before_training()

    def check(self, done: int, total: int, case: str) -> None:
        """Called after the files of a case were compared with their digests."""
        self.shown.check(done, total, case)
        self.leave_before_training()

    def train(self, report: StepReport) -> None:
        """Called after every training step."""
        self.shown.train(report)

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Called after every case, whose scores are stored, on validation or test cases."""
        self.shown.evaluate(done, total, case)
        self.stop.leave(f"after case {done} of {total}; scored cases are kept")

    def warn(self, text: str) -> None:
        """Called with a warning that the user should see."""
        self.shown.warn(text)
