"""Set up, execute and restore runs on behalf of commands."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from typing import Any

from pydantic import ValidationError

from segbench import registry
from segbench.cli.documents import result_lines, run_document
from segbench.cli.options import DEVICES, MachineOptions, ScienceOptions
from segbench.cli.reporter import reporting
from segbench.cli.settings import Settings
from segbench.config import Experiment, Machine, resolve
from segbench.config.experiment import Resolved
from segbench.config.machine import DEVICE_PATTERN, Cadence
from segbench.data.open import open_store
from segbench.data.store.checks import changed_cases
from segbench.data.store.copies import read_copies
from segbench.data.store.problem import DataProblems, Problem
from segbench.data.store.store import Store
from segbench.errors import IntegrityError, Interrupted, SegbenchError, UsageError
from segbench.results.names import find_run
from segbench.results.rundir import RunDir, read_object
from segbench.suites.local import own_command
from segbench.training.distributed import launched
from segbench.training.run import execute
from segbench.training.setup import Prepared, device_of, prepare

# -- from options to runs --------------------------------------------------------------------------


def machine_of(
    settings: Settings,
    options: MachineOptions = MachineOptions(),  # noqa: B008 (it cannot be changed)
    leak_meter: bool = False,
) -> Machine:
    """Return the machine that a command's options describe.

    Raises:
        UsageError: ``--save-every`` or ``--device`` has a wrong value.
        PluginError: the device is not available.
    """
    configured = settings.machine
    if configured.threads != "auto":
        import torch

        torch.set_num_threads(configured.threads)
    device = options.device or configured.device
    if not re.fullmatch(DEVICE_PATTERN, device):
        raise UsageError(f"--device: '{device}'", expected=DEVICES, fix="--device auto")
    chosen: dict[str, Any] = {
        "device": device_of(device),
        "plugins": settings.plugins,
        "leak_meter": leak_meter,
    }
    if options.workers is not None:
        chosen["workers"] = options.workers
    if options.save_every is not None:
        chosen["save_every"] = Cadence.parse(options.save_every)
    return configured.model_copy(update=chosen)


def experiments(settings: Settings, method: str, science: ScienceOptions) -> list[Experiment]:
    """Return the experiments that a command line asks for.

    There is one per seed and data set; a joint method has one per seed for all data sets.
    """
    found = []
    for seed in science.chosen_seeds():
        found += resolved(settings, method, science, seed).experiments
    return found


def resolved(settings: Settings, method: str, science: ScienceOptions, seed: int) -> Resolved:
    """Return the experiments of one seed, and where their values came from."""
    science = science.for_method(method)
    return resolve(
        method,
        dataset=science.dataset,
        labeled=science.labeled,
        backbone=science.backbone,
        protocol=science.protocol,
        seed=seed,
        steps=science.steps,
        precision=science.precision,
        overrides=list(science.overrides),
        draw=science.draw,
        unlabeled=science.unlabeled,
        **case_counts(settings),
    )


def case_counts(settings: Settings) -> dict[str, Any]:
    """Return the functions with which ``resolve`` counts the cases of prepared data sets."""

    @cache
    def store(name: str) -> Store:
        return open_store(name, settings.data_root)

    return {
        "train_sizes": lambda name: len(store(name).patients),
        "labels": lambda name: len(store(name).patients_with_label),
    }


# -- execution -------------------------------------------------------------------------------------


def execute_run(
    settings: Settings, run: Prepared, machine: Machine, restart: bool = False
) -> dict[str, Any]:
    """Train and evaluate a run, print its result and return its document."""
    with reporting(settings) as reporter:
        try:
            result = execute(run, machine, reporter, restart)
        except Interrupted as error:
            error.details["fix"] = f"to continue: segbench resume {run.run_id[:8]}"
            raise
    if result.get("cached"):
        settings.say(f"cached: {run.folder.path} (--restart retrains)")
    settings.echo(result_lines(result))
    if machine.leak_meter:
        _measure_leak(settings, run, machine)
    return run_document(result, run.folder.path)


def _measure_leak(settings: Settings, run: Prepared, machine: Machine) -> None:
    """Run ``segbench leak`` as a process of its own, unless its result is stored already.

    No other process evaluates checkpoints on the test cases.
    """
    if not (run.folder.path / "snapshots").exists():
        settings.warn(
            "this run kept no checkpoints for the leak meter; --restart retrains and keeps them"
        )
        return
    rank, _ = launched()
    if rank > 0 or run.folder.leak():
        return
    stdout = subprocess.DEVNULL if settings.json else None
    words = ["leak", str(run.folder.path), *machine.place_options()]
    finished = subprocess.run(own_command(words), stdout=stdout)
    settings.exit_code = settings.exit_code or finished.returncode


# -- stored runs -----------------------------------------------------------------------------------


def finished_run(settings: Settings, wanted: str) -> tuple[RunDir, dict[str, Any]]:
    """Return the folder and the result of a finished run.

    Raises:
        UsageError: there is no such run, or it is not finished.
    """
    folder = find_run(settings.root, wanted)
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
        registry.add_file(file)
    plugins = tuple(dict.fromkeys([*machine.plugins, *stored["plugins"]]))
    try:
        experiment = Experiment(**stored["experiment"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(
            "this version of segbench cannot read the stored experiment",
            where=folder.path / "config.yaml",
            found=f"{key}: {first['msg']}",
        ) from error
    stores = None
    if not needs_voxels:
        stores = read_copies(folder.path, experiment.datasets)
    run = prepare(experiment, machine.model_copy(update={"plugins": plugins}), stores)
    if run.run_id != stored["run_id"]:
        raise _changed(run, stored, folder)
    run.folder = folder
    return run


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
