"""What a finished training becomes: predictions of the test cases, their metrics, the result and its manifest."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from segbench import __version__, registry
from segbench.config import Experiment
from segbench.evaluation.test_set import cases_csv, evaluate, summarize
from segbench.results.rundir import SCHEMA
from segbench.storage import atomic_write, json_bytes
from segbench.training import checkpoint
from segbench.training.loop import Trainer
from segbench.training.memory import keep_freed_memory
from segbench.training.selection import Report

if TYPE_CHECKING:
    from segbench.training.setup import Prepared


def write_result(
    run: Prepared, trainer: Trainer, chosen: dict[str, Any], device: str, report: Report
) -> dict[str, Any]:
    """Predict and score the test cases of a finished training; write ``cases.csv``, ``manifest.json`` and ``result.json``.

    ``chosen``: what the selection adds to the result. Returns the result.
    """
    experiment, folder = run.experiment, run.folder
    protocol = experiment.protocol
    weights, spent = checkpoint.digest(trainer.method.state_dict()), trainer.cost.to_dict()
    started = time.monotonic()
    partial = folder.path / "evaluation.jsonl"
    rows = evaluate(
        trainer.method, run.stores, protocol, partial, weights, device, experiment.precision, report
    )
    table = cases_csv(rows)
    folder.write_json(
        "manifest.json", _manifest(trainer, spent, device, time.monotonic() - started)
    )
    atomic_write(folder.path / "cases.csv", table)
    result = {
        "schema": SCHEMA,
        "status": "done",
        "run_id": run.run_id,
        "method": experiment.method,
        "backbone": experiment.backbone,
        "datasets": list(experiment.datasets),
        "labeled": experiment.labeled,
        "draw": experiment.draw,
        "unlabeled": experiment.unlabeled,
        "train": run.train_sizes,
        "partial": [s.name for s in run.stores if s.partial],
        "seed": experiment.seed,
        "precision": experiment.precision,
        "selection": protocol.selection,
        "test_evaluations": 1,
        "protocol": {
            "name": protocol.name,
            "version": protocol.version,
            "modified": list(experiment.modified),
        },
        "protocol_sha256": hashlib.sha256(json_bytes(run.science["protocol"])).hexdigest(),
        "changed_params": _changed(experiment),
        "without": list(experiment.without),
        "fingerprints": {s.name: s.fingerprint for s in run.stores},
        "splits": run.splits,
        "science": run.science,
        "metrics": summarize(rows, protocol.policy),
        "steps": trainer.completed,
        **chosen,
        "weights_sha256": weights,
        "cases_sha256": hashlib.sha256(table).hexdigest(),
    }
    folder.write_json("result.json", result)
    trainer.keep_weights_only()
    partial.unlink(missing_ok=True)
    return result


def _changed(experiment: Experiment) -> dict[str, Any]:
    """Return the parameters of method and backbone that are not those of the protocol."""
    usual = registry.get("method", experiment.method).cls.Params().model_dump(mode="json")
    usual.update(experiment.protocol.methods.get(experiment.method, {}))
    changed = {}
    for key, value in experiment.params.items():
        if usual.get(key) != value:
            changed[key] = value
    for key, value in experiment.backbone_params.items():
        if f"backbone.{key}" in experiment.modified:
            changed[f"backbone.{key}"] = value
    return changed


def _manifest(
    trainer: Trainer, spent: dict[str, Any], device: str, evaluation_seconds: float
) -> dict[str, Any]:
    """``spent``: cost of the training alone; the peak of the memory is that of training and evaluation."""
    cuda, size = device.startswith("cuda"), trainer.world.size
    volumes = {
        phase: count * size for phase, count in spent["volumes"].items()
    }  # all processes have equal shares
    # The others' processors and energy are not measured: a part is not the whole.
    cost = {k: spent[k] if size == 1 else None for k in ("cpu_seconds", "energy_joules")}
    return {
        "schema": "segbench.manifest/1",
        "segbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "memory_format": trainer.header["memory_format"],
        "freed_memory_kept": keep_freed_memory(),
        "argv": sys.argv[1:],
        "train_seconds": round(trainer.seconds, 2),
        "seconds_per_step": round(trainer.seconds / trainer.total, 4),
        "evaluation_seconds": round(evaluation_seconds, 2),
        "gpu_seconds": round(trainer.seconds * size, 2) if cuda else 0.0,
        **cost,
        "peak_memory_bytes": trainer.cost.to_dict()["peak_memory_bytes"],
        "phases": [
            {"name": s.phase.name, "steps": s.steps, "volumes": volumes.get(s.phase.name)}
            for s in trainer.plan
        ],
        "parameters": sum(p.numel() for p in trainer.method.parameters()),
        "optimizers": {
            player: spec.model_dump(mode="json")
            for player, spec in trainer.train_step.specs.items()
        },
        "warnings": trainer.warnings,
    }
