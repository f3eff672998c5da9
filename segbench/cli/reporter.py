"""Progress displays: bars with a remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from segbench.cli.settings import Settings
from segbench.cli.terminal import console, width, wrapped
from segbench.progress import Progress, no_progress
from segbench.suites.progress_file import ProgressFile
from segbench.text import safe
from segbench.training.reporter import Reporter, StepReport

if TYPE_CHECKING:
    from segbench.data.store.store import Store
    from segbench.training.setup import Prepared

INTERVAL = 60.0  # seconds between two lines
MEASURED_STEPS = 3  # after which the remaining time is known
MEASURED_SECONDS = 20.0  # or after so long, for slow steps
WORTH_SAYING = 20.0  # seconds of training that are left
LONG_ON_CPU = 7200.0  # seconds
BAR = 16  # columns


def advice_if_busy() -> str:
    """Return advice for a processor with more work than cores; empty for a free one.

    There, the threads of one training wait for each other; one thread can be ten times faster.
    """
    import torch

    threads = torch.get_num_threads()
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    if threads == 1 or load <= cores + threads:
        return ""
    return (
        f"this machine is busy (load {load:.0f} on {cores} cores), where one thread can be much "
        "faster: Ctrl-C, export OMP_NUM_THREADS=1, and repeat the command, which continues"
    )


class Pace:
    """How long a step takes, from the first step of this attempt on.

    The first step also holds what is done once, such as compiling. It counts only as long as it is
    the only one, and only if it was long: whoever waits minutes for a step wants to know.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._first_step = 0
        self._first_time: float | None = None
        self._now = 0.0
        self._step = 0

    def begin(self, now: float) -> None:
        """Note that the first step begins."""
        self._began = now

    def note(self, step: int, now: float) -> None:
        """Note that a step was completed."""
        if self._first_time is None:
            self._first_time = now
            self._first_step = step
        self._now = now
        self._step = step

    @property
    def is_measured(self) -> bool:
        """Whether enough steps were made for an estimate."""
        steps = self._step - self._first_step
        if steps == 0:
            return self._long_first_step is not None
        return steps >= MEASURED_STEPS or self._elapsed >= MEASURED_SECONDS

    @property
    def _elapsed(self) -> float:
        return 0.0 if self._first_time is None else self._now - self._first_time

    @property
    def _long_first_step(self) -> float | None:
        """The seconds of the first step if they suffice for an estimate."""
        if self._began is None or self._first_time is None:
            return None
        seconds = self._first_time - self._began
        return seconds if seconds >= MEASURED_SECONDS else None

    @property
    def seconds_per_step(self) -> float | None:
        """The mean since the first step; before the second one, a long first step or None."""
        steps = self._step - self._first_step
        return max(self._elapsed, 1e-9) / steps if steps > 0 else self._long_first_step

    def remaining(self, total: int) -> float | None:
        """Return the seconds that are left, None if they are not known yet."""
        pace = self.seconds_per_step
        return None if pace is None else (total - self._step) * pace


class Lines(Reporter):
    """One line per minute on stderr.

    Args:
        place: which run of a command this is, such as "run 2 of 12: "; empty for the only one.
        device: where it is trained.
    """

    def __init__(self, settings: Settings, place: str = "", device: str = "") -> None:
        self.settings = settings
        self.place = place
        self.device = device
        self._pace = Pace()
        self._said_pace: float | None = None
        self._last_line = 0.0
        self._unit = "step"  # what is finished before a stop
        self._file: ProgressFile | None = None

    def start(self, run: Prepared) -> None:
        """Print what is about to happen."""
        self._pace = Pace()
        self._said_pace = None
        self._last_line = time.monotonic()
        self._file = ProgressFile(run.folder.path)
        self.settings.say(header(run, self.place))

    def schedule(self, text: str) -> None:
        """Print the phases and the learning rate. The first step follows."""
        self._pace.begin(time.monotonic())
        self.settings.say("\n".join(wrapped(f"  {text}", "    ", sys.stderr)))

    def train(self, report: StepReport) -> None:
        """Print the state of the training, at most once per minute."""
        self._note_step(report)
        if self._is_due(last=report.step == report.total):
            self._print(self._training_line(report))

    def check(self, done: int, total: int, case: str) -> None:
        """Print how many cases were compared with their digests, at most once per minute."""
        if self._is_due(last=False):
            self._print(f"checked the files of {done}/{total} cases")

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Print how many cases were evaluated, at most once per minute and at the end."""
        self._note_case(done, total)
        if self._is_due(last=done == total):
            self._print(f"test {done}/{total} cases")

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.settings.warn(text)

    def stopping(self, signal_name: str) -> None:
        """Say at once that a signal was heard. This is called within the handler of the signal."""
        again = "; Ctrl-C again ends at once" if signal_name == "SIGINT" else ""
        text = "\r\033[K" if sys.stderr.isatty() else ""
        text += f"{signal_name}: finishing this {self._unit}, then saving{again}\n"
        with suppress(OSError):
            os.write(2, text.encode())

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._file is not None:
            self._file.remove()

    def _note_step(self, report: StepReport) -> None:
        """Measure the pace, and say how long the training will take.

        It is said again if steps take less than half of that, as after a first one that compiles.
        """
        self._unit = "step"
        self._pace.note(report.step, time.monotonic())
        remaining = self._pace.remaining(report.total)
        if self._file is not None:
            self._file.write("train", report.step, report.total, remaining)
        pace = self._pace.seconds_per_step
        if pace is None or remaining is None or not self._pace.is_measured:
            return
        if self._said_pace is not None and pace > self._said_pace / 2:
            return
        self._said_pace = pace
        if remaining >= WORTH_SAYING:
            self._say_pace(report.total - report.step, remaining)

    def _say_pace(self, steps: int, remaining: float) -> None:
        pace = self._pace.seconds_per_step
        text = f"  measured: {pace:.2f} s per step, about {duration(remaining)} for {steps:,} steps"
        self.settings.say(text)
        if self.device == "cpu" and remaining > LONG_ON_CPU:
            self.warn(
                f"this training takes about {duration(remaining)} on a CPU. Shorter: a GPU "
                "(--device cuda), fewer steps (--steps N), a smaller patch or network (-o patch=, "
                "-o backbone.width=), or a mini protocol (segbench list protocols)"
            )
            advice = advice_if_busy()
            if advice:
                self.warn(advice)

    def _note_case(self, done: int, total: int) -> None:
        self._unit = "case"
        if self._file is not None:
            self._file.write("test", done, total, None)

    def _is_due(self, last: bool) -> bool:
        return last or time.monotonic() - self._last_line >= INTERVAL

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.settings.say(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")

    def _training_line(self, report: StepReport) -> str:
        """Return step, percentage, loss terms, learning rate, speed and remaining time."""
        percent = report.step * 100 // report.total
        parts = [f"step {report.step}/{report.total} {percent}%", safe(report.phase)]
        parts += [f"{safe(name)} {value:.4f}" for name, value in report.terms.items()]
        parts.append(f"lr {report.lr:.1e}")
        pace = self._pace.seconds_per_step
        remaining = self._pace.remaining(report.total)
        if pace is not None and remaining is not None:
            parts.append(f"{1 / pace:.2f} it/s ETA {duration(remaining)}")
        return " ".join(parts)


class Bars(Lines):
    """A live bar."""

    def __init__(self, settings: Settings, place: str = "", device: str = "") -> None:
        super().__init__(settings, place, device)
        self._bar: Any = None
        self._began = 0.0

    def train(self, report: StepReport) -> None:
        """Show the step, the pace, the remaining time and the loss terms."""
        self._note_step(report)
        self._show("train", report.step, report.total, self._facts(report))
        if report.step == report.total:
            self._end_training(report)

    def check(self, done: int, total: int, case: str) -> None:
        """Show how many cases were compared with their digests."""
        self._show("check", done, total, [safe(case)])

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Show how many cases were evaluated."""
        self._note_case(done, total)
        self._show("test ", done, total, [safe(case)])

    def warn(self, text: str) -> None:
        """Print a warning above the bar."""
        self._remove_bar()
        super().warn(text)

    def stop(self) -> None:
        """Remove the bar."""
        self._remove_bar()
        super().stop()

    def _say_pace(self, steps: int, remaining: float) -> None:
        self._remove_bar()
        super()._say_pace(steps, remaining)

    def _end_training(self, report: StepReport) -> None:
        """Replace the bar by a line on the training, which stays."""
        self._remove_bar()
        seconds = self._pace.seconds_per_step
        pace = "" if seconds is None else f", {seconds:.2f} s per step"
        self.settings.say(f"  trained {report.total:,} steps{pace}")

    def _facts(self, report: StepReport) -> list[str]:
        """Return what stands beside the bar, the most important first."""
        remaining = self._pace.remaining(report.total)
        pace = self._pace.seconds_per_step
        left = "measuring the pace" if remaining is None else f"{duration(remaining)} left"
        facts = [f"{report.step * 100 // report.total}%", left]
        if pace is not None:
            facts.append(f"{pace:.2f} s/step")
        facts += [f"{safe(name)} {value:.3f}" for name, value in report.terms.items()]
        facts.append(f"lr {report.lr:.1e}")
        return facts

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, what: str, done: int, total: int, facts: list[str]) -> None:
        if self._bar is None or self._bar.tasks[0].description != what:
            self._remove_bar()
            self._bar = _new_bar()
            self._bar.start()
            self._bar.add_task(what, total=total, completed=done, text="")
        taken = len(what) + BAR + len(f"{total}/{total}") + 6
        self._bar.update(0, completed=done, text=_fitting(facts, width(sys.stderr) - taken))


def _fitting(facts: list[str], room: int) -> str:
    """Return as many facts as fit a line; none is broken."""
    text = ""
    for fact in facts:
        longer = f"{text}  {fact}" if text else fact
        if len(longer) > room:
            break
        text = longer
    return text


def _new_bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(BAR),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[text]}", markup=False),
        console=console(stderr=True),
        transient=True,
    )


def is_live(settings: Settings) -> bool:
    """Return whether standard error is a terminal on which lines may be replaced."""
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return terminal and not os.environ.get("CI") and settings.quiet == 0


@contextmanager
def reporting(settings: Settings, place: str = "", device: str = "") -> Iterator[Reporter]:
    """Show progress on stderr as long as the context lasts; see ``Lines`` for the arguments."""
    kind = Bars if is_live(settings) else Lines
    reporter = kind(settings, place, device)
    try:
        yield reporter
    finally:
        reporter.stop()


@contextmanager
def counting(settings: Settings, title: str) -> Iterator[Progress]:
    """Show how far a long task is: a bar on a terminal, ten lines elsewhere.

    Nothing is shown before the first report, so that a task with nothing to do shows nothing.
    """
    if settings.quiet:
        yield no_progress
    elif is_live(settings):
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
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(BAR),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    room = width(sys.stderr) - len(title) - BAR - 30

    def report(done: int, total: int, name: str) -> None:
        if not bar.tasks:
            bar.start()
            bar.add_task(safe(title), total=total, text="")
        bar.update(bar.tasks[0].id, completed=done, total=total, text=_fitting([safe(name)], room))

    try:
        yield report
    finally:
        bar.stop()


def header(run: Prepared, place: str = "") -> str:
    """Return what is going to be trained, how, and where the result will be.

    Args:
        place: which run of a command this is.
    """
    from segbench.results.names import label_of_experiment

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
    if protocol.expected.seconds is not None and not experiment.modified:
        expected = protocol.expected.seconds * len(run.stores)
        facts.append(f"about {duration(expected)} where the protocol was made")
    lines = [f"{place}{label_of_experiment(experiment)} on {data}"]
    for text in (" · ".join(facts), *_plan_lines(run), str(run.folder.path)):
        lines.append(f"  {text}")
    shown = []
    for line in lines:
        shown += wrapped(line, "    ", sys.stderr)
    return "\n".join(shown)


def _plan_lines(run: Prepared) -> list[str]:
    """Return a line about a protocol that was planned: what for, where it is, how to own it."""
    from segbench.training.planned import planned_file

    protocol = run.experiment.protocol
    store = run.stores[0]
    file = planned_file(store, protocol)
    if file is None:
        return []
    kind = "a small one for a CPU" if file.stem.endswith("_cpu") else "for a GPU"
    return [
        f"protocol planned from the data, {kind}: {file} · to own and change it: "
        f"segbench protocol new --dataset {store.name} -o mine.yaml"
    ]


def _data_summary(run: Prepared, store: Store) -> str:
    from segbench.results.names import which_cases

    experiment = run.experiment
    which = which_cases(experiment)
    partial = ", PARTIAL COPY" if store.partial else ""
    labeled = f"{experiment.labeled[store.name]} of {len(store.patients)} labeled"
    return f"{store.name} ({labeled}{which}, {len(store.test)} test{partial})"


def duration(seconds: float) -> str:
    """Return seconds as 42s, 3m05s or 1h12m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
