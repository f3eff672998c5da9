"""``segbench demo``."""

from __future__ import annotations

import click

from segbench.cli.options import Command, MachineOptions, ScienceOptions, machine_options
from segbench.cli.settings import Settings
from segbench.errors import SuiteError

# The longest first, so that runs side by side end at about the same time.
METHODS = ("versemi", "supervised", "mean_teacher")


@click.command(cls=Command)
@click.option(
    "--seeds",
    metavar="A-B",
    default="0",
    show_default=True,
    help="Seeds; ranks need at least three.",
)
@machine_options
@click.pass_obj
def demo(settings: Settings, seeds: str, machine_options: MachineOptions) -> None:
    """Train three methods on phantoms, rank them and write a report.

    This needs neither data nor a GPU and takes a few minutes.
    """
    from segbench.cli.boards import board_text
    from segbench.cli.documents import joint_document, run_document
    from segbench.cli.pages import write_page
    from segbench.cli.suites import default_slots, run_in_slots
    from segbench.cli.training import experiments, machine_of
    from segbench.results.leaderboard import boards
    from segbench.training.setup import prepare

    machine = machine_of(settings, machine_options)
    science = ScienceOptions(dataset="phantom", protocol="phantom", seeds=seeds)
    runs = []
    for method in METHODS:
        for experiment in experiments(settings, method, science):
            runs.append(prepare(experiment, machine))
    outcomes = run_in_slots(settings, runs, machine, default_slots())
    failed = [outcome for outcome in outcomes if outcome.code != 0]
    if failed:
        raise SuiteError(
            f"{len(failed)} of {len(runs)} runs failed",
            where=failed[0].run.folder.path / "console.log",
            fix="segbench doctor",
        )

    folders = [run.folder for run in runs]
    tables, _ = boards(folders)
    settings.echo(f"\n{board_text(board)}" for board in tables)
    page = settings.root / "reports" / "demo.html"
    # Pictures would take about twenty seconds more.
    write_page(settings, machine, folders, page, "segbench demo", images=False)

    documents = []
    for folder in folders:
        result = folder.result()
        if result is not None:
            documents.append(run_document(result, folder.path))
    lines = [
        f"\nThe runs are in {settings.root}, the report is {page}. What to try next:",
        "  segbench report                  the same page with pictures",
        "  segbench list methods",
        "  segbench run mean_teacher --dataset phantom --seeds 0-2",
        "  segbench leaderboard",
    ]
    settings.show({**joint_document(documents), "report": str(page)}, lines)
