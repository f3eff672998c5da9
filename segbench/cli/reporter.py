"""What a run shows while it works: bars with an ETA on a terminal, one plain line a minute off it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Settings, console, safe
from segbench.progress import Progress
from segbench.training.reporter import Reporter, StepReport

if TYPE_CHECKING:
    from segbench.training.setup import Prepared


class Lines(Reporter):
    """One line a minute, on stderr."""

    interval = 60.0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.began: tuple[float, int] | None = None
        self.told = 0.0

    def start(self, run: Prepared) -> None:
        """The header: what is about to happen."""
        self.began, self.told = None, time.monotonic()
        self.settings.say(header(run))

    def train(self, report: StepReport) -> None:
        """After a step."""
        now = time.monotonic()
        if self.began is None:
            self.began = (now, report.step)
        if now - self.told >= self.interval or report.step == report.total:
            self.told = now
            self.settings.say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self.line(report, now)}")

    def line(self, report: StepReport, now: float) -> str:
        """Step, share, terms, learning rate, speed and time left."""
        assert self.began is not None
        rate = (report.step - self.began[1]) / max(now - self.began[0], 1e-9)
        left = (
            f" {rate:.2f} it/s ETA {duration((report.total - report.step) / rate)}"
            if rate > 0
            else ""
        )
        terms = " ".join(f"{safe(k)} {v:.4f}" for k, v in report.terms.items())
        return (
            f"step {report.step}/{report.total} {report.step * 100 // report.total}% "
            f"{safe(report.phase)} {terms} lr {report.lr:.1e}{left}"
        )

    def check(self, done: int, total: int, case: str) -> None:
        """After the files of a case were compared with their digests."""
        if time.monotonic() - self.told >= self.interval:
            self.told = time.monotonic()
            self.settings.say(
                f"{time.strftime('%Y-%m-%dT%H:%M:%S')} checked the files of {done}/{total} cases"
            )

    def evaluate(self, done: int, total: int, case: str) -> None:
        """After a test case."""
        if done == total or time.monotonic() - self.told >= self.interval:
            self.told = time.monotonic()
            self.settings.say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} test {done}/{total} cases")

    def warn(self, text: str) -> None:
        """A warning."""
        click.echo(f"warning: {safe(text)}", err=True)

    def stop(self) -> None:
        """Put the terminal back."""


class Bars(Lines):
    """A live bar."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.progress: Any = None

    def _show(self, what: str, done: int, total: int, text: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.progress is None or self.progress.tasks[0].description != what:
            self.stop()
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(24),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                console=console(stderr=True),
                transient=True,
            )
            self.progress.start()
            self.progress.add_task(what, total=total, completed=done, text="")
        self.progress.update(0, completed=done, text=text)

    def train(self, report: StepReport) -> None:
        """After a step."""
        terms = " ".join(f"{safe(k)} {v:.3f}" for k, v in report.terms.items())
        self._show("train", report.step, report.total, terms)

    def check(self, done: int, total: int, case: str) -> None:
        """After the files of a case were compared with their digests."""
        self._show("check", done, total, safe(case))

    def evaluate(self, done: int, total: int, case: str) -> None:
        """After a test case."""
        self._show("test ", done, total, safe(case))

    def stop(self) -> None:
        """Put the terminal back."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def reporter(settings: Settings) -> Lines:
    """The one that fits where stderr goes."""
    import os

    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")
    return Bars(settings) if live and settings.quiet == 0 else Lines(settings)


def header(run: Prepared) -> str:
    """Three lines before a run starts."""
    e = run.experiment
    draw = f", draw {e.draw}" if e.draw else ""
    data = ", ".join(
        f"{s.name} ({e.labeled[s.name]} of {len(s.patients)} labeled{draw}, {len(s.test)} test"
        f"{', PARTIAL COPY' if s.partial else ''})"
        for s in run.stores
    )
    modified = f" · modified: {', '.join(e.modified)}" if e.modified else ""
    return (
        f"{e.method} on {safe(data)}\n"
        f"  {e.backbone} · protocol {e.protocol.name} {e.protocol.version}{modified} · seed {e.seed} · "
        f"{e.protocol.steps * len(run.stores):,} steps · {e.precision} · selection: {e.protocol.selection} checkpoint\n"
        f"  {run.folder.path}"
    )


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 1h12m."""
    s = round(seconds)
    return (
        f"{s}s"
        if s < 60
        else f"{s // 60}m{s % 60:02d}s"
        if s < 3600
        else f"{s // 3600}h{s % 3600 // 60:02d}m"
    )


@contextmanager
def counted(settings: Settings, title: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line at each tenth, so that a log shows life and stays short."""
    if settings.quiet:
        yield lambda done, total, case: None
        return
    if not sys.stderr.isatty():

        def line(done: int, total: int, case: str) -> None:
            if done == total or done * 10 // total > (done - 1) * 10 // total:
                settings.say(safe(f"{title}  {done}/{total}  {case}"))

        yield line
        return
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(escape(title), total=None)
        yield lambda done, total, case: bars.update(
            bar, completed=done, total=total, description=f"{escape(title)}  {escape(case)}"
        )
