"""The folds of nnU-Net's cross-validation, from ``splits_final.json``.

Source: nnU-Net v2, ``nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py``, ``do_split``: a list with
one object ``{"train": [case, ...], "val": [case, ...]}`` per fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from segbench.errors import DataError
from segbench.text import first_few

FOLDS_FILE = "splits_final.json"
KEYS = ("train", "val")

Fold = tuple[list[str], list[str]]  # training and validation cases


def read_nnunet_folds(path: Path) -> list[Fold]:
    """Return the training and validation cases of each fold, in the order of the file.

    Args:
        path: the file, usually ``splits_final.json``.

    Raises:
        DataError: the file cannot be read, is no list of folds, or a fold has no case, or a case
            twice.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            "the folds of nnU-Net cannot be read",
            where=path,
            found=error,
            expected="a JSON list",
            fix="copy splits_final.json from the folder nnUNet_preprocessed again, or remove it",
        ) from error
    if not isinstance(content, list) or not content:
        raise _no_folds(path, f"{type(content).__name__}", "a list of folds")
    return [_fold(path, number, item) for number, item in enumerate(content)]


def validation_folds(path: Path) -> dict[str, int]:
    """Return the fold in which each case is validated on.

    Raises:
        DataError: as ``read_nnunet_folds``, or a case is validated on in several folds.
    """
    found: dict[str, int] = {}
    for number, (_, val) in enumerate(read_nnunet_folds(path)):
        repeated = sorted(set(val) & set(found))
        if repeated:
            text = f"fold {number}: {first_few(repeated)}, also in an earlier fold"
            raise _no_folds(path, text, "each case in 'val' of one fold")
        found.update(dict.fromkeys(val, number))
    return found


def require_patients_in_one_fold(
    folds: Mapping[str, int], patients: Mapping[str, str], path: Path
) -> None:
    """Refuse folds that divide a patient.

    Args:
        folds: the fold of each case.
        patients: the patient of each case.
        path: the file of the folds.

    Raises:
        DataError: cases of a patient are in several folds.
    """
    fold_of_patient: dict[str, int] = {}
    for case, fold in folds.items():
        patient = patients.get(case, case)
        if fold_of_patient.setdefault(patient, fold) != fold:
            raise DataError(
                "the folds of nnU-Net divide a patient",
                where=path,
                found=f"patient '{patient}' in the folds {fold_of_patient[patient]} and {fold}",
                expected="all cases of a patient in one fold",
                fix=f"remove {FOLDS_FILE} to have folds made by patient",
            )


def _fold(path: Path, number: int, item: object) -> Fold:
    """Return the cases of one fold.

    Raises:
        DataError: it is no fold.
    """
    expected = 'lists of case names: {"train": [...], "val": [...]}'
    if not isinstance(item, dict) or not all(_is_list_of_names(item.get(key)) for key in KEYS):
        raise _no_folds(path, f"fold {number}: {str(item)[:80]}", expected)
    train = item["train"]
    val = item["val"]
    cases = [*train, *val]
    repeated = sorted({case for case in cases if cases.count(case) > 1})
    if repeated:
        found = f"fold {number}: {first_few(repeated)} twice"
        raise _no_folds(path, found, "each case once per fold")
    return list(train), list(val)


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _no_folds(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        "the folds of nnU-Net cannot be used",
        where=path,
        found=found,
        expected=expected,
        fix="copy splits_final.json from the folder nnUNet_preprocessed again, or remove it",
    )
