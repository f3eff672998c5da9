"""Stored runs, made ready to be continued, predicted with or evaluated again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from segbench import registry
from segbench.config import Experiment, Machine
from segbench.data.store.checks import changed_cases
from segbench.data.store.copies import read_copies
from segbench.data.store.problem import DataProblems, Problem
from segbench.errors import IntegrityError, SegbenchError, UsageError
from segbench.results.names import find_run
from segbench.results.rundir import RunDir, read_object
from segbench.training.setup import Prepared, prepare


def finished_run(root: Path, wanted: str) -> tuple[RunDir, dict[str, Any]]:
    """Return the folder and the result of a finished run.

    Raises:
        UsageError: there is no such run, or it is not finished.
    """
    folder = find_run(root, wanted)
    result = folder.result()
    if result is None:
        raise UsageError(
            "the run is not finished", where=folder.path, fix=f"segbench resume {folder.run_id}"
        )
    return folder, result


def restore(folder: RunDir, machine: Machine, needs_voxels: bool = True) -> Prepared:
    """Return a stored run, ready to be continued, predicted or evaluated again.

    Args:
        needs_voxels: whether the prepared data are needed. Without them, the facts about the data
            that the run recorded are enough.

    Raises:
        IntegrityError: this version of segbench cannot read the stored experiment.
        UsageError: code or settings have changed since the run began.
        DataProblems: its data have changed.
    """
    stored = folder.config()
    for file in stored["plugins"]:
        registry.add_stored_file(file)
    plugins = tuple(dict.fromkeys([*machine.plugins, *stored["plugins"]]))
    experiment = read_experiment(stored["experiment"], folder.path / "config.yaml")
    stores = None
    if not needs_voxels:
        stores = read_copies(folder.path, experiment.datasets)
    run = prepare(experiment, machine.model_copy(update={"plugins": plugins}), stores)
    if run.run_id != stored["run_id"]:
        raise _changed(run, stored, folder)
    run.folder = folder
    return run


def read_experiment(content: dict[str, Any], where: Path) -> Experiment:
    """Return a stored experiment.

    Raises:
        IntegrityError: this version of segbench cannot read it; names the file ``where``.
    """
    try:
        return Experiment(**content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(
            "this version of segbench cannot read the stored experiment",
            where=where,
            found=f"{key}: {first['msg']}",
        ) from error


def _changed(run: Prepared, stored: dict[str, Any], folder: RunDir) -> SegbenchError:
    """Return the error that says what has changed since a run began."""
    fix = f"to start a new run beside it: segbench run {run.experiment.method} ..."
    problems = _changed_data(run, folder)
    if problems:
        what = "the run cannot continue: its data have changed since it began"
        return DataProblems(what, problems, where=folder.path, fix=fix)
    changed = [key for key in run.science if run.science[key] != stored["science"].get(key)]
    return UsageError(
        "the run cannot continue: its code or settings have changed since it began",
        where=folder.path,
        found=f"changed: {', '.join(sorted(changed)) or '?'}",
        expected="the code, data and settings it began with",
        fix=fix,
    )


def _changed_data(run: Prepared, folder: RunDir) -> list[Problem]:
    before = read_object(folder.path / "data.json")
    problems = []
    for store in run.stores:
        if store.name in before:
            problems += changed_cases(before[store.name], store)
    return problems
