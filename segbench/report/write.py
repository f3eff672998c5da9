"""From run directories to the finished page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from segbench.errors import SegbenchError
from segbench.report.content import Content, Member, gather
from segbench.report.overlay import Picture, pictures
from segbench.report.page import render
from segbench.results.cite import bibtex
from segbench.results.rundir import RunDir
from segbench.training.setup import Prepared, device_of

Restore = Callable[[RunDir], Prepared]


def report(
    runs: Iterable[RunDir],
    title: str,
    restore: Restore | None,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda text: None,
    warnings: Sequence[str] = (),
) -> tuple[str, Content]:
    """The page, and what it shows.

    Args:
        restore: opens a run's data and experiment for the pictures; None leaves the pictures out.
        tell: hears of each row whose pictures are being made.
        warnings: more for the page to show.
    """
    content = gather(runs)
    content.warnings += warnings
    found: dict[tuple[int, str], Any] = {}
    for number, section in enumerate(content.sections, 1) if restore else ():
        for entry in section.entries:
            tell(f"{section.board.dataset}: {entry.name}")
            assert restore is not None
            found[number, entry.name] = _pictures(
                entry.members[0], section.board.dataset, restore, device
            )
    cited = (
        bibtex(m.run for s in content.sections for e in s.entries for m in e.members)
        if content.sections
        else ""
    )
    return render(content, found, title, cited), content


def _pictures(member: Member, dataset: str, restore: Restore, device: str) -> list[Picture] | str:
    """The pictures of a run, or why there are none: a report never fails for want of them."""
    try:
        return list(pictures(member, restore(member.run), dataset, device_of(device)))
    except SegbenchError as error:
        return error.what
    except Exception as error:  # of a plug-in, or of data and files that are not what they were
        return f"{type(error).__name__}: {error}"
