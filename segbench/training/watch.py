"""What surrounds a run while it works: its lease, and the request to stop it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segbench.errors import SegbenchError
from segbench.results.attempts import record_end, record_start
from segbench.training.lease import Heartbeat
from segbench.training.reporter import Reporter, StepReport
from segbench.training.signals import CODES, StopRequest

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir
    from segbench.training.setup import Prepared

OTHER_ERROR = 1  # exit code


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
        self._heartbeat: Heartbeat | None = None
        stop.heard = reporter.stopping

    @contextmanager
    def attempt(self, folder: RunDir) -> Iterator[None]:
        """Within the block, an attempt at the run is recorded as running and then as ended."""
        folder.path.mkdir(parents=True, exist_ok=True)
        record_start(folder.path)
        code = OTHER_ERROR
        try:
            with Heartbeat(folder.path) as self._heartbeat:
                yield
            code = 0
        except SegbenchError as error:
            code = error.code
            raise
        except KeyboardInterrupt:
            code = CODES["SIGINT"]
            raise
        finally:
            self._heartbeat = None
            record_end(folder.path, code)
            self.shown.end(code)

    def _note(self, stage: str, step: int, total: int) -> None:
        if self._heartbeat is not None:
            self._heartbeat.note(stage, step, total)

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
        self._note("data", done, total)
        self.shown.check(done, total, case)
        self.leave_before_training()

    def train(self, report: StepReport) -> None:
        """Called after every training step."""
        self._note("training", report.step, report.total)
        self.shown.train(report)

    def record(self, line: dict[str, Any]) -> None:
        """Called with every line of ``log.jsonl``."""
        self.shown.record(line)

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Called after every case, whose scores are stored, on validation or test cases."""
        self._note("evaluation", done, total)
        self.shown.evaluate(done, total, case)
        self.stop.leave(f"after case {done} of {total}; scored cases are kept")

    def result(self, result: dict[str, Any]) -> None:
        """Called with the result after it was written."""
        self.shown.result(result)

    def warn(self, text: str) -> None:
        """Called with a warning that the user should see."""
        self.shown.warn(text)
