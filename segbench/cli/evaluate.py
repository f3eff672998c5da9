"""``segbench evaluate``."""

from __future__ import annotations

import click

from segbench.cli.common import Command, Settings
from segbench.errors import IntegrityError, UsageError


@click.command(cls=Command)
@click.argument("wanted", metavar="RUN")
@click.option("--device", metavar="DEV", help="auto, cpu, cuda, cuda:N or mps [auto].")
@click.pass_obj
def evaluate(settings: Settings, wanted: str, device: str | None) -> None:
    """Predict the test cases of a finished RUN once more and compare with its stored results.

    \b
    segbench evaluate 3f9c2a7b
    """
    from segbench.cli.reporter import reporter
    from segbench.cli.run import document, lines, machine_of, restore
    from segbench.results.rundir import find_run
    from segbench.training.run import reevaluate

    folder = find_run(settings.root, wanted)
    stored = folder.result()
    if stored is None:
        raise UsageError("the run is not finished", where=folder.path, fix=f"segbench resume {folder.run_id}")
    machine = machine_of(settings, None, device, None)
    show = reporter(settings)
    try:
        metrics, digest, exact = reevaluate(restore(folder, machine), stored, machine, show.evaluate)
    finally:
        show.stop()
    if not settings.json:
        for line in lines({**stored, "metrics": metrics}):
            click.echo(line)
    same = digest == stored["cases_sha256"]
    settings.say("identical to the stored results" if same else "differs from the stored results")
    if not same and exact:
        raise IntegrityError("the weights do not give the stored results", where=folder.path,
                             found=f"cases {digest[:16]}", expected=stored["cases_sha256"][:16],
                             fix="was cases.csv or the prepared data changed? see: segbench data check")
    settings.document = {**document({**stored, "metrics": metrics}, folder.path), "identical": same}
