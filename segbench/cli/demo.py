"""``segbench demo``."""

from __future__ import annotations

import click

from segbench.cli.common import Command, Settings
from segbench.cli.run import machine_of, machine_options
from segbench.errors import SuiteError

METHODS = (
    "versemi",
    "supervised",
    "mean_teacher",
)  # the longest first: slots are filled evenly then


@click.command(cls=Command)
@click.option(
    "--seeds",
    metavar="A-B",
    default="0",
    show_default=True,
    help="Seeds; three are needed to be ranked.",
)
@machine_options
@click.pass_obj
def demo(
    settings: Settings, seeds: str, save_every: str | None, device: str | None, workers: int | None
) -> None:
    """Train three methods on phantoms, rank them and write a report. Needs no data and no GPU; a few minutes."""
    from segbench.cli.bench import default_slots, run_slots
    from segbench.cli.leaderboard import show
    from segbench.cli.report import write
    from segbench.cli.run import combined, document, experiments
    from segbench.results.leaderboard import boards
    from segbench.training.setup import prepare

    machine = machine_of(settings, save_every, device, workers)
    runs = [
        prepare(e, machine)
        for method in METHODS
        for e in experiments(
            settings,
            method,
            dataset="phantom",
            labeled=None,
            backbone=None,
            protocol="phantom",
            seed=None,
            seeds=seeds,
            steps=None,
            precision=None,
            overrides=(),
        )
    ]
    failed = [o for o in run_slots(settings, runs, machine, default_slots()) if o.code != 0]
    if failed:
        raise SuiteError(
            f"{len(failed)} of {len(runs)} runs failed",
            where=failed[0].run.folder.path / "console.log",
            fix="segbench doctor",
        )
    tables, _ = boards(run.folder for run in runs)
    if not settings.json:
        click.echo("\n" + "\n\n".join(show(t) for t in tables))
    page = settings.root / "reports" / "demo.html"
    # Without pictures, which take a third of a minute more: the demo has five.
    write(settings, machine, [run.folder for run in runs], page, "segbench demo", images=False)
    if not settings.json:
        click.echo(
            f"\nruns are in {settings.root}, the report about them is {page}; the next things to try:\n"
            "  segbench report                  the same page with pictures\n  segbench list methods\n"
            "  segbench run mean_teacher --dataset phantom --seeds 0-2\n  segbench leaderboard"
        )
    results = [(run.folder.result(), run.folder.path) for run in runs]
    settings.document = {
        **combined([document(r, path) for r, path in results if r is not None]),
        "report": str(page),
    }
