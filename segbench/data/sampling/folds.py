"""Folds of a cross-validation: every patient with a label is tested in exactly one of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from segbench.data.store.store import Store
from segbench.errors import UsageError

FOLDS = 5


def fold_of_patients(store: Store) -> dict[str, int]:
    """Return the fold in which each patient with a label is tested.

    The patients are ordered by a hash of the data set's fingerprint and their id, and then dealt
    out in turn, so that the folds differ by at most one patient. Nothing else decides the folds:
    the same prepared data give the same folds on every machine. The lists of the data set do not
    matter; its test cases are in the folds as well.

    A data set may have folds of its own (``made["fold"]`` of its cases). These are taken as they
    are, and patients in none of them are not returned.

    Raises:
        UsageError: there are fewer patients than folds.
    """
    patients = _patients_with_label(store)
    own = {}
    for info in store.cases.values():
        if info.group in patients and "fold" in info.made:
            own[info.group] = int(info.made["fold"])
    if own:
        return own
    if len(patients) < FOLDS:
        raise UsageError(
            f"data set '{store.name}' has too few patients for a cross-validation",
            found=f"{len(patients)} with a label",
            expected=f"at least {FOLDS}, one to test on in each fold",
            fix="leave out --fold",
        )

    def position(patient: str) -> bytes:
        return hashlib.sha256(f"{store.fingerprint} {patient}".encode()).digest()

    ordered = sorted(patients, key=position)
    return {patient: number % FOLDS for number, patient in enumerate(ordered)}


def _patients_with_label(store: Store) -> set[str]:
    found = set()
    for case in (*store.train, *store.test):
        info = store.cases[case]
        if info.has_label:
            found.add(info.group)
    return found


def fold_count(store: Store) -> int:
    """Return the number of folds of a data set."""
    return max(fold_of_patients(store).values()) + 1


def with_fold(store: Store, fold: int) -> Store:
    """Return the store with the lists of one fold.

    The labeled cases of the fold's patients are the test cases. All cases of the other patients,
    with and without a label, are the training cases. An unlabeled case of a patient who is tested
    is in neither list, nor is a patient with a label who is in no fold.

    Raises:
        UsageError: there is no such fold, or there are fewer patients than folds.
    """
    folds = fold_of_patients(store)
    last = max(folds.values())
    if not 0 <= fold <= last:
        raise UsageError(
            f"data set '{store.name}' has no fold {fold}",
            expected=f"0 to {last}",
            fix=f"--fold 0-{last}",
        )
    in_no_fold = _patients_with_label(store) - set(folds)
    train = []
    test = []
    for case in (*store.train, *store.test):
        info = store.cases[case]
        if info.group in in_no_fold:
            continue
        if folds.get(info.group) != fold:
            train.append(case)
        elif info.has_label:
            test.append(case)
    return replace(store, train=tuple(train), test=tuple(test))


def fold_sizes(store: Store) -> list[tuple[int, int]]:
    """Return the number of training patients of each fold, and how many of them have a label."""
    sizes = []
    for fold in range(fold_count(store)):
        view = with_fold(store, fold)
        sizes.append((len(view.patients), len(view.patients_with_label)))
    return sizes


def fold_facts(store: Store) -> dict[str, Any]:
    """Return what all folds of a data set share, as JSON values.

    These are the number of folds, a digest of the fold of every patient, and the number of training
    patients of the smallest fold.
    """
    folds = sorted(fold_of_patients(store).items())
    return {
        "count": fold_count(store),
        "lists": hashlib.sha256(repr(folds).encode()).hexdigest(),
        "train": min(patients for patients, _ in fold_sizes(store)),
    }
