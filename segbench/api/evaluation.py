"""Score predictions against references: arrays, files or folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segbench.api.scores import case_table, metric_table
from segbench.api.table import Table
from segbench.data.formats.read import stem
from segbench.errors import UsageError
from segbench.evaluation.case_rows import Row, summarize
from segbench.evaluation.label_folders import (
    Files,
    evaluate_arrays,
    evaluate_folders,
    evaluate_pairs,
)
from segbench.evaluation.label_values import VALUES, ValueRules
from segbench.progress import Progress, no_progress
from segbench.results.facts import mean_dice

POLICY = "worst_distance"  # for cases in which one of the two masks is empty


class Evaluation:
    """The scores of predictions.

    Attributes:
        rows: the records of ``cases`` with all their values, as in ``cases.csv``.
        summary: the records of ``metrics`` with all their values, as in ``result.json``.
        warnings: what may be wrong with the label maps, such as values that only one side has.
    """

    def __init__(self, rows: list[Row], warnings: list[str]) -> None:
        self.rows = rows
        self.summary = summarize(rows, POLICY)
        self.warnings = warnings

    @property
    def dice(self) -> float | None:
        """The mean Dice in percent over all classes; None if one is not defined."""
        return mean_dice(self.summary)

    @property
    def metrics(self) -> Table:
        """The means over the cases, one row per class; Dice and Jaccard in percent."""
        return metric_table(self.summary)

    @property
    def cases(self) -> Table:
        """The scores of every case, one row per case and class; Dice and Jaccard in percent."""
        return case_table(self.rows)

    def __repr__(self) -> str:
        return f"Evaluation of {len({row['case'] for row in self.rows})} cases\n{self.metrics}"


def evaluate(  # noqa: PLR0913 (one argument per choice)
    pred: str | Path | np.ndarray[Any, Any],
    ref: str | Path | np.ndarray[Any, Any],
    labels: Mapping[int, str] | None = None,
    *,
    spacing: Sequence[float] | None = None,
    ignore: Iterable[int] = (),
    pred_map: Mapping[int, int] | None = None,
    ref_map: Mapping[int, int] | None = None,
    progress: Progress = no_progress,
) -> Evaluation:
    """Score predictions against references.

    Args:
        pred: a folder of label files, a label file, or a label map (*S) of whole numbers.
        ref: the same kind of thing; files of folders are paired by name.
        labels: the classes by their values, such as {1: "atrium"} [all values above 0].
        spacing: of arrays: mm along each axis. Without it distances are in voxels.
        ignore: values of the reference whose voxels are left out.
        pred_map: values of the prediction that are changed before comparing, such as {255: 1}.
        ref_map: the same for the reference.
        progress: called after each case with the number of cases done, of all cases, and a name.

    Raises:
        UsageError: a file and a folder, or an array and a path; a spacing beside paths; a value
            that is no class number, or that two arguments give two meanings.
        DataError: files do not pair, are damaged, or lie on different grids.
    """
    rules = _checked_rules(pred_map or {}, ref_map or {}, ignore)
    labels = _checked_classes(labels, rules)
    if not isinstance(pred, str | Path) and not isinstance(ref, str | Path):
        _require_spacing(spacing, np.ndim(pred))
        return Evaluation(*evaluate_arrays(pred, ref, labels, spacing, rules))
    are_paths = isinstance(pred, str | Path) and isinstance(ref, str | Path)
    if not are_paths or spacing is not None:
        raise UsageError(
            "files have a spacing of their own"
            if are_paths
            else "pred and ref are not of one kind",
            expected="two arrays, two files or two folders; spacing beside arrays only",
            fix="segbench.evaluate(pred, ref)",
        )
    pred_path = Path(str(pred)).expanduser()
    ref_path = Path(str(ref)).expanduser()
    if pred_path.is_file() and ref_path.is_file():
        files = {stem(ref_path): Files(pred_path, ref_path)}
        name = ref_path.parent.name
        return Evaluation(*evaluate_pairs(name, files, labels, progress, rules))
    return Evaluation(*evaluate_folders(pred_path, ref_path, labels, progress, rules))


def _checked_rules(
    pred_map: Mapping[int, int], ref_map: Mapping[int, int], ignore: Iterable[int]
) -> ValueRules:
    """Return the rules of the arguments.

    Raises:
        UsageError: a value is no class number, or a value of the reference is changed and left out.
    """
    values = None if isinstance(ignore, str | int) else tuple(ignore)
    if values is None or not all(_is_whole(value) for value in values):
        raise UsageError(
            "ignore is no list of values", found=repr(ignore), expected="such as ignore=[255]"
        )
    ignored = frozenset(map(int, values))
    for name, changes in (("pred_map", pred_map), ("ref_map", ref_map)):
        for old, new in changes.items():
            if not _is_value(old) or not _is_value(new):
                raise UsageError(
                    f"{name}: {old!r} to {new!r}",
                    expected=f"whole numbers from 0 to {VALUES - 1}, such as {{255: 1}}",
                )
    both = sorted(ignored & set(ref_map))
    if both or 0 in ignored:
        raise UsageError(
            "a value is left out that has a meaning",
            found=f"{both[0] if both else 0} in ignore",
            expected="values other than 0 and those of ref_map",
        )
    return ValueRules(pred_map, ref_map, ignored)


def _checked_classes(
    labels: Mapping[int, str] | None, rules: ValueRules
) -> Mapping[int, str] | None:
    """Return the names of the classes, None if there are none.

    Raises:
        UsageError: a value is no class or left out, or two have one name.
    """
    if not labels:
        return None
    names = set(labels.values()) if isinstance(labels, Mapping) else set()
    is_usable = isinstance(labels, Mapping) and all(_is_value(value) for value in labels)
    if not is_usable or 0 in labels or len(names) < len(labels) or rules.ignored & set(labels):
        raise UsageError(
            "labels cannot be used",
            found=repr(labels),
            expected=f"classes by their values from 1 to {VALUES - 1}, each name once and none "
            "that is ignored, such as {1: 'organ'}",
        )
    return labels


def _require_spacing(spacing: Sequence[float] | None, axes: int) -> None:
    if spacing is None:
        return
    steps = np.ravel(np.asarray(spacing, float))
    if len(steps) != axes or not np.isfinite(steps).all() or not (steps > 0).all():
        raise UsageError(
            "the spacing cannot be used",
            found=repr(spacing),
            expected=f"{axes} positive numbers of mm, one for each axis of the arrays",
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_value(value: object) -> bool:
    return _is_whole(value) and 0 <= int(str(value)) < VALUES
