"""Warn of data sets of a joint training that share patients by name, or that look alike.

If two of them look alike but label different things, no image of one is ever segmented for the
target of the other. A network can then learn which image has which target; on phantoms it is much
worse than one for each data set, with few labels and with all (``docs/results/joint.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from segbench import registry
from segbench.data.store.checks import patients_are_known
from segbench.data.store.store import Store
from segbench.text import first_few

Array = NDArray[np.float64]

IMAGES = 20  # that are looked at in each data set
VOXELS = 20_000  # about this many per image
LEVELS = np.linspace(0.05, 0.95, 19)  # of the quantiles of gray values
# Images of two sets differ by at most this many times as much as images of one set. It lies between
# the phantoms of one look and those of two looks, which the tests compare.
ALIKE = 1.15
# What joint training cost VerSemi on two phantoms of one look with different targets, in Dice; a
# test compares this with the stored runs (benchmarks/results/joint.json).
MEASURED_COST = "25 and 28 Dice with few labels, 22 and 32 Dice with all"


def joint_warnings(stores: Sequence[Store]) -> list[str]:
    """Return all warnings about data sets that are trained together."""
    return [*shared_patient_warnings(stores), *look_alike_warnings(stores)]


def shared_patient_warnings(stores: Sequence[Store]) -> list[str]:
    """Return a warning for each pair of which a test patient may be trained on in the other.

    Patients of two data sets that are known by name, as in own folders, may have one name by
    chance, so this is no error; see ``require_apart`` for what is certain.
    """
    known = [store for store in stores if patients_are_known(store)]
    warnings = []
    for trained, tested in permutations(known, 2):
        training = {trained.cases[case].group for case in trained.train}
        testing = {tested.cases[case].group for case in tested.test}
        both = sorted(training & testing)
        if both:
            warnings.append(
                f"patients in the test set of '{tested.name}' have the names of training patients "
                f"of '{trained.name}': {first_few(both)}. If they are the same people, list them "
                "on one side in both data sets"
            )
    return warnings


def look_alike_warnings(stores: Sequence[Store]) -> list[str]:
    """Return a warning for each pair of data sets that look alike and have different classes."""
    warnings = []
    for first, second in combinations(stores, 2):
        if set(first.classes) == set(second.classes):
            continue
        difference = _difference(first, second)
        if difference is None or difference > ALIKE:
            continue
        warnings.append(
            f"data sets '{first.name}' and '{second.name}' look alike but label different things "
            f"({', '.join(first.classes)}; {', '.join(second.classes)}): gray values differ "
            f"{difference:.2f} times as much between the two as within one. No image of one is "
            "ever segmented for the target of the other. On two such phantoms, training together "
            f"cost VerSemi {MEASURED_COST} (docs/results/joint.md). Compare with a run on each "
            "data set alone"
        )
    return warnings


def _difference(first: Store, second: Store) -> float | None:
    """Return how much images of two data sets differ, relative to images of one data set.

    The result is None for data sets of different kinds, or with images that are all equal.
    """
    if first.dims != second.dims or first.channels != second.channels:
        return None
    if _modality(first) != _modality(second):
        return None
    a = _gray_values(first)
    b = _gray_values(second)
    within = (_mean_distance(a, a) + _mean_distance(b, b)) / 2
    return _mean_distance(a, b) / within if within else None


def _modality(store: Store) -> str:
    return str(registry.get("dataset", store.name).cls.modality).lower()


def _gray_values(store: Store) -> Array:
    """Return quantiles of the gray values of some training images (image, quantile)."""
    rows = []
    for case in store.train[:IMAGES]:
        voxels = np.asarray(store.image(case)).ravel()
        step = max(1, voxels.size // VOXELS)
        rows.append(np.quantile(voxels[::step], LEVELS))
    return np.array(rows)


def _mean_distance(a: Array, b: Array) -> float:
    """Return the mean distance between images, without those of an image to itself."""
    distances = np.abs(a[:, None] - b[None]).mean(axis=2)
    if a is not b:
        return float(distances.mean())
    pairs = len(a) * (len(a) - 1)
    return float(distances.sum() / pairs) if pairs else 0.0
