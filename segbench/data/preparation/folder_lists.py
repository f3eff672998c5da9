"""Lists of a user's folder: read from its files, or drawn by patient and kept with its link."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench.data.preparation.layouts import (
    FolderLayout,
    layout_warnings,
    read_json,
    suggest_layout_fix,
)
from segbench.data.preparation.nnunet_folds import FOLDS_FILE, Fold
from segbench.data.preparation.patients import require_all_named, stored_patients, together
from segbench.errors import DataError, did_you_mean
from segbench.storage import atomic_write, json_bytes
from segbench.text import first_few

LISTS_FILE = "splits_ssl.json"
DRAWN = "drawn"  # setting of a link that holds the lists drawn for its folder
LISTS = ("labeled", "unlabeled", "val", "test")
LISTS_WITH_LABELS = ("labeled", "val", "test")
PATIENTS = "patients"  # key of the patient of each case
BRITISH = {name.replace("labeled", "label" + "led"): name for name in LISTS}
TEST_SHARE = 5  # one in five labeled patients is for testing
SEED = 0  # for drawing the test patients
TEST_ORIGIN = "labelsTs: its cases are the test set"
FOLD_ORIGIN = f"fold 0 of {FOLDS_FILE}: its val cases are the test set"
DRAWN_ORIGIN = f"drawn: one in {TEST_SHARE} labeled patients is for testing"

Files = dict[str, Any]  # keys: "place", "images" and, if there is one, "label"


@dataclass(frozen=True)
class FolderLists:
    """The lists of a folder, and the patients of the cases in them."""

    lists: dict[str, list[str]]
    patients: dict[str, str] | None  # by case; None if not known
    origin: str = LISTS_FILE  # where the lists come from, in words
    is_drawn: bool = False

    def document(self) -> dict[str, Any]:
        """Return the content of a splits file, with the patients of its cases if they are known."""
        content: dict[str, Any] = dict(self.lists)
        if self.patients is not None:
            listed = [case for name in LISTS for case in self.lists[name]]
            content[PATIENTS] = {case: self.patients[case] for case in listed}
        return content


def read_stored_lists(file: Path) -> FolderLists:
    """Read a splits file; a missing list is empty, and British spelling is accepted.

    Raises:
        DataError: a list has an unknown name, is not a list of strings, or has no case for training
            or testing, or the patients cannot be used.
    """
    content = _with_known_names(read_json(file), file)
    patients = stored_patients(content.pop(PATIENTS, None), file)
    lists = {name: content.get(name, []) for name in LISTS}
    if not all(_is_list_of_texts(ids) for ids in lists.values()):
        raise DataError(
            "a list is not a list of texts",
            where=file,
            expected=f"lists of case ids: {', '.join(LISTS)}",
        )
    for name in ("labeled", "test"):
        if not lists[name]:
            raise DataError(
                f"no case in the list '{name}'",
                where=file,
                expected="at least one case to train with and one to test with",
                fix=f"write ids to '{name}', or remove the file to have lists drawn",
            )
    if patients is not None:
        require_all_named(patients, [case for ids in lists.values() for case in ids], file)
    return FolderLists(lists, patients)


def _with_known_names(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the content of a splits file under US names.

    Raises:
        DataError: a name is unknown, or stands there in both spellings.
    """
    known: dict[str, Any] = {}
    unknown_names = _unknown_names(content)
    for name, value in content.items():
        spelled = BRITISH.get(name, name)
        if name in unknown_names:
            raise DataError(
                f"unknown list '{name}'.{did_you_mean(name, (*LISTS, PATIENTS))}",
                where=file,
                found=", ".join(unknown_names),
                expected=", ".join((*LISTS, PATIENTS)),
            )
        if spelled in known:
            raise DataError(
                f"the list '{spelled}' stands twice in the file",
                where=file,
                found=", ".join(content),
                expected="each list once",
            )
        known[spelled] = value
    return known


def _unknown_names(content: Mapping[str, Any]) -> list[str]:
    known = (*LISTS, *BRITISH, PATIENTS)
    return [name for name in content if name not in known]


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def problems_of_lists(
    lists: Mapping[str, list[str]], cases: Mapping[str, Files]
) -> dict[str, list[str]]:
    """Return the cases with each kind of problem; all values are empty if the lists are valid."""
    ids = [case for name in LISTS for case in lists[name]]
    need_label = [case for name in LISTS_WITH_LABELS for case in lists[name] if case in cases]
    return {
        "cases are listed twice": sorted({case for case in ids if ids.count(case) > 1}),
        "listed cases are not on disk": [case for case in ids if case not in cases],
        "cases without a label are in a list that needs one": [
            case for case in need_label if "label" not in cases[case]
        ],
    }


def drawn_before(content: Mapping[str, Any]) -> FolderLists:
    """Return the lists that were drawn at an earlier preparation and kept with the link."""
    lists = {name: list(content.get(name, ())) for name in LISTS}
    return FolderLists(lists, content.get(PATIENTS), DRAWN_ORIGIN, is_drawn=True)


def settings_to_keep(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the drawn lists among a link's former settings, unless the rule for patients changed.

    Args:
        old: former settings of the link.
        new: settings that replace them.
    """
    if DRAWN not in old or old.get("patient") != new.get("patient"):
        return {}
    return {DRAWN: old[DRAWN]}


def has_test_labels(cases: Mapping[str, Files]) -> bool:
    """Return whether a case of ``imagesTs`` has a label."""
    return any(_is_labeled_test(files) for files in cases.values())


def _is_labeled_test(files: Files) -> bool:
    return files["place"] == "imagesTs" and "label" in files


def lists_of_layout(
    cases: Mapping[str, Files], patients: Mapping[str, str], fold: Fold | None
) -> dict[str, list[str]]:
    """Return the lists that nnU-Net's files define: ``labelsTs`` or, without one, a fold.

    Cases with a label in ``labelsTs`` are the test set, and all others with a label are for
    training. Otherwise the validation cases of the fold are the test set. Unlabeled cases of a test
    patient are left out.

    Args:
        cases: the files of each case.
        patients: the patient of each case.
        fold: training and validation cases; None if ``labelsTs`` counts.
    """
    test = [case for case, files in cases.items() if _is_labeled_test(files)]
    labeled = [
        case for case, files in cases.items() if "label" in files and files["place"] != "imagesTs"
    ]
    if fold is not None:
        labeled, test = fold
    kept_out = {patients.get(case, case) for case in test}
    unlabeled = _unlabeled(cases, patients, kept_out)
    return {
        "labeled": together(labeled, {case: patients.get(case, case) for case in labeled}),
        "unlabeled": together(unlabeled, patients),
        "val": [],
        "test": test,
    }


def _unlabeled(
    cases: Mapping[str, Files], patients: Mapping[str, str], kept_out: set[str]
) -> list[str]:
    """Return the unlabeled cases for training: none of ``imagesTs``, none of some patients."""
    found = []
    for case, files in cases.items():
        is_candidate = "label" not in files and files["place"] != "imagesTs"
        if is_candidate and patients[case] not in kept_out:
            found.append(case)
    return found


def drawn_lists(
    cases: Mapping[str, Files], patients: Mapping[str, str], root: Path, layout: FolderLayout
) -> dict[str, list[str]]:
    """Return lists for a folder that has none, with cases ordered by number.

    One in five patients with a label is drawn for testing. Unlabeled cases of these patients are in
    no list.

    Args:
        cases: the files of each case.
        patients: the patient of each case.
        root: the folder, for messages.
        layout: its layout, for messages.

    Raises:
        DataError: fewer than two patients have a label.
    """
    labeled = [case for case, files in cases.items() if "label" in files]
    candidates = list(dict.fromkeys(patients[case] for case in labeled))
    if len(candidates) < 2:
        raise _too_few_labels(cases, labeled, candidates, root, layout)
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(candidates))
    chosen = order[: max(1, len(candidates) // TEST_SHARE)]
    test = {candidates[index] for index in chosen}
    unlabeled = _unlabeled(cases, patients, test)
    return {
        "labeled": together([case for case in labeled if patients[case] not in test], patients),
        "unlabeled": together(unlabeled, patients),
        "val": [],
        "test": [case for case in labeled if patients[case] in test],
    }


def _too_few_labels(
    cases: Mapping[str, Files],
    labeled: list[str],
    patients: list[str],
    root: Path,
    layout: FolderLayout,
) -> DataError:
    if len(labeled) > len(patients):
        return DataError(
            "all labeled cases are of one patient",
            where=root,
            found=f"{first_few(labeled)}: {first_few(patients)}",
            expected="at least one patient to train with and another one to test with",
            fix="label cases of more patients, or correct the rule --patient",
        )
    return DataError(
        "too few cases with a label",
        where=root,
        fix=suggest_layout_fix(root, layout),
        found="\n".join([str(len(labeled)), *layout_warnings(root, layout, dict(cases))]),
        expected="at least one to train with and one to test with",
    )


def write_lists(folder: Path, drawn: Mapping[str, Any]) -> Path:
    """Write drawn lists to the splits file of the user's folder, and return the file.

    Raises:
        StorageError: the folder cannot be written to.
    """
    file = folder / LISTS_FILE
    atomic_write(file, json_bytes(drawn))
    return file


def by_number(case: str) -> list[tuple[int, int | str]]:
    """Return a sort key that orders numbers in ids by value; ``7`` and ``07`` remain different."""
    key: list[tuple[int, int | str]] = []
    for part in re.split(r"(\d+)", case):
        if part:
            key.append((0, int(part)) if part.isdecimal() else (1, part))
    key.append((2, case))
    return key
