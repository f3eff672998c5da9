"""The leak meter: what selecting the checkpoint on the test cases would have scored.

Much of the field selects that way. The meter evaluates the checkpoints that ``segbench run --leak-
meter`` kept, and leaves the result as it is.
"""

from __future__ import annotations

from typing import Any

from segbench.errors import IntegrityError, failures_of_plugin
from segbench.progress import Progress
from segbench.storage import lock
from segbench.training.build import build
from segbench.training.placement import to_device
from segbench.training.selection import mean_dice, snapshots, validation_stores
from segbench.training.setup import Prepared, device_of

SCHEMA = "segbench.leak/1"


def measure(run: Prepared, stored: dict[str, Any], device: str, report: Progress) -> dict[str, Any]:
    """Score the last, validation-best and test-best checkpoints; return ``leak.json``.

    All scores are test Dice in percent. ``gap`` is the score of the test-best checkpoint minus that
    of the checkpoint which the run itself selected. If it selected the last one, the validation
    cases were trained on as unlabeled images, without their labels.

    Raises:
        IntegrityError: the checkpoints are missing, damaged, or not those of the result.
        BusyError: another process is working on this run.
    """
    folder = run.folder.path
    with lock(folder / "lock"):
        rows = _score_checkpoints(run, device_of(device), report)
        record = {
            "schema": SCHEMA,
            "run_id": run.run_id,
            "selection": stored["selection"],
            "checkpoints": rows,
            "validation_cases": {store.name: list(store.test) for store in validation_stores(run)},
            **_summary(run, rows, stored["weights_sha256"]),
            "test_evaluations": stored["test_evaluations"] + len(rows),
        }
        run.folder.write_json("leak.json", record)
        (folder / "leak.jsonl").unlink(missing_ok=True)
    return record


def _score_checkpoints(run: Prepared, device: str, report: Progress) -> list[dict[str, Any]]:
    """Return the validation and test Dice in percent of every kept checkpoint."""
    with failures_of_plugin(run.experiment.method, "set-up"):
        method = to_device(build(run.experiment, run.stores, fresh=False), device)
    inference = run.inference(method, device)
    validation = validation_stores(run)
    partial = run.folder.path / "leak.jsonl"
    rows = []
    for step, weights in snapshots(run, method):
        with failures_of_plugin(run.experiment.method, f"evaluation of step {step}"):
            on_validation = mean_dice(inference, validation, partial, weights, report)
            on_test = mean_dice(inference, run.stores, partial, weights, report)
        rows.append(
            {
                "step": step,
                "weights": weights,
                "validation": 100 * on_validation,
                "test": 100 * on_test,
            }
        )
    return rows


def _summary(run: Prepared, rows: list[dict[str, Any]], result_weights: str) -> dict[str, float]:
    """Return the scores of the last, validation-best and test-best checkpoint, and the gap."""
    selected = [row["test"] for row in rows if row["weights"] == result_weights]
    if not selected:
        raise IntegrityError(
            "none of the kept checkpoints is that of the result",
            where=run.folder.path / "snapshots",
        )
    validation_best = max(rows, key=lambda row: (row["validation"], row["step"]))
    test_best = max(row["test"] for row in rows)
    return {
        "last": rows[-1]["test"],
        "validation_best": validation_best["test"],
        "test_best": test_best,
        "gap": test_best - selected[-1],
    }
