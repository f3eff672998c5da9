"""Passes the records of a training on to experiment trackers, beside what shows the progress."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench.errors import PLUGIN_FAILURES
from segbench.results.names import label_of_experiment
from segbench.results.rundir import RunDir, read_object
from segbench.storage import write_if_possible
from segbench.tracking.base import TRACKING, TrackedRun, Tracker, means_of, values_of
from segbench.tracking.choose import open_tracker
from segbench.training.reporter import Reporter, StepReport

if TYPE_CHECKING:
    from segbench.training.setup import Prepared

LONGEST_REASON = 200  # characters of a tracker's error in a warning


class TrackedReporter(Reporter):
    """Passes reports on, and sends records to trackers. One that fails is left out, with a warning.

    Args:
        shown: shows the progress.
        names: the trackers.
        root: folder of the results.
    """

    def __init__(self, shown: Reporter, names: Iterable[str], root: Path) -> None:
        self.shown = shown
        self.names = tuple(names)
        self.root = root
        self._trackers: dict[str, Tracker] = {}
        self._last_steps: dict[str, int] = {}  # that trackers hold from earlier attempts
        self._folder: RunDir | None = None
        self._has_caught_up = False

    # -- passed on as it is ------------------------------------------------------------------------

    def schedule(self, text: str) -> None:
        """Called once with the phases of the training."""
        self.shown.schedule(text)

    def check(self, done: int, total: int, case: str) -> None:
        """Called after the files of a case were compared with their digests."""
        self.shown.check(done, total, case)

    def train(self, report: StepReport) -> None:
        """Called after every training step."""
        self.shown.train(report)

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Called after every case that was predicted and scored."""
        self.shown.evaluate(done, total, case)

    def warn(self, text: str) -> None:
        """Called with a warning that the user should see."""
        self.shown.warn(text)

    def stopping(self, signal_name: str) -> None:
        """Called at once when a signal asks for a stop."""
        self.shown.stopping(signal_name)

    # -- sent to trackers --------------------------------------------------------------------------

    def start(self, run: Prepared) -> None:
        """Open the run at all trackers."""
        self.shown.start(run)
        self._folder = run.folder
        known = read_object(run.folder.path / TRACKING)
        for name in self.names:
            with self._surviving(name):
                tracked = _tracked_run(run, self.root, str(known.get(name, "")))
                tracker = open_tracker(name, tracked)
                self._last_steps[name] = tracker.last_step
                self._trackers[name] = tracker
                if tracker.known_as:
                    known[name] = tracker.known_as
        if known:
            write_if_possible(run.folder.path / TRACKING, json.dumps(known))

    def record(self, line: dict[str, Any]) -> None:
        """Send a line of the log, the first time together with all lines before it."""
        self.shown.record(line)
        self._catch_up(before=line["step"])
        self._send([line])

    def result(self, result: dict[str, Any]) -> None:
        """Send the means over the test cases."""
        self.shown.result(result)
        steps = result["steps"]
        self._catch_up(before=steps)
        means = means_of(result["metrics"])
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.result(steps - 1, means)

    def end(self, code: int) -> None:
        """End the attempt at all trackers."""
        self.shown.end(code)
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.close(code)
        self._trackers.clear()

    def _catch_up(self, before: int) -> None:
        """Send the stored lines of earlier attempts.

        The first new line shows that the log was cut to the checkpoint that training continued
        from.
        """
        if self._has_caught_up or self._folder is None:
            return
        self._has_caught_up = True
        self._send([line for line in self._folder.log() if line["step"] < before])

    def _send(self, lines: list[dict[str, Any]]) -> None:
        """Send lines, except those that a tracker holds from an earlier attempt."""
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                for line in lines:
                    if line["step"] > self._last_steps[name]:
                        tracker.record(line["step"], values_of(line))

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        """If something fails in the block, warn, and continue without the tracker."""
        try:
            yield
        except PLUGIN_FAILURES as error:
            self._trackers.pop(name, None)
            reason = str(error).strip().partition("\n")[0][:LONGEST_REASON]
            self.warn(
                f"{name} failed and gets no more records of this run, which continues "
                f"({type(error).__name__}: {reason})"
            )


def _tracked_run(run: Prepared, root: Path, known_as: str) -> TrackedRun:
    experiment = run.experiment
    data = "+".join(experiment.datasets)
    draw = f", draw {experiment.draw}" if experiment.draw else ""
    return TrackedRun(
        folder=run.folder,
        run_id=run.run_id,
        name=f"{label_of_experiment(experiment)} on {data}{draw}, seed {experiment.seed}",
        group=data,
        settings=experiment.model_dump(mode="json"),
        root=root,
        known_as=known_as,
    )
