"""Which training cases are the labeled ones: draw 0 takes the first of the published list, others shuffle patients."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from segbench.data.store.store import Store


def drawn(store: Store, draw: int) -> Store:
    """The store with its training list in the order of a draw; its first N cases are the labeled ones.

    Draw 0 is the list as published. Any other is a shuffle of the patients that depends on ``draw`` and on the ids alone
    (a hash of both), so that neither the run's seed nor a case more or less changes the order of the rest. Cases of a
    patient stay together in the list's order; patients nobody labeled come last. Within a draw a larger labeled set
    contains the smaller ones.
    """
    if draw == 0:
        return store

    labeled = {store.cases[case].group for case in store.train if store.cases[case].has_label}

    def place(case: str) -> tuple[bool, bytes]:
        group = store.cases[case].group
        return group not in labeled, hashlib.sha256(f"{draw} {group}".encode()).digest()

    return replace(store, train=tuple(sorted(store.train, key=place)))
