"""``segbench report``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import DEVICES, Command, MachineOptions
from segbench.cli.settings import Settings
from segbench.cli.terminal import plural
from segbench.errors import DataError, PluginError, SegbenchError, UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.config import Experiment, Machine
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
    from segbench.results.names import find_runs
    from segbench.results.rundir import all_runs
    from segbench.suites.suite import find_suite

    if not wanted:
        return "report", list(all_runs(settings.root)), []
    suite = None
    if len(wanted) == 1:
        with suppress(UsageError):  # then it is a run
            suite = find_suite(wanted[0])
    if suite is None:
        named = [find_runs(settings.root, name) for name in wanted]
        return "report", _each_once(named), []
    return suite.stem, *_suite_runs(settings, suite, machine)


def _each_once(groups: list[list[RunDir]]) -> list[RunDir]:
    found = {}
    for group in groups:
        found.update({run.path: run for run in group})
    return list(found.values())


def _suite_runs(
    settings: Settings, suite: Path, machine: Machine
) -> tuple[list[RunDir], list[str]]:
    """Return the runs of a suite, and a line on each unfinished one."""
    stored = _runs_by_request(settings)
    found: dict[Path, RunDir] = {}
    unfinished = []
    for experiment in _experiments(settings, suite):
        runs = _runs_of(experiment, machine, stored)
        found.update({run.path: run for run in runs})
        states = [run.state for run in runs] or ["to do"]
        if "done" not in states:
            unfinished.append(f"{_described(experiment)}: {states[0]}, not in this report")
    return list(found.values()), unfinished


def _runs_of(
    experiment: Experiment, machine: Machine, stored: dict[bytes, list[RunDir]]
) -> list[RunDir]:
    """Return the run of an experiment; without its data, all stored runs of the same request."""
    from segbench.identity.run_id import science
    from segbench.training.setup import prepare

    try:
        return [prepare(experiment, machine).folder]
    except (DataError, PluginError):
        unknown = dict.fromkeys(experiment.datasets, "")
        return stored.get(_request(science(experiment, unknown, unknown, {})), [])


def _runs_by_request(settings: Settings) -> dict[bytes, list[RunDir]]:
    from segbench.results.rundir import all_runs

    found: dict[bytes, list[RunDir]] = {}
    for run in all_runs(settings.root):
        # The page itself names the runs that cannot be read.
        with suppress(SegbenchError, KeyError, TypeError, AttributeError):
            found.setdefault(_request(run.config()["science"]), []).append(run)
    return found


def _request(science: dict[str, Any]) -> bytes:
    """Return what was asked for, without the versions of data and code."""
    from segbench.storage import json_bytes

    datasets = [(dataset["name"], dataset["labeled"]) for dataset in science["datasets"]]
    versions = {"sources": None, "surface_rule": None}
    return json_bytes({**science, "datasets": datasets, **versions})


def _experiments(settings: Settings, file: Path) -> Iterator[Experiment]:
    """Return the experiments of a suite; without its data, with the published number of cases."""
    from segbench.data.open import case_counters, open_store
    from segbench.suites.suite import choices, expand, load_suite

    counts = case_counters(lambda name: open_store(name, settings.data_root))
    suite, document = load_suite(file)
    for choice in choices(suite):
        try:
            yield from expand(suite, document, choice, **counts)
        except DataError:
            yield from expand(suite, document, choice, None)
        except PluginError as error:
            settings.warn(error.what)


def _described(experiment: Experiment) -> str:
    from segbench.results.names import label_of_experiment, which_cases

    which = which_cases(experiment)
    return (
        f"{label_of_experiment(experiment)} on {'+'.join(experiment.datasets)}, "
        f"{sum(experiment.labeled.values())} labeled{which}, seed {experiment.seed}"
    )
