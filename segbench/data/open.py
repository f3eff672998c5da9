"""Prepare a data set, open its prepared store, or derive a store of lower resolution from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from segbench import registry
from segbench.contracts.dataset import Dataset
from segbench.data.links import write_link
from segbench.data.preparation.pipeline import (
    adapter_identity,
    digests_of_inputs,
    prepare_all,
)
from segbench.data.sampling.folds import fold_sizes
from segbench.data.store.case_files import read_case, remove, write_case
from segbench.data.store.downsample import downsampled_case
from segbench.data.store.store import (
    Store,
    fingerprint,
    read_store,
    require_intact,
    write_store,
)
from segbench.errors import DataError, SegbenchError, UsageError
from segbench.progress import Progress
from segbench.storage import lock, sweep

WAIT = 900.0  # seconds to wait while another process makes an embedded or a derived store


def prepare(
    name: str, source: Path | None, data_root: Path, jobs: int = 1, progress: Progress | None = None
) -> Store:
    """Read, check and write all cases of a data set. Cases already prepared and unchanged are kept.

    Args:
        name: name of the data set.
        source: the user's folder or archive; None for data sets made by code.
        data_root: folder of all prepared stores.
        jobs: number of processes; 1 works in this process.
        progress: called after each case.

    Raises:
        UsageError: the name stands for several data sets.
        DataError: files are missing or cases are bad; all bad cases are listed, and the good ones
            are kept for the next call.
        BusyError: another process is preparing this data set.
        StorageError: the disk is full or not writable.
    """
    entry = registry.get("dataset", name)
    if entry.cls.members:
        raise UsageError(
            f"'{entry.name}' is a group of data sets",
            fix="prepare its members: " + ", ".join(entry.cls.members),
        )
    _require_no_family(entry, fix=f"segbench data prepare {entry.name}:PATH")
    root = Path(data_root) / entry.name
    with lock(root / "lock"):
        write_link(Path(data_root), entry.name)
        source = None if entry.cls.embedded else source
        store = prepare_all(entry, source, root, jobs, progress)
        write_link(Path(data_root), entry.name)  # with lists that were drawn
        return store


def open_store(
    name: str, data_root: Path, sizes: bool = True, progress: Progress | None = None
) -> Store:
    """Open the prepared store of a data set; checks the sizes of its files but reads no voxels.

    A data set made by code is prepared here if it is missing or its code has changed.

    Args:
        name: name of the data set.
        data_root: folder of all prepared stores.
        sizes: False skips the check of file sizes, for a check that lists all damage.
        progress: called after each case of a data set that is made here.

    Raises:
        UsageError: the name stands for several data sets.
        DataError: the data set is not prepared, or was prepared by another version of its adapter
            or with other lists or settings, or a file is missing or has another size.
        IntegrityError: ``store.json`` is damaged.
    """
    entry = registry.get("dataset", name)
    if entry.cls.members:
        raise UsageError(
            f"'{entry.name}' is a group of data sets",
            expected="one of " + ", ".join(entry.cls.members),
        )
    _require_no_family(entry, fix=f"{entry.name}:PATH")
    root = Path(data_root) / entry.name
    if entry.cls.embedded:
        return _open_embedded(entry, root, progress)
    fix = f"segbench data prepare {entry.name}"
    if not entry.cls.source:
        fix += " --from DIR"
    if not (root / "store.json").is_file():
        raise DataError(
            f"data set '{entry.name}' is not prepared",
            where=root,
            expected="; ".join(entry.cls.files) or None,
            fix=fix,
        )
    store = read_store(root, sizes)
    _require_current(store, entry, fix)
    return store


def _require_no_family(entry: registry.Entry, fix: str) -> None:
    if entry.cls.family:
        raise UsageError(
            f"'{entry.name}' stands for data sets of your own",
            expected="; ".join(entry.cls.files),
            fix=fix,
        )


def _require_current(store: Store, entry: registry.Entry, fix: str) -> None:
    """Refuse a store made by another adapter version, or with other lists or settings."""
    found = store.adapter.get("version")
    if found != entry.cls.version:
        raise DataError(
            f"data set '{entry.name}' was prepared by another version of its adapter",
            where=store.root,
            found=f"version {found}",
            expected=f"version {entry.cls.version}",
            fix=fix,
        )
    dataset: Dataset = entry.cls()
    known = store.adapter.get("inputs", {})  # missing in stores of older versions
    changed = [
        name
        for name, digest in digests_of_inputs(dataset).items()
        if known.get(name, digest) != digest
    ]
    if changed:
        raise DataError(
            f"data set '{entry.name}' has changed since it was prepared",
            where=store.root,
            found=f"changed: {' and '.join(changed)}",
            expected="the same lists and settings as at preparation",
            fix=fix,
        )


def _open_embedded(entry: registry.Entry, root: Path, progress: Progress | None) -> Store:
    """Open the store of a data set made by code; make it if missing or if the code changed."""
    identity = adapter_identity(entry)

    def is_current(store: Store) -> bool:
        return store.adapter == identity

    return _read_or_make(root, is_current, lambda: prepare_all(entry, None, root, 1, progress))


def case_counters(opened: Callable[[str], Store]) -> dict[str, Any]:
    """Return the functions with which ``config.resolve`` counts the cases of prepared data sets.

    Args:
        opened: opens a data set by its name; it is called once for each.
    """
    store = cache(opened)
    return {
        "train_sizes": lambda name: len(store(name).patients),
        "labels": lambda name: len(store(name).patients_with_label),
        "fold_sizes": lambda name: fold_sizes(store(name)),
    }


def derived(store: Store, downsample: int | Sequence[int]) -> Store:
    """Return the store at a lower resolution, cached beside it as ``<name>@<factors>``.

    Images become the mean of each block, labels the majority with ties to the higher value. Shapes
    are rounded up; a block cut by the border counts only the voxels inside. Spacing and affine
    follow. The cached store is made again if its parent has changed. Its lists are those of
    ``store``, which may be those of a fold.

    Args:
        store: a store of full resolution.
        downsample: block size in voxels, one number for all axes or one for each.

    Raises:
        UsageError: a factor below 1, a wrong number of factors, or a store that is derived already.
        DataError: a file of the store is damaged.
    """
    factors = (downsample,) * store.dims if isinstance(downsample, int) else tuple(downsample)
    if set(factors) == {1}:
        return store
    if min(factors) < 1 or len(factors) != store.dims or store.downsample != 1:
        raise UsageError(
            f"cannot downsample {store.root.name} by {downsample}",
            expected="factors of 1 or more, once",
        )
    is_uniform = len(set(factors)) == 1
    factor: int | tuple[int, ...] = factors[0] if is_uniform else factors
    shown = str(factors[0]) if is_uniform else "x".join(map(str, factors))
    root = store.root.with_name(f"{store.root.name}@{shown}")

    def is_current(smaller: Store) -> bool:
        return smaller.parent == store.fingerprint

    smaller = _read_or_make(root, is_current, lambda: _derive(store, root, factor, factors))
    return replace(smaller, train=store.train, test=store.test)


def _read_or_make(
    root: Path, is_current: Callable[[Store], bool], make: Callable[[], Store]
) -> Store:
    """Return the store in a folder; make it if it is missing, damaged or out of date."""

    def read() -> Store | None:
        try:
            store = read_store(root)
        except SegbenchError:
            return None
        return store if is_current(store) else None

    store = read()
    if store is not None:
        return store
    with lock(root / "lock", wait=WAIT):
        # Another process may have made it while this one waited.
        return read() or make()


def _derive(
    store: Store, root: Path, factor: int | tuple[int, ...], factors: tuple[int, ...]
) -> Store:
    (root / "store.json").unlink(missing_ok=True)
    folder = root / "cases"
    folder.mkdir(exist_ok=True)
    sweep(folder)
    for old in folder.iterdir():
        if old.name not in store.cases:
            remove(old)
    cases = {}
    for info in store.cases.values():
        source: dict[str, Any] = {
            "parent": info.voxels,
            "label": info.label_voxels,
            "factor": factor,
            "spacing": info.spacing,
            "group": info.group,
            "affine": info.affine,
        }
        target = folder / info.id
        smaller = read_case(target, source)
        if smaller is None:
            require_intact(store, [info.id])
            smaller = write_case(target, downsampled_case(store, info, factors), source)
        cases[info.id] = smaller
    return write_store(
        replace(
            store,
            root=root,
            cases=cases,
            downsample=factor,
            parent=store.fingerprint,
            fingerprint=fingerprint(cases.values(), store.train, store.test),
        )
    )
