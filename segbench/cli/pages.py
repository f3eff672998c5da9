"""Write report pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segbench.cli.reporter import counting
from segbench.cli.settings import Settings
from segbench.config import Machine
from segbench.report.content import Content
from segbench.report.write import report
from segbench.results.rundir import RunDir
from segbench.storage import atomic_write, make_folder
from segbench.training.setup import Prepared
from segbench.training.stored import restore


def write_page(  # noqa: PLR0913 (one argument per option)
    settings: Settings,
    machine: Machine,
    runs: list[RunDir],
    file: Path,
    title: str,
    images: bool = True,
    warnings: Sequence[str] = (),
    variants: bool = True,
) -> Content:
    """Write the page about some runs to a file, and return what it shows.

    Args:
        variants: whether to show ablations and rows with other parameters, see ``boards``.
    """

    def restored(run: RunDir) -> Prepared:
        return restore(run, machine)

    with counting(settings, "pictures") as progress:
        opened = restored if images else None
        page, content = report(runs, title, opened, machine.device, progress, warnings, variants)
    make_folder(file.parent)
    atomic_write(file, page.encode())
    return content
