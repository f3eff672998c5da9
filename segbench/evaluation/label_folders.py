"""Metrics of any two folders of label files: predictions against references, paired by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.formats.read import ENDINGS, read_volume, stem
from segbench.data.formats.volume import Volume, spacing_of
from segbench.data.geometry import orientation_codes
from segbench.data.store.problem import DataProblems, Problem
from segbench.errors import DataError, SegbenchError
from segbench.metrics import evaluate_labels
from segbench.text import first_few

SUFFIX = re.compile(r"_(seg|gt|label|mask|pred)$")
PROBABILITIES = "_probs"  # of segbench predict: no label map
WHOLE = 1e-3  # how far a label value may be from a whole number
MOST = 255  # a label map has no more classes; gray values have


def pairs(pred: Path, ref: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Files of one case by its name, and warnings on what is left out: other files, predictions without a reference.

    The name is the file's without ending and without ``_seg``, ``_gt``, ``_label``, ``_mask`` or ``_pred``.

    Raises:
        DataProblems: a reference without a prediction, or two files of one name; all of them listed.
    """
    predictions, others = _by_case(pred, (PROBABILITIES,))
    references, unread = _by_case(ref)
    missing = [
        Problem(
            case,
            str(references[case]),
            "no prediction of this name",
            f"a file {case}.nii.gz in {pred}",
        )
        for case in references
        if case not in predictions
    ]
    if missing:
        raise DataProblems(
            f"{len(missing)} of {len(references)} references have no prediction",
            missing,
            fix="predict them too, or take them out of the folder of references: none is left out silently",
        )
    extra = [case for case in predictions if case not in references]
    warnings = (
        others
        + unread
        + (
            [f"{len(extra)} predictions have no reference and are left out: {first_few(extra)}"]
            if extra
            else []
        )
    )
    return {case: (predictions[case], references[case]) for case in references}, warnings


def _by_case(folder: Path, no_label: tuple[str, ...] = ()) -> tuple[dict[str, Path], list[str]]:
    """Label files by case, but for names that end with ``no_label``; and a warning on what cannot be one."""
    if not folder.is_dir():
        raise DataError("no such folder", where=folder)
    found: dict[str, Path] = {}
    unread: list[str] = []
    for file in sorted(p for p in folder.iterdir() if p.name[0] != "."):
        name = stem(file)
        if not file.name.lower().endswith(ENDINGS):
            unread.append(file.name)
        elif not name.endswith(no_label):
            case = SUFFIX.sub("", name)
            if case in found:
                raise DataError(
                    f"two files of case '{case}'",
                    where=folder,
                    found=f"{found[case].name} and {file.name}",
                    expected="one label file a case",
                )
            found[case] = file
    if not found:
        raise DataError(
            "no label file in the folder",
            where=folder,
            found=first_few(unread) or None,
            expected=" ".join(ENDINGS),
        )
    return found, [
        f"{folder}: not read, for no ending of {' '.join(ENDINGS)}: {first_few(unread)}"
    ] if unread else []


def read_labels(file: Path) -> tuple[np.ndarray, Volume]:
    """A label map (*S) of small whole numbers, and the volume it came from; an HDF5 file's key is ``label``.

    Raises:
        DataError: damaged, not three or two axes, or values that are no labels.
    """
    volume = read_volume(file, "label")
    array = np.asarray(volume.array)
    if array.ndim not in (2, 3):
        raise DataError(
            "not a label map", where=file, found=f"shape {array.shape}", expected="three axes"
        )
    whole = np.rint(array) if array.dtype.kind == "f" else array
    good = np.isfinite(array) & (np.abs(array - whole) < WHOLE) & (whole >= 0) & (whole <= MOST)
    if not good.all():
        values = np.unique(array[~good])[:5]
        raise DataError(
            "values that are no labels",
            where=file,
            found=", ".join(f"{v:g}" for v in values.tolist()),
            expected=f"whole numbers from 0 to {MOST}",
            fix="is it an image or a map of probabilities?",
        )
    return whole.astype(np.uint8), volume


def evaluate_folders(
    pred: Path,
    ref: Path,
    names: Mapping[int, str] | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, case: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row a case and class, distances in voxels and, where every case has a spacing, in mm; and warnings.

    The spacing is the reference's. Where that tells none it is the prediction's, which a warning says, unless it is the unit
    matrix that ``segbench predict`` writes where a scan told none either.

    Args:
        names: label value to class name; None takes all values above 0 in either folder.

    Raises:
        DataError: files that do not pair, are damaged, or lie on different grids; all of them listed.
    """
    found, warnings = pairs(pred, ref)
    problems: list[Problem] = []
    grids: dict[str, tuple[float, ...] | None] = {}
    values: set[int] = set()
    for case, (one, other) in found.items():
        try:
            (p, pv), (r, rv) = read_labels(one), read_labels(other)
            warnings += _same_grid(case, one, pv, rv)
        except SegbenchError as error:
            d = error.details
            problems.append(
                Problem(
                    case,
                    str(d["where"] or one),
                    f"{error.what}: {d['found']}",
                    str(d["expected"] or ""),
                )
            )
            continue
        grids[case], doubts = _spacing(case, pv, rv)
        warnings += doubts
        values |= {*np.unique(p).tolist(), *np.unique(r).tolist()}
    if problems:
        raise DataProblems(
            f"{len(problems)} of {len(found)} cases cannot be compared",
            problems,
            fix="mend or remove them",
        )
    chosen = names or {v: str(v) for v in sorted(values - {0})}
    if not chosen:
        raise DataError(
            "no label above 0 in any file", where=ref, fix="name the classes: --labels 1=organ"
        )
    in_mm = all(spacing is not None for spacing in grids.values())
    rows: list[dict[str, Any]] = []
    for done, (case, (one, other)) in enumerate(found.items(), 1):
        rows += _rows(ref.name, case, one, other, chosen, grids[case] if in_mm else None)
        progress(done, len(found), case)
    return rows, warnings


def _spacing(case: str, pred: Volume, ref: Volume) -> tuple[tuple[float, ...] | None, list[str]]:
    """The spacing of a case in mm by axis, and a warning where it is not the reference's own."""
    if ref.affine is not None:
        return spacing_of(ref.affine)[: ref.array.ndim], []
    if pred.affine is None or np.array_equal(pred.affine, np.eye(4)):
        return None, []
    return (
        spacing_of(pred.affine)[: ref.array.ndim],
        [f"{case}: the reference tells no spacing; the prediction's is taken, {_mm(pred)}"],
    )


def _rows(
    dataset: str,
    case: str,
    one: Path,
    other: Path,
    names: Mapping[int, str],
    spacing: tuple[float, ...] | None,
) -> list[dict[str, Any]]:
    (p, _), (r, _) = read_labels(one), read_labels(other)
    results = [x.to_dict() for x in evaluate_labels(p, r, classes=list(names))]
    if spacing is not None:
        in_mm = [x.to_dict() for x in evaluate_labels(p, r, classes=list(names), spacing=spacing)]
        results = [vox | mm for vox, mm in zip(results, in_mm, strict=True)]
    return [
        {"dataset": dataset, "case": case, "class": names[x.pop("label")], **x} for x in results
    ]


def _same_grid(case: str, file: Path, pred: Volume, ref: Volume) -> list[str]:
    """Warnings on origins that differ; orientation, spacing and shape must agree.

    Raises:
        DataError: they do not.
    """
    if pred.array.shape != ref.array.shape:
        raise DataError(
            "prediction and reference differ in shape",
            where=file,
            found="x".join(map(str, pred.array.shape)),
            expected="x".join(map(str, ref.array.shape)),
        )
    if pred.affine is None or ref.affine is None:
        return []
    if np.abs(pred.affine[:3, :3] - ref.affine[:3, :3]).max() > 1e-3 * max(spacing_of(ref.affine)):
        raise DataError(
            "prediction and reference differ in orientation or spacing",
            where=file,
            found=f"{orientation_codes(pred.affine)} {_mm(pred)}",
            expected=f"{orientation_codes(ref.affine)} {_mm(ref)}",
        )
    away = float(np.abs(pred.affine[:3, 3] - ref.affine[:3, 3]).max())
    return (
        [f"{case}: the origins are {away:.3g} mm apart; voxels are compared by index"]
        if away > 1e-2
        else []
    )


def _mm(volume: Volume) -> str:
    return " x ".join(f"{s:.4g}" for s in volume.spacing or ()) + " mm"
