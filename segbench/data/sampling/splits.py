"""Which training cases are labeled, and which are held out for validation."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import ceil

from segbench.data.store.store import Store
from segbench.errors import UsageError

HELD_OUT_SHARE = 10  # one training case in ten is held out
HELD_OUT_LEAST = 2


def with_draw(store: Store, draw: int, fold: int | None = None) -> Store:
    """Return the store with its training list in the order of a draw.

    The first N patients of that order are labeled.

    Draw 0 is the list as published. Any other draw shuffles the patients. The order depends only on
    ``draw`` and the patients' ids (a hash of both), so neither the run's seed nor an added case
    changes the order of the rest. A patient's cases stay together in the list's order, and patients
    without any label come last. Within a draw, a larger labeled set contains the smaller ones.

    In a fold of a cross-validation, draw 0 shuffles as well, and every fold has an order of its
    own: with one order for all, most labeled patients would be the same in every fold, and the
    folds would not show how much the choice of the labeled patients matters.
    """
    if draw == 0 and fold is None:
        return store
    mark = str(draw) if fold is None else f"fold {fold} draw {draw}"
    with_label = set(store.patients_with_label)

    def position(case: str) -> tuple[bool, bytes]:
        patient = store.cases[case].group
        return patient not in with_label, hashlib.sha256(f"{mark} {patient}".encode()).digest()

    return replace(store, train=tuple(sorted(store.train, key=position)))


def held_out(store: Store, labeled: int) -> tuple[str, ...]:
    """Return the training cases to validate on: the last of the list that have a label.

    Cases of the first ``labeled`` patients are never chosen. A patient is never divided: if one
    case is chosen, all cases of that patient with a label are.

    Raises:
        UsageError: fewer than two cases are left.
    """
    wanted = max(HELD_OUT_LEAST, ceil(len(store.train) / HELD_OUT_SHARE))
    trained_on = {store.cases[case].group for case in store.labeled(labeled)}
    chosen: set[str] = set()
    for case in reversed(store.train):
        if len(chosen) >= wanted:
            break
        info = store.cases[case]
        if info.has_label and info.group not in trained_on:
            chosen |= _labeled_cases_of(store, info.group)
    if len(chosen) < HELD_OUT_LEAST:
        raise UsageError(
            f"too few training cases of '{store.name}' are left to validate on",
            found=len(chosen),
            expected=f"at least {HELD_OUT_LEAST} with a label besides the labeled ones",
            fix="fewer labeled cases (--labeled)",
        )
    return tuple(case for case in store.train if case in chosen)


def _labeled_cases_of(store: Store, patient: str) -> set[str]:
    found = set()
    for case in store.train:
        info = store.cases[case]
        if info.group == patient and info.has_label:
            found.add(case)
    return found


def without_held_out(store: Store, labeled: int) -> Store:
    """Return the store without the held-out patients in its training list."""
    patients = {store.cases[case].group for case in held_out(store, labeled)}
    train = [case for case in store.train if store.cases[case].group not in patients]
    return replace(store, train=tuple(train))
