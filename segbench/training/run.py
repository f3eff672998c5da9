"""One experiment from start to result: data, identity, run directory, training, evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from segbench import registry
from segbench.config import Experiment
from segbench.contracts.backbone import Backbone
from segbench.contracts.method import Method, Optim, Setting, Source
from segbench.data.sampling.batches import TrainingData
from segbench.data.sampling.loader import loader
from segbench.data.sampling.splits import drawn
from segbench.data.store.checks import (
    brief,
    check_facts,
    require_apart,
    require_learnable,
    require_no_leak,
)
from segbench.data.store.store import Store, case_digests, derived, open_store, require_intact
from segbench.errors import DataError, PluginError, SegbenchError, TrainingError, UsageError
from segbench.identity.run_id import run_id, science
from segbench.identity.sources import source_digest
from segbench.nn.inspect import dry_run, recompute
from segbench.results.rundir import RunDir, run_folder
from segbench.storage import is_storage, lock, storage_error, sweep
from segbench.training import distributed
from segbench.training.distributed import World
from segbench.training.loop import Cadence, Progress, Trainer
from segbench.training.plan import stages
from segbench.training.result import write_result
from segbench.training.selection import choose, held_out, snapshot_steps, without_held_out


@dataclass
class Machine:
    """What may differ between two runs of one identity."""

    root: Path
    data_root: Path
    device: str = "auto"
    workers: int = 0
    save_every: Cadence = field(default_factory=Cadence)
    plugins: list[str] = field(default_factory=list)
    recompute: bool = False  # activations, going backward
    leak_meter: bool = False  # keep checkpoints, to tell what choosing on the test cases gains


@dataclass
class Reporter:
    """What the engine tells while it works. The default says nothing; the command line shows bars or lines."""

    start: Callable[[Prepared], None] = lambda run: None
    check: Callable[[int, int, str], None] = lambda done, total, case: None
    train: Callable[[Progress], None] = lambda progress: None
    evaluate: Callable[[int, int, str], None] = lambda done, total, case: None
    warn: Callable[[str], None] = lambda text: None


@dataclass
class Prepared:
    """An experiment with its data and identity, before anything is computed or written."""

    experiment: Experiment
    stores: list[Store]
    science: dict[str, Any]
    run_id: str
    folder: RunDir
    splits: dict[str, str]  # digest of each data set's split

    @property
    def train_sizes(self) -> dict[str, int]:
        """Training patients of each data set; mostly there is a case to each."""
        return {s.name: len(s.patients) for s in self.stores}


def device_of(wanted: str) -> str:
    """The device to use. ``auto`` takes CUDA where there is one.

    Raises:
        PluginError: the device that was asked for is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    with suppress(Exception):
        torch.zeros(1, device=wanted)
        return wanted
    raise PluginError(
        f"device '{wanted}' was asked for, but there is none",
        found=f"torch {torch.__version__}",
        expected="cpu, cuda, cuda:N or mps",
        fix="--device cpu, or see: segbench doctor",
    )


def prepare(experiment: Experiment, machine: Machine) -> Prepared:
    """Open the data, check the split for leaks and work out the run's identity and folder.

    Raises:
        DataError: data missing, or a case on both sides of the split.
        UsageError: more labeled cases asked for than there are.
    """
    experiment = _for_processes(experiment)
    stores = [open_store(name, machine.data_root) for name in experiment.datasets]
    for store in stores:
        require_no_leak(store)
        if not store.test:
            raise DataError(
                f"data set '{store.name}' has no test case",
                where=store.root,
                expected="at least one with a label",
                fix="name one in the test list and prepare again",
            )
        unscorable = [i for i in store.test if not store.cases[i].has_label]
        if unscorable:
            raise DataError(
                f"test cases of '{store.name}' have no label to score against",
                where=store.root,
                found=", ".join(unscorable),
                fix="take them out of the test list",
            )
        view = drawn(store, experiment.draw)
        require_learnable(view, len(view.labeled(experiment.labeled[store.name])))
        if not 0 < experiment.labeled[store.name] <= len(store.patients):
            raise UsageError(
                f"{experiment.labeled[store.name]} labeled cases of {store.name}",
                expected=f"1 to {len(store.patients)} (its training cases)",
                fix="--labeled N",
            )
        if experiment.protocol.selection == "validation" or machine.leak_meter:
            held_out(view, experiment.labeled[store.name])  # refuses before anything is trained
    require_apart(stores)
    _require_used(experiment, stores)
    splits = {s.name: hashlib.sha256(repr((s.train, s.test)).encode()).hexdigest() for s in stores}
    sources = {
        kind: source_digest(kind, name)
        for kind, name in (("method", experiment.method), ("backbone", experiment.backbone))
    }
    content = science(experiment, {s.name: s.fingerprint for s in stores}, splits, sources)
    identity = run_id(content)
    folder = run_folder(
        machine.root, experiment, {s.name: len(s.patients) for s in stores}, identity
    )
    return Prepared(experiment, stores, content, identity, folder, splits)


def optimizers(experiment: Experiment, stores: list[Store], protocol: Optim) -> dict[str, Optim]:
    """What each player trains with, by "player, phase", where the protocol has this optimizer."""
    method = _bare(experiment, stores)
    return {
        f"{player}, {phase.name}": method.optimizer(player, protocol, phase)
        for player in method.players
        for phase in method.phases()
    }


def _require_used(experiment: Experiment, stores: list[Store]) -> None:
    """Refuse changes of an optimizer that nobody uses: the run would count as another one and be the same."""
    changed = [key for key in experiment.modified if key.startswith("optim.")]
    mine = experiment.protocol.optim
    other = Optim(
        name="adamw" if mine.name == "sgd" else "sgd",
        lr=2 * mine.lr,
        momentum=mine.momentum / 2,
        weight_decay=mine.weight_decay + 1,
    )
    if changed and optimizers(experiment, stores, mine) == optimizers(experiment, stores, other):
        own = "optimizer" in experiment.params
        raise UsageError(
            f"{experiment.method} brings its own optimizer: {', '.join(changed)} would change nothing",
            fix="add -o optimizer=protocol" if own else f"leave out -o {changed[0]}",
        )


def _for_processes(experiment: Experiment) -> Experiment:
    """A stored experiment of several processes stays what it is: only training needs as many again."""
    if experiment.processes > 1:
        return experiment
    return experiment.model_copy(update={"processes": distributed.launched()[1]})


def _require_processes(run: Prepared) -> None:
    wanted, size = run.experiment.processes, distributed.launched()[1]
    if size != wanted:
        raise UsageError(
            f"the run began with {wanted} processes, now there are {size}",
            where=run.folder.path,
            fix=f"torchrun --nproc-per-node {wanted} -m segbench.cli.main ...",
        )


def build(experiment: Experiment, stores: list[Store], fresh: bool = True) -> Method:
    """The method with its networks, on the CPU, initialized from the experiment's seed.

    One that is not to be ``fresh`` gets its weights from a file: a backbone fetches no pretrained ones for it.
    """
    method = _bare(experiment, stores)
    torch.manual_seed(experiment.seed)
    params = {k: v for k, v in experiment.backbone_params.items() if fresh or k != "pretrained"}
    method.build(network_factory(experiment.backbone, params, method.setting, method.needs))
    return method


def _bare(experiment: Experiment, stores: list[Store]) -> Method:
    """The method without its networks."""
    cls = registry.get("method", experiment.method).cls
    setting = Setting(
        tuple(Source(s.name, tuple(s.classes)) for s in stores),
        max(s.channels for s in stores),
        tuple(experiment.protocol.patch),
    )
    method: Method = cls(cls.Params(**experiment.params), setting)
    return method


def network_factory(
    name: str, params: dict[str, Any], setting: Setting, needs: frozenset[str]
) -> Callable[..., Backbone]:
    """``network()`` for a method.

    Raises:
        UsageError: the backbone cannot offer what the method needs, or the patch does not fit it.
    """
    cls = registry.get("backbone", name).cls
    lacking = needs - cls.provides
    if lacking:
        raise UsageError(
            f"backbone '{name}' does not offer what the method needs: {', '.join(sorted(lacking))}",
            found=f"it offers {', '.join(sorted(cls.provides))}",
            fix="segbench list backbones",
        )
    checked = cls.Params(**params)
    cls.check_patch(checked, setting.patch)

    def network(heads: tuple[int, ...] | None = None, **wanted: Any) -> Backbone:
        net = cls(
            checked,
            setting.channels,
            setting.dims,
            (setting.classes,) if heads is None else heads,
            **wanted,
        )
        dry_run(net, setting.channels, setting.patch)
        if wanted.get("side_outputs") and len(net.channels) < 3:
            raise UsageError(
                "side outputs of a single scale have nothing to agree with",
                found=f"backbone '{name}' with {len(net.channels)} levels",
                fix="-o backbone.depth=3",
            )
        return net

    return network


def require_fit(run: Prepared) -> None:
    """Build the method's networks and forget them: what does not fit is refused before anything is written.

    Raises:
        UsageError: the backbone cannot take the patch, or cannot offer what the method asks of it.
    """
    for place in (
        "meta",
        "cpu",
    ):  # without numbers, which is fast; some networks compute while they are built
        try:
            with torch.device(place):
                build(run.experiment, run.stores, fresh=False)
            return
        except UsageError:
            raise
        except Exception:  # whatever else is wrong the attempt tells, and records
            continue


def execute(
    run: Prepared, machine: Machine, reporter: Reporter | None = None, restart: bool = False
) -> dict[str, Any]:
    """Train and evaluate, or go on where a killed process stopped, or return the stored result.

    Raises:
        BusyError: another process is writing this run.
        SegbenchError: whatever ended the run; also written to ``failed.json``.
    """
    _require_processes(run)
    reporter = reporter or Reporter()
    world = distributed.join(machine.device.partition(":")[0])
    if world.rank:
        return _follow(run, machine, world)
    for_sure = None if restart else run.folder.result()
    if for_sure is not None:
        world.first_says(False)
        return {**for_sure, "cached": True}
    require_fit(run)
    with lock(run.folder.path / "lock"):
        # Another process may have ended it in the meantime.
        finished = None if restart else run.folder.result()
        if finished is not None:
            world.first_says(False)
            return {**finished, "cached": True}
        if restart:
            _clear(run.folder)
        sweep(run.folder.path)
        world.first_says(True)
        return _attempt(run, machine, reporter, world)


def _follow(run: Prepared, machine: Machine, world: World) -> dict[str, Any]:
    """Train beside the first process, which alone writes and evaluates."""
    experiment = run.experiment
    require_fit(run)
    if world.first_says(True):
        device = distributed.own_device(device_of(machine.device))
        _train(run, build(experiment, run.stores), machine, device, Reporter(), world)
    return {
        "run_id": run.run_id,
        "method": experiment.method,
        "seed": experiment.seed,
        "labeled": experiment.labeled,
        "protocol": {"name": experiment.protocol.name},
        "metrics": [],
    }


def _attempt(run: Prepared, machine: Machine, reporter: Reporter, world: World) -> dict[str, Any]:
    """Train and evaluate; whatever ends it early is recorded and has its exit code."""
    stage = "set-up"
    (run.folder.path / "failed.json").unlink(missing_ok=True)
    try:
        run.folder.write_config(run.run_id, run.experiment, run.science, machine.plugins)
        run.folder.write_json("data.json", {s.name: case_digests(s) for s in run.stores})
        device = distributed.own_device(device_of(machine.device))
        method = build(
            run.experiment, run.stores, fresh=not any((run.folder.path / "ckpt").glob("*.st"))
        )
        reporter.start(run)
        stage = "data"
        _require_intact(run, reporter)
        stage = "training"
        trainer = _train(run, method, machine, device, reporter, world)
        stage = "selection"
        chosen = _select(run, trainer, device, reporter)
        stage = "evaluation"
        return write_result(run, trainer, chosen, device, reporter.evaluate)
    except SegbenchError as error:
        if error.code < 75:  # the others are requests to stop, not failures
            run.folder.fail(error, stage)
        raise
    except torch.OutOfMemoryError as error:
        known = TrainingError(
            "out of memory",
            where=stage,
            found=str(error).splitlines()[0],
            fix="--precision bf16, or a smaller batch (a modified protocol): -o batch.labeled=1",
        )
        run.folder.fail(known, stage)
        raise known from error
    except Exception as error:
        if isinstance(error, OSError) and is_storage(error):
            run.folder.fail(error, stage)
            raise storage_error(error, run.folder.path) from error
        fix = f"--debug shows where; segbench test {run.experiment.method} may say why"
        if "more than 1 value per channel" in str(
            error
        ):  # torch's words; the method passes items one by one
            fix = (
                "batch statistics of one item need two voxels at the bottleneck: a longer edge (-o patch=), a smaller "
                "-o backbone.depth=, or more items (-o batch.labeled=4 -o batch.unlabeled=4)"
            )
        known = TrainingError(
            f"{run.experiment.method} failed: {type(error).__name__}: {error}", where=stage, fix=fix
        )
        run.folder.fail(known, stage)
        raise known from error


def _require_intact(run: Prepared, reporter: Reporter) -> None:
    """What will be trained on, and what will be predicted, is what was prepared."""
    for store in run.stores:
        factors = run.experiment.protocol.factors(store.name, store.dims)
        require_intact(derived(store, factors), store.train, reporter.check)
        require_intact(store, store.test, reporter.check)


def _clear(folder: RunDir) -> None:
    for file in [
        *folder.path.glob("ckpt/*"),
        *folder.path.glob("snapshots/*"),
        *(
            folder.path / n
            for n in (
                "result.json",
                "cases.csv",
                "log.jsonl",
                "failed.json",
                "evaluation.jsonl",
                "validation.jsonl",
                "manifest.json",
                "leak.json",
                "leak.jsonl",
                "predictions.zip",
            )
        ),
    ]:
        file.unlink(missing_ok=True)


def _train(
    run: Prepared, method: Method, machine: Machine, device: str, reporter: Reporter, world: World
) -> Trainer:
    experiment, protocol = run.experiment, run.experiment.protocol
    # fp32 means fp32: by default cuDNN would round the inputs of convolutions to TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if machine.recompute:
        recompute(method)
    views = {
        s.name: drawn(derived(s, protocol.factors(s.name, s.dims)), experiment.draw)
        for s in run.stores
    }
    if protocol.selection == "validation":
        views = {
            name: without_held_out(view, experiment.labeled[name]) for name, view in views.items()
        }
    labeled = {name: len(view.labeled(experiment.labeled[name])) for name, view in views.items()}
    data = TrainingData(views, labeled, protocol, experiment.seed, share=world.share)
    # The same budget for each data set: a joint training gets the protocol's steps for every one of them.
    total = protocol.steps * len(run.stores)
    plan = stages(method.phases(), total, protocol.batch.labeled, protocol.batch.unlabeled)
    for stage in plan:
        data.check(stage.labeled, stage.unlabeled)
    facts = [
        p
        for view in views.values()
        for p in check_facts(view, protocol.least)
        if p.level == "warning"
    ]
    for warning in [*data.warnings, *brief(facts)]:
        reporter.warn(warning)
    trainer = Trainer(
        method,
        data,
        plan,
        protocol.optim,
        experiment.seed,
        run.folder.path / "ckpt",
        device,
        experiment.precision,
        {
            "run_id": run.run_id,
            "torch": torch.__version__,
            "device": device,
            "threads": torch.get_num_threads(),
        },
        experiment.without,
        world,
    )
    begun = any(
        (run.folder.path / "ckpt").glob("*.st")
    )  # then the first checkpoints to choose from cannot be had any more
    if (
        (machine.leak_meter and not begun)
        or protocol.selection == "validation"
        or (run.folder.path / "snapshots").exists()
    ):
        trainer.snapshots = snapshot_steps(total)
    trainer.fit(
        lambda steps: loader(data, steps, machine.workers),
        run.folder.path / "log.jsonl",
        machine.save_every,
        reporter.train,
    )
    for warning in trainer.warnings:
        reporter.warn(warning)
    return trainer


def _select(run: Prepared, trainer: Trainer, device: str, reporter: Reporter) -> dict[str, Any]:
    """Give the trainer's method the weights that count; returns what the result says of the choice."""
    if run.experiment.protocol.selection == "last":
        return {}
    chosen = choose(run, trainer.method, device, reporter.evaluate)
    trainer.keep_weights_only(run.folder.path / "log.jsonl")
    return {"validation": chosen}
