"""Facts of prepared data sets, kept in a run folder: enough to predict without the data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segbench.data.store.store import Store, parse_store, store_document
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
