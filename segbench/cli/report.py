"""``segbench report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segbench.cli.options import DEVICES, Command, MachineOptions
from segbench.cli.settings import Settings
from segbench.cli.terminal import plural
from segbench.errors import UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.config import Machine
    from segbench.results.rundir import RunDir

SCHEMA = "segbench.report/1"
MOST_UNFINISHED = 5  # lines of an error


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN|METHOD...|SUITE]", nargs=-1)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page [ROOT/reports/report.html, or the suite's name].",
)
@click.option("--title", metavar="TEXT", help="Heading of the page.")
@click.option(
    "--no-images",
    is_flag=True,
    help="Leave out pictures of cases, for data that must not be shared.",
)
@click.option(
    "--all",
    "variants",
    is_flag=True,
    help="Show ablations, and rows with other parameters beside the method's own row, too.",
)
@click.option(
    "--device", metavar="DEV", help=f"Where to predict for the pictures: {DEVICES} [auto]."
)
@click.option(
    "--tensorboard",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the runs' curves for TensorBoard instead of a page.",
)
@click.pass_obj
def report(  # noqa: PLR0913 (one argument per option)
    settings: Settings,
    wanted: tuple[str, ...],
    out: Path | None,
    title: str | None,
    no_images: bool,
    variants: bool,
    device: str | None,
    tensorboard: Path | None,
) -> None:
    """Write one HTML file about finished runs.

    It shows the leaderboard, cases, pictures, curves, costs, and how to reproduce the runs. Without
    arguments it shows all finished runs; a method stands for all of its runs. The file needs no
    network and can be shared as it is.

    \b
    segbench report
    segbench report benchmarks/phantom.yaml -o phantom.html
    segbench report 3f9c2a7b c01d88e2 --no-images
    """
    settings.say("segbench report: reading the runs")
    from segbench.cli.pages import write_page
    from segbench.cli.training import machine_of

    machine = machine_of(settings, MachineOptions(device=device))
    name, runs, unfinished = _selected(settings, wanted, machine)
    if tensorboard is not None:
        _export_curves(settings, runs, tensorboard)
        return
    if not any(run.state in ("done", "failed") for run in runs):
        raise UsageError(
            "there is no finished run to report",
            where=settings.root,
            found="\n".join(unfinished[:MOST_UNFINISHED]) or None,
            fix="segbench runs ls",
        )
    file = out or settings.root / "reports" / f"{name}.html"
    everything = variants or bool(wanted)  # who names runs wants to see them
    content = write_page(
        settings, machine, runs, file, title or "", not no_images, unfinished, everything
    )
    for warning in content.warnings:
        settings.warn(warning)
    document = {
        "schema": SCHEMA,
        "status": "ok",
        "file": str(file),
        "runs": len(content.runs),
        "tables": len(content.boards),
        "warnings": content.warnings,
        "failures": content.failures,
        "unfinished": unfinished,
    }
    megabytes = file.stat().st_size / 1e6
    counts = f"{plural(len(content.runs), 'run')} in {plural(len(content.boards), 'table')}"
    settings.show(document, [f"{safe(file)}: {counts}, {megabytes:.1f} MB"])


def _export_curves(settings: Settings, runs: list[RunDir], folder: Path) -> None:
    from segbench.tracking.choose import require_package
    from segbench.tracking.tensorboard import export

    require_package("tensorboard")
    count = export(runs, folder)
    line = (
        f"{safe(folder)}: curves of {count} runs; to see them: tensorboard --logdir {safe(folder)}"
    )
    settings.show({"schema": SCHEMA, "status": "ok", "dir": str(folder), "runs": count}, [line])


def _selected(
    settings: Settings, wanted: tuple[str, ...], machine: Machine
) -> tuple[str, list[RunDir], list[str]]:
    """Return the page's name, its runs, and a line on each unfinished run of a suite."""
    from segbench.cli.suite_runs import suite_called, suite_runs
    from segbench.results.names import find_runs
    from segbench.results.rundir import all_runs

    if not wanted:
        return "report", list(all_runs(settings.root)), []
    suite = suite_called(wanted[0]) if len(wanted) == 1 else None
    if suite is None:
        named = [find_runs(settings.root, name) for name in wanted]
        return "report", _each_once(named), []
    runs, unfinished = suite_runs(settings, suite, machine)
    return suite.stem, runs, [f"{line}, not in this report" for line in unfinished]


def _each_once(groups: list[list[RunDir]]) -> list[RunDir]:
    found = {}
    for group in groups:
        found.update({run.path: run for run in group})
    return list(found.values())
