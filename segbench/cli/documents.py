"""Results of runs as JSON documents and as lines of text."""

from __future__ import annotations

from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from segbench.cli.terminal import plural, table
from segbench.results.export import number
from segbench.results.names import row_label
from segbench.text import safe

MOST_SPACINGS = 3  # of a data set that are listed one by one


def run_document(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what ``--json`` prints of one run."""
    metrics: dict[str, dict[str, Any]] = {}
    for row in result["metrics"]:
        means = {name: column["mean"] for name, column in row["columns"].items()}
        metrics.setdefault(row["dataset"], {})[row["class"]] = {**row["counts"], **means}
    return {
        "schema": "segbench.run/1",
        "status": "done",
        "run_id": result["run_id"],
        "dir": str(folder),
        "cached": bool(result.get("cached")),
        "method": result["method"],
        "row": row_label(
            result["method"],
            result.get("changed_params", {}),
            result.get("without", ()),
            len(result.get("datasets", ())),
            result.get("unlabeled", "all"),
        ),
        "draw": result.get("science", {}).get("draw", 0),
        "fold": result.get("science", {}).get("fold"),
        "seed": result["seed"],
        "labeled": result["labeled"],
        "protocol": result["protocol"],
        "metrics": metrics,
    }


def joint_document(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one document for several runs.

    It has the fields of the first run, the metrics of all data sets and all runs under ``runs``. Of
    several seeds of one data set, ``metrics`` holds the first.
    """
    if len(documents) == 1:
        return documents[0]
    metrics: dict[str, Any] = {}
    for document in documents:
        metrics = {**document["metrics"], **metrics}
    first = documents[0] if documents else {}
    return {**first, "status": "done", "metrics": metrics, "runs": documents}


def summary_lines(documents: list[dict[str, Any]]) -> list[str]:
    """Return a table of several runs: one line per run and data set, means over classes."""
    rows = []
    has_folds = any(document["fold"] is not None for document in documents)
    for document in documents:
        for dataset, classes in document["metrics"].items():
            dice = [metrics["dice"] for metrics in classes.values()]
            missed = sum(metrics["empty_prediction"] for metrics in classes.values())
            place = [document["row"], dataset, document["labeled"].get(dataset, "–")]
            defined = [value for value in dice if value is not None]
            mean = 100 * fmean(defined) if defined else nan
            cells = [*place, document["draw"]]
            if has_folds:
                cells.append("–" if document["fold"] is None else document["fold"])
            cells += [document["seed"], number(mean, 1), missed]
            rows.append([*cells, "cached" if document["cached"] else "new", document["run_id"][:8]])
    columns = [("method", "<"), ("data set", "<"), ("labeled", ">"), ("draw", ">")]
    if has_folds:
        columns.append(("fold", ">"))
    columns += [("seed", ">"), ("Dice %", ">"), ("missed", ">"), ("", "<"), ("run", "<")]
    drop = ("", "missed", "labeled")
    return ["", table(columns, rows, drop)]


def result_lines(result: dict[str, Any]) -> list[str]:
    """Return a result as one line per data set and class.

    Classes that occur in no test case show no numbers.
    """
    lines = []
    for row in result["metrics"]:
        means = {}
        for name, column in row["columns"].items():
            means[name] = nan if column["mean"] is None else column["mean"]
        unit = "mm" if "hd95_mm" in means else "vox"
        what = f"{safe(result['method'])} on {safe(row['dataset'])} ({safe(row['class'])})"
        numbers = [
            f"Dice {number(100 * means['dice'], 2)}",
            f"Jaccard {number(100 * means['jaccard'], 2)}",
            f"HD95 {number(means[f'hd95_{unit}'], 2)} {unit}",
            f"ASD {number(means[f'asd_{unit}'], 2)} {unit}",
            f"missed {row['counts']['empty_prediction']}",
        ]
        lines.append(f"{what}, {_cases(row)}: {'  '.join(numbers)}")
    return lines


def _cases(row: dict[str, Any]) -> str:
    """Return over how many test cases the means of a row are taken."""
    total = row["counts"]["n"]
    scored = row["columns"]["dice"]["n"]
    if scored == total:
        return plural(total, "test case")
    return f"{scored} of {total} test cases" if scored else f"in none of {total} test cases"


def datasets_document(schema: str, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what ``--json`` prints of commands about data sets."""
    return {"schema": schema, "status": "done", "datasets": datasets}


def spacing_ranges(spacings: list[tuple[float, ...]] | None) -> Any:
    """Return the spacings of a data set; of many, the smallest and largest along each axis."""
    if spacings is None or len(spacings) <= MOST_SPACINGS:
        return spacings
    axes = list(zip(*spacings, strict=True))
    return {"from": [min(axis) for axis in axes], "to": [max(axis) for axis in axes]}
