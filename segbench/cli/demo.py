"""``segbench demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from segbench.cli.options import Command, MachineOptions, machine_options
from segbench.cli.settings import Settings
from segbench.cli.terminal import wrapped
from segbench.errors import SuiteError

if TYPE_CHECKING:
    from segbench.training.setup import Prepared

REPLICATES = 3


@click.command(cls=Command)
@click.option("--full", is_flag=True, help="All methods of the quick suite instead of two.")
@machine_options
@click.pass_obj
def demo(settings: Settings, full: bool, machine_options: MachineOptions) -> None:
    """Train and rank methods on small synthetic images.

    Supervised training, two semi-supervised methods and training with all labels, three times each,
    then a leaderboard and a report. This needs neither data nor a GPU.
    """
    from segbench.cli.boards import boards_text
    from segbench.cli.pages import write_page
    from segbench.cli.suites import default_slots, prepared_suite, run_in_slots
    from segbench.cli.training import machine_of
    from segbench.results.leaderboard import boards
    from segbench.results.verdict import verdict

    machine = machine_of(settings, machine_options)
    suite = "quick" if full else "demo"
    runs, _ = prepared_suite(settings, suite, machine, replicates=REPLICATES)
    outcomes = run_in_slots(settings, runs, machine, default_slots())
    failed = [outcome.run for outcome in outcomes if outcome.code != 0]
    if failed:
        raise _failure(failed, len(runs))

    folders = [run.folder for run in runs]
    tables, _ = boards(folders)
    texts, common = boards_text(tables)
    settings.echo(f"\n{text}" for text in texts)
    settings.echo(common)
    page = settings.root / "reports" / "demo.html"
    settings.say("writing the report")
    write_page(settings, machine, folders, page, "segbench demo")
    found = verdict(tables[0])
    lines = [
        "",
        *wrapped(found),
        f"\nReport with pictures: {page}",
        f"Runs: {settings.root}",
        "Next: segbench run mean_teacher --dataset phantom2d_a --replicates 3",
        "      segbench leaderboard, which then ranks it among these",
    ]
    documents = [{"run_id": run.run_id, "dir": str(run.folder.path)} for run in runs]
    settings.show(
        {"status": "done", "verdict": found, "report": str(page), "runs": documents}, lines
    )


def _failure(failed: list[Prepared], count: int) -> SuiteError:
    return SuiteError(
        f"{len(failed)} of {count} runs failed",
        where=failed[0].folder.path / "console.log",
        fix="segbench doctor",
    )
