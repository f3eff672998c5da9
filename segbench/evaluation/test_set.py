"""Evaluate a trained method on test cases.

This is the only place that opens test labels, after training has ended. Each finished case is
written at once, so a killed evaluation continues where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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


class Peers(Protocol):
    """The processes that share the cases of an evaluation, seen from one of them."""

    @property
    def rank(self) -> int:
        """Number of this process; only the first, 0, writes."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their numbers."""


@dataclass(frozen=True)
class Alone:
    """A process that evaluates all cases."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """Return the value."""
        return [value]


class _Place(NamedTuple):
    """A test case of a data set."""

    source: int
    store: Store
    case: str

    @property
    def key(self) -> tuple[str, str]:
        return self.store.name, self.case


def evaluate(
    inference: Inference,
    stores: list[Store],
    partial: Path,
    stamp: str,
    report: Progress = no_progress,
    keep: Keep = keep_nothing,
    peers: Peers = Alone(),
) -> list[Row]:
    """Return the rows of all test cases of all data sets, in the order of the split.

    Args:
        stores: the data sets, in the order of the method's ``Setting.sources``.
        partial: holds the finished cases of an interrupted evaluation; the caller removes it at
            the end.
        stamp: digest of the weights; rows of other weights in ``partial`` are not used.
        keep: called with the label map of every case that this process predicts.
        peers: the processes that share the cases; all of them return the same rows.
    """
    is_first = peers.rank == 0
    finished = peers.gather(_finished_cases(partial, stamp) if is_first else {})[0]
    places = _places(stores)
    missing = [place for place in places if place.key not in finished]
    done = 0
    for place in places:
        if place.key in finished:
            done += 1
            report(done, len(places), place.case)

    inference.method.eval()
    with (partial if is_first else Path(os.devnull)).open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), peers.size):
            now = missing[start : start + peers.size]
            own_rows: list[Row] = []
            if peers.rank < len(now):
                own_rows = _predicted(inference, now[peers.rank], keep)
            for place, rows in zip(now, peers.gather(own_rows), strict=False):
                finished[place.key] = rows
                line = {
                    "stamp": stamp,
                    "dataset": place.store.name,
                    "case": place.case,
                    "rows": rows,
                }
                file.write(json.dumps(line) + "\n")
                file.flush()
                done += 1
                report(done, len(places), place.case)
    return [row for place in places for row in finished[place.key]]


def _places(stores: list[Store]) -> list[_Place]:
    places = []
    for source, store in enumerate(stores):
        for case in store.test:
            places.append(_Place(source, store, case))
    return places


def _predicted(inference: Inference, place: _Place, keep: Keep) -> list[Row]:
    """Predict a case and return its rows."""
    label = predict_labels(inference, place.store, place.case, place.source)
    keep(place.store.name, place.case, label)
    return score(label, place.store, place.case)


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
