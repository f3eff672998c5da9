"""What a list of runs shows of each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segbench.errors import IntegrityError, UsageError
from segbench.results.index import Index
from segbench.results.names import row_label
from segbench.results.rundir import RunDir
from segbench.results.states import state_of

UNREADABLE = (IntegrityError, UsageError, KeyError, TypeError, AttributeError)


def run_facts(run: RunDir, index: Index | None = None) -> dict[str, Any]:
    """Return the facts about a run that a list shows; those that cannot be read are None.

    Args:
        index: where many runs are listed, what is known of those that have not changed.
    """
    origin = "own"
    if run.origin is not None:
        origin = "reported" if run.reported else "verified"
    facts: dict[str, Any] = {
        "run_id": run.run_id,
        "dir": str(run.path),
        "state": state_of(run.path),
        "dataset": run.path.parts[-3],
        "method": run.path.parts[-2],
        "row": run.path.parts[-2],
        "labeled": None,
        "draw": None,
        "fold": None,
        "seed": None,
        "dice": None,
        "origin": origin,
    }
    try:
        result = None
        if facts["state"] == "done":
            result = run.result() if index is None else index.result(run)
        experiment = _experiment(run, result)
        facts["labeled"] = sum(experiment["labeled"].values())
        facts["seed"] = experiment["seed"]
        facts["draw"] = experiment.get("draw", 0)
        facts["fold"] = experiment.get("fold")
        facts["row"] = _row_name(experiment, result)
        facts["dice"] = mean_dice(result["metrics"]) if result else None
    except UNREADABLE as error:
        facts["state"] = "failed"
        facts["problem"] = str(error).splitlines()[0]
    return facts


def _experiment(run: RunDir, result: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a list shows of an experiment. A result says all of it, and is read faster."""
    if result is None:
        stored: dict[str, Any] = run.config()["experiment"]
        return stored
    return result


def _row_name(experiment: dict[str, Any], result: dict[str, Any] | None) -> str:
    """Return the name of the run's row; of an unfinished one without its parameters."""
    return row_label(
        experiment["method"],
        result["changed_params"] if result else {},
        experiment["without"],
        len(experiment["datasets"]),
        experiment.get("unlabeled", "all"),
    )


def mean_dice(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over data sets and classes, in percent; None if one is undefined."""
    means = [entry["columns"]["dice"]["mean"] for entry in metrics]
    if not means or None in means:
        return None
    return 100 * float(sum(means)) / len(means)
