"""``segbench run`` and ``segbench resume``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import (
    Command,
    MachineOptions,
    ScienceOptions,
    bundled,
    leak_option,
    machine_options,
    science_options,
)
from segbench.cli.settings import Settings
from segbench.cli.streams import remark
from segbench.cli.terminal import error_text, plural
from segbench.errors import IntegrityError, Interrupted, SegbenchError, UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.config import Machine
    from segbench.results.rundir import RunDir
    from segbench.training.setup import Prepared

SOME_FAILED = 5  # exit code


@dataclass(frozen=True)
class RunOptions:
    """Options of ``run`` alone."""

    gpus: int | None = None
    processes: int | None = None
    dry_run: bool = False
    restart: bool = False
    leak_meter: bool = False


RUN_OPTIONS = (
    click.option(
        "--gpus",
        metavar="N",
        type=click.IntRange(1),
        help="Share every batch between N GPUs of this machine (starts torchrun).",
    ),
    click.option(
        "--processes",
        metavar="N",
        type=click.IntRange(1),
        help="The same with N processes, also on the CPU.",
    ),
    click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing."),
    click.option(
        "--restart",
        is_flag=True,
        help="Delete an earlier run with the same settings and retrain.",
    ),
    leak_option,
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``run`` alone; the command gets them as ``options``."""
    return bundled(command, "options", RunOptions, RUN_OPTIONS)


@click.command(
    cls=Command,
    epilog="Interrupted runs resume and finished runs are reused: repeating a command is safe.",
)
@click.argument("method", metavar="METHOD")
@science_options
@machine_options
@run_options
@click.pass_obj
def run(
    settings: Settings,
    method: str,
    science: ScienceOptions,
    machine_options: MachineOptions,
    options: RunOptions,
) -> None:
    """Train METHOD and evaluate it on the test cases.

    A folder of your own is prepared first, if it is new.

    \b
    segbench run supervised --dataset phantom
    segbench run mean_teacher --dataset folder:/data/Dataset007_Mine
    segbench run versemi --dataset la --labeled 8 --seeds 0-2
    segbench run mean_teacher --dataset la -o decay=0.995 -o optim.lr=0.02
    segbench run bcp --as-published la
    segbench run bcp --dataset la --gpus 4
    """
    settings.say(f"segbench run: {safe(method)} on {safe(science.as_published or science.dataset)}")
    from segbench.cli.data import prepare_new_folders
    from segbench.cli.training import experiments, machine_of
    from segbench.training.setup import prepare

    if not (options.dry_run or "TORCHELASTIC_RUN_ID" in os.environ):
        prepare_new_folders(settings, science.dataset)
    machine_options = _on_gpus(machine_options, options)
    machine = machine_of(settings, machine_options, options.leak_meter)
    processes = options.gpus or options.processes or 1
    runs = []
    for experiment in experiments(settings, method, science, machine.device):
        shared = experiment.model_copy(update={"processes": processes})
        runs.append(prepare(shared, machine))
    if options.dry_run:
        _show_plan(settings, runs)
        return
    _execute_all(settings, runs, machine, options.restart)


def _on_gpus(machine_options: MachineOptions, options: RunOptions) -> MachineOptions:
    """Return the machine options with the device that ``--gpus`` implies.

    Raises:
        UsageError: options contradict each other.
    """
    if options.gpus and options.processes:
        raise UsageError("--gpus and --processes", expected="one of them", fix="--gpus N")
    several = options.gpus or options.processes
    if several and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError(
            "--gpus and --processes start torchrun, which has started this process",
            fix="leave the option out, or start segbench without torchrun",
        )
    if not options.gpus:
        return machine_options
    if machine_options.device not in (None, "auto", "cuda"):
        raise UsageError(
            f"--gpus with --device {machine_options.device}",
            expected="no --device, or cuda",
            fix="--processes N --device cpu",
        )
    return replace(machine_options, device="cuda")


def _execute_all(
    settings: Settings, runs: list[Prepared], machine: Machine, restart: bool = False
) -> None:
    """Execute the runs of a command one after the other, and summarize them if there are several.

    Raises:
        Interrupted: stopped; its fix is the way back, to the other runs as well.
    """
    from segbench.cli.documents import joint_document, summary_lines
    from segbench.cli.training import execute_run

    documents: list[dict[str, Any]] = []
    for number, run in enumerate(runs, 1):
        place = f"run {number} of {len(runs)}: " if len(runs) > 1 else ""
        try:
            documents.append(execute_run(settings, run, machine, restart, place))
        except Interrupted as error:
            if len(runs) > 1:
                done = f"{len(documents)} of {plural(len(runs), 'run')} done"
                error.details["fix"] = f"to continue ({done}): repeat the command"
            raise
    lines = summary_lines(documents) if len(documents) > 1 else []
    settings.show(joint_document(documents), lines)


def _show_plan(settings: Settings, runs: list[Prepared]) -> None:
    from segbench.cli.documents import joint_document
    from segbench.cli.reporter import header
    from segbench.data.look_alike import joint_warnings
    from segbench.training.build import build_if_fit

    plan: list[dict[str, Any]] = []
    lines = []
    for run in runs:
        state = _planned_state(run)
        if state != "cached":
            build_if_fit(run.experiment, run.stores, fresh=False)
        for warning in joint_warnings(run.stores):
            settings.warn(warning)
        plan.append(
            {"run_id": run.run_id, "dir": str(run.folder.path), "state": state, "metrics": {}}
        )
        lines.append(f"{header(run)}\n  {state}")
    settings.show({**joint_document(plan), "status": "planned", "runs": plan}, lines)


def _planned_state(run: Prepared) -> str:
    if run.folder.result():
        return "cached"
    if any(run.folder.path.glob("ckpt/*.st")):
        return "half-done"
    return "to do"


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN]", required=False)
@click.option("--all", "everything", is_flag=True, help="Resume every unfinished run.")
@machine_options
@leak_option
@click.pass_obj
def resume(
    settings: Settings,
    wanted: str | None,
    everything: bool,
    machine_options: MachineOptions,
    leak_meter: bool,
) -> None:
    """Continue an interrupted run. This never starts a new one.

    \b
    segbench resume 3f9c2a7b
    segbench resume --all
    """
    from segbench.cli.documents import joint_document
    from segbench.cli.training import execute_run, machine_of
    from segbench.results.names import find_run
    from segbench.training.stored import restore

    if (wanted is None) != everything:
        raise UsageError("name one run, or use --all", fix="segbench resume RUN")
    machine = machine_of(settings, machine_options, leak_meter)
    if wanted is None:
        _resume_all(settings, machine)
        return
    folder = find_run(settings.root, wanted)
    document = execute_run(settings, restore(folder, machine), machine)
    settings.show(joint_document([document]))


def _resume_all(settings: Settings, machine: Machine) -> None:
    """Resume all unfinished runs; one that fails does not stop the others."""
    from segbench.cli.documents import joint_document, summary_lines
    from segbench.cli.training import execute_run
    from segbench.results.rundir import all_runs
    from segbench.training.stored import restore

    folders = [folder for folder in all_runs(settings.root) if _is_unfinished(settings, folder)]
    if not folders:
        settings.say("nothing to resume")
    documents = []
    failed = False
    for number, folder in enumerate(folders, 1):
        place = f"run {number} of {len(folders)}: " if len(folders) > 1 else ""
        try:
            run = restore(folder, machine)
            documents.append(execute_run(settings, run, machine, place=place))
        except Interrupted:
            raise
        except SegbenchError as error:
            failed = True
            remark(f"{safe(folder.path)}: {error_text(error)}")
    status = "failed" if failed else "done"
    lines = summary_lines(documents) if len(documents) > 1 else []
    settings.show({**joint_document(documents), "status": status, "runs": documents}, lines)
    if failed:
        settings.exit_code = SOME_FAILED


def _is_unfinished(settings: Settings, folder: RunDir) -> bool:
    try:
        return folder.result() is None
    except IntegrityError as error:
        settings.warn(f"{folder.path}: {error.what}; skipped")
        return False
