"""Execute one run, from its data to its result.

Read ``execute`` first, then ``_train_and_evaluate``: they call the steps of a run in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from segbench.config import Machine
from segbench.contracts.method import Method
from segbench.data.look_alike import joint_warnings
from segbench.data.open import derived
from segbench.data.sampling.loader import loader
from segbench.data.sampling.resident import ResidentData
from segbench.data.store.checks import check_facts, summarize_problems
from segbench.data.store.copies import FILE, copied_facts
from segbench.data.store.intact_once import require_intact_once
from segbench.data.store.store import Store, case_digests
from segbench.errors import PLUGIN_FAILURES, SegbenchError, TrainingError, UsageError
from segbench.evaluation.test_set import evaluate
from segbench.nn.compiled import compile_networks
from segbench.nn.inspect import recompute
from segbench.results.rundir import RunDir
from segbench.storage import is_storage, lock, storage_error, sweep
from segbench.training import distributed
from segbench.training.announce import schedule_text, warn_of_single_items
from segbench.training.build import (
    build,
    build_if_fit,
    training_data,
    training_plan,
    training_views,
)
from segbench.training.distributed import World
from segbench.training.loop import Trainer
from segbench.training.memory import keep_freed_memory
from segbench.training.reporter import Reporter, StepReport
from segbench.training.result import EVALUATION, write_result
from segbench.training.selection import choose, snapshot_steps
from segbench.training.setup import Prepared, device_of
from segbench.training.signals import stop_request
from segbench.training.step import StepSettings, TrainingStep
from segbench.training.tracked import TrackedReporter
from segbench.training.watch import WatchedReporter

FIRST_STOP_CODE = 75  # errors with this exit code or a higher one are requests to stop
LEFTOVERS = (
    "ckpt/*",
    "snapshots/*",
    "result.json",
    "cases.csv",
    "log.jsonl",
    "failed.json",
    "attempts.jsonl",
    EVALUATION,
    "validation.jsonl",
    "manifest.json",
    "leak.json",
    "components.json",
    "leak.jsonl",
    "predictions.zip",
    "tracking.json",
    "tensorboard/*",
)


def execute(
    run: Prepared, machine: Machine, reporter: Reporter | None = None, restart: bool = False
) -> dict[str, Any]:
    """Train and evaluate a run and return its result.

    An interrupted run continues from its last checkpoint, and a finished one returns its stored
    result with ``cached`` set, unless ``restart`` is set.

    Raises:
        BusyError: another process is writing this run.
        Interrupted: a signal requested a stop; nothing that was computed is lost.
        SegbenchError: any failure of the run; it is also written to ``failed.json``.
    """
    with stop_request() as stop:
        _require_processes(run)
        world = distributed.join(machine.device.partition(":")[0])
        shown = reporter or Reporter()
        if machine.log:
            shown = TrackedReporter(shown, machine.log, machine.root)
        watched = WatchedReporter(shown, stop, alone=world.size == 1)
        return _execute(run, machine, watched, restart, world)


def _execute(
    run: Prepared, machine: Machine, reporter: WatchedReporter, restart: bool, world: World
) -> dict[str, Any]:
    keep_freed_memory()
    if world.rank > 0:
        return _train_beside_first(run, machine, world)

    # Reuse the result of a finished run.
    stored = None if restart else run.folder.result()
    if stored is not None:
        return _cached(stored, world)

    # Refuse a network that does not fit before anything is written. The weights of a resumed run
    # come from its checkpoint.
    fresh = restart or not _has_checkpoint(run.folder)
    method = build_if_fit(run.experiment, run.stores, fresh)

    with lock(run.folder.path / "lock"):
        # Another process may have finished the run before this one got the lock.
        stored = None if restart else run.folder.result()
        if stored is not None:
            return _cached(stored, world)
        clean_folder(run.folder, restart)
        world.first_says(True)
        with reporter.attempt(run.folder), _recorded_failures(run) as attempt:
            return _train_and_evaluate(run, method, machine, reporter, world, attempt)


def _train_and_evaluate(
    run: Prepared,
    method: Method | None,
    machine: Machine,
    reporter: Reporter,
    world: World,
    attempt: Attempt,
) -> dict[str, Any]:
    # Set up: write down what will be trained.
    run.folder.write_config(run.run_id, run.experiment, run.science, run.plugins)
    digests = {store.name: case_digests(store) for store in run.stores}
    run.folder.write_json("data.json", digests)
    run.folder.write_json(FILE, copied_facts(run.whole_stores))

    # Build again what failed before, so that the failure is recorded; then check the data.
    if method is None:
        method = build(run.experiment, run.stores, fresh=not _has_checkpoint(run.folder))
    device = distributed.own_device(device_of(machine.device))
    reporter.start(run)
    attempt.stage = "data"
    _require_intact_data(run, reporter)

    # Train.
    attempt.stage = "training"
    trainer = _train(run, method, machine, device, reporter, world)

    # Evaluate: choose the checkpoint, then predict and score the test cases.
    attempt.stage = "selection"
    world.follow_first(method, trained=True)
    selection = _select_checkpoint(run, trainer, device, reporter)
    attempt.stage = "evaluation"
    result = write_result(run, trainer, selection, device, reporter.evaluate)
    reporter.result(result)
    return result


def _train_beside_first(run: Prepared, machine: Machine, world: World) -> dict[str, Any]:
    """Train and score cases in a process other than the first, which alone writes."""
    experiment = run.experiment
    method = build_if_fit(experiment, run.stores)
    needs_training = world.first_says(True)
    if needs_training:
        device = distributed.own_device(device_of(machine.device))
        if method is None:
            method = build(experiment, run.stores)
        _train(run, method, machine, device, Reporter(), world)
        world.follow_first(method, trained=True)
        if experiment.protocol.selection != "last":
            choose(run, method, device, world=world)
        partial = run.folder.path / EVALUATION
        evaluate(run.inference(method, device), run.stores, partial, stamp="", peers=world)
    return {
        "run_id": run.run_id,
        "method": experiment.method,
        "seed": experiment.seed,
        "labeled": experiment.labeled,
        "protocol": {"name": experiment.protocol.name},
        "metrics": [],
    }


# -- the run directory ---------------------------------------------------------------------------


def _require_processes(run: Prepared) -> None:
    """Refuse to train a run with another number of processes than it began with."""
    wanted = run.experiment.processes
    _, size = distributed.launched()
    if size != wanted:
        raise UsageError(
            f"the run began with {wanted} processes, now there are {size}",
            where=run.folder.path,
            fix=f"segbench resume {run.folder.run_id} starts {wanted} processes",
        )


def _cached(stored: dict[str, Any], world: World) -> dict[str, Any]:
    """Return a stored result; the other processes, if any, learn that there is nothing to train."""
    world.first_says(False)
    return {**stored, "cached": True}


def clean_folder(folder: RunDir, restart: bool) -> None:
    """Remove temporary files and the last failure; if restarting, all earlier results."""
    if restart:
        for pattern in LEFTOVERS:
            for file in folder.path.glob(pattern):
                file.unlink(missing_ok=True)
    sweep(folder.path)
    (folder.path / "failed.json").unlink(missing_ok=True)


def _has_checkpoint(folder: RunDir) -> bool:
    return any((folder.path / "ckpt").glob("*.st"))


def _require_intact_data(run: Prepared, reporter: Reporter) -> None:
    """Check that the files of all training and test cases are those that were prepared."""
    for store in run.stores:
        factors = run.experiment.protocol.factors(store.name, store.dims)
        require_intact_once(derived(store, factors), store.train, reporter.check)
        require_intact_once(store, store.test, reporter.check)


# -- training ------------------------------------------------------------------------------------


def _train(
    run: Prepared, method: Method, machine: Machine, device: str, reporter: Reporter, world: World
) -> Trainer:
    """Train the method to the end and return its trainer."""
    experiment = run.experiment
    views = training_views(experiment, run.stores)
    processes = machine.loader_processes
    resident = "no" if processes and machine.resident == "auto" else machine.resident
    data = training_data(experiment, views, world, device, resident)
    if isinstance(data, ResidentData):
        processes = 0  # patches are cut out by the device
    plan = training_plan(experiment, method, data)
    for warning in [*data.warnings, *_data_warnings(run, views)]:
        reporter.warn(warning)
    reporter.schedule(schedule_text(plan, method, experiment.protocol.optim))
    warn_of_single_items(method, reporter.warn)
    if machine.recompute:
        recompute(method)
    if machine.compile or machine.cuda_graphs:
        compile_networks(method, cuda_graphs=machine.cuda_graphs)

    settings = StepSettings(
        optimizer=experiment.protocol.optim,
        seed=experiment.seed,
        device=device,
        precision=experiment.precision,
        without=experiment.without,
        world=world,
    )
    train_step = TrainingStep(method, plan, settings, data.epoch)
    header = {
        "run_id": run.run_id,
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "compile": "cuda graphs" if machine.cuda_graphs else machine.compile,
    }
    snapshots: frozenset[int] = frozenset()
    if _keeps_snapshots(run, machine):
        snapshots = snapshot_steps(train_step.total)
    trainer = Trainer(train_step, run.folder.path, header, snapshots, record=reporter.record)

    @cache
    def check_prediction_once() -> None:
        _check_prediction(run, method, device)

    def report(outcome: StepReport) -> None:
        check_prediction_once()
        reporter.train(outcome)

    trainer.fit(
        lambda steps: loader(data, steps, processes, pin=device.startswith("cuda")),
        machine.save_every,
        report,
    )
    for warning in trainer.warnings:
        reporter.warn(warning)
    return trainer


def _check_prediction(run: Prepared, method: Method, device: str) -> None:
    """Predict noise, so that a wrong ``predict`` ends a run at once and not after its training.

    It cannot change what follows: every step seeds the generators, and puts the method in training
    mode.

    Raises:
        TrainingError: ``predict`` does not return class probabilities.
    """
    setting = method.setting
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, setting.channels, *setting.patch, generator=generator)
    inference = run.inference(method, device)
    method.eval()
    with torch.no_grad():
        for source in range(len(setting.sources)):
            inference.windows(noise.to(device), source)


def _data_warnings(run: Prepared, views: dict[str, Store]) -> list[str]:
    warnings = []
    protocol = run.experiment.protocol
    patch = None if protocol.planned else protocol.least  # a planned patch follows the shapes
    for view in views.values():
        for problem in check_facts(view, patch):
            if problem.level == "warning":
                warnings.append(problem)
    return [*summarize_problems(warnings), *joint_warnings(list(views.values()))]


def _keeps_snapshots(run: Prepared, machine: Machine) -> bool:
    """Whether to keep the weights after every tenth of the training, to choose from later."""
    if run.experiment.protocol.selection == "validation":
        return True
    if (run.folder.path / "snapshots").exists():
        return True
    # A run that began without the leak meter has lost its first checkpoints.
    return machine.leak_meter and not _has_checkpoint(run.folder)


def _select_checkpoint(
    run: Prepared, trainer: Trainer, device: str, reporter: Reporter
) -> dict[str, Any]:
    """Load the weights that the protocol selects; return what the result records of it."""
    if run.experiment.protocol.selection == "last":
        return {}
    chosen = choose(run, trainer.method, device, reporter.evaluate, trainer.world)
    trainer.keep_weights_only()
    return {"validation": chosen}


# -- failures ------------------------------------------------------------------------------------


@dataclass
class Attempt:
    """One attempt at a run; a failure is recorded together with the stage it happened in."""

    stage: str = "set-up"


@contextmanager
def _recorded_failures(run: Prepared) -> Iterator[Attempt]:
    """Write a failure to ``failed.json`` and raise it as an error with an exit code of its own."""
    attempt = Attempt()
    try:
        yield attempt
    except SegbenchError as error:
        if error.code < FIRST_STOP_CODE:
            run.folder.fail(error, attempt.stage)
        raise
    except PLUGIN_FAILURES as error:
        known = _translated(error, run, attempt.stage)
        run.folder.fail(known, attempt.stage)
        raise known from error


def _translated(error: Exception | SystemExit, run: Prepared, stage: str) -> SegbenchError:
    """Return the error that the user sees for an unexpected exception."""
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            "out of memory",
            where=stage,
            found=str(error).splitlines()[0],
            fix="--precision bf16, or a smaller batch (a modified protocol): -o batch.labeled=1",
        )
    if isinstance(error, OSError) and is_storage(error):
        return storage_error(error, run.folder.path)
    method = run.experiment.method
    fix = f"--debug shows where; segbench test {method} may say why"
    if "more than 1 value per channel" in str(error):  # torch's message
        fix = (
            "batch normalization of a single item needs at least two voxels at the bottleneck: "
            "use a larger patch (-o patch=), a smaller -o backbone.depth=, "
            "or more items (-o batch.labeled=4 -o batch.unlabeled=4)"
        )
    return TrainingError(f"{method} failed: {type(error).__name__}: {error}", where=stage, fix=fix)
