"""Progress displays: bars with a remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from segbench.cli.settings import Settings
from segbench.cli.terminal import console
from segbench.progress import Progress, no_progress
from segbench.text import safe
from segbench.training.reporter import Reporter, StepReport

if TYPE_CHECKING:
    from segbench.data.store.store import Store
    from segbench.training.setup import Prepared

INTERVAL = 60.0  # seconds between two lines


class Lines(Reporter):
    """One line per minute on stderr."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._first_time = 0.0  # when the first step of this attempt was reported
        self._first_step: int | None = None
        self._last_line = 0.0

    def start(self, run: Prepared) -> None:
        """Print what is about to happen."""
        self._first_step = None
        self._last_line = time.monotonic()
        self.settings.say(header(run))

    def schedule(self, text: str) -> None:
        """Print the phases and the learning rate."""
        self.settings.say(f"  {safe(text)}")

    def train(self, report: StepReport) -> None:
        """Print the state of the training, at most once per minute."""
        now = time.monotonic()
        if self._first_step is None:
            self._first_step = report.step
            self._first_time = now
        if self._is_due(last=report.step == report.total):
            self._print(self._training_line(report, now))

    def check(self, done: int, total: int, case: str) -> None:
        """Print how many cases were compared with their digests, at most once per minute."""
        if self._is_due(last=False):
            self._print(f"checked the files of {done}/{total} cases")

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Print how many cases were evaluated, at most once per minute and at the end."""
        if self._is_due(last=done == total):
            self._print(f"test {done}/{total} cases")

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.settings.warn(text)

    def stop(self) -> None:
        """Leave the terminal as it was."""

    def _is_due(self, last: bool) -> bool:
        return last or time.monotonic() - self._last_line >= INTERVAL

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.settings.say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")

    def _training_line(self, report: StepReport, now: float) -> str:
        """Return step, percentage, loss terms, learning rate, speed and remaining time."""
        assert self._first_step is not None
        percent = report.step * 100 // report.total
        parts = [f"step {report.step}/{report.total} {percent}%", safe(report.phase)]
        parts += [f"{safe(name)} {value:.4f}" for name, value in report.terms.items()]
        parts.append(f"lr {report.lr:.1e}")
        elapsed = max(now - self._first_time, 1e-9)
        steps_per_second = (report.step - self._first_step) / elapsed
        if steps_per_second > 0:
            remaining = (report.total - report.step) / steps_per_second
            parts.append(f"{steps_per_second:.2f} it/s ETA {duration(remaining)}")
        return " ".join(parts)


class Bars(Lines):
    """A live bar."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._bar: Any = None

    def train(self, report: StepReport) -> None:
        """Show the step and the loss terms."""
        terms = [f"{safe(name)} {value:.3f}" for name, value in report.terms.items()]
        self._show("train", report.step, report.total, " ".join(terms))

    def check(self, done: int, total: int, case: str) -> None:
        """Show how many cases were compared with their digests."""
        self._show("check", done, total, safe(case))

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Show how many cases were evaluated."""
        self._show("test ", done, total, safe(case))

    def stop(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, what: str, done: int, total: int, text: str) -> None:
        if self._bar is None or self._bar.tasks[0].description != what:
            self.stop()
            self._bar = _new_bar()
            self._bar.start()
            self._bar.add_task(what, total=total, completed=done, text="")
        self._bar.update(0, completed=done, text=text)


def _new_bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=console(stderr=True),
        transient=True,
    )


@contextmanager
def reporting(settings: Settings) -> Iterator[Reporter]:
    """Show progress on stderr as long as the context lasts."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    live = terminal and not os.environ.get("CI") and settings.quiet == 0
    reporter = Bars(settings) if live else Lines(settings)
    try:
        yield reporter
    finally:
        reporter.stop()


@contextmanager
def counting(settings: Settings, title: str) -> Iterator[Progress]:
    """Show how far a long task is: a bar on a terminal, ten lines elsewhere."""
    if settings.quiet:
        yield no_progress
    elif sys.stderr.isatty():
        yield from _counting_bar(title)
    else:
        yield _counting_lines(settings, title)


def _counting_lines(settings: Settings, title: str) -> Progress:
    def report(done: int, total: int, name: str) -> None:
        tenth = done * 10 // total
        previous_tenth = (done - 1) * 10 // total
        if done == total or tenth > previous_tenth:
            settings.say(safe(f"{title}  {done}/{total}  {name}"))

    return report


def _counting_bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(title), total=None)

        def report(done: int, total: int, name: str) -> None:
            description = f"{escape(title)}  {escape(name)}"
            bar.update(task, completed=done, total=total, description=description)

        yield report


def header(run: Prepared) -> str:
    """Return three lines about a run that is going to start."""
    experiment = run.experiment
    protocol = experiment.protocol
    data = ", ".join(_data_summary(run, store) for store in run.stores)
    modified = f" · modified: {', '.join(experiment.modified)}" if experiment.modified else ""
    facts = [
        experiment.backbone,
        f"protocol {protocol.name} {protocol.version}{modified}",
        f"seed {experiment.seed}",
        f"{protocol.steps * len(run.stores):,} steps",
        experiment.precision,
        f"selection: {protocol.selection} checkpoint",
    ]
    lines = [f"{experiment.method} on {safe(data)}", " · ".join(facts), str(run.folder.path)]
    return "\n  ".join(lines)


def _data_summary(run: Prepared, store: Store) -> str:
    experiment = run.experiment
    draw = f", draw {experiment.draw}" if experiment.draw else ""
    partial = ", PARTIAL COPY" if store.partial else ""
    labeled = f"{experiment.labeled[store.name]} of {len(store.patients)} labeled"
    return f"{store.name} ({labeled}{draw}, {len(store.test)} test{partial})"


def duration(seconds: float) -> str:
    """Return seconds as 42s, 3m05s or 1h12m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
