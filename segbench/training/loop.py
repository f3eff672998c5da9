"""The training loop: steps, log, checkpoints, snapshots, and what to do when a signal arrives.

On a GPU the loss terms of a step are read after the next step was queued, so that the device never
waits for Python. They are always read before a checkpoint is written: no state after a loss that is
not finite is stored.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from segbench.config.machine import Cadence
from segbench.contracts.method import Batch
from segbench.data.sampling.loader import Step as BatchRequest
from segbench.errors import Interrupted
from segbench.training import checkpoint
from segbench.training.cost import Cost
from segbench.training.placement import memory_format, steps_read_late
from segbench.training.plan import stage_of
from segbench.training.reporter import StepReport
from segbench.training.signals import StopRequest, stop_request
from segbench.training.step import MadeStep, TrainingStep

LOGGED_STEPS = 1000  # a long training logs about this many of its steps


def _report_nothing(report: StepReport) -> None:
    pass


def _record_nothing(line: dict[str, Any]) -> None:
    pass


class Trainer:
    """Trains a method to the end. Its folder holds all that is needed to continue after a kill.

    Args:
        folder: the run directory, with ``log.jsonl`` and the folders ``ckpt`` and ``snapshots``.
        header: stored with every checkpoint; a warning is given if it changed when resuming.
        snapshots: numbers of completed steps after which the weights are kept for a later choice.
        late: number of newest steps whose loss terms are not read yet; None for the device's usual
            number.
        record: called with every line of the log when it is written.
    """

    def __init__(
        self,
        train_step: TrainingStep,
        folder: Path,
        header: dict[str, Any] | None = None,
        snapshots: frozenset[int] = frozenset(),
        late: int | None = None,
        record: Callable[[dict[str, Any]], None] = _record_nothing,
    ) -> None:
        self.train_step = train_step
        self.method = train_step.method
        self.plan = train_step.plan
        self.total = train_step.total
        self.world = train_step.settings.world
        self.folder = folder
        self.log = folder / "log.jsonl"
        self.header = {**(header or {}), "memory_format": memory_format(self.method)}
        self.snapshots = snapshots
        self.record = record
        self.completed = 0  # steps
        self.seconds = 0.0  # spent in training, over all attempts
        self.cost = Cost(train_step.device)
        self.warnings: list[str] = []
        self.late = steps_read_late(train_step.device) if late is None else late
        self._unread: deque[MadeStep] = deque()  # steps whose loss terms were not read
        # With which exit code, and after which step, all processes of the training stop.
        self._agreed_code = 0
        self._agreed_step = 0

    def fit(
        self,
        batches: Callable[[list[BatchRequest]], Iterator[Batch]],
        cadence: Cadence,
        report: Callable[[StepReport], None] = _report_nothing,
    ) -> None:
        """Train to the end, from the newest checkpoint if there is one.

        Args:
            batches: returns the batches of a plan, in order.

        Raises:
            Interrupted: a signal requested a stop; the state is saved.
            TrainingError: a loss is not finite, or the method failed.
        """
        self._resume()
        seconds_before = self.seconds
        started = time.monotonic()
        saved = started
        remaining = self._batch_plan()[self.completed :]
        with self._open_log() as log, stop_request() as stop:
            for batch in batches(remaining):
                # Train one step.
                self.train_step.stop_code = stop.code or 0
                try:
                    made = self._counted_step(batch)
                except Exception:
                    # A loss of an earlier step that is not finite explains the failure better.
                    self._read_terms(log, report)
                    raise
                self.completed = made.completed
                self.seconds = seconds_before + time.monotonic() - started

                # Log the loss terms, except those of the newest steps.
                self._unread.append(made)
                self._read_terms(log, report, keep=self.late)
                if self.completed in self.snapshots:
                    self._read_terms(log, report)
                    self._save_snapshot()

                # Save. All processes of a training stop after the same step.
                stop_code = self._stop_code(stop)
                is_last = self.completed == self.total
                is_due = cadence.due(self.completed, time.monotonic() - saved)
                if is_last or stop_code or is_due:
                    self._read_terms(log, report)
                    self._save(log)
                    saved = time.monotonic()
                if stop_code:
                    signal = stop.name or "signal"
                    raise Interrupted(
                        f"{signal}: stopped after step {self.completed}, saved", stop_code
                    )

    def keep_weights_only(self) -> None:
        """Replace the checkpoints of a finished training by one with nothing but the weights."""
        state = {"method": self.method.state_dict()}
        header = self._checkpoint_header(self.log.stat().st_size)
        checkpoint.save(self.folder / "ckpt", self.completed, state, header, keep=1)

    def _stop_code(self, stop: StopRequest) -> int:
        """Return the exit code with which to stop now; 0 if the training goes on."""
        if self.world.size == 1:
            return stop.code or 0
        return self._agreed_code if self.completed >= self._agreed_step else 0

    def _counted_step(self, batch: Batch) -> MadeStep:
        """Make the next step; the first one of each phase counts the networks' input volumes."""
        phase = stage_of(self.plan, self.completed).phase.name
        with self.cost.counted(self.method, phase):
            return self.train_step(self.completed, batch)

    def _batch_plan(self) -> list[BatchRequest]:
        plan = []
        for stage in self.plan:
            for phase_step in range(stage.steps):
                plan.append((stage.index, phase_step, stage.labeled, stage.unlabeled))
        return plan

    # -- the log: written by the first process alone ---------------------------------------------

    def _read_terms(
        self, log: IO[bytes], report: Callable[[StepReport], None], keep: int = 0
    ) -> None:
        """Read, log and report the loss terms of all steps except the ``keep`` newest.

        Raises:
            TrainingError: a loss term is not finite.
        """
        while len(self._unread) > keep:
            made = self._unread.popleft()
            outcome = made.report()
            self._log_step(log, outcome)
            report(outcome)
            # Processes may read a step at different times, so they count from the step itself.
            code = made.stop_code()
            if code and not self._agreed_code:
                self._agreed_code = code
                self._agreed_step = made.completed + self.late

    def _open_log(self) -> IO[bytes]:
        file = self.log if self.world.rank == 0 else Path(os.devnull)
        return file.open("ab")

    def _log_step(self, log: IO[bytes], outcome: StepReport) -> None:
        step = outcome.step - 1
        every = max(1, self.total // LOGGED_STEPS)
        if step % every != 0 and outcome.step != self.total:
            return
        line = {
            "step": step,
            "phase": outcome.phase,
            "lr": outcome.lr,
            "seconds": round(self.seconds, 3),
            **outcome.terms,
        }
        log.write(json.dumps(line).encode() + b"\n")
        self.record(line)

    # -- checkpoints: written by the first process alone -----------------------------------------

    def _resume(self) -> None:
        """Restore the newest checkpoint, or start an empty log if there is none."""
        found = checkpoint.load(self.folder / "ckpt")
        if found is None:
            if self.world.rank == 0:
                self.log.write_bytes(b"")
            return
        step, state, header, warnings = found
        self.warnings += warnings
        self._warn_of_changes(header)
        self.completed = step
        self.seconds = header["seconds"]
        self.cost.restore(header.get("cost"))
        self.train_step.restore(step, state)
        if self.world.rank == 0:
            with self.log.open("r+b") as log:  # remove the lines of steps that are made again
                log.truncate(header["log_bytes"])

    def _warn_of_changes(self, stored: dict[str, Any]) -> None:
        changes = []
        for name, value in self.header.items():
            if stored.get(name) != value:
                changes.append(f"{name} {stored.get(name)} -> {value}")
        if changes:
            self.warnings.append(
                f"resumed with {', '.join(changes)}: the last digits of the result may differ "
                "from those of an uninterrupted run"
            )

    def _save(self, log: IO[bytes]) -> None:
        if self.world.rank > 0:
            return
        log.flush()
        os.fsync(log.fileno())
        header = self._checkpoint_header(log.tell())
        checkpoint.save(self.folder / "ckpt", self.completed, self.train_step.state(), header)

    def _checkpoint_header(self, log_bytes: int) -> dict[str, Any]:
        return {
            **self.header,
            "seconds": self.seconds,
            "cost": self.cost.to_dict(),
            "log_bytes": log_bytes,
        }

    def _save_snapshot(self) -> None:
        """Keep the weights in ``snapshots``; a step that is made again writes the same file."""
        if self.world.rank > 0:
            return
        checkpoint.save(
            self.folder / "snapshots",
            self.completed,
            {"method": self.method.state_dict()},
            {"run_id": self.header.get("run_id")},
            keep=len(self.snapshots),
        )
