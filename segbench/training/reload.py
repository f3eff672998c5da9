"""Load the trained method of a finished run, and compute its metrics again."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from segbench.config import Machine
from segbench.contracts.method import Method
from segbench.errors import IntegrityError, failures_of_plugin
from segbench.evaluation.case_rows import Row, cases_csv, summarize
from segbench.evaluation.prediction import Inference, LabelMap, postprocess
from segbench.evaluation.test_set import Keep, evaluate, keep_nothing, score
from segbench.progress import Progress
from segbench.training import checkpoint
from segbench.training.build import build
from segbench.training.memory import keep_freed_memory
from segbench.training.placement import memory_format, to_device
from segbench.training.setup import Prepared, device_of


class Reevaluation(NamedTuple):
    """The metrics of a finished run, computed again from its weights."""

    metrics: list[Row]  # as in the result
    cases_sha256: str  # digest of the case table
    same_machine: bool  # as in the training, so the digest must be the same, too


def reevaluate(
    run: Prepared,
    stored: dict[str, Any],
    machine: Machine,
    report: Progress,
    keep: Keep = keep_nothing,
) -> Reevaluation:
    """Predict and score the test cases of a finished run again.

    Args:
        stored: the run's result.
        keep: called with each label map.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    device = device_of(machine.device)
    method, header = trained(run, stored, device)
    inference = run.inference(method, device)
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "rows"
        with failures_of_plugin(run.experiment.method, "evaluation"):
            rows = evaluate(inference, run.stores, partial, stamp="", report=report, keep=keep)
    return Reevaluation(
        metrics=summarize(rows, run.experiment.protocol.policy),
        cases_sha256=hashlib.sha256(cases_csv(rows)).hexdigest(),
        same_machine=_is_same_machine(method, header, device),
    )


class ComponentScores(NamedTuple):
    """Metrics of the same predictions with all their parts and with the largest component."""

    all: list[Row]
    largest: list[Row]
    cases_sha256: str  # digest of the case table that belongs to the run's protocol


def score_components(
    run: Prepared, stored: dict[str, Any], machine: Machine, report: Progress
) -> ComponentScores:
    """Predict the test cases of a finished run once; score all parts and the largest component.

    Args:
        stored: the run's result.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    device = device_of(machine.device)
    method, _ = trained(run, stored, device)
    protocol = run.experiment.protocol
    whole = protocol.model_copy(update={"largest_component": False})
    reduced = protocol.model_copy(update={"largest_component": True})
    stores = {store.name: store for store in run.stores}
    largest: list[Row] = []

    def score_largest(dataset: str, case: str, label: LabelMap) -> None:
        largest.extend(score(postprocess(label.copy(), reduced), stores[dataset], case))

    inference = Inference(method, whole, device, run.experiment.prediction_precision)
    with tempfile.TemporaryDirectory() as folder:
        partial = Path(folder) / "rows"
        with failures_of_plugin(run.experiment.method, "evaluation"):
            rows = evaluate(inference, run.stores, partial, "", report, score_largest)
    usual = largest if protocol.largest_component else rows
    return ComponentScores(
        all=summarize(rows, protocol.policy),
        largest=summarize(largest, protocol.policy),
        cases_sha256=hashlib.sha256(cases_csv(usual)).hexdigest(),
    )


def trained(run: Prepared, stored: dict[str, Any], device: str) -> tuple[Method, dict[str, Any]]:
    """Return a finished run's method with its weights, on the device, and the stored header.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    folder = run.folder.path / "ckpt"
    found = checkpoint.load(folder)
    if found is None:
        raise IntegrityError("the run has no weights", where=folder)
    _, state, header, _ = found
    weights = checkpoint.digest(state["method"])
    if weights != stored["weights_sha256"]:
        raise IntegrityError(
            "the weights are not those of the result",
            where=folder,
            found=weights[:16],
            expected=stored["weights_sha256"][:16],
        )
    keep_freed_memory()
    with failures_of_plugin(run.experiment.method, "set-up"):
        method = build(run.experiment, run.stores, fresh=False)
    method.load_state_dict(state["method"])
    to_device(method, device)
    return method.eval(), header


def _is_same_machine(method: Method, header: dict[str, Any], device: str) -> bool:
    """Whether everything that decides the last digits is as it was in the training."""
    here = {
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "memory_format": memory_format(method),
    }
    return all(header.get(name) == value for name, value in here.items())
