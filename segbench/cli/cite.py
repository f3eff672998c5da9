"""``segbench cite``."""

from __future__ import annotations

import click

from segbench.cli.common import Command, Settings


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
    text = bibtex([find_run(settings.root, w) for w in wanted] if wanted else list(all_runs(settings.root)))
    settings.document = {"status": "ok", "bibtex": text}
    if not settings.json:
        click.echo(text, nl=False)
