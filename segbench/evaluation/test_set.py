"""Evaluate a trained method on test cases.

This is the only place that opens test labels, after training has ended. Each finished case is
written at once, so a killed evaluation continues where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from segbench.contracts.dataset import IGNORED
from segbench.data.geometry import skewed_steps
from segbench.data.store.case_files import CaseInfo
from segbench.data.store.store import Store
from segbench.evaluation.case_rows import Row, score_case
from segbench.evaluation.prediction import Inference, LabelMap, predict_labels
from segbench.metrics import is_of_older_rule
from segbench.progress import Progress, no_progress
from segbench.storage import array_digest

Keep = Callable[[str, str, LabelMap], None]  # data set, case, label map


def keep_nothing(dataset: str, case: str, label: LabelMap) -> None:
    """Keep no label map."""


def evaluate(
    inference: Inference,
    stores: list[Store],
    partial: Path,
    stamp: str,
    report: Progress = no_progress,
    keep: Keep = keep_nothing,
) -> list[Row]:
    """Return the rows of all test cases of all data sets, in the order of the split.

    Args:
        stores: the data sets, in the order of the method's ``Setting.sources``.
        partial: holds the finished cases of an interrupted evaluation; the caller removes it at
            the end.
        stamp: digest of the weights; rows of other weights in ``partial`` are not used.
        keep: called with the label map of every case that is predicted now.
    """
    finished = _finished_cases(partial, stamp)
    total = sum(len(store.test) for store in stores)
    done = 0
    rows: list[Row] = []
    inference.method.eval()
    with partial.open("a", encoding="utf-8") as file:
        for source, store in enumerate(stores):
            for case in store.test:
                case_rows = finished.get((store.name, case))
                if case_rows is None:
                    label = predict_labels(inference, store, case, source)
                    keep(store.name, case, label)
                    case_rows = score(label, store, case)
                    line = {
                        "stamp": stamp,
                        "dataset": store.name,
                        "case": case,
                        "rows": case_rows,
                    }
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                rows += case_rows
                done += 1
                report(done, total, case)
    return rows


def score(label: LabelMap, store: Store, case: str) -> list[Row]:
    """Return the rows of one case, one per class: a predicted label map (*S) against the reference.

    Voxels that the reference marks as ignored become background in both.

    Distances in mm are left out unless all test cases have a spacing, so that all rows have the
    same columns.
    """
    reference = np.asarray(store.label(case))
    compared = label
    if store.cases[case].labels.get(IGNORED):
        left_out = reference == IGNORED
        reference = np.where(left_out, np.uint8(0), reference)
        compared = np.where(left_out, np.uint8(0), label)
    has_spacing = all(store.cases[name].spacing is not None for name in store.test)
    spacing = _steps(store.cases[case]) if has_spacing else None
    classes = dict(enumerate(store.classes, start=1))
    rows = score_case(store.name, case, compared, reference, classes, spacing)
    digest = array_digest(label)
    for row in rows:
        row["prediction"] = digest
    return rows


def _steps(case: CaseInfo) -> ArrayLike | None:
    """Return the spacing of a case or, if its axes are not perpendicular, their steps in space."""
    if case.affine is None:
        return case.spacing
    skewed = skewed_steps(np.array(case.affine), len(case.shape))
    return case.spacing if skewed is None else skewed


def _finished_cases(partial: Path, stamp: str) -> dict[tuple[str, str], list[Row]]:
    """Return the rows that an interrupted evaluation has written, by data set and case.

    Rows whose distances are of an older rule for volumes of one slice are computed again.
    """
    finished: dict[tuple[str, str], list[Row]] = {}
    if not partial.exists():
        return finished
    for line in partial.read_text(encoding="utf-8").splitlines():
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:  # the last line may be incomplete
            continue
        is_older = any(is_of_older_rule(row) for row in record.get("rows", ()))
        if record.get("stamp") == stamp and not is_older:
            finished[record["dataset"], record["case"]] = record["rows"]
    return finished
