"""``segbench cite``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.errors import SegbenchError

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN|METHOD]...", nargs=-1)
@click.pass_obj
def cite(settings: Settings, wanted: tuple[str, ...]) -> None:
    """Print BibTeX entries for segbench and for the methods, backbones and data sets of runs [all].

    \b
    segbench cite > references.bib
    """
    from segbench.results.cite import bibtex
    from segbench.results.names import find_runs
    from segbench.results.rundir import all_runs

    if wanted:
        runs = [run for name in wanted for run in find_runs(settings.root, name)]
    else:
        runs = [run for run in all_runs(settings.root) if _is_readable(settings, run)]
    text = bibtex(runs)
    settings.show({"status": "ok", "bibtex": text}, [text.removesuffix("\n")])


def _is_readable(settings: Settings, run: RunDir) -> bool:
    """Return whether a run's plug-ins can be determined; warn otherwise."""
    from segbench.results.cite import plugins

    try:
        return bool(plugins(run))
    except SegbenchError as error:
        settings.warn(f"{run.path}: {error.what}; left out")
        return False
