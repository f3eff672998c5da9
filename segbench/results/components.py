"""Distances with and without the largest component, both from one prediction per case.

``segbench evaluate RUN --components`` writes them beside the result of a run. A leaderboard shows
them as two pairs of columns: distances that were published with the largest component can only be
compared with those.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from statistics import fmean
from typing import Any

from segbench.results.board import DISTANCES, Board, MethodRow
from segbench.results.export import COMPONENT_CHOICES
from segbench.results.finished import FinishedRun


def add_components(boards: Sequence[Board]) -> None:
    """Fill in the distances of each row whose runs have them all."""
    for board in boards:
        for row in board.rows:
            row.components = _means(board, row)


def _means(board: Board, row: MethodRow) -> dict[str, float]:
    """Return the means of a row by "METRIC CHOICE"; empty if a run was not evaluated for it."""
    means: dict[str, float] = {}
    for choice in COMPONENT_CHOICES:
        for metric in DISTANCES:
            column = f"{metric}_{board.unit}"
            values = [_mean_of_run(run, choice, column, board.datasets) for run in row.runs]
            if any(value is None for value in values):
                return {}
            means[f"{metric} {choice}"] = fmean(value for value in values if value is not None)
    return means


def _mean_of_run(
    run: FinishedRun, choice: str, column: str, datasets: Sequence[str]
) -> float | None:
    """Return the mean over classes, then over data sets; None if the run has no such file.

    A file that belongs to other weights than the result counts as none.
    """
    stored = run.folder.components()
    if stored.get("weights_sha256") != run.result["weights_sha256"]:
        return None
    means = []
    for dataset in datasets:
        found = []
        for entry in stored[choice]:
            if entry["dataset"] == dataset:
                found.append(_defined(entry["columns"].get(column, {}).get("mean")))
        if found:
            means.append(fmean(found))
    return fmean(means) if means else None


def _defined(value: Any) -> float:
    return nan if value is None else float(value)
