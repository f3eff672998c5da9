"""``segbench report``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Command, Settings, safe
from segbench.errors import DataError, PluginError, SegbenchError, UsageError

if TYPE_CHECKING:
    from segbench.config import Experiment
    from segbench.config.yaml import Document
    from segbench.report.content import Content
    from segbench.results.rundir import RunDir
    from segbench.suites.suite import Suite
    from segbench.training.setup import Machine


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN...|SUITE]", nargs=-1)
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page [ROOT/reports/report.html, or the suite's name].",
)
@click.option("--title", metavar="TEXT", help="Its heading.")
@click.option(
    "--no-images",
    is_flag=True,
    help="No pictures of cases: for data that must stay where they are.",
)
@click.option(
    "--device",
    metavar="DEV",
    help="For the pictures' predictions: auto, cpu, cuda, cuda:N or mps [auto].",
)
@click.option(
    "--tensorboard",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Instead of a page, write the runs' curves for TensorBoard.",
)
@click.pass_obj
def report(
    settings: Settings,
    wanted: tuple[str, ...],
    out: Path | None,
    title: str | None,
    no_images: bool,
    device: str | None,
    tensorboard: Path | None,
) -> None:
    """Write one HTML file about finished runs: leaderboard, cases, pictures, curves, cost, how to reproduce it.

    Without arguments it shows all finished runs. The file needs no network and can be sent as it is.

    \b
    segbench report
    segbench report benchmarks/phantom.yaml -o phantom.html
    segbench report 3f9c2a7b c01d88e2 --no-images
    """
    from segbench.cli.run import machine_of

    machine = machine_of(settings, None, device, None)
    name, runs, lacking = _runs(settings, wanted, machine)
    if tensorboard is not None:
        _export(settings, runs, tensorboard)
        return
    file = out or settings.root / "reports" / f"{name}.html"
    content = write(
        settings, machine, runs, file, title or f"segbench {name}", not no_images, lacking
    )
    for warning in content.warnings:
        click.echo(f"warning: {safe(warning)}", err=True)
    count = len(content.runs)
    settings.document = {
        "schema": "segbench.report/1",
        "status": "ok",
        "file": str(file),
        "runs": count,
        "tables": len(content.boards),
        "warnings": content.warnings,
        "failures": content.failures,
        "unfinished": lacking,
    }
    if not settings.json:
        click.echo(
            f"{safe(file)}: {count} runs in {len(content.boards)} tables, {file.stat().st_size / 1e6:.1f} MB"
        )


def write(
    settings: Settings,
    machine: Machine,
    runs: list[RunDir],
    file: Path,
    title: str,
    images: bool = True,
    warnings: Sequence[str] = (),
) -> Content:
    """Write the page about some runs to a file; returns what it shows."""
    from segbench.cli.run import restore
    from segbench.report.write import report as render
    from segbench.storage import atomic_write, make_folder

    page, content = render(
        runs,
        title,
        (lambda run: restore(run, machine)) if images else None,
        machine.device,
        lambda text: settings.say(f"pictures of {safe(text)}", 1),
        warnings,
    )
    make_folder(file.parent)
    atomic_write(file, page.encode())
    return content


def _export(settings: Settings, runs: list[RunDir], folder: Path) -> None:
    from segbench.report.tensorboard import export

    count = export(runs, folder)
    settings.document = {
        "schema": "segbench.report/1",
        "status": "ok",
        "dir": str(folder),
        "runs": count,
    }
    if not settings.json:
        click.echo(
            f"{safe(folder)}: curves of {count} runs; look at them with: tensorboard --logdir {safe(folder)}"
        )


def _runs(
    settings: Settings, wanted: tuple[str, ...], machine: Machine
) -> tuple[str, list[RunDir], list[str]]:
    """The name of the page, the runs it shows (all, those of one suite, or those named), and what a suite still lacks."""
    from segbench.results.rundir import all_runs, find_run
    from segbench.suites.suite import find_suite

    if not wanted:
        return "report", list(all_runs(settings.root)), []
    try:
        suite = find_suite(wanted[0]) if len(wanted) == 1 else None
    except UsageError:
        suite = None
    if suite is not None:
        return suite.stem, *_members(settings, suite, machine)
    return "report", [find_run(settings.root, run) for run in wanted], []


def _members(settings: Settings, suite: Path, machine: Machine) -> tuple[list[RunDir], list[str]]:
    """The runs of a suite, and a line on each that is not finished. Where the data are absent, runs say what they were."""
    from segbench.identity.run_id import science
    from segbench.results.rundir import all_runs
    from segbench.suites.suite import load_suite
    from segbench.training.setup import prepare

    stored: dict[bytes, list[RunDir]] = {}
    for run in all_runs(settings.root):
        with suppress(
            SegbenchError, KeyError, TypeError, AttributeError
        ):  # the page names what cannot be read
            stored.setdefault(_settings(run.config()["science"]), []).append(run)
    found: dict[Path, RunDir] = {}
    lacking = []
    for e in _experiments(settings, *load_suite(suite)):
        try:
            mine = [prepare(e, machine).folder]
        except (DataError, PluginError):
            none = dict.fromkeys(e.datasets, "")
            mine = stored.get(_settings(science(e, none, none, {})), [])
        found |= {run.path: run for run in mine}
        states = [run.state for run in mine]
        if "done" not in states:
            draw = f", draw {e.draw}" if e.draw else ""
            lacking.append(
                f"{e.method} on {'+'.join(e.datasets)}, {sum(e.labeled.values())} labeled{draw}, seed {e.seed}: "
                f"{(states or ['to do'])[0]}, not in this report"
            )
    return list(found.values()), lacking


def _experiments(settings: Settings, suite: Suite, document: Document) -> Iterator[Experiment]:
    """Those of all combinations; of absent data the published number of training cases is taken."""
    from segbench.data.open import open_store
    from segbench.suites.suite import choices, expand

    for choice in choices(suite):
        try:
            yield from expand(
                suite,
                document,
                choice,
                lambda name: len(open_store(name, settings.data_root).patients),
            )
        except DataError:
            yield from expand(suite, document, choice, None)
        except PluginError as error:
            settings.say(f"warning: {safe(error.what)}")


def _settings(science: dict[str, Any]) -> bytes:
    """What was asked for: without what data and code were."""
    from segbench.storage import json_bytes

    data = [(d["name"], d["labeled"]) for d in science["datasets"]]
    return json_bytes({**science, "datasets": data, "sources": None})
