"""Lists of a user's folder: read from its splits file, or drawn by patient and written to it."""

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
from segbench.data.preparation.patients import require_all_named, stored_patients, together
from segbench.errors import DataError, StorageError, did_you_mean
from segbench.storage import atomic_write, json_bytes
from segbench.text import first_few

LISTS = ("labeled", "unlabeled", "val", "test")
LISTS_WITH_LABELS = ("labeled", "val", "test")
PATIENTS = "patients"  # key of the patient of each case
BRITISH = {name.replace("labeled", "label" + "led"): name for name in LISTS}
TEST_SHARE = 5  # one in five labeled patients is for testing
SEED = 0  # for drawing the test patients

Files = dict[str, Any]  # keys: "place", "images" and, if there is one, "label"


@dataclass(frozen=True)
class FolderLists:
    """The lists of a folder, and the patients of the cases in them."""

    lists: dict[str, list[str]]
    patients: dict[str, str] | None  # by case; None if not known


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
    unlabeled = [
        case
        for case, files in cases.items()
        if "label" not in files and files["place"] != "imagesTs" and patients[case] not in test
    ]
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


def keep_lists(
    file: Path, lists: Mapping[str, list[str]], patients: Mapping[str, str] | None
) -> None:
    """Write drawn lists and the patients of their cases, if known, unless the file exists.

    A folder that cannot be written to is not an error: the same cases always give the same lists.
    """
    if file.exists():
        return
    content: dict[str, Any] = dict(lists)
    if patients is not None:
        content[PATIENTS] = {case: patients[case] for name in LISTS for case in lists[name]}
    try:
        atomic_write(file, json_bytes(content))
    except StorageError:
        return


def by_number(case: str) -> list[tuple[int, int | str]]:
    """Return a sort key that orders numbers in ids by value; ``7`` and ``07`` remain different."""
    key: list[tuple[int, int | str]] = []
    for part in re.split(r"(\d+)", case):
        if part:
            key.append((0, int(part)) if part.isdecimal() else (1, part))
    key.append((2, case))
    return key
