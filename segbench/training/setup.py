"""Set up a run: open its data, check them, and work out the run's identity and folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segbench import registry
from segbench.config import Experiment, Machine
from segbench.contracts.method import Method, Optim
from segbench.data.open import open_store
from segbench.data.sampling.folds import fold_facts, with_fold
from segbench.data.sampling.splits import held_out, with_draw
from segbench.data.store.checks import (
    require_apart,
    require_learnable,
    require_no_ignored,
    require_no_leak,
)
from segbench.data.store.store import Store
from segbench.errors import DataError, PluginError, UsageError
from segbench.evaluation.prediction import Inference
from segbench.identity.run_id import run_id, science
from segbench.identity.sources import loaded_digest
from segbench.metrics.grid import SURFACE_RULE
from segbench.results.rundir import RunDir, run_folder
from segbench.training import distributed
from segbench.training.build import optimizers


@dataclass
class Prepared:
    """An experiment with its data and identity, before anything is computed or written."""

    experiment: Experiment
    stores: list[Store]  # with the lists of the fold, if there is one
    science: dict[str, Any]
    run_id: str
    folder: RunDir
    splits: dict[str, str]  # digest of each data set's split
    whole_stores: list[Store]  # with the lists they were prepared with
    plugins: tuple[str, ...] = ()  # files that hold its plug-ins

    @property
    def train_sizes(self) -> dict[str, int]:
        """The number of training patients of each data set. Most patients have one case."""
        return {store.name: len(store.patients) for store in self.stores}

    def inference(self, method: Method, device: str) -> Inference:
        """Return how the run's method predicts on a device."""
        return Inference(
            method, self.experiment.protocol, device, self.experiment.prediction_precision
        )


def device_of(wanted: str) -> str:
    """Return the device to use; ``auto`` is CUDA where it is available and the CPU elsewhere.

    Raises:
        PluginError: the requested device is not available.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    with suppress(Exception):
        torch.zeros(1, device=wanted)
        return wanted
    raise PluginError(
        f"device '{wanted}' was requested but is not available",
        found=f"torch {torch.__version__}",
        expected="cpu, cuda, cuda:N or mps",
        fix="--device cpu, or see: segbench doctor",
    )


def _tests_one_slice(store: Store) -> bool:
    """Return whether a test case has an axis of length 1."""
    return any(1 in store.cases[case].shape for case in store.test)


Opener = Callable[[str, Path], Store]  # opens a data set by its name below a folder


def prepare(
    experiment: Experiment,
    machine: Machine,
    stores: list[Store] | None = None,
    opener: Opener = open_store,
) -> Prepared:
    """Open the data of an experiment, check its split, and work out its identity and folder.

    Args:
        stores: data sets that were opened and checked before, with the lists they were prepared
            with.
        opener: opens the data sets otherwise; for many runs, one that remembers them.

    Raises:
        DataError: data are missing, or a case is on both sides of the split.
        UsageError: more labeled cases are requested than there are.
    """
    experiment = _with_process_count(experiment)
    whole = stores
    if whole is None:
        whole = [opener(name, machine.data_root) for name in experiment.datasets]
    folds = None
    if experiment.fold is not None:
        folds = {store.name: fold_facts(store) for store in whole}
    is_checked = stores is not None
    stores = [_of_fold(store, experiment.fold) for store in whole]
    if not is_checked:
        _check_stores(stores, experiment, machine)
    _require_used_optimizer(experiment, stores)

    splits = {store.name: _split_digest(store) for store in stores}
    content = science(
        experiment,
        fingerprints={store.name: store.fingerprint for store in stores},
        splits=splits,
        sources=_sources(experiment),
        surface_rule=SURFACE_RULE if any(map(_tests_one_slice, stores)) else None,
        folds=folds,
    )
    identity = run_id(content)
    train_sizes = {store.name: len(store.patients) for store in stores}
    folder = run_folder(machine.root, experiment, train_sizes, identity)
    return Prepared(experiment, stores, content, identity, folder, splits, whole, machine.plugins)


def _sources(experiment: Experiment) -> dict[str, str]:
    """Return the digests of the source of the method and of all backbones that it builds."""
    found = {
        "method": loaded_digest("method", experiment.method),
        "backbone": loaded_digest("backbone", experiment.backbone),
    }
    for name in registry.get("method", experiment.method).cls.backbones:
        found[f"backbone {name}"] = loaded_digest("backbone", name)
    return found


def _of_fold(store: Store, fold: int | None) -> Store:
    return store if fold is None else with_fold(store, fold)


def _check_stores(stores: list[Store], experiment: Experiment, machine: Machine) -> None:
    for store in stores:
        _check_split(store, experiment, machine)
    require_apart(stores)


def _with_process_count(experiment: Experiment) -> Experiment:
    """Record how many processes torchrun started, unless a stored experiment says it already."""
    if experiment.processes > 1:
        return experiment
    _, size = distributed.launched()
    return experiment.model_copy(update={"processes": size})


def _check_split(store: Store, experiment: Experiment, machine: Machine) -> None:
    """Refuse a data set that the experiment cannot be trained or tested on."""
    require_no_leak(store)
    if not store.test:
        raise DataError(
            f"data set '{store.name}' has no test case",
            where=store.root,
            expected="at least one test case with a label",
            fix="name one in the test list and prepare again",
        )
    unscorable = [case for case in store.test if not store.cases[case].has_label]
    if unscorable:
        raise DataError(
            f"test cases of '{store.name}' have no label to score against",
            where=store.root,
            found=", ".join(unscorable),
            fix="remove them from the test list",
        )

    labeled = experiment.labeled[store.name]
    view = with_draw(store, experiment.draw, experiment.fold)
    require_learnable(view, labeled)
    if not registry.get("method", experiment.method).cls.skips_ignored:
        require_no_ignored(view, labeled, experiment.method)
    if not 0 < labeled <= len(store.patients):
        raise UsageError(
            f"{labeled} labeled cases of {store.name}",
            expected=f"1 to {len(store.patients)} (its training cases)",
            fix="--labeled N",
        )
    if experiment.protocol.selection == "validation" or machine.leak_meter:
        held_out(view, labeled)  # raises if too few cases are left to validate on


def _require_used_optimizer(experiment: Experiment, stores: list[Store]) -> None:
    """Refuse to change an optimizer setting that the method ignores.

    The run would get another identity and still have the same numbers.

    Raises:
        UsageError: an ``optim.`` key was changed and the method uses none of them.
    """
    changed = [key for key in experiment.modified if key.startswith("optim.")]
    if not changed:
        return
    mine = experiment.protocol.optim
    other = Optim(
        name="adamw" if mine.name == "sgd" else "sgd",
        lr=2 * mine.lr,
        momentum=mine.momentum / 2,
        weight_decay=mine.weight_decay + 1,
    )
    if optimizers(experiment, stores, mine) != optimizers(experiment, stores, other):
        return
    has_own_choice = "optimizer" in experiment.params
    raise UsageError(
        f"{experiment.method} uses its own optimizer: {', '.join(changed)} would change nothing",
        fix="add -o optimizer=protocol" if has_own_choice else f"leave out -o {changed[0]}",
    )


def _split_digest(store: Store) -> str:
    return hashlib.sha256(repr((store.train, store.test)).encode()).hexdigest()
