"""The prepared store: every case of a data set as plain arrays, opened memory-mapped.

``<data_root>/<name>/store.json`` is written last and names everything else, so what can be opened is whole. The
fingerprint is a sha256 over ids, shapes, spacings, label values and voxels of all cases and over the split; no path or
time enters it.

Why plain arrays and not blosc2, nnU-Net's choice: training reads every case hundreds of times, mostly from the page cache.
A 96^3 crop of a 512x512x300 volume then takes 4 ms mapped and 19 to 34 ms from blosc2 (one core), without private memory or
another dependency, and a case is written in 0.3 s instead of 1.4 (lz4) or 94 (zstd). A cold crop is where blosc2 wins: 91 ms
and 64 of the 315 MB read against 52 to 58 ms and 32 to 40 MB; on disk it needs half to two thirds. Measured by
benchmarks/speed/store.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from segbench import registry
from segbench.contracts.dataset import Case, Dataset
from segbench.data.links import write_link
from segbench.data.store.case_files import CaseInfo, read_case, remove, write_case
from segbench.data.store.downsample import block_majority, block_mean
from segbench.data.store.problem import DataProblems, Problem
from segbench.errors import DataError, IntegrityError, SegbenchError, UsageError
from segbench.identity.sources import source_digest
from segbench.progress import Progress, no_progress
from segbench.storage import atomic_write, file_digest, json_bytes, lock, sweep

SCHEMA = "segbench.store/1"
WAIT = 900.0  # seconds to wait while another process makes an embedded or a derived store


@dataclass(frozen=True)
class Store:
    """A prepared data set. Cheap to make and to pickle: it holds facts, and opens a file when asked for voxels."""

    name: str
    root: Path
    classes: tuple[str, ...]  # foreground; label value i + 1 is classes[i]
    channels: int
    dims: int
    train: tuple[str, ...]  # in the published order
    test: tuple[str, ...]
    partial: bool  # not the published split: fewer cases, or placed otherwise
    fingerprint: str
    cases: dict[str, CaseInfo] = field(repr=False)
    warnings: tuple[str, ...] = ()
    downsample: int | tuple[int, ...] = 1
    parent: str | None = None  # fingerprint of the full-resolution store
    adapter: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def patients(self) -> tuple[str, ...]:
        """Groups of the training list in its order; a labeled count counts these. Mostly there is a case to each."""
        return tuple(dict.fromkeys(self.cases[case].group for case in self.train))

    @property
    def with_label(self) -> tuple[str, ...]:
        """Those of them whose cases have a label; the lists of an own folder name these first."""
        return tuple(
            dict.fromkeys(
                self.cases[case].group for case in self.train if self.cases[case].has_label
            )
        )

    def labeled(self, patients: int) -> tuple[str, ...]:
        """The training cases of the first so many patients."""
        chosen = set(self.patients[:patients])
        return tuple(case for case in self.train if self.cases[case].group in chosen)

    def image(self, case: str) -> np.memmap:
        """Image of a case, (C, *S) float32, read-only and not in memory."""
        return self._open(case, "image.npy")

    def label(self, case: str) -> np.memmap:
        """Label of a case, (*S) uint8, read-only and not in memory.

        Raises:
            DataError: nobody labeled the case.
        """
        return self._open(case, "label.npy")

    def pad(self, case: str) -> tuple[float, ...]:
        """What stands for air beyond a case's volume, one number a channel; empty where 0 does."""
        return tuple(self.cases[case].made.get("pad", ()))

    def _open(self, case: str, file: str) -> np.memmap:
        if case not in self.cases or file not in self.cases[case].files:
            raise DataError(
                f"{self.name} has no {file.removesuffix('.npy')} of case {case!r}", where=self.root
            )
        path = self.root / "cases" / case / file
        try:
            return cast(np.memmap, np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise DataError(
                f"case '{case}' of {self.name} cannot be opened: {error}",
                where=path,
                fix=f"segbench data check {self.name}",
            ) from error


def prepare(
    name: str, source: Path | None, data_root: Path, jobs: int = 1, progress: Progress | None = None
) -> Store:
    """Read, check and write all cases of a data set; cases already there and unchanged are kept.

    Args:
        source: the folder the user has; None for data sets made by code.
        jobs: processes; 1 works in this one.

    Raises:
        DataError: files missing, or bad cases, all of them listed; the good ones are kept for the next call.
        BusyError: another process is preparing this data set.
        StorageError: disk full or not writable.
    """
    from segbench.data.preparation.pipeline import prepare_all

    entry = registry.get("dataset", name)
    if entry.cls.members:
        raise UsageError(
            f"'{entry.name}' is a group of data sets",
            fix="prepare its members: " + ", ".join(entry.cls.members),
        )
    if entry.cls.family:
        raise UsageError(
            f"'{entry.name}' stands for data sets of your own",
            expected="; ".join(entry.cls.files),
            fix=f"segbench data prepare {entry.name}:PATH",
        )
    root = Path(data_root) / entry.name
    with lock(root / "lock"):
        write_link(Path(data_root), entry.name)
        return prepare_all(entry, None if entry.cls.embedded else source, root, jobs, progress)


def open_store(name: str, data_root: Path, sizes: bool = True) -> Store:
    """The prepared store of a data set; checks the sizes of its files, reads no voxel.

    A data set made by code is prepared here if it is absent or its code has changed.

    Args:
        sizes: False opens a damaged store too, for a check that lists all damage.

    Raises:
        DataError: not prepared yet, prepared by another version of the adapter or with other lists or settings, or a file
            lacks or has another size.
        IntegrityError: ``store.json`` is not what was written.
    """
    entry = registry.get("dataset", name)
    if entry.cls.members:
        raise UsageError(
            f"'{entry.name}' is a group of data sets",
            expected="one of " + ", ".join(entry.cls.members),
        )
    if entry.cls.family:
        raise UsageError(
            f"'{entry.name}' stands for data sets of your own", fix=f"{entry.name}:PATH"
        )
    root, wanted = Path(data_root) / entry.name, adapter_facts(entry)
    fix = f"segbench data prepare {entry.name}" + (
        "" if entry.cls.embedded or entry.cls.source else " --from DIR"
    )
    if entry.cls.embedded:
        return _embedded(entry, root, wanted)
    if not (root / "store.json").is_file():
        raise DataError(
            f"data set '{entry.name}' is not prepared",
            where=root,
            expected="; ".join(entry.cls.files) or None,
            fix=fix,
        )
    store = read_store(root, sizes)
    if store.adapter.get("version") != wanted["version"]:
        raise DataError(
            f"data set '{entry.name}' was prepared by another version of its adapter",
            where=root,
            found=f"version {store.adapter.get('version')}",
            expected=f"version {wanted['version']}",
            fix=fix,
        )
    known = store.adapter.get("inputs", {})  # absent in stores written before there was any
    changed = [
        name
        for name, digest in inputs_digests(entry.cls()).items()
        if known.get(name, digest) != digest
    ]
    if changed:
        raise DataError(
            f"data set '{entry.name}' was prepared before a change",
            where=root,
            fix=fix,
            found=f"other {' and '.join(changed)} than now",
            expected="prepared again after a change",
        )
    return store


def _embedded(entry: registry.Entry, root: Path, wanted: dict[str, Any]) -> Store:
    from segbench.data.preparation.pipeline import prepare_all

    def ready() -> Store | None:
        try:
            store = read_store(root)
        except SegbenchError:
            return None
        return store if store.adapter == wanted else None

    store = ready()
    if store is None:
        with lock(root / "lock", wait=WAIT):
            store = ready() or prepare_all(entry, None, root, 1, None)
    return store


def adapter_facts(entry: registry.Entry) -> dict[str, Any]:
    """What identifies the code that prepares a data set."""
    return {
        "dataset": entry.name,
        "version": entry.cls.version,
        "code": source_digest("dataset", entry.name),
    }


def inputs_digests(dataset: Dataset) -> dict[str, str]:
    """What the user chose for a data set, a digest for each."""
    return {
        name: hashlib.sha256(json_bytes(value)).hexdigest()[:16]
        for name, value in dataset.inputs().items()
    }


def fingerprint(cases: Iterable[CaseInfo], train: Iterable[str], test: Iterable[str]) -> str:
    """sha256 of everything in the data that can change a number; no path, no time, no file format."""
    return hashlib.sha256(
        json_bytes([sorted(map(_row, cases)), list(train), list(test)])
    ).hexdigest()


def _row(case: CaseInfo) -> list[Any]:
    return [
        case.id,
        list(case.shape),
        "float32",
        case.spacing,
        sorted(case.labels),
        case.voxels,
        case.label_voxels,
        case.group,
    ]


def case_digests(store: Store) -> dict[str, str]:
    """For each case a digest of what the fingerprint holds of it, to tell later which ones have changed."""
    return {
        i: hashlib.sha256(json_bytes(_row(case))).hexdigest()[:16]
        for i, case in store.cases.items()
    }


def write_store(store: Store) -> Store:
    """Write ``store.json``, which makes the store exist. The caller holds the lock."""
    document = {
        "schema": SCHEMA,
        **{k: v for k, v in vars(store).items() if k not in ("root", "cases")},
        "cases": [c.to_json() for c in store.cases.values()],
    }
    atomic_write(store.root / "store.json", json_bytes(document))
    return read_store(store.root)


def read_store(root: Path, sizes: bool = True) -> Store:
    """The store in a folder, checked against its own fingerprint and, with ``sizes``, the sizes of its files."""
    path, fix = (
        root / "store.json",
        f"segbench data prepare {root.name.partition('@')[0]} --from DIR",
    )
    try:
        data = json.loads(path.read_bytes())
        if data.pop("schema") != SCHEMA:
            raise ValueError("unknown schema, written by another version of segbench")
        cases = [CaseInfo.from_json(c) for c in data.pop("cases")]
        data.update({k: tuple(data[k]) for k in ("classes", "train", "test", "warnings")})
        if isinstance(data["downsample"], list):
            data["downsample"] = tuple(data["downsample"])
        store = Store(root=root, cases={c.id: c for c in cases}, **data)
        if store.fingerprint != fingerprint(cases, store.train, store.test):
            raise ValueError("its fingerprint does not fit its cases")
    except OSError as error:
        raise DataError(
            f"there is no prepared data set: {error.strerror}", where=path, fix=fix
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the prepared data set is damaged: {error}", where=path, fix=fix
        ) from error
    for info in cases if sizes else ():
        for name, (size, _) in info.files.items():
            file = root / "cases" / info.id / name
            actual = file.stat().st_size if file.is_file() else None
            if actual != size:
                raise DataError(
                    f"a file of case '{info.id}' is damaged",
                    where=file,
                    expected=f"{size} bytes",
                    found="no such file" if actual is None else f"{actual} bytes",
                    fix=fix,
                )
    return store


def verify(store: Store, case: str) -> list[Problem]:
    """Read a case's files in full and compare them with the digests taken when they were written."""
    problems = []
    for name, (size, digest) in store.cases[case].files.items():
        path = store.root / "cases" / case / name
        try:
            actual = file_digest(path)
        except OSError as error:
            actual = error.strerror or "not readable"
        if actual != digest:
            problems.append(
                Problem(
                    case,
                    str(path),
                    f"digest {actual}",
                    f"{digest} ({size} bytes)",
                    f"segbench data prepare {store.name} --from DIR",
                )
            )
    return problems


def require_intact(store: Store, cases: Iterable[str], progress: Progress = no_progress) -> None:
    """Read the files of ``cases`` in full: a flipped bit looks like any other voxel, so only their digests can tell.

    Raises:
        DataError: a file is not what was written; names all of them.
    """
    chosen, problems = list(cases), []
    for done, case in enumerate(chosen, 1):
        problems += verify(store, case)
        progress(done, len(chosen), case)
    if problems:
        raise DataProblems(
            f"data set '{store.name}': files have changed since they were prepared",
            problems,
            where=store.root,
            fix=f"segbench data check {store.name} shows all; prepare it again",
        )


def derived(store: Store, downsample: int | Sequence[int]) -> Store:
    """The store at a lower resolution, cached beside it as ``<name>@<factors>``; made again when its parent changed.

    Image: mean of each block of ``downsample`` voxels per axis, one number for all axes or one for each. Label: majority,
    ties to the higher value. The shape is rounded up; a block cut by the border counts the voxels it has. Spacing and affine
    follow.
    """
    factors = (downsample,) * store.dims if isinstance(downsample, int) else tuple(downsample)
    if set(factors) == {1}:
        return store
    if min(factors) < 1 or len(factors) != store.dims or store.downsample != 1:
        raise UsageError(
            f"cannot downsample {store.root.name} by {downsample}",
            expected="factors of 1 or more, once",
        )
    factor = factors[0] if len(set(factors)) == 1 else factors
    shown = factor if isinstance(factor, int) else "x".join(map(str, factor))
    root = store.root.with_name(f"{store.root.name}@{shown}")

    def ready() -> Store | None:
        try:
            half = read_store(root)
        except SegbenchError:
            return None
        return half if half.parent == store.fingerprint else None

    half = ready()
    if half is None:
        with lock(root / "lock", wait=WAIT):
            half = ready() or _derive(store, root, factor)
    return half


def _derive(store: Store, root: Path, factor: int | tuple[int, ...]) -> Store:
    factors = (factor,) * store.dims if isinstance(factor, int) else factor
    (root / "store.json").unlink(missing_ok=True)
    folder = root / "cases"
    folder.mkdir(exist_ok=True)
    sweep(folder)
    for old in folder.iterdir():
        if old.name not in store.cases:
            remove(old)
    cases = {}
    for info in store.cases.values():
        source = {
            "parent": info.voxels,
            "label": info.label_voxels,
            "factor": factor,
            "spacing": info.spacing,
            "group": info.group,
            "affine": info.affine,
        }
        done = read_case(folder / info.id, source)
        if done is None:
            require_intact(store, [info.id])
        cases[info.id] = done or write_case(
            folder / info.id, _smaller(store, info, factors), source
        )
    changes = {
        "root": root,
        "cases": cases,
        "downsample": factor,
        "parent": store.fingerprint,
        "fingerprint": fingerprint(cases.values(), store.train, store.test),
    }
    return write_store(Store(**{**vars(store), **changes}))


def _smaller(store: Store, info: CaseInfo, factors: tuple[int, ...]) -> Case:
    image = np.stack([block_mean(channel, factors) for channel in store.image(info.id)])
    label = block_majority(store.label(info.id), factors) if info.has_label else None
    affine = None
    if (
        info.affine is not None
    ):  # a block's center lies (factor - 1) / 2 voxels from the center of its first voxel
        step = np.diag([*map(float, factors), *[1.0] * (4 - store.dims)])
        step[: store.dims, 3] = (np.array(factors) - 1) / 2
        affine = np.array(info.affine) @ step
    spacing = (
        None
        if info.spacing is None
        else tuple(s * f for s, f in zip(info.spacing, factors, strict=True))
    )
    made = {"pad": list(pad)} if (pad := store.pad(info.id)) else {}
    return Case(info.id, image, label, spacing, affine, info.group, made)
