"""``segbench run`` and ``resume``."""

from __future__ import annotations

import re
import subprocess
from math import nan
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Command, Settings, counts, keep_flag, message, safe
from segbench.errors import IntegrityError, Interrupted, SegbenchError, UsageError

if TYPE_CHECKING:
    from segbench.config import Experiment
    from segbench.training.setup import Machine, Prepared


def machine_options(command: Any) -> Any:
    """Options that cannot change a number."""
    for option in reversed(
        [
            click.option(
                "--save-every", metavar="N|TIME", help="Checkpoint every N steps, or 30s, 5m [5m]."
            ),
            click.option("--device", metavar="DEV", help="auto, cpu, cuda, cuda:N or mps [auto]."),
            click.option(
                "--workers",
                metavar="N",
                type=click.IntRange(0, 64),
                help="Loader processes; 0 prefetches in a thread [0].",
            ),
            click.option(
                "--recompute",
                is_flag=True,
                expose_value=False,
                callback=keep_flag,
                help="Compute activations again going backward: less memory, more time.",
            ),
        ]
    ):
        command = option(command)
    return command


def science_options(command: Any) -> Any:
    """Options that decide the numbers."""
    for option in reversed(
        [
            click.option(
                "--dataset",
                metavar="NAME[,NAME]",
                default="phantom",
                show_default=True,
                help="Data sets.",
            ),
            click.option(
                "--labeled",
                metavar="N|P%|all",
                help="Labeled training cases [the data set's].",
            ),
            click.option(
                "--draw",
                metavar="N",
                type=click.IntRange(0, 9999),
                default=0,
                show_default=True,
                help="Which cases are labeled: 0 the list's first, as published; others at random.",
            ),
            click.option(
                "--unlabeled",
                type=click.Choice(["all", "labeled"]),
                default="all",
                show_default=True,
                help="Images of the unlabeled stream; labeled: the method without unlabeled images.",
            ),
            click.option("--backbone", metavar="NAME", help="Network [the protocol's]."),
            click.option("--protocol", metavar="NAME|FILE", help="Protocol [the data set's]."),
            click.option("--seed", metavar="N", type=int, help="Seed [0]."),
            click.option("--seeds", metavar="A-B|A,B", help="Several seeds, one run each."),
            click.option(
                "--steps",
                metavar="N",
                type=click.IntRange(1),
                help="Training steps (a modified protocol).",
            ),
            click.option(
                "--precision",
                type=click.Choice(["fp32", "bf16", "fp16"]),
                help="Arithmetic [the protocol's].",
            ),
            click.option(
                "-o",
                "overrides",
                metavar="KEY=VALUE",
                multiple=True,
                help="A parameter of the method, backbone.NAME, or a key of the protocol.",
            ),
        ]
    ):
        command = option(command)
    return command


leak_option = click.option(
    "--leak-meter",
    is_flag=True,
    help="Keep ten checkpoints; tell what choosing among them on the test cases would have gained.",
)


@click.command(
    cls=Command,
    epilog="Finished runs are reused, half-done ones go on: repeating a command is safe.",
)
@click.argument("method", metavar="METHOD")
@science_options
@machine_options
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option(
    "--restart", is_flag=True, help="Throw an existing run of this identity away and train anew."
)
@leak_option
@click.pass_obj
def run(
    settings: Settings,
    method: str,
    save_every: str | None,
    device: str | None,
    workers: int | None,
    dry_run: bool,
    restart: bool,
    leak_meter: bool,
    **science: Any,
) -> None:
    """Train METHOD and evaluate it on the test cases.

    \b
    segbench run supervised --dataset phantom
    segbench run versemi --dataset la --labeled 8 --seeds 0-2
    segbench run mean_teacher --dataset la -o decay=0.995 -o optim.lr=0.02
    """
    from segbench.training.setup import prepare

    machine = machine_of(settings, save_every, device, workers)
    machine.leak_meter = leak_meter
    runs = [prepare(e, machine) for e in experiments(settings, method, **science)]
    if dry_run:
        _show_plan(settings, runs)
        return
    results = [_execute(settings, run, machine, restart) for run in runs]
    settings.document = combined(results)


def experiments(
    settings: Settings,
    method: str,
    dataset: str,
    labeled: str | None,
    backbone: str | None,
    protocol: str | None,
    seed: int | None,
    seeds: str | None,
    steps: int | None,
    precision: str | None,
    overrides: tuple[str, ...],
    draw: int = 0,
    unlabeled: str = "all",
) -> list[Experiment]:
    """The experiments a command line asks for: one a data set (one in all for a joint method) and seed."""
    from segbench.config import resolve

    if seed is not None and seeds is not None:
        raise UsageError("--seed and --seeds exclude each other", fix="use one of them")
    patients = counts(settings)
    result = []
    for number in parse_seeds(seeds) if seeds else [seed or 0]:
        result += resolve(
            method,
            dataset=dataset,
            labeled=labeled,
            backbone=backbone,
            protocol=protocol,
            seed=number,
            steps=steps,
            precision=precision,
            draw=draw,
            unlabeled=unlabeled,
            overrides=list(overrides),
            **patients,
        ).experiments
    return result


def parse_seeds(text: str) -> list[int]:
    """``0-2`` or ``0,1,5``."""
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = map(int, match.groups())
        if first <= last < first + 1000:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        return list(dict.fromkeys(map(int, text.split(","))))
    raise UsageError(f"--seeds: '{text}'", expected="a range 0-2 or a list 0,1,5")


def machine_of(
    settings: Settings, save_every: str | None, device: str | None, workers: int | None
) -> Machine:
    """Machine settings of a command."""
    from segbench.training.setup import Cadence, Machine, device_of

    cadence = Cadence()
    if save_every is not None:
        match = re.fullmatch(r"(\d+)([smh]?)", save_every)
        if match is None or int(match[1]) == 0:
            raise UsageError(
                f"--save-every: '{save_every}'",
                expected="a number of steps (500) or a time (30s, 5m, 1h)",
            )
        number = int(match[1])
        cadence = (
            Cadence(seconds=number * {"s": 1, "m": 60, "h": 3600}[match[2]])
            if match[2]
            else Cadence(steps=number, seconds=None)
        )
    if settings.machine.threads != "auto":
        import torch

        torch.set_num_threads(settings.machine.threads)
    if device and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise UsageError(
            f"--device: '{device}'", expected="auto, cpu, cuda, cuda:N or mps", fix="--device auto"
        )
    chosen = device_of(device or settings.machine.device)
    count = workers if workers is not None else settings.machine.workers
    # Measured: handing batches over between processes costs more than cutting them beside the training step.
    return Machine(
        settings.root,
        settings.data_root,
        chosen,
        0 if count == "auto" else count,
        cadence,
        settings.plugins,
        settings.machine.recompute,
    )


def _execute(
    settings: Settings, run: Prepared, machine: Machine, restart: bool = False
) -> dict[str, Any]:
    from segbench.cli.reporter import reporter
    from segbench.training.run import execute

    show = reporter(settings)
    try:
        result = execute(run, machine, show, restart)
    except Interrupted as error:
        error.details["fix"] = f"go on with: segbench resume {run.run_id[:8]}"
        raise
    finally:
        show.stop()
    if result.get("cached"):
        settings.say(f"cached: {run.folder.path} (--restart trains anew)")
    if not settings.json:
        for line in lines(result):
            click.echo(line)
    if machine.leak_meter and (run.folder.path / "snapshots").exists():
        _meter(settings, run, machine)
    elif machine.leak_meter:
        show.warn(
            "this run kept no checkpoints for the leak meter; --restart trains anew and keeps them"
        )
    return document(result, run.folder.path)


def _meter(settings: Settings, run: Prepared, machine: Machine) -> None:
    """``segbench leak`` in a process of its own, which alone sees how checkpoints do on the test cases."""
    from segbench.suites.local import own_command
    from segbench.training.distributed import launched

    folder = run.folder
    if not folder.leak() and launched()[0] == 0:
        told = subprocess.run(
            own_command(machine, "leak", run), stdout=subprocess.DEVNULL if settings.json else None
        )
        settings.exit_code = settings.exit_code or told.returncode


def combined(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One document for one or several runs: the first one's, with ``runs`` if there are more and the metrics of all."""
    if len(results) == 1:
        return results[0]
    metrics: dict[str, Any] = {}
    for result in results:
        metrics = {
            **result["metrics"],
            **metrics,
        }  # of several seeds the first stands here, all are under ``runs``
    return {
        **(results[0] if results else {}),
        "status": "done",
        "metrics": metrics,
        "runs": results,
    }


def document(result: dict[str, Any], folder: Any) -> dict[str, Any]:
    """What --json prints of a run."""
    metrics: dict[str, dict[str, Any]] = {}
    for row in result["metrics"]:
        means = {k: v["mean"] for k, v in row["columns"].items()}
        metrics.setdefault(row["dataset"], {})[row["class"]] = {**row["counts"], **means}
    return {
        "schema": "segbench.run/1",
        "status": "done",
        "run_id": result["run_id"],
        "dir": str(folder),
        "cached": bool(result.get("cached")),
        "method": result["method"],
        "seed": result["seed"],
        "labeled": result["labeled"],
        "protocol": result["protocol"],
        "metrics": metrics,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """A result in one line a data set and class; a class that is nowhere has no numbers."""
    from segbench.results.export import number

    out = []
    for row in result["metrics"]:
        mean = {k: nan if v["mean"] is None else v["mean"] for k, v in row["columns"].items()}
        unit = "mm" if "hd95_mm" in mean else "vox"
        out.append(
            f"{safe(result['method'])} on {safe(row['dataset'])} ({safe(row['class'])}), {row['counts']['n']} test "
            f"cases: Dice {number(100 * mean['dice'], 2)}  Jaccard {number(100 * mean['jaccard'], 2)}  HD95 "
            f"{number(mean[f'hd95_{unit}'], 2)} {unit}  ASD {number(mean[f'asd_{unit}'], 2)} {unit}  "
            f"missed {row['counts']['empty_prediction']}"
        )
    return out


def _show_plan(settings: Settings, runs: list[Prepared]) -> None:
    from segbench.cli.reporter import header
    from segbench.training.build import require_fit

    plan = []
    for run in runs:
        state = (
            "cached"
            if run.folder.result()
            else "half-done"
            if any(run.folder.path.glob("ckpt/*.st"))
            else "to do"
        )
        if state != "cached":
            require_fit(run.experiment, run.stores)
        plan.append(
            {"run_id": run.run_id, "dir": str(run.folder.path), "state": state, "metrics": {}}
        )
        if not settings.json:
            click.echo(f"{header(run)}\n  {state}")
    settings.document = {**combined(plan), "status": "planned", "runs": plan}


@click.command(cls=Command)
@click.argument("wanted", metavar="[RUN]", required=False)
@click.option("--all", "everything", is_flag=True, help="Every run that is not finished.")
@machine_options
@leak_option
@click.pass_obj
def resume(
    settings: Settings,
    wanted: str | None,
    everything: bool,
    save_every: str | None,
    device: str | None,
    workers: int | None,
    leak_meter: bool,
) -> None:
    """Go on with a run that was stopped. Never starts a new one.

    \b
    segbench resume 3f9c2a7b
    segbench resume --all
    """
    from segbench.results.rundir import all_runs, find_run

    if (wanted is None) != everything:
        raise UsageError("name one run, or say --all", fix="segbench resume RUN")
    machine = machine_of(settings, save_every, device, workers)
    machine.leak_meter = leak_meter
    folders = (
        [r for r in all_runs(settings.root) if not _finished(r)]
        if everything
        else [find_run(settings.root, wanted or "")]
    )
    if not folders:
        settings.say("nothing to resume")
    results, failed = [], []
    for folder in folders:
        try:
            results.append(_execute(settings, restore(folder, machine), machine))
        except Interrupted:
            raise
        except SegbenchError as error:
            if not everything:
                raise
            failed.append(error)
            click.echo(f"{safe(folder.path)}: {message(error)}", err=True)
    settings.document = (
        combined(results)
        if wanted
        else {**combined(results), "status": "failed" if failed else "done", "runs": results}
    )
    settings.exit_code = 5 if failed else settings.exit_code


def _finished(folder: Any) -> bool:
    try:
        return folder.result() is not None
    except IntegrityError as error:
        click.echo(f"warning: {safe(folder.path)}: {safe(error.what)}; left alone", err=True)
        return True


def restore(folder: Any, machine: Machine) -> Prepared:
    """A stored run, checked to be the same experiment still."""
    from pydantic import ValidationError

    from segbench import registry
    from segbench.config import Experiment
    from segbench.training.setup import prepare

    stored = folder.config()
    for file in stored["plugins"]:
        registry.add_file(file)
    machine.plugins = list(dict.fromkeys([*machine.plugins, *stored["plugins"]]))
    try:
        experiment = Experiment(**stored["experiment"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise IntegrityError(
            "the stored experiment is not one of this segbench",
            where=folder.path / "config.yaml",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from error
    run = prepare(experiment, machine)
    if run.run_id != stored["run_id"]:
        raise _changed(run, stored, folder)
    run.folder = folder
    return run


def _changed(run: Prepared, stored: dict[str, Any], folder: Any) -> SegbenchError:
    """Why a stored run cannot go on: its data, case by case, or whatever else decides its numbers."""
    from segbench.data.store.checks import changed_cases
    from segbench.data.store.problem import DataProblems
    from segbench.results.rundir import read_object

    before = read_object(folder.path / "data.json")
    what, expected = (
        "the run cannot go on: {} changed since it began",
        "the code, data and settings it began with",
    )
    fix = f"segbench run {run.experiment.method} ... starts a new run beside it"
    if problems := [
        p for s in run.stores if s.name in before for p in changed_cases(before[s.name], s)
    ]:
        return DataProblems(what.format("its data have"), problems, where=folder.path, fix=fix)
    changed = (
        ", ".join(sorted(k for k in run.science if run.science[k] != stored["science"].get(k)))
        or "?"
    )
    return UsageError(
        what.format("what decides its numbers has"),
        where=folder.path,
        found=f"changed: {changed}",
        expected=expected,
        fix=fix,
    )
