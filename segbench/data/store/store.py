"""The prepared store: every case of a data set as plain arrays that are opened memory-mapped.

``<data_root>/<name>/store.json`` is written last and names everything else, so a store that can be
opened is complete. The fingerprint is a sha256 over ids, shapes, spacings, label values and voxels
of all cases and over the split; no path or time enters it.

Why plain arrays and not blosc2, nnU-Net's choice: training reads every case hundreds of times,
mostly from the page cache. A 96^3 crop of a 512x512x300 volume then takes 4 ms mapped and 19 to
34 ms from blosc2 (one core), without private memory or another dependency, and a case is written in
0.3 s instead of 1.4 (lz4) or 94 (zstd). A cold crop is where blosc2 wins: 91 ms and 64 of the
315 MB read against 52 to 58 ms and 32 to 40 MB; on disk it needs half to two thirds. Measured by
benchmarks/speed/store.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from segbench.data.store.case_files import CaseInfo
from segbench.data.store.problem import DataProblems, Problem
from segbench.errors import DataError, IntegrityError
from segbench.progress import Progress, no_progress
from segbench.storage import atomic_write, file_digest, json_bytes

SCHEMA = "segbench.store/1"


@dataclass(frozen=True)
class Store:
    """A prepared data set. Cheap to make and to pickle: files are opened when voxels are needed."""

    name: str
    root: Path
    classes: tuple[str, ...]  # foreground; label value i + 1 is classes[i]
    channels: int
    dims: int
    train: tuple[str, ...]  # in the published order
    test: tuple[str, ...]
    partial: bool  # not the published split: fewer cases, or placed in other lists
    fingerprint: str
    cases: dict[str, CaseInfo] = field(repr=False)
    warnings: tuple[str, ...] = ()
    downsample: int | tuple[int, ...] = 1
    parent: str | None = None  # fingerprint of the full-resolution store
    adapter: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def patients(self) -> tuple[str, ...]:
        """Training patients in the order of the list; a labeled count counts these."""
        return tuple(dict.fromkeys(self.cases[case].group for case in self.train))

    @property
    def patients_with_label(self) -> tuple[str, ...]:
        """Training patients with at least one labeled case."""
        found: dict[str, None] = {}
        for case in self.train:
            info = self.cases[case]
            if info.has_label:
                found[info.group] = None
        return tuple(found)

    def labeled(self, patients: int) -> tuple[str, ...]:
        """Return the training cases with a label of the first ``patients`` patients."""
        chosen = set(self.patients[:patients])
        found = []
        for case in self.train:
            info = self.cases[case]
            if info.group in chosen and info.has_label:
                found.append(case)
        return tuple(found)

    def image(self, case: str) -> np.memmap:
        """Return the image of a case, (C, *S) float32, memory-mapped and read-only."""
        return self._open(case, "image.npy")

    def label(self, case: str) -> np.memmap:
        """Return the label of a case, (*S) uint8, memory-mapped and read-only.

        Raises:
            DataError: the case is unlabeled.
        """
        return self._open(case, "label.npy")

    def pad(self, case: str) -> tuple[float, ...]:
        """Return the gray value of air outside a case's volume per channel; empty if it is 0."""
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


def fingerprint(cases: Iterable[CaseInfo], train: Iterable[str], test: Iterable[str]) -> str:
    """Return the sha256 of everything in the data that can change a number.

    No path, time or file format enters it.
    """
    rows = sorted(_identity_row(case) for case in cases)
    return hashlib.sha256(json_bytes([rows, list(train), list(test)])).hexdigest()


def _identity_row(case: CaseInfo) -> list[Any]:
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
    """Return a digest per case of its part of the fingerprint, to detect changed cases."""
    digests = {}
    for case, info in store.cases.items():
        row = json_bytes(_identity_row(info))
        digests[case] = hashlib.sha256(row).hexdigest()[:16]
    return digests


def write_store(store: Store) -> Store:
    """Write ``store.json``, which makes the store exist. The caller holds the lock."""
    atomic_write(store.root / "store.json", json_bytes(store_document(store)))
    return read_store(store.root)


def store_document(store: Store) -> dict[str, Any]:
    """Return everything but the voxels and the folder of a store, as JSON values."""
    document = {key: value for key, value in vars(store).items() if key not in ("root", "cases")}
    document["schema"] = SCHEMA
    document["cases"] = [info.to_json() for info in store.cases.values()]
    return document


def read_store(root: Path, sizes: bool = True) -> Store:
    """Read the store in a folder and check it against its own fingerprint.

    Args:
        root: the folder of the store.
        sizes: also check the sizes of all files.

    Raises:
        DataError: there is no store, or a file is missing or has another size.
        IntegrityError: ``store.json`` is damaged.
    """
    path = root / "store.json"
    fix = f"segbench data prepare {root.name.partition('@')[0]} --from DIR"
    try:
        store = parse_store(root, json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(
            f"there is no prepared data set: {error.strerror}", where=path, fix=fix
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            f"the prepared data set is damaged: {error}", where=path, fix=fix
        ) from error
    if sizes:
        for info in store.cases.values():
            _check_sizes(root, info, fix)
    return store


def parse_store(root: Path, document: Mapping[str, Any]) -> Store:
    """Return the store that ``store_document`` described.

    Raises:
        ValueError, KeyError, TypeError: the description is damaged.
    """
    data = dict(document)
    if data.pop("schema") != SCHEMA:
        raise ValueError("unknown schema, written by another version of segbench")
    cases = {}
    for case in data.pop("cases"):
        info = CaseInfo.from_json(case)
        cases[info.id] = info
    for key in ("classes", "train", "test", "warnings"):
        data[key] = tuple(data[key])
    if isinstance(data["downsample"], list):
        data["downsample"] = tuple(data["downsample"])
    store = Store(root=root, cases=cases, **data)
    if store.fingerprint != fingerprint(cases.values(), store.train, store.test):
        raise ValueError("its fingerprint does not match its cases")
    return store


def _check_sizes(root: Path, info: CaseInfo, fix: str) -> None:
    for name, (size, _) in info.files.items():
        file = root / "cases" / info.id / name
        try:
            actual = file.stat().st_size
        except OSError:
            actual = None
        if actual != size:
            raise DataError(
                f"a file of case '{info.id}' is damaged",
                where=file,
                expected=f"{size} bytes",
                found="no such file" if actual is None else f"{actual} bytes",
                fix=fix,
            )


def verify(store: Store, case: str) -> list[Problem]:
    """Read a case's files in full and compare them with the digests of when they were written."""
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
                    file=str(path),
                    found=f"digest {actual}",
                    expected=f"{digest} ({size} bytes)",
                    fix=f"segbench data prepare {store.name} --from DIR",
                )
            )
    return problems


def require_intact(store: Store, cases: Iterable[str], progress: Progress = no_progress) -> None:
    """Read the files of cases in full and refuse changed ones, such as by a flipped bit.

    Raises:
        DataError: files have changed since they were written; lists all of them.
    """
    chosen = list(cases)
    problems = []
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
