"""Measure what predicting in bfloat16 changes, with the trained weights of finished runs.

    python benchmarks/speed/half_precision.py RUN ... [--root DIR] [--data-root DIR]
        [--cases 5] [--out FILE.json]

The test cases of each run are predicted in the precision of the run and in bfloat16
(``-o inference.precision=bf16``). Printed are the CPU seconds of both, the share of voxels whose
label differs, that share among the voxels that either of both calls foreground, and the mean Dice.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch starts its threads

import numpy as np  # noqa: E402
import torch  # noqa: E402

from segbench.api.machine import settings  # noqa: E402
from segbench.config import Machine  # noqa: E402
from segbench.data.store.store import Store  # noqa: E402
from segbench.evaluation.prediction import Inference, LabelMap, predict_labels  # noqa: E402
from segbench.metrics import evaluate_pair  # noqa: E402
from segbench.training.reload import trained  # noqa: E402
from segbench.training.stored import finished_run, restore  # noqa: E402


def predicted(inference: Inference, store: Store, case: str) -> tuple[LabelMap, float]:
    """Return the label map of a case and the CPU seconds that it took."""
    started = time.process_time()
    with torch.no_grad():
        label = predict_labels(inference, store, case, 0)
    return label, time.process_time() - started


def mean_dice(label: LabelMap, reference: LabelMap, classes: int) -> float:
    """Return the mean Dice in percent over the classes of a case."""
    scores = []
    for value in range(1, classes + 1):
        scores.append(100 * evaluate_pair(label == value, reference == value).dice)
    return mean(scores)


def compare(wanted: str, machine: Machine, cases: int) -> dict[str, Any]:
    """Return the row of a run."""
    folder, result = finished_run(machine.root, wanted)
    run = restore(folder, machine)
    method, _ = trained(run, result, "cpu")
    exact = run.inference(method, "cpu")
    half = replace(exact, precision="bf16")
    store = run.stores[0]
    seconds: dict[str, list[float]] = {"exact": [], "half": []}
    dice: dict[str, list[float]] = {"exact": [], "half": []}
    different = 0
    foreground = 0
    voxels = 0
    predicted(half, store, store.test[0])  # the first prediction also prepares kernels
    for case in store.test[:cases]:
        labels = {}
        for name, inference in (("exact", exact), ("half", half)):
            labels[name], taken = predicted(inference, store, case)
            seconds[name].append(taken)
            reference = np.asarray(store.label(case))
            dice[name].append(mean_dice(labels[name], reference, len(store.classes)))
        different += int((labels["exact"] != labels["half"]).sum())
        foreground += int(((labels["exact"] > 0) | (labels["half"] > 0)).sum())
        voxels += labels["exact"].size
    return {
        "run": f"{result['method']} on {store.name}",
        "backbone": result["backbone"],
        "cases": len(seconds["exact"]),
        "cpu": round(mean(seconds["exact"]), 3),
        "cpu_bf16": round(mean(seconds["half"]), 3),
        "ratio": round(sum(seconds["exact"]) / sum(seconds["half"]), 2),
        "differing": f"{100 * different / voxels:.4f} %",
        "of_foreground": f"{100 * different / max(foreground, 1):.3f} %",
        "dice": round(mean(dice["exact"]), 2),
        "dice_bf16": round(mean(dice["half"]), 2),
    }


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="id or folder of a finished run")
    parser.add_argument("--root", type=Path, help="folder of the results")
    parser.add_argument("--data-root", type=Path, help="folder of the prepared data")
    parser.add_argument("--cases", type=int, default=5, help="test cases of each run")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    machine = settings(chosen.root, chosen.data_root, "cpu")
    rows = []
    for wanted in chosen.runs:
        row = compare(wanted, machine, chosen.cases)
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if chosen.out:
        from measured import save

        note = "CPU seconds per case in the precision of the training and in bfloat16"
        save(chosen.out, rows, note)


if __name__ == "__main__":
    main()
