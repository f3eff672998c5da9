"""Facts of prepared data sets, kept with a run: enough to predict without the data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segbench.data.store.case_files import CaseInfo
from segbench.data.store.store import Store, fingerprint, parse_store, store_document
from segbench.errors import IntegrityError

FILE = "stores.json"


def copied_facts(stores: Iterable[Store]) -> dict[str, Any]:
    """Return what ``store.json`` holds for each data set, by name; no voxels."""
    return {store.name: store_document(store) for store in stores}


def read_copies(folder: Path, names: Sequence[str]) -> list[Store] | None:
    """Return the data sets of a run as they were when it began; None if an older run kept no copy.

    Their voxels cannot be read.

    Raises:
        IntegrityError: the copy is damaged.
    """
    file = folder / FILE
    try:
        content = json.loads(file.read_bytes())
        return [parse_store(folder, content[name]) for name in names]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the facts of the training data cannot be read",
            where=file,
            found=error,
            fix="remove this file; then the prepared data are needed to predict",
        ) from error


def anonymous(store: Store) -> Store:
    """Return what of a data set is needed to predict, without anything that names a case.

    Training cases are numbered. Their names, patients, file names, digests and positions in space
    are left out, and so are the test cases and the labels.
    """
    cases = {}
    for number, name in enumerate(store.train, 1):
        case = _anonymous_case(f"train_{number:04d}", store.cases[name])
        cases[case.id] = case
    names = tuple(cases)
    return replace(
        store,
        root=Path(),
        train=names,
        test=(),
        cases=cases,
        fingerprint=fingerprint(cases.values(), names, ()),
        warnings=(),
        parent=None,
        adapter={},
    )


def _anonymous_case(name: str, info: CaseInfo) -> CaseInfo:
    origin = info.source.get("from") if isinstance(info.source, Mapping) else None
    recipe = origin.get("recipe") if isinstance(origin, Mapping) else None
    return CaseInfo(
        id=name,
        shape=info.shape,
        spacing=info.spacing,
        affine=_without_position(info.affine),
        group=name,
        voxels="",
        label_voxels=None,
        has_label=False,
        labels={},
        intensity=info.intensity,
        files={},
        source={} if recipe is None else {"from": {"recipe": recipe}},
        made={key: info.made[key] for key in ("oriented",) if key in info.made},
    )


def _without_position(
    affine: tuple[tuple[float, ...], ...] | None,
) -> tuple[tuple[float, ...], ...] | None:
    """Return an affine with its origin at 0."""
    if affine is None:
        return None
    rows = [(*row[:3], 0.0) for row in affine[:3]]
    return (*rows, affine[3])
