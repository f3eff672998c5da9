"""``segbench report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segbench.cli.common import Command, Settings, safe
from segbench.errors import UsageError

if TYPE_CHECKING:
    from segbench.report.gather import Content
    from segbench.results.rundir import RunDir
    from segbench.training.run import Machine


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN...|SUITE]", nargs=-1)
@click.option("-o", "--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="The page [ROOT/reports/report.html, or the suite's name].")
@click.option("--title", metavar="TEXT", help="Its heading.")
@click.option("--no-images", is_flag=True, help="No pictures of cases: for data that must stay where they are.")
@click.option("--device", metavar="DEV", help="For the pictures' predictions: auto, cpu, cuda, cuda:N or mps [auto].")
@click.option("--tensorboard", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
              help="Instead of a page, write the runs' curves for TensorBoard.")
@click.pass_obj
def report(settings: Settings, wanted: tuple[str, ...], out: Path | None, title: str | None, no_images: bool,
           device: str | None, tensorboard: Path | None) -> None:
    """Write one HTML file about finished runs: leaderboard, cases, pictures, curves, cost, how to reproduce it.

    Without arguments it shows all finished runs. The file needs no network and can be sent as it is.

    \b
    segbench report
    segbench report benchmarks/phantom.yaml -o phantom.html
    segbench report 3f9c2a7b c01d88e2 --no-images
    """
    from segbench.cli.run import machine_of

    machine = machine_of(settings, None, device, None)
    name, runs = _runs(settings, wanted, machine)
    if tensorboard is not None:
        _export(settings, runs, tensorboard)
        return
    file = out or settings.root / "reports" / f"{name}.html"
    content = write(settings, machine, runs, file, title or f"segbench {name}", not no_images)
    for warning in content.warnings:
        click.echo(f"warning: {safe(warning)}", err=True)
    count = len({m.run.path for s in content.sections for e in s.entries for m in e.members})  # a joint run is in several
    settings.document = {"schema": "segbench.report/1", "status": "ok", "file": str(file), "runs": count,
                         "tables": len(content.sections), "warnings": content.warnings, "failures": content.failures}
    if not settings.json:
        click.echo(f"{safe(file)}: {count} runs in {len(content.sections)} tables, {file.stat().st_size / 1e6:.1f} MB")


def write(settings: Settings, machine: Machine, runs: list[RunDir], file: Path, title: str, images: bool = True) -> Content:
    """Write the page about some runs to a file; returns what it shows."""
    from segbench.cli.run import restore
    from segbench.files import atomic_write, make_folder
    from segbench.report.write import report as render

    page, content = render(runs, title, (lambda run: restore(run, machine)) if images else None, machine.device,
                           lambda text: settings.say(f"pictures of {safe(text)}", 1))
    make_folder(file.parent)
    atomic_write(file, page.encode())
    return content


def _export(settings: Settings, runs: list[RunDir], folder: Path) -> None:
    from segbench.report.tensorboard import export
    count = export(runs, folder)
    settings.document = {"schema": "segbench.report/1", "status": "ok", "dir": str(folder), "runs": count}
    if not settings.json:
        click.echo(f"{safe(folder)}: curves of {count} runs; look at them with: tensorboard --logdir {safe(folder)}")


def _runs(settings: Settings, wanted: tuple[str, ...], machine: Machine) -> tuple[str, list[RunDir]]:
    """The name of the page, and the runs it shows: all, those of one suite, or those named."""
    from segbench.cli.bench import prepared
    from segbench.results.rundir import all_runs, find_run
    from segbench.suites.suite import find_suite

    if not wanted:
        return "report", list(all_runs(settings.root))
    try:
        suite = find_suite(wanted[0]) if len(wanted) == 1 else None
    except UsageError:
        suite = None
    if suite is not None:
        return suite.stem, [run.folder for run in prepared(settings, str(suite), machine)[0]]
    return "report", [find_run(settings.root, run) for run in wanted]
