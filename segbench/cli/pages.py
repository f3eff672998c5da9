"""Write report pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segbench.cli.settings import Settings
from segbench.config import Machine
from segbench.report.content import Content
from segbench.report.write import report
from segbench.results.rundir import RunDir
from segbench.storage import atomic_write, make_folder
from segbench.text import safe
from segbench.training.setup import Prepared
from segbench.training.stored import restore


def write_page(
    settings: Settings,
    machine: Machine,
    runs: list[RunDir],
    file: Path,
    title: str,
    images: bool = True,
    warnings: Sequence[str] = (),
) -> Content:
    """Write the page about some runs to a file, and return what it shows."""

    def restored(run: RunDir) -> Prepared:
        return restore(run, machine)

    def say(text: str) -> None:
        settings.say(f"pictures of {safe(text)}", level=1)

    page, content = report(runs, title, restored if images else None, machine.device, say, warnings)
    make_folder(file.parent)
    atomic_write(file, page.encode())
    return content
