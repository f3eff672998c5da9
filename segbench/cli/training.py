"""Set up and execute runs on behalf of commands."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import Any

from segbench.cli.documents import result_lines, run_document
from segbench.cli.options import DEVICES, MachineOptions, ScienceOptions
from segbench.cli.reporter import counting, reporting
from segbench.cli.settings import Settings
from segbench.cli.terminal import wrapped
from segbench.config import Experiment, Machine, resolve
from segbench.config.experiment import Resolved
from segbench.config.machine import DEVICE_PATTERN, Cadence
from segbench.data.open import case_counters, open_store
from segbench.data.store.store import Store
from segbench.errors import Interrupted, UsageError
from segbench.suites.local import own_command
from segbench.suites.processes import train_in_processes
from segbench.tracking.choose import chosen_trackers
from segbench.training.distributed import launched
from segbench.training.planned import planner
from segbench.training.run import execute
from segbench.training.setup import Prepared, device_of

# -- from options to runs --------------------------------------------------------------------------


def machine_of(
    settings: Settings,
    options: MachineOptions = MachineOptions(),  # noqa: B008 (it cannot be changed)
    leak_meter: bool = False,
    here: bool = True,
) -> Machine:
    """Return the machine that a command's options describe.

    Args:
        here: the runs will be executed by this process; otherwise the device is not looked for.

    Raises:
        UsageError: ``--save-every``, ``--device`` or ``--log`` has a wrong value.
        PluginError: the device, or the package of a tracker, is not available.
    """
    configured = settings.machine
    if configured.threads != "auto":
        import torch

        torch.set_num_threads(configured.threads)
    device = options.device or configured.device
    if not re.fullmatch(DEVICE_PATTERN, device):
        raise UsageError(f"--device: '{device}'", expected=DEVICES, fix="--device auto")
    chosen: dict[str, Any] = {
        "device": device_of(device) if here else device,
        "plugins": settings.plugins,
        "leak_meter": leak_meter,
    }
    if options.workers is not None:
        chosen["workers"] = options.workers
    if options.save_every is not None:
        chosen["save_every"] = Cadence.parse(options.save_every)
    if options.log is not None:
        chosen["log"] = chosen_trackers(options.log)
    return configured.model_copy(update=chosen)


def experiments(
    settings: Settings, method: str, science: ScienceOptions, device: str | None = None
) -> list[Experiment]:
    """Return the experiments that a command line asks for.

    There is one per replicate or seed, fold and data set; a joint method has one for all data sets.

    Args:
        device: for which the protocol of a data set without one is planned; None: of the settings.
    """
    found = []
    for draw, seed in science.chosen_draws():
        drawn = replace(science, draw=draw)
        for fold in science.chosen_folds():
            found += resolved(settings, method, drawn, seed, fold, device).experiments
    return found


def resolved(
    settings: Settings,
    method: str,
    science: ScienceOptions,
    seed: int,
    fold: int | None,
    device: str | None = None,
) -> Resolved:
    """Return the experiments of one seed and fold, and where their values came from."""
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
        fold=fold,
        unlabeled=science.unlabeled,
        **case_counts(settings, device),
    )


def case_counts(settings: Settings, device: str | None = None) -> dict[str, Any]:
    """Return the functions with which ``resolve`` looks at prepared data sets."""

    def opened(name: str) -> Store:
        with counting(settings, f"making {name}") as progress:
            return open_store(name, settings.data_root, progress=progress)

    def chosen_device() -> str:
        return device or device_of(settings.machine.device)

    return {**case_counters(opened), "plan": planner(opened, chosen_device, settings.warn)}


# -- execution -------------------------------------------------------------------------------------


def execute_run(
    settings: Settings, run: Prepared, machine: Machine, restart: bool = False, place: str = ""
) -> dict[str, Any]:
    """Train and evaluate a run, print its result and return its document.

    Args:
        restart: train again, even if the run is finished.
        place: which run of the command this is, such as "run 2 of 12: ".
    """
    try:
        result = _result_of(settings, run, machine, restart, place)
    except Interrupted as error:
        error.details["fix"] = f"to continue: segbench resume {run.run_id[:8]}"
        raise
    if result.get("cached"):
        settings.say(f"{place}cached: {run.folder.path} (--restart retrains)")
    for line in result_lines(result):
        settings.echo(wrapped(line))
    if machine.leak_meter:
        _measure_leak(settings, run, machine)
    return run_document(result, run.folder.path)


def _result_of(
    settings: Settings, run: Prepared, machine: Machine, restart: bool, place: str
) -> dict[str, Any]:
    """Train and evaluate a run in this process or, if it wants several, in those of torchrun."""
    _, size = launched()
    if run.experiment.processes > size == 1:
        settings.say(f"{place}{run.experiment.processes} processes")
        options = ["-q"] * settings.quiet + ["-v"] * settings.verbose
        return train_in_processes(run, machine, settings.say, options, restart)
    with reporting(settings, place, machine.device) as reporter:
        return execute(run, machine, reporter, restart)


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
