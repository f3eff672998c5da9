"""The table of an evaluation: one row per test case and class."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from segbench.metrics import aggregate, score_labels

Row = dict[str, Any]


def score_case(
    dataset: str,
    case: str,
    pred: np.ndarray[Any, Any],
    ref: np.ndarray[Any, Any],
    classes: Mapping[int, str],
    spacing: ArrayLike | None,
) -> list[Row]:
    """Return the rows of one case, one per class.

    Args:
        pred: predicted label map (*S).
        ref: reference label map (*S).
        classes: names of the classes, by label value.
        spacing: in mm by axis, or the steps of the axes in space as the columns of a matrix; None
            leaves out the distances in mm.
    """
    rows = []
    for record in score_labels(pred, ref, classes=list(classes), spacing=spacing):
        name = classes[record.pop("label")]
        rows.append({"dataset": dataset, "case": case, "class": name, **record})
    return rows


def summarize(rows: list[Row], policy: str) -> list[Row]:
    """Return one row per data set and class: means, standard deviations and counts of empty masks.

    Args:
        policy: how cases with an empty mask count, see ``segbench.metrics.aggregate``.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["class"]), []).append(row)
    summary = []
    for (dataset, name), members in groups.items():
        columns = aggregate(members, policy=policy).to_dict()
        summary.append({"dataset": dataset, "class": name, **columns})
    return summary


def cases_csv(rows: list[Row]) -> bytes:
    """Return the text of ``cases.csv``; undefined values are empty, shapes like 180x140x88."""
    columns: dict[str, None] = {}
    for row in rows:
        columns.update(dict.fromkeys(row))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue().encode()


def _cell(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return value
