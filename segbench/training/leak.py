"""The leak meter: what a run would have scored, had its checkpoint been chosen on the test cases, as much of the field does.

It evaluates the checkpoints that ``segbench run --leak-meter`` kept. Nothing of it flows back: the result stays as it is.
"""

from __future__ import annotations

from typing import Any

from segbench.errors import IntegrityError
from segbench.storage import lock
from segbench.training.build import build
from segbench.training.placement import to_device
from segbench.training.selection import Report, mean_dice, snapshots, validation_stores
from segbench.training.setup import Prepared, device_of

SCHEMA = "segbench.leak/1"


def measure(run: Prepared, stored: dict[str, Any], device: str, report: Report) -> dict[str, Any]:
    """Test Dice in percent of the last, the validation-best and the test-best checkpoint, written to ``leak.json``.

    ``gap`` is test-best minus the checkpoint of the run's own rule. Where the rule is ``last``, the validation cases were
    in the training as unlabeled images: their labels were not.

    Raises:
        IntegrityError: the checkpoints are not there, damaged, or not those of the result.
        BusyError: another process is at work on this run.
    """
    folder = run.folder.path
    with lock(folder / "lock"):
        method, device = build(run.experiment, run.stores, fresh=False), device_of(device)
        to_device(method, device)
        validation, partial = validation_stores(run), folder / "leak.jsonl"
        rows: list[dict[str, Any]] = []
        for step, weights in snapshots(run, method):
            scores = [
                100 * mean_dice(method, stores, run, partial, weights, device, report)
                for stores in (validation, run.stores)
            ]
            rows.append(
                {"step": step, "weights": weights, "validation": scores[0], "test": scores[1]}
            )
        by_rule = [row for row in rows if row["weights"] == stored["weights_sha256"]]
        if not by_rule:
            raise IntegrityError(
                "none of the kept checkpoints is that of the result", where=folder / "snapshots"
            )
        chosen, best = by_rule[-1]["test"], max(row["test"] for row in rows)
        by_validation = max(rows, key=lambda row: (row["validation"], row["step"]))
        record = {
            "schema": SCHEMA,
            "run_id": run.run_id,
            "selection": stored["selection"],
            "checkpoints": rows,
            "validation_cases": {s.name: list(s.test) for s in validation},
            "last": rows[-1]["test"],
            "validation_best": by_validation["test"],
            "test_best": best,
            "gap": best - chosen,
            "test_evaluations": stored["test_evaluations"] + len(rows),
        }
        run.folder.write_json("leak.json", record)
        partial.unlink(missing_ok=True)
    return record
