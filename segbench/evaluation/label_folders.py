"""Score any two folders of label files: predictions against references, paired by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from segbench.data.formats.pictures import is_picture, palette_warnings
from segbench.data.formats.read import (
    ALL_ENDINGS,
    DICOM_ENDING,
    read_mask,
    stem,
    without_previews,
)
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import NO_LABEL, Volume, as_one_slice, looks_like_image
from segbench.data.geometry import in_mm, skewed_steps, spacing_of
from segbench.data.preparation.layouts import DICOM_LABELS
from segbench.data.store.problem import DataProblems, Problem
from segbench.errors import DataError, SegbenchError
from segbench.evaluation.case_rows import Row, score_case
from segbench.evaluation.label_values import (
    VALUES,
    WHITE,
    CaseValues,
    StoredLabels,
    ValueRules,
    are_apart,
    count_warnings,
    exchange_warnings,
    value_pairs,
    value_warnings,
    values_of,
    with_white_as_one,
)
from segbench.evaluation.turned import TurnedCases
from segbench.progress import Progress, no_progress
from segbench.text import first_few

SUFFIX = re.compile(r"_(seg|gt|label|mask|pred)$")
PROBABILITIES = "_probs"  # ends the names of probability maps that segbench predict writes
INTEGER_TOLERANCE = 1e-3  # a label value may be this far from a whole number
HIGHEST_LABEL = 255  # higher values are gray values, not classes

AS_STORED = ValueRules()  # no value is changed


class Files(NamedTuple):
    """The two label files of a case."""

    pred: Path
    ref: Path


class Pair(NamedTuple):
    """The label maps of a case on the grid of the reference."""

    pred: StoredLabels
    ref: StoredLabels
    spacing: ArrayLike | None  # in mm as ``score_case`` takes it, None if unknown
    warnings: list[str]


class CheckedCase(NamedTuple):
    """What a first look at both files of a case finds."""

    has_spacing: bool
    values: CaseValues  # that are compared
    in_files: CaseValues  # before any is changed
    warnings: list[str]


def evaluate_folders(
    pred: Path,
    ref: Path,
    names: Mapping[int, str] | None = None,
    progress: Progress = no_progress,
    rules: ValueRules = AS_STORED,
) -> tuple[list[Row], list[str]]:
    """Return one row per case and class, and warnings.

    Distances are in voxels and, if all cases have a spacing, in mm as well. The spacing is the
    reference's. If the reference has none, the prediction's is used and a warning says so, unless
    it is the identity matrix that ``segbench predict`` writes for scans without a spacing.

    Args:
        names: label value to class name; None takes all values above 0 in either folder.
        progress: called after each case.
        rules: values that are changed or left out before the files are compared.

    Raises:
        DataError: files do not pair, are damaged, or lie on different grids; all of them are
            listed.
    """
    found, warnings = pairs(pred, ref)
    rows, pair_warnings = evaluate_pairs(ref.name, found, names, progress, rules)
    return rows, warnings + pair_warnings


def evaluate_pairs(
    dataset: str,
    found: Mapping[str, Files],
    names: Mapping[int, str] | None = None,
    progress: Progress = no_progress,
    rules: ValueRules = AS_STORED,
) -> tuple[list[Row], list[str]]:
    """Return one row per case and class, and warnings, see ``evaluate_folders``.

    Args:
        dataset: the name that the rows give the data set.
        found: the two files of each case.
    """
    checked = _checked_cases(found, rules)
    warnings: list[str] = []
    two_valued = _two_valued_sides(found, checked, names, rules)
    if two_valued:
        rules = with_white_as_one(rules, two_valued)
        checked = _checked_cases(found, rules)
        warnings.append(f"masks of 0 and {WHITE} ({' and '.join(two_valued)}): {WHITE} counts as 1")
    values: set[int] = set()
    warnings += _grouped({name: case.warnings for name, case in checked.items()})
    for case in checked.values():
        values |= case.values.pred
        values |= case.values.ref
    warnings += rules.unused([case.in_files for case in checked.values()])
    by_case = {name: case.values for name, case in checked.items()}
    warnings += value_warnings(by_case, names)
    masks = [file for side in zip(*found.values(), strict=True) for file in side]
    in_files = [case.in_files.pred | case.in_files.ref for case in checked.values()]
    warnings += palette_warnings(masks, frozenset().union(*in_files))
    classes = names or {value: str(value) for value in sorted(values)}
    if not classes:
        place = next(iter(found.values())).ref.parent
        raise DataError(
            "no label above 0 in any file", where=place, fix="name the classes: --labels 1=organ"
        )

    # One unknown spacing leaves out the distances in mm, so that all rows have the same columns.
    is_in_mm = all(case.has_spacing for case in checked.values())
    rows: list[Row] = []
    counts = np.zeros((VALUES, VALUES), np.int64)  # of cases whose values may be exchanged
    turned = TurnedCases()
    for done, (name, files) in enumerate(found.items(), start=1):
        pair = read_pair(files, rules.ignored)
        spacing = pair.spacing if is_in_mm else None
        pred_labels, ref_labels = rules.apply(pair.pred, pair.ref)
        case_rows = score_case(dataset, name, pred_labels, ref_labels, classes, spacing)
        if are_apart(case_rows):
            counts += value_pairs(pred_labels, ref_labels)
        turned.add(pred_labels, ref_labels)
        rows += case_rows
        progress(done, len(found), name)
    warnings += exchange_warnings(counts) + turned.warnings()
    return rows, warnings + count_warnings(rows)


def _two_valued_sides(
    found: Mapping[str, Files],
    checked: Mapping[str, CheckedCase],
    names: Mapping[int, str] | None,
    rules: ValueRules,
) -> list[str]:
    """Return the sides whose masks are all pictures of 0 and 255, without a rule for 255."""
    if WHITE in (names or {}) or WHITE in rules.ignored:
        return []
    sides = []
    for side, is_mapped in (("pred", WHITE in rules.pred_map), ("ref", WHITE in rules.ref_map)):
        values: set[int] = set()
        for case in checked.values():
            values |= getattr(case.in_files, side)
        are_pictures = all(is_picture(getattr(files, side)) for files in found.values())
        if are_pictures and values == {WHITE} and not is_mapped:
            sides.append(side)
    return sides


def pairs(pred: Path, ref: Path) -> tuple[dict[str, Files], list[str]]:
    """Return the files of each case by its name, and warnings about files that are left out.

    The name is the file's without its ending and without ``_seg``, ``_gt``, ``_label``, ``_mask``
    or ``_pred``.

    Raises:
        DataProblems: a reference has no prediction, or two files have one name; all of them are
            listed.
    """
    predictions, warnings = _files_by_case(pred, ignored=(PROBABILITIES,))
    references, reference_warnings = _files_by_case(ref)
    warnings += reference_warnings

    missing = [case for case in references if case not in predictions]
    if missing:
        problems = []
        for case in missing:
            ending = references[case].suffix if is_picture(references[case]) else ".nii.gz"
            expected = f"a file {case}{ending} in {pred}"
            problems.append(
                Problem(case, str(references[case]), "no prediction of this name", expected)
            )
        raise DataProblems(
            f"{len(missing)} of {len(references)} references have no prediction",
            problems,
            fix="predict them too, or remove them from the folder of references; "
            "no reference is left out silently",
        )

    extra = [case for case in predictions if case not in references]
    if extra:
        warnings.append(
            f"{len(extra)} predictions have no reference and are left out: {first_few(extra)}"
        )
    found = {case: Files(predictions[case], file) for case, file in references.items()}
    return found, warnings


def _files_by_case(
    folder: Path, ignored: tuple[str, ...] = ()
) -> tuple[dict[str, Path], list[str]]:
    """Return the label files of a folder by case, and a warning about other files in it.

    Pictures beside volumes are previews and not read.

    Args:
        ignored: names with these endings are skipped without a warning.
    """
    if not folder.is_dir():
        raise DataError("no such folder", where=folder)
    found: dict[str, Path] = {}
    visible = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    readable = [file for file in visible if file.name.lower().endswith(ALL_ENDINGS)]
    candidates = [file for file in readable if not (ignored and stem(file).endswith(ignored))]
    labels = without_previews(candidates)
    unread = [file.name for file in visible if file not in readable]
    unread += [file.name for file in candidates if file not in labels]
    for file in labels:
        name = unicodedata.normalize("NFC", stem(file))
        case = SUFFIX.sub("", name)
        if case in found:
            raise DataError(
                f"two files of case '{case}'",
                where=folder,
                found=f"{found[case].name} and {file.name}",
                expected="one label file per case",
            )
        found[case] = file

    endings = " ".join(ALL_ENDINGS)
    if not found:
        raise DataError(
            "no label file in the folder",
            where=folder,
            found=first_few(unread) or None,
            expected=endings,
            fix=_fix_of_dicom(unread),
        )
    if not unread:
        return found, []
    return found, [f"{folder}: not read as label files: {first_few(unread)}"]


def _fix_of_dicom(names: Sequence[str]) -> str | None:
    """Return how labels in DICOM are converted, None if there are none."""
    if not any(name.lower().endswith(DICOM_ENDING) for name in names):
        return None
    return DICOM_LABELS


def read_pair(files: Files, ignored: Collection[int] = ()) -> Pair:
    """Read both files of a case; the prediction is turned to the axes of the reference.

    Args:
        ignored: values that will be left out and may be any whole numbers.

    Raises:
        DataError: a file is not a label map, or the two lie on different grids.
    """
    pred = read_labels(files.pred, ignored)
    ref = read_labels(files.ref, ignored)
    if ref.array.ndim == 2 and pred.array.ndim == 2:
        ref = as_one_slice(ref)
    if ref.array.ndim == 2:
        ref, pair_warnings = match(pred, ref, files.ref, "reference", "prediction")
    else:
        pred, pair_warnings = match(ref, pred, files.pred, "prediction", "reference")
    spacing, spacing_warnings = _spacing(pred, ref)
    warnings = [f"reference: {text}" for text in ref.warnings]
    if spacing_warnings:
        warnings += [f"prediction: {text}" for text in pred.warnings]
    return Pair(pred.array, ref.array, spacing, warnings + pair_warnings + spacing_warnings)


def read_labels(file: Path, ignored: Collection[int] = ()) -> Volume:
    """Return a label map (*S) and what the header says; in HDF5 files the key is ``label``.

    The values are uint8, or int64 if some of ``ignored`` are outside 0 to 255.

    Raises:
        DataError: the file is damaged, has other than two or three axes, or holds values that
            are no labels.
    """
    volume = read_mask(file)
    return replace(volume, array=label_values(volume.array, file, ignored))


def label_values(
    values: ArrayLike, where: Path | str, ignored: Collection[int] = ()
) -> StoredLabels:
    """Return label values (*S) as uint8, or int64 if some of ``ignored`` are outside 0 to 255.

    Args:
        values: of any type.
        where: the file or the argument, for messages.

    Raises:
        DataError: other than two or three axes, no voxel, or values that are no labels.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(
            "not a label map",
            where=where,
            found=f"values of type {array.dtype}",
            expected=f"whole numbers from 0 to {HIGHEST_LABEL}",
        )
    if not array.size or array.ndim not in (2, 3):
        raise DataError(
            "not a label map",
            where=where,
            found=f"shape {array.shape}",
            expected="two or three axes",
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    labels = np.rint(array) if array.dtype.kind == "f" else array
    is_whole = np.isfinite(array) & (np.abs(array - labels) < INTEGER_TOLERANCE)
    outside = [value for value in ignored if not 0 <= value <= HIGHEST_LABEL]
    is_in_range = (labels >= 0) & (labels <= HIGHEST_LABEL)
    is_label = is_whole & (is_in_range | np.isin(labels, outside))
    if not is_label.all():
        raise _no_labels(where, array, is_whole, is_label)
    found: StoredLabels = labels.astype(np.int64 if outside else np.uint8)
    _require_no_masks_of_classes(found, where)
    return found


def _require_no_masks_of_classes(labels: StoredLabels, where: Path | str) -> None:
    """Refuse one mask per class along the first or last axis: scored as a volume, it is wrong."""
    if labels.ndim != 3 or labels.max() != 1:
        return
    for axis in (0, 2):
        if labels.shape[axis] > 1 and (labels.sum(axis) == 1).all():
            raise DataError(
                "one mask per class instead of class numbers",
                where=where,
                found=f"shape {labels.shape}: along axis {axis + 1}, each place has one 1",
                expected="class numbers, as of argmax",
                fix=f"numpy.argmax(masks, axis={axis})",
            )


def _no_labels(
    where: Path | str, array: np.ndarray, is_whole: np.ndarray, is_label: np.ndarray
) -> DataError:
    """Return the error about values that are no labels."""
    others = np.unique(array[~is_label]).tolist()
    fix = "check that it is not an image or a probability map"
    is_mask = len(np.unique(array)) <= 2
    if is_whole.all() and looks_like_image(array):
        fix = NO_LABEL
    elif is_whole.all() and is_mask and others[0] > 0:
        fix = f"if {others[0]:.0f} is a class: write 1 instead of it"
    elif is_whole.all() and len(others) == 1:
        fix = f"if it marks voxels to leave out: --ignore {others[0]:.0f}"
    return DataError(
        "values that are no labels",
        where=where,
        found=", ".join(f"{value:g}" for value in others[:5]),
        expected=f"whole numbers from 0 to {HIGHEST_LABEL}",
        fix=fix,
    )


def evaluate_arrays(
    pred: ArrayLike,
    ref: ArrayLike,
    names: Mapping[int, str] | None = None,
    spacing: Sequence[float] | None = None,
    rules: ValueRules = AS_STORED,
) -> tuple[list[Row], list[str]]:
    """Return one row per class of two label maps (*S), and warnings.

    Args:
        names: label value to class name; None takes all values above 0 in either map.
        spacing: in mm along each axis; None leaves out the distances in mm.
        rules: values that are changed or left out before the maps are compared.

    Raises:
        DataError: an array is no label map, they differ in shape, or neither has a label above 0.
    """
    pred_labels = label_values(pred, "pred", rules.ignored)
    ref_labels = label_values(ref, "ref", rules.ignored)
    if pred_labels.shape != ref_labels.shape:
        raise DataError(
            "the two label maps differ in shape",
            found=f"pred {pred_labels.shape}, ref {ref_labels.shape}",
            expected="arrays on one grid",
        )
    in_arrays = values_of(pred_labels, ref_labels)
    warnings = rules.unused([in_arrays])
    for name, labels in (("pred", pred_labels), ("ref", ref_labels)):
        if looks_like_image(labels):
            warnings.append(f"{name} {_gray_scan(labels)}")
    pred_labels, ref_labels = rules.apply(pred_labels, ref_labels)
    values = values_of(pred_labels, ref_labels)
    classes = names or {value: str(value) for value in sorted(values.pred | values.ref)}
    if not classes:
        raise DataError(
            "no label above 0 in either array", fix="name the classes: labels={1: 'organ'}"
        )
    rows = score_case("", "array", pred_labels, ref_labels, classes, spacing)
    warnings += value_warnings({"array": values}, names)
    if are_apart(rows):
        warnings += exchange_warnings(value_pairs(pred_labels, ref_labels))
    turned = TurnedCases()
    turned.add(pred_labels, ref_labels)
    return rows, warnings + turned.warnings()


def _checked_cases(found: Mapping[str, Files], rules: ValueRules) -> dict[str, CheckedCase]:
    """Read all files once and compare the grids of each pair.

    Raises:
        DataProblems: files cannot be read or pairs cannot be compared; all of them are listed.
    """
    checked: dict[str, CheckedCase] = {}
    problems: list[Problem] = []
    for case, files in found.items():
        try:
            checked[case] = _checked_case(files, rules)
        except SegbenchError as error:
            details = error.details
            problems.append(
                Problem(
                    case,
                    str(details["where"] or files.pred),
                    f"{error.what}: {details['found']}",
                    str(details["expected"] or ""),
                    str(details["fix"] or ""),
                )
            )
    if problems:
        raise DataProblems(
            f"{len(problems)} of {len(found)} cases cannot be compared",
            problems,
            fix="repair or remove them",
        )
    return checked


def _checked_case(files: Files, rules: ValueRules) -> CheckedCase:
    pair = read_pair(files, rules.ignored)
    warnings = list(pair.warnings)
    for file, labels in ((files.pred, pair.pred), (files.ref, pair.ref)):
        if looks_like_image(labels):
            warnings.append(f"{file} {_gray_scan(labels)}")
    in_files = values_of(pair.pred, pair.ref)
    pred_labels, ref_labels = rules.apply(pair.pred, pair.ref)
    values = values_of(pred_labels, ref_labels)
    return CheckedCase(pair.spacing is not None, values, in_files, warnings)


def _gray_scan(labels: StoredLabels) -> str:
    return (
        "looks like a gray scan, not like a label map: "
        f"{len(np.unique(labels))} different values, most unlike their neighbors"
    )


def _grouped(warnings: Mapping[str, list[str]]) -> list[str]:
    """Return the warnings of all cases, each text once with its cases."""
    cases: dict[str, list[str]] = {}
    for case, texts in warnings.items():
        for text in texts:
            cases.setdefault(text, []).append(case)
    return [f"{first_few(names)}: {text}" for text, names in cases.items()]


def _spacing(pred: Volume, ref: Volume) -> tuple[ArrayLike | None, list[str]]:
    """Return the spacing of a case in mm; warn if it is the prediction's."""
    axes = ref.array.ndim
    if ref.affine is not None:
        return _steps(ref.affine, axes), []
    if pred.affine is None or np.array_equal(pred.affine, np.eye(4)):
        return None, []
    used = in_mm(spacing_of(pred.affine))
    warning = (
        f"the reference has no spacing and no orientation; the prediction's spacing is used, {used}"
    )
    return _steps(pred.affine, axes), [warning]


def _steps(affine: np.ndarray, axes: int) -> ArrayLike:
    """Return the spacing of the first axes or, if these are not perpendicular, their steps."""
    skewed = skewed_steps(affine, axes)
    return spacing_of(affine)[:axes] if skewed is None else skewed
