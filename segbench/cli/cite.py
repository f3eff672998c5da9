"""``segbench cite``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from segbench.cli.common import Command, Settings, safe
from segbench.errors import SegbenchError

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN]...", nargs=-1)
@click.pass_obj
def cite(settings: Settings, wanted: tuple[str, ...]) -> None:
    """Print BibTeX of the methods, backbones and data sets of runs [all], and of segbench.

    \b
    segbench cite > references.bib
    """
    from segbench.results.cite import bibtex
    from segbench.results.rundir import all_runs, find_run

    runs = (
        [find_run(settings.root, w) for w in wanted]
        if wanted
        else [r for r in all_runs(settings.root) if _whole(r)]
    )
    text = bibtex(runs)
    settings.document = {"status": "ok", "bibtex": text}
    if not settings.json:
        click.echo(text, nl=False)


def _whole(run: RunDir) -> bool:
    """Can it be read what the run used? Warns where not."""
    from segbench.results.cite import plugins

    try:
        return bool(plugins(run))
    except SegbenchError as error:
        click.echo(f"warning: {safe(run.path)}: {safe(error.what)}; left out", err=True)
        return False
