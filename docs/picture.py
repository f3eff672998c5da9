"""Draw docs/picture.png, the picture of README.

    segbench --root ROOT demo
    python docs/picture.py --root ROOT --data-root DATA

Left: a test image, its truth and the predictions of the demo's first replicate; it is the image on
which supervised training has its median Dice. Right: the quick suite's differences to supervised
training with 95 % intervals, from benchmarks/results. The file keeps the numbers of the right half,
so that a test can compare them with the stored runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from segbench.benchmarks.results import studies, tables

from segbench.config import machine_settings
from segbench.evaluation.prediction import predict_labels
from segbench.report.overlay import choose
from segbench.results.finished import FinishedRun
from segbench.results.leaderboard import boards
from segbench.results.rundir import all_runs
from segbench.training.reload import trained
from segbench.training.stored import restore

ROOT = Path(__file__).resolve().parents[1]
DATASET = "phantom2d_a"
SHOWN = ("supervised", "versemi", "bcp", "oracle")
FILE = ROOT / "docs" / "picture.png"
KEY = "Differences to supervised training"  # of the text in the file that holds the numbers
TRUTH, PREDICTION = "#d98c00", "#3a9fdc"


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    arguments = parser.parse_args()
    machine = machine_settings({}, root=str(arguments.root), data_root=str(arguments.data_root))
    (board,), _ = boards(list(all_runs(arguments.root)))
    runs = {row.method: row.runs[0] for row in board.rows}
    case = choose([runs["supervised"]], DATASET)[1].case

    figure = plt.figure(figsize=(10, 4.6), dpi=140)
    left = figure.add_gridspec(
        2, 2, left=0.01, right=0.33, top=0.94, bottom=0.07, wspace=0.06, hspace=0.16
    )
    for place, name in enumerate(SHOWN):
        axes = figure.add_subplot(left[divmod(place, 2)])
        draw_prediction(axes, name, runs[name], case, machine)
    figure.text(0.085, 0.01, "truth: solid", color=TRUTH, fontsize=9, ha="center")
    figure.text(0.255, 0.01, "prediction: dashed", color=PREDICTION, fontsize=9, ha="center")
    axes = figure.add_axes((0.47, 0.14, 0.52, 0.77))
    found = differences()
    draw_differences(axes, found)
    figure.savefig(FILE, metadata={KEY: json.dumps(found)})


def draw_prediction(axes: Any, name: str, run: FinishedRun, case: str, machine: Any) -> None:
    """Draw a test image with the outlines of truth and prediction."""
    prepared = restore(run.folder, machine)
    method, _ = trained(prepared, run.result, "cpu")
    store = prepared.stores[0]
    label = predict_labels(prepared.inference(method, "cpu"), store, case, 0)
    truth = np.asarray(store.label(case))
    axes.imshow(np.asarray(store.image(case))[0].T, cmap="gray")
    axes.contour(truth.T > 0, [0.5], colors=TRUTH, linewidths=1.6)
    if (label > 0).any():
        axes.contour(label.T > 0, [0.5], colors=PREDICTION, linewidths=1.6, linestyles="dashed")
    overlap = 2 * ((truth > 0) & (label > 0)).sum() / ((truth > 0).sum() + (label > 0).sum())
    axes.set_title(f"{name}: Dice {100 * overlap:.0f} %", fontsize=9, pad=2)
    axes.axis("off")


def quick_study() -> studies.Study:
    """Return the stored quick suite."""
    (study,) = tables.stored_studies("quick")
    return study


def differences() -> dict[str, list[float]]:
    """Return mean, low and high of each row's difference to supervised training, in Dice."""
    study = quick_study()
    found = {}
    for name in reversed(tables.usual_rows(study)):
        difference = study.against_supervised(name)
        ends = (difference.mean, difference.low, difference.high)
        found[name] = [round(end, 3) for end in ends]
    return found


def draw_differences(axes: Any, found: dict[str, list[float]]) -> None:
    """Draw the quick suite's differences to supervised training."""
    for place, (name, (mean, low, high)) in enumerate(found.items()):
        color = "black" if name == studies.ORACLE else "#0072b2"
        axes.plot([low, high], [place, place], color=color, linewidth=1.5)
        axes.plot([mean], [place], "o", color=color, markersize=4)
    axes.axvline(0, color="gray", linewidth=0.8)
    labels = [name.replace("variant=", "") for name in found]
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.tick_params(axis="x", labelsize=9)
    axes.set_xlabel("Dice minus supervised training, 95 % interval", fontsize=9)
    axes.set_title(
        f"Quick suite: 4 of 60 labeled, {quick_study().draws} replicates", fontsize=10, loc="left"
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
