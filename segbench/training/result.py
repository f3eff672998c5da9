"""Write the result of a finished training: its metrics on the test cases, and its cost."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from typing import Any

import torch

from segbench import __version__
from segbench.config.changed import changed_params
from segbench.evaluation.case_rows import cases_csv, summarize
from segbench.evaluation.test_set import evaluate
from segbench.progress import Progress
from segbench.results.rundir import SCHEMA
from segbench.storage import atomic_write, json_bytes
from segbench.training import checkpoint
from segbench.training.loop import Trainer
from segbench.training.memory import keep_freed_memory
from segbench.training.setup import Prepared

EVALUATION = "evaluation.jsonl"  # finished cases of an interrupted evaluation


def write_result(
    run: Prepared, trainer: Trainer, selection: dict[str, Any], device: str, report: Progress
) -> dict[str, Any]:
    """Predict and score the test cases, and write the files of the result.

    Args:
        selection: what the result records about the selected checkpoint.

    Returns:
        The result.
    """
    folder = run.folder
    weights = checkpoint.digest(trainer.method.state_dict())
    training_cost = trainer.cost.to_dict()

    # Predict and score.
    started = time.monotonic()
    partial = folder.path / EVALUATION
    inference = run.inference(trainer.method, device)
    rows = evaluate(inference, run.stores, partial, weights, report, peers=trainer.world)
    seconds = time.monotonic() - started

    # Write. A valid result file is the mark of a finished run, so it comes last.
    table = cases_csv(rows)
    folder.write_json("manifest.json", _manifest(trainer, training_cost, device, seconds))
    atomic_write(folder.path / "cases.csv", table)
    result = {
        **_identity(run),
        "test_evaluations": 1,
        "metrics": summarize(rows, run.experiment.protocol.policy),
        "steps": trainer.completed,
        **selection,
        "weights_sha256": weights,
        "cases_sha256": hashlib.sha256(table).hexdigest(),
    }
    folder.write_json("result.json", result)

    # Remove what is not needed any more.
    trainer.keep_weights_only()
    partial.unlink(missing_ok=True)
    return result


def _identity(run: Prepared) -> dict[str, Any]:
    """Return the part of the result that is known before the training."""
    experiment = run.experiment
    protocol = experiment.protocol
    return {
        "schema": SCHEMA,
        "status": "done",
        "run_id": run.run_id,
        "method": experiment.method,
        "backbone": experiment.backbone,
        "datasets": list(experiment.datasets),
        "labeled": experiment.labeled,
        "draw": experiment.draw,
        "fold": experiment.fold,
        "unlabeled": experiment.unlabeled,
        "train": run.train_sizes,
        "partial": [store.name for store in run.stores if store.partial],
        "seed": experiment.seed,
        "precision": experiment.precision,
        "selection": protocol.selection,
        "protocol": {
            "name": protocol.name,
            "version": protocol.version,
            "modified": list(experiment.modified),
        },
        "protocol_sha256": hashlib.sha256(json_bytes(run.science["protocol"])).hexdigest(),
        "changed_params": changed_params(experiment),
        "without": list(experiment.without),
        "fingerprints": {store.name: store.fingerprint for store in run.stores},
        "splits": run.splits,
        "science": run.science,
    }


def _manifest(
    trainer: Trainer, training_cost: dict[str, Any], device: str, evaluation_seconds: float
) -> dict[str, Any]:
    """Return what may differ between two runs of one identity: machine, versions, times, memory."""
    processes = trainer.world.size
    on_gpu = device.startswith("cuda")
    cpu_seconds = training_cost["cpu_seconds"]
    energy_joules = training_cost["energy_joules"]
    if processes > 1:  # only this process is measured, and a part is not the whole
        cpu_seconds = None
        energy_joules = None
    specs = trainer.train_step.specs
    return {
        "schema": "segbench.manifest/1",
        "segbench": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or "cpu",
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "memory_format": trainer.header["memory_format"],
        "freed_memory_kept": keep_freed_memory(),
        "argv": sys.argv[1:],
        "train_seconds": round(trainer.seconds, 2),
        "seconds_per_step": round(trainer.seconds / trainer.total, 4),
        "evaluation_seconds": round(evaluation_seconds, 2),
        "gpu_seconds": round(trainer.seconds * processes, 2) if on_gpu else 0.0,
        "cpu_seconds": cpu_seconds,
        "energy_joules": energy_joules,
        # The peak of training and evaluation together.
        "peak_memory_bytes": trainer.cost.to_dict()["peak_memory_bytes"],
        "phases": _phases(trainer, training_cost["volumes"]),
        "parameters": sum(parameter.numel() for parameter in trainer.method.parameters()),
        "optimizers": {player: spec.model_dump(mode="json") for player, spec in specs.items()},
        "warnings": trainer.warnings,
    }


def _phases(trainer: Trainer, volumes: dict[str, int]) -> list[dict[str, Any]]:
    """Return the phases with the number of volumes that pass through the networks in one step."""
    phases = []
    for stage in trainer.plan:
        own_volumes = volumes.get(stage.phase.name)
        # All processes of a training have equal shares of a batch.
        total = None if own_volumes is None else own_volumes * trainer.world.size
        phases.append({"name": stage.phase.name, "steps": stage.steps, "volumes": total})
    return phases
