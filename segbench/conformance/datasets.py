"""Checks of a data set: its facts, its split, and some of its cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

from segbench import registry
from segbench.config import load_protocol
from segbench.contracts.dataset import Case, Dataset, RawCase
from segbench.data.store.case_files import valid_id

DatasetCheck = Callable[[Dataset], None]
CASES = 2  # of each list that are read


def facts(data: Dataset) -> None:
    """Title, modality, classes, license and numbers are stated."""
    for name in ("title", "modality", "license"):
        assert getattr(data, name), f"`{name}` is empty"
    assert data.classes, "`classes` is empty"
    assert len(set(data.classes)) == len(data.classes), f"a class is named twice: {data.classes}"
    assert data.dims in (2, 3), f"`dims` is {data.dims}, expected 2 or 3"
    assert data.channels >= 1, f"`channels` is {data.channels}, expected 1 or more"
    assert data.labeled >= 1, f"`labeled` is {data.labeled}, expected 1 or more"
    if not data.embedded:
        assert data.citation, "`citation` is empty"
        assert data.homepage.startswith("https://"), "`homepage` is no https address"
        assert data.files, "`files` is empty: describe each file of a complete source"


def protocol(data: Dataset) -> None:
    """Its protocol exists, and its patch has as many axes as the data, or one less for slices."""
    axes = len(load_protocol(data.protocol).patch)
    assert axes in (data.dims, data.dims - 1), (
        f"protocol '{data.protocol}' has a patch of {axes} axes, the data set has {data.dims}"
    )


def split(data: Dataset) -> None:
    """The lists are disjoint by case and by patient, and the same when asked again."""
    lists = data.split()
    assert lists.train, "no training case"
    assert lists.test, "no test case"
    assert lists.source, "`source` of the split is empty: say which publication defines it"
    cases = (*lists.train, *lists.val, *lists.test)
    for case in cases:
        assert valid_id(case), f"'{case}' cannot be the id of a case"
        assert cases.count(case) == 1, f"case '{case}' is listed twice"
    _check_patients(data, {"train": lists.train, "val": lists.val, "test": lists.test})
    patients = {data.group(case) for case in lists.train}
    assert data.labeled <= len(patients), (
        f"`labeled` is {data.labeled}, more than the {len(patients)} training patients"
    )
    assert type(data)().split() == lists, "the split differs when it is asked for again"


def _check_patients(data: Dataset, lists: dict[str, tuple[str, ...]]) -> None:
    seen: dict[str, str] = {}
    for name, cases in lists.items():
        for case in cases:
            patient = data.group(case)
            first = seen.setdefault(patient, name)
            assert first == name, f"patient '{patient}' is in {first} and in {name}"


def found_cases(data: Dataset, source: Path | None) -> None:
    """``find`` returns the cases of the split, in a form that can be sent to another process."""
    raw = data.find(source)
    ids = [case.id for case in raw]
    assert len(set(ids)) == len(ids), "`find` returns an id twice"
    lists = data.split()
    missing = sorted({*lists.train, *lists.test} - set(ids))
    assert not missing, f"`find` does not return {missing[0]} ({len(missing)} in all)"
    ForkingPickler.dumps(raw)  # as processes that prepare cases send them


def loaded_cases(data: Dataset, source: Path | None) -> None:
    """Cases of both lists have the documented shapes, types and values, also when read again."""
    for raw in _some_cases(data, source):
        case = data.load(raw)
        _check_case(data, case)
        again = data.load(raw)
        assert np.array_equal(case.image, again.image), f"{raw.id}: read again, the image differs"


def _some_cases(data: Dataset, source: Path | None) -> list[RawCase]:
    lists = data.split()
    wanted = [*lists.train[:CASES], *lists.test[:CASES]]
    found = data.add_shared_facts(data.find(source), lists)
    by_id = {raw.id: raw for raw in found}
    return [by_id[case] for case in wanted]


def _check_case(data: Dataset, case: Case) -> None:
    image = case.image
    assert image.dtype == np.float32, f"{case.id}: the image is {image.dtype}, expected float32"
    assert image.ndim == 1 + data.dims and len(image) == data.channels, (
        f"{case.id}: the image has shape {image.shape}, expected {data.channels} channels and "
        f"{data.dims} axes"
    )
    assert np.isfinite(image).all(), f"{case.id}: the image is not finite"
    assert case.spacing is None or len(case.spacing) == data.dims, (
        f"{case.id}: spacing {case.spacing}, expected {data.dims} numbers"
    )
    label = case.label
    if label is None:
        return
    assert label.dtype == np.uint8, f"{case.id}: the label is {label.dtype}, expected uint8"
    assert label.shape == image.shape[1:], (
        f"{case.id}: the label has shape {label.shape}, the image {image.shape[1:]}"
    )
    highest = int(label.max(initial=0))
    assert highest <= len(data.classes), (
        f"{case.id}: label value {highest}, expected 0 to {len(data.classes)}"
    )


def labels_of_test_cases(data: Dataset, source: Path | None) -> None:
    """Test cases have labels, and every class occurs in the cases that are read."""
    values: set[int] = set()
    test = set(data.split().test)
    for raw in _some_cases(data, source):
        label = data.load(raw).label
        assert label is not None or raw.id not in test, f"test case '{raw.id}' has no label"
        if label is not None:
            values.update(np.unique(label).tolist())
    missing = [name for value, name in enumerate(data.classes, 1) if value not in values]
    assert len(missing) < len(data.classes), (
        f"no class occurs in any label: expected values 1 to {len(data.classes)}"
    )


CHECKS: dict[str, DatasetCheck] = {"facts": facts, "protocol": protocol, "split": split}
CHECKS_OF_FILES: dict[str, Callable[[Dataset, Path | None], None]] = {
    "found cases": found_cases,
    "loaded cases": loaded_cases,
    "labels": labels_of_test_cases,
}


def dataset_trials(name: str, source: Path | None = None) -> list[tuple[str, Callable[[], None]]]:
    """Return all checks of a data set as (description, function to call).

    Cases are read if the data set makes them itself, or if there is a folder ``source``.
    """
    dataset_class = registry.get("dataset", name).cls
    found: list[tuple[str, Callable[[], None]]] = []
    for what, function in CHECKS.items():
        found.append((what, partial(_on_new, function, dataset_class)))
    folder = source or dataset_class.source
    if dataset_class.embedded or folder is not None:
        for what, file_check in CHECKS_OF_FILES.items():
            found.append(
                (what, partial(_on_new, partial(_with, file_check, folder), dataset_class))
            )
    return found


def _on_new(function: DatasetCheck, dataset_class: type[Dataset]) -> None:
    function(dataset_class())


def _with(
    function: Callable[[Dataset, Path | None], None], source: Path | None, data: Dataset
) -> None:
    function(data, None if data.embedded else source)
