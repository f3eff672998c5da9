"""What the values in label files mean: other numbers, voxels to leave out, and values that differ.

Two label files are compared value by value, so a reference with 0 and 255 scores 0 against a
prediction with 0 and 1. Such pairs are possible, but most are mistakes: they get a warning with the
likely reason and the option that corrects it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from segbench.data.formats.volume import FEW_VALUES
from segbench.evaluation.prediction import LabelMap
from segbench.text import first_few

StoredLabels = np.ndarray[Any, np.dtype[np.integer[Any]]]  # values as they are in a file

VALUES = 256  # a label map holds 0 to 255
APART = 0.1  # Dice of one value in both files: below, its voxels lie elsewhere
TOGETHER = 0.5  # Dice of two values: above, they mark the same voxels
WHITE = 255  # foreground of a mask of two values
UNUSUAL = 50  # classes rarely have numbers this high: they may mark voxels to leave out


@dataclass(frozen=True)
class ValueRules:
    """How the values of two label files are changed before they are compared.

    ``ignored`` are values of the reference: these voxels become background in both files, and so
    do the prediction's own voxels of these values, unless ``pred_map`` gives them a meaning.
    """

    pred_map: Mapping[int, int] = field(default_factory=dict)
    ref_map: Mapping[int, int] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()

    def apply(self, pred: StoredLabels, ref: StoredLabels) -> tuple[LabelMap, LabelMap]:
        """Return prediction and reference with the values that are compared.

        All values outside 0 to 255 are among the ignored ones.
        """
        values = sorted(self.ignored)
        ref_left_out = np.isin(ref, values)
        unmapped = [value for value in values if value not in self.pred_map]
        pred_left_out = ref_left_out | np.isin(pred, unmapped)
        new_pred = _mapped(pred, self.pred_map, pred_left_out)
        new_ref = _mapped(ref, self.ref_map, ref_left_out)
        return new_pred, new_ref

    def unused(self, cases: Iterable[CaseValues]) -> list[str]:
        """Return a warning for each value but 0 that a rule names and no file holds.

        Args:
            cases: the values of each case, before they are changed.
        """
        pred: set[int] = {0}
        ref: set[int] = {0}
        for case in cases:
            pred |= case.pred
            ref |= case.ref
        warnings = []
        for value in sorted(self.ignored - ref):
            warnings.append(f"--ignore {value}: no reference holds this value")
        for value in sorted({*self.pred_map, *self.ref_map}):
            sides = []
            if value in self.pred_map:
                sides.append(("prediction", self.pred_map[value], pred))
            if value in self.ref_map:
                sides.append(("reference", self.ref_map[value], ref))
            if any(value in values for _, _, values in sides):
                continue
            holders = " and no ".join(side for side, _, _ in sides)
            warnings.append(f"--map {value}={sides[0][1]}: no {holders} holds {value}")
        return warnings


def with_white_as_one(rules: ValueRules, sides: Iterable[str]) -> ValueRules:
    """Return rules that also change 255 to 1 on some sides, ``pred`` or ``ref``."""
    maps = {"pred": dict(rules.pred_map), "ref": dict(rules.ref_map)}
    for side in sides:
        maps[side][WHITE] = 1
    return ValueRules(maps["pred"], maps["ref"], rules.ignored)


def _mapped(
    labels: StoredLabels, changes: Mapping[int, int], left_out: np.ndarray[Any, np.dtype[np.bool_]]
) -> LabelMap:
    """Return labels with other values, and background where ``left_out`` is true."""
    table = np.arange(256, dtype=np.uint8)
    for old, new in changes.items():
        table[old] = new
    mapped: LabelMap = table[np.where(left_out, 0, labels)]
    mapped[left_out] = 0
    return mapped


class CaseValues(NamedTuple):
    """The values of a case, without the background's."""

    pred: frozenset[int]
    ref: frozenset[int]


def values_of(pred: StoredLabels, ref: StoredLabels) -> CaseValues:
    """Return the values of a prediction and of a reference, without the background's."""
    return CaseValues(_foreground_values(pred), _foreground_values(ref))


def _foreground_values(labels: StoredLabels) -> frozenset[int]:
    values = np.unique(labels).tolist()
    return frozenset(values) - {0}


def value_warnings(cases: Mapping[str, CaseValues], names: Mapping[int, str] | None) -> list[str]:
    """Return warnings about values that do not meet, and the likely reason.

    Args:
        cases: the values of each case, after ``ValueRules``.
        names: the classes that are scored; None if all values are.
    """
    pred: frozenset[int] = frozenset()
    ref: frozenset[int] = frozenset()
    for case in cases.values():
        pred |= case.pred
        ref |= case.ref
    warnings = _unscored(pred | ref, names)
    changes = _other_numbers(pred, ref)
    if changes:
        options = ",".join(f"ref:{old}={new}" for old, new in changes.items())
        warnings.append(
            f"label values do not meet: predictions hold {_listed(pred)}, references "
            f"{_listed(ref)}. If these are the same classes under other numbers: --map {options}"
        )
        return warnings
    scored = pred | ref if names is None else frozenset(names)
    if not pred and ref:
        warnings.append("no prediction holds a value above 0")
    elif not ref:
        warnings.append("no reference holds a value above 0")
    else:
        warnings += _one_sided((ref - pred) & scored, "references", _only_in_references, cases)
        warnings += _one_sided((pred - ref) & scored, "predictions", _only_in_predictions, cases)
    return warnings


def _one_sided(
    values: frozenset[int],
    side: str,
    warning: Callable[[int, Mapping[str, CaseValues]], str],
    cases: Mapping[str, CaseValues],
) -> list[str]:
    """Return a warning for each value that only one side holds, or one for many values."""
    if len(values) > FEW_VALUES:
        return [f"{len(values)} values are in {side} only, such as {_listed(values)}"]
    return [warning(value, cases) for value in sorted(values)]


def _listed(values: Iterable[int]) -> str:
    return first_few(sorted(values), 10)


def _unscored(found: frozenset[int], names: Mapping[int, str] | None) -> list[str]:
    """Warn of classes that no file holds and of values that are not scored."""
    if names is None:
        return []
    warnings = []
    for value, name in names.items():
        if value not in found:
            warnings.append(
                f"class {value} ({name}) of --labels is in no file; the files hold "
                f"{_listed(found) or 'no value above 0'}"
            )
    others = found - set(names)
    if others:
        warnings.append(
            f"the files also hold {_listed(others)}, which --labels does not name: "
            "these voxels count as background"
        )
    return warnings


def _other_numbers(pred: frozenset[int], ref: frozenset[int]) -> dict[int, int]:
    """Return which values of the references may stand for which of the predictions.

    That is so if both have equally many values, all shifted by one number or scaled by one factor.
    """
    if len(pred) != len(ref) or pred == ref or not pred:
        return {}
    pairs = dict(zip(sorted(ref), sorted(pred), strict=True))
    shifts = {old - new for old, new in pairs.items()}
    is_shifted = len(shifts) == 1
    factor = max(ref) / max(pred)
    errors = [abs(old - new * factor) for old, new in pairs.items()]
    is_scaled = max(errors) <= 1 and pred.isdisjoint(ref)
    if not is_shifted and not is_scaled:
        return {}
    return {old: new for old, new in pairs.items() if old != new}


def _only_in_references(value: int, cases: Mapping[str, CaseValues]) -> str:
    holders = [name for name, case in cases.items() if value in case.ref]
    text = f"{value} is in references only ({first_few(holders, 3)})"
    if len(holders) < len(cases) and all(cases[name].ref == {value} for name in holders):
        return f"{text}. If it stands for another class there: --map ref:{value}=CLASS"
    if value >= UNUSUAL:
        return f"{text}. If it marks voxels to leave out: --ignore {value}"
    return (
        f"{text}: no prediction has this class. If it marks voxels to leave out: --ignore {value}"
    )


def _only_in_predictions(value: int, cases: Mapping[str, CaseValues]) -> str:
    holders = [name for name, case in cases.items() if value in case.pred]
    return (
        f"{value} is in predictions only ({first_few(holders, 3)}): no reference has this class. "
        f"If it has another number there: --map pred:{value}=CLASS"
    )


def are_apart(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether some class of a case is in both files and hardly overlaps.

    Args:
        rows: one per class, with ``dice`` and the voxels of both files.
    """
    for row in rows:
        is_in_both = row["pred_voxels"] > 0 and row["ref_voxels"] > 0
        if is_in_both and row["dice"] < APART:
            return True
    return False


def value_pairs(pred: LabelMap, ref: LabelMap) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many voxels have value i in the prediction and j in the reference: (256, 256)."""
    is_labeled = (pred > 0) | (ref > 0)
    keys = pred[is_labeled].astype(np.int64) * VALUES + ref[is_labeled]
    counts = np.bincount(keys, minlength=VALUES * VALUES)
    counts[0] = pred.size - len(keys)
    return counts.reshape(VALUES, VALUES)


def exchange_warnings(counts: np.ndarray[Any, np.dtype[np.int64]]) -> list[str]:
    """Return a warning if values of the predictions lie where the references hold other values.

    So it is with classes in another order, and with an inverted mask. The values themselves meet,
    so that ``value_warnings`` finds nothing.

    Args:
        counts: of ``value_pairs``, of one or several cases.
    """
    sizes = counts.sum(1)[:, None] + counts.sum(0)[None, :]
    dice = 2 * counts / np.maximum(sizes, 1)
    own = np.diagonal(dice)
    changes = {}
    for old, new in np.argwhere(dice > TOGETHER).tolist():
        if own[old] < APART and own[new] < APART:
            changes[old] = new
    if not changes:
        return []
    places = [f"{old} lies where references hold {new}" for old, new in changes.items()]
    options = ",".join(f"pred:{old}={new}" for old, new in changes.items())
    return [
        f"label values are exchanged: in predictions, {', '.join(places)}, and equal values hardly "
        f"overlap. If the files number the classes otherwise: --map {options}"
    ]


def count_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a warning for each class that only some cases have, and is scored in fewer cases.

    Args:
        rows: one per case and class, with ``class`` and ``status``.
    """
    statuses: dict[str, list[str]] = {}
    for row in rows:
        statuses.setdefault(row["class"], []).append(row["status"])
    warnings = []
    for name, found in statuses.items():
        without = found.count("both_empty")
        if 0 < without < len(found):
            warnings.append(
                f"class {name}: {without} of {len(found)} cases have it in neither file and are "
                "left out of its mean"
            )
    return warnings
