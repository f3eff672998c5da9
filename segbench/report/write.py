"""From run directories to the finished page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from segbench.errors import SegbenchError
from segbench.report.content import Content, gather
from segbench.report.overlay import Picture, pictures
from segbench.report.page import Pictures, render
from segbench.results.cite import bibtex
from segbench.results.finished import FinishedRun
from segbench.results.rundir import RunDir
from segbench.training.setup import Prepared, device_of

Restore = Callable[[RunDir], Prepared]


def report(
    runs: Iterable[RunDir],
    title: str,
    restore: Restore | None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    warnings: Sequence[str] = (),
) -> tuple[str, Content]:
    """Return the page, and what it shows.

    Args:
        restore: opens a run's data and experiment for the pictures; None leaves the pictures out.
        say: is called with each row whose pictures are made.
        warnings: more warnings for the page to show.
    """
    content = gather(runs)
    content.warnings += warnings
    found: Pictures = {}
    if restore is not None:
        for number, board in enumerate(content.boards, 1):
            for row in [] if board.is_mean else board.rows:
                say(f"{board.dataset}: {row.method}")
                found[number, row.method] = _pictures(row.runs[0], board.dataset, restore, device)
    citations = bibtex(content.runs) if content.boards else ""
    return render(content, found, title, citations), content


def _pictures(run: FinishedRun, dataset: str, restore: Restore, device: str) -> list[Picture] | str:
    """Return the pictures of a run, or why there are none.

    Missing pictures never fail a report.
    """
    try:
        return list(pictures(run, restore(run.folder), dataset, device_of(device)))
    except SegbenchError as error:
        return error.what
    except Exception as error:  # raised by a plug-in, or by data and files that have changed
        return f"{type(error).__name__}: {error}"
