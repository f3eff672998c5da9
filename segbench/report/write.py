"""From run directories to the finished page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from segbench.errors import PLUGIN_FAILURES, SegbenchError
from segbench.progress import Progress, no_progress
from segbench.report.content import Content, gather
from segbench.report.overlay import ChosenCase, Picture, choose, pictures
from segbench.report.page import Pictures, render
from segbench.results.board import Board
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
    progress: Progress = no_progress,
    warnings: Sequence[str] = (),
    variants: bool = True,
) -> tuple[str, Content]:
    """Return the page, and what it shows.

    Args:
        restore: opens a run's data and experiment for the pictures; None leaves the pictures out.
        progress: is called after the pictures of each row.
        warnings: more warnings for the page to show.
        variants: whether to show ablations and rows with other parameters, see ``boards``.
    """
    content = gather(runs, variants)
    content.warnings += warnings
    chosen = [_chosen(board) if restore is not None else [] for board in content.boards]
    found: Pictures = {}
    if restore is not None:
        rows = [
            len(board.rows) for board, cases in zip(content.boards, chosen, strict=True) if cases
        ]
        for number, (board, cases) in enumerate(zip(content.boards, chosen, strict=True), 1):
            for row in board.rows if cases else []:
                names = [case.case for case in cases]
                made = _pictures(row.runs[0], board.dataset, restore, device, names)
                found[number, row.method] = made
                progress(len(found), sum(rows), f"{board.dataset}: {row.method}")
    citations = bibtex(content.runs) if content.boards else ""
    return render(content, found, title, citations, chosen), content


def _chosen(board: Board) -> list[ChosenCase]:
    """Return the cases of a table whose pictures are shown; none of a mean over data sets."""
    if board.is_mean:
        return []
    return choose([row.runs[0] for row in board.rows], board.dataset)


def _pictures(
    run: FinishedRun, dataset: str, restore: Restore, device: str, cases: Sequence[str]
) -> list[Picture] | str:
    """Return the pictures of a run, or why there are none.

    Missing pictures never fail a report.
    """
    try:
        return list(pictures(run, restore(run.folder), dataset, device_of(device), cases))
    except SegbenchError as error:
        return error.what
    except PLUGIN_FAILURES as error:  # of a plug-in, or of data and files that have changed
        return f"{type(error).__name__}: {error}"
