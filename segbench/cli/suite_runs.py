"""The stored runs of a suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench.cli.settings import Settings
from segbench.errors import DataError, PluginError, SegbenchError, UsageError

if TYPE_CHECKING:
    from segbench.config import Experiment, Machine
    from segbench.results.rundir import RunDir


def suite_called(name: str) -> Path | None:
    """Return the file of the suite that is meant; None if no suite is called so."""
    from segbench.suites.suite import find_suite

    with suppress(UsageError):
        return find_suite(name)
    return None


def suite_runs(settings: Settings, suite: Path, machine: Machine) -> tuple[list[RunDir], list[str]]:
    """Return the runs of a suite, and a line on each unfinished one."""
    stored = _runs_by_request(settings)
    found: dict[Path, RunDir] = {}
    unfinished = []
    for experiment in _experiments(settings, suite):
        runs = _runs_of(experiment, machine, stored)
        found.update({run.path: run for run in runs})
        states = [run.state for run in runs] or ["to do"]
        if "done" not in states:
            unfinished.append(f"{_described(experiment)}: {states[0]}")
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
    from segbench.cli.training import case_counts
    from segbench.suites.suite import choices, expand, load_suite

    counts = case_counts(settings)
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
