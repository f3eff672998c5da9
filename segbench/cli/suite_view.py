"""What a suite shows while it works: a live table on a terminal, a line per run elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from segbench.cli.reporter import duration, is_live
from segbench.cli.settings import Settings
from segbench.cli.terminal import console, plural, table, width, wrapped
from segbench.config import Experiment
from segbench.results.names import label_of_experiment
from segbench.suites.local import Job, Outcome, SuiteWatcher
from segbench.suites.progress_file import read_progress

REFRESH = 0.5  # seconds between two pictures of the table
LONGEST_NAME = 44  # columns of a run's name in the table


class SuiteView(SuiteWatcher):
    """Counts the outcomes of a suite and shows them.

    Args:
        total: number of runs that are not finished yet.
        describe: returns an outcome in words.
    """

    def __init__(self, settings: Settings, total: int, describe: Callable[[Outcome], str]) -> None:
        self.settings = settings
        self.total = total
        self.describe = describe
        self.counts: Counter[str] = Counter()
        self._running: list[Job] = []
        self._live: Any = None
        self._is_terminal = is_live(settings)
        self._drawn = 0.0
        self._began = time.monotonic()

    def ended(self, outcome: Outcome) -> None:
        """Print a line on an outcome, above the table if there is one."""
        is_over = outcome.kind != "busy" and not outcome.tried_again
        if is_over:
            self.counts[outcome.kind] += 1
        count = f"[{self.counts.total()}/{self.total}] " if is_over else ""
        self.close()
        lines: list[str] = []
        for line in f"{count}{self.describe(outcome)}".splitlines():
            lines += wrapped(line, "    ", sys.stderr)
        self.settings.say("\n".join(lines))

    def tick(self, jobs: Sequence[Job]) -> None:
        """Draw the table again from time to time; no thread does so, because runs are forked."""
        self._running = list(jobs)
        now = time.monotonic()
        if not self._is_terminal or now - self._drawn < REFRESH:
            return
        self._drawn = now
        if self._live is None:
            self._live = _new_live()
            self._live.start()
        from rich.text import Text

        self._live.update(Text("\n".join(self.lines(now))), refresh=True)

    def stopping(self, signal_name: str) -> None:
        """Say at once that a signal was heard. This is called within the handler of the signal."""
        running = plural(len(self._running), "running run")
        again = "; Ctrl-C again ends at once" if signal_name == "SIGINT" else ""
        text = f"\n{signal_name}: {running} will finish the step and save{again}\n"
        with suppress(OSError):
            os.write(2, text.encode())

    def close(self) -> None:
        """Remove the table."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def lines(self, now: float) -> list[str]:
        """Return the running runs and the counts of the others as lines that fit the terminal."""
        columns = [("slot", ">"), ("run", "<"), ("step", ">"), ("left", ">"), ("time", ">")]
        rows = []
        for job in sorted(self._running, key=lambda job: job.slot):
            step, left = reached(job.run.folder.path)
            name = run_name(job.run.experiment)
            rows.append([job.slot + 1, name, step, left, duration(now - job.began)])
        room = width(sys.stderr)
        text = table(columns, rows, drop=("time", "left"), room=room) if rows else ""
        return [*text.splitlines(), self.summary()]

    def summary(self) -> str:
        """Return how many runs are done, failed, stopped, running and left."""
        failed = self.counts["failed"] + self.counts["killed"]
        left = self.total - self.counts.total() - len(self._running)
        parts = [f"{self.counts['done']} done", f"{failed} failed"]
        if self.counts["stopped"]:
            parts.append(f"{self.counts['stopped']} stopped")
        parts += [f"{len(self._running)} running", f"{max(left, 0)} left"]
        remaining = self._remaining(left)
        if remaining is not None:
            parts.append(f"about {duration(remaining)}")
        return " · ".join(parts)

    def way_back(self) -> str:
        """Return what is said after a stop, in one line."""
        done = self.counts["done"]
        left = self.total - self.counts.total()
        stopped = self.counts["stopped"]
        return f"repeat the command ({done} done, {stopped} stopped, {left} left)"

    def _remaining(self, waiting: int) -> float | None:
        """Return the seconds until the end, from the pace so far; None before the first result."""
        done = self.counts["done"]
        if not done:
            return None
        return (time.monotonic() - self._began) / done * (waiting + len(self._running) / 2)


def run_name(experiment: Experiment) -> str:
    """Return what tells a run of a suite apart, short enough for a table."""
    draw = f" d{experiment.draw}" if experiment.draw else ""
    fold = "" if experiment.fold is None else f" f{experiment.fold}"
    place = f"{'+'.join(experiment.datasets)} {sum(experiment.labeled.values())}"
    end = f" {place}{draw}{fold} s{experiment.seed}"
    label = label_of_experiment(experiment)
    room = max(LONGEST_NAME - len(end), 12)
    return (label if len(label) <= room else f"{label[: room - 1]}…") + end


def reached(folder: Path) -> tuple[str, str]:
    """Return the step of a running run and the time that is left, as text."""
    found = read_progress(folder)
    if found is None:
        return "starting", ""
    left = "" if found.remaining is None else duration(found.remaining)
    word = "" if found.stage == "train" else f"{found.stage} "
    return f"{word}{found.done}/{found.total}", left


def _new_live() -> Any:
    from rich.live import Live

    return Live(
        console=console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
