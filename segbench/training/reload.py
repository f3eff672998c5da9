"""Finished runs: their trained method, and their metrics computed once more."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segbench.contracts.method import Method
from segbench.errors import IntegrityError
from segbench.evaluation.test_set import cases_csv, evaluate, summarize
from segbench.training import checkpoint
from segbench.training.build import build
from segbench.training.memory import keep_freed_memory
from segbench.training.placement import memory_format, to_device
from segbench.training.selection import Report
from segbench.training.setup import Machine, Prepared, device_of


def reevaluate(
    run: Prepared,
    stored: dict[str, Any],
    machine: Machine,
    report: Report,
    keep: Callable[[str, str, np.ndarray], None] = lambda dataset, case, label: None,
) -> tuple[list[dict[str, Any]], str, bool]:
    """Metrics of a finished run computed once more from its weights, the digest of the case table they give, and whether
    this machine must give the very same (device and torch of the training).

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    device = device_of(machine.device)
    method, header = trained(run, stored, device)
    with tempfile.TemporaryDirectory() as folder:
        rows = evaluate(
            method,
            run.stores,
            run.experiment.protocol,
            Path(folder) / "rows",
            "",
            device,
            run.experiment.precision,
            report,
            keep,
        )
    digest = hashlib.sha256(cases_csv(rows)).hexdigest()
    return (
        summarize(rows, run.experiment.protocol.policy),
        digest,
        _same_machine(method, header, device),
    )


def trained(run: Prepared, stored: dict[str, Any], device: str) -> tuple[Method, dict[str, Any]]:
    """The method of a finished run with its weights, on the device, and the header of its checkpoint.

    Raises:
        IntegrityError: the weights are missing or not those of the result.
    """
    found = checkpoint.load(run.folder.path / "ckpt")
    if found is None:
        raise IntegrityError("the run has no weights", where=run.folder.path / "ckpt")
    _, state, header, _ = found
    weights = checkpoint.digest(state["method"])
    if weights != stored["weights_sha256"]:
        raise IntegrityError(
            "the weights are not those of the result",
            where=run.folder.path / "ckpt",
            found=weights[:16],
            expected=stored["weights_sha256"][:16],
        )
    keep_freed_memory()
    method = build(run.experiment, run.stores, fresh=False)
    method.load_state_dict(state["method"])
    to_device(method, device)
    return method.eval(), header


def _same_machine(method: Method, header: dict[str, Any], device: str) -> bool:
    """Whether the last digits must be those of the training."""
    here = {
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "memory_format": memory_format(method),
    }
    return all(header.get(key) == value for key, value in here.items())
