"""TensorBoard: event files in the run directory, also written from stored logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segbench.results.rundir import RunDir, is_number
from segbench.tracking.base import TrackedRun, Tracker, values_of

FOLDER = "tensorboard"  # in the run directory
FLUSH_SECONDS = 10


class TensorBoard(Tracker):
    """Writes ``tensorboard/`` in the run directory; ``tensorboard --logdir ROOT`` finds all runs.

    A resumed run writes all of its steps again, so that the file equals the log.
    """

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        self._writer = _new_writer(run.folder.path / FOLDER)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def result(self, step: int, values: dict[str, float]) -> None:
        """Write the means over the test cases at the last step."""
        self.record(step, values)

    def close(self, code: int) -> None:
        """Write what is left."""
        self._writer.close()


def _new_writer(folder: Path) -> Any:
    """Return a writer of a new event file in place of earlier ones.

    A running TensorBoard is asked to forget the earlier points.
    """
    from torch.utils.tensorboard.writer import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(str(folder), purge_step=0, flush_secs=FLUSH_SECONDS)


def export(runs: Iterable[RunDir], folder: Path) -> int:
    """Write the curves of each run, finished or not; return the number of runs written.

    The files of a run go to ``folder/<data set>/<method>/<run>``. Exporting again gives the same
    curves.
    """
    count = 0
    for run in runs:
        log = run.log()
        if not log:
            continue
        with _new_writer(folder / run.short_path) as writer:
            for line in log:
                _write_line(writer, line)
        count += 1
    return count


def _write_line(writer: Any, line: Mapping[str, Any]) -> None:
    """Write the numbers of one line of a log, at the seconds of the training."""
    seconds = line.get("seconds")
    time = seconds if is_number(seconds) else None
    for tag, value in values_of(line).items():
        writer.add_scalar(tag, value, line["step"], walltime=time)
