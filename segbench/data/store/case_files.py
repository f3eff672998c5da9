"""One prepared case on disk.

Its folder holds ``image.npy`` float32 (C, *S), ``label.npy`` uint8 (*S) and ``case.json``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench.contracts.dataset import IGNORED, Case, Dataset
from segbench.data.formats.volume import NO_LABEL, looks_like_image
from segbench.data.store.problem import Problem
from segbench.storage import (
    array_digest,
    file_digest,
    json_bytes,
    replace,
    storage_error,
    sync_folder,
    temp_path,
)

SCHEMA = "segbench.case/1"
SHOWN_VALUES = 8  # bad label values in a message
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class CaseInfo:
    """What is known of a prepared case without reading a voxel."""

    id: str
    shape: tuple[int, ...]  # (*S)
    spacing: tuple[float, ...] | None  # mm
    affine: tuple[tuple[float, ...], ...] | None
    group: str  # patient
    voxels: str  # digest of the image's voxels
    label_voxels: str | None
    has_label: bool
    labels: dict[int, int]  # label value -> voxels
    intensity: dict[str, float]  # min, max, mean, std
    files: dict[str, tuple[int, str]]  # file name -> bytes, digest
    source: Any  # where it came from: names, sizes and times, no folders
    made: dict[str, Any] = field(default_factory=dict)  # facts such as the crop's offset

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``case.json``."""
        document = {"schema": SCHEMA, **asdict(self)}
        document["labels"] = {str(value): voxels for value, voxels in self.labels.items()}
        return document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseInfo:
        """Return the case that ``to_json`` described.

        Raises:
            KeyError, TypeError, ValueError: ``data`` is something else.
        """
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        known = {item.name: data[item.name] for item in fields(cls) if item.name != "made"}
        known["made"] = data.get("made", {})  # missing in stores of older versions
        known["labels"] = {int(value): int(voxels) for value, voxels in data["labels"].items()}
        files = {}
        for name, (size, digest) in data["files"].items():
            files[name] = (int(size), str(digest))
        known["files"] = files
        for key in ("shape", "spacing"):
            known[key] = None if data[key] is None else tuple(data[key])
        if data["affine"] is not None:
            known["affine"] = tuple(tuple(row) for row in data["affine"])
        return cls(**known)


def valid_id(case_id: object) -> bool:
    """Return whether an id is safe as a folder name, in a table, in HTML and on a terminal."""
    return isinstance(case_id, str) and _ID.fullmatch(case_id) is not None


# What ``RawCase.where`` holds, whatever it is made of.


def paths_in(where: Any) -> list[Path]:
    """Return all paths inside ``RawCase.where``."""
    if isinstance(where, Path):
        return [where]
    if is_dataclass(where) and not isinstance(where, type):
        values = [getattr(where, item.name) for item in fields(where)]
    elif isinstance(where, Mapping):
        values = list(where.values())
    elif isinstance(where, list | tuple):
        values = list(where)
    else:
        return []
    return [path for value in values for path in paths_in(value)]


def common_path(where: Any) -> str:
    """Return the file of a raw case for a message; the common folder if it has several files."""
    paths = [str(path) for path in paths_in(where)]
    return os.path.commonpath(paths) if paths else ""


def source_facts(where: Any) -> Any:
    """Return ``RawCase.where`` as JSON without folders; two equal results mean the same files.

    A file becomes [name, bytes, modification time in ns].
    """
    if isinstance(where, Path):
        return _path_facts(where)
    if is_dataclass(where) and not isinstance(where, type):
        return {item.name: source_facts(getattr(where, item.name)) for item in fields(where)}
    if isinstance(where, Mapping):
        return {str(key): source_facts(value) for key, value in where.items()}
    if isinstance(where, list | tuple):
        return [source_facts(value) for value in where]
    if isinstance(where, str | int | float | bool | None):
        return where
    return repr(where)


def _path_facts(path: Path) -> list[Any]:
    if path.is_dir():
        files = [_path_facts(file) for file in sorted(path.rglob("*")) if file.is_file()]
        return [path.name, *files]
    try:
        stat = path.stat()
    except OSError:
        return [path.name, None, None]  # load() will report what is wrong with it
    return [path.name, stat.st_size, stat.st_mtime_ns]


# Checks.

ONE_PHASE = "of several times or phases, write the one to use to a file of its own"


def check_case(case: Case, dataset: Dataset, where: Any) -> list[Problem]:
    """Return all problems of a case from an adapter's ``load``; none means it can be written."""
    file = common_path(where)
    own_label = where.get("label") if isinstance(where, Mapping) else None
    label_file = str(own_label) if isinstance(own_label, Path) else file
    image = np.asarray(case.image)
    problems = _check_image(case.id, image, dataset, file)
    if case.label is not None:
        problems += _check_label(case.id, case.label, image, dataset, label_file)
    return problems + _check_geometry(case, dataset, file)


def _check_image(case: str, image: np.ndarray, dataset: Dataset, file: str) -> list[Problem]:
    wrong_shape = image.ndim != dataset.dims + 1 or image.shape[0] != dataset.channels
    if wrong_shape or 0 in image.shape:
        found = f"image shape {image.shape}"
        expected = f"({dataset.channels}, + {dataset.dims} axes)"
        if image.ndim == dataset.dims + 1 and len(image) > dataset.channels:
            found += f": {len(image)} channels, or times or phases"
            return [Problem(case, file, found, expected, ONE_PHASE)]
        return [Problem(case, file, found, expected)]
    if image.dtype.kind not in "fiu":
        return [Problem(case, file, f"image type {image.dtype}", "numbers")]
    finite = np.isfinite(image.astype(np.float32, copy=False))
    if not finite.all():
        bad = (~finite).sum()
        return [Problem(case, file, f"{bad} voxels are NaN or infinite", "finite gray values")]
    return []


def _check_label(
    case: str, label: np.ndarray, image: np.ndarray, dataset: Dataset, file: str
) -> list[Problem]:
    problems = []
    if label.shape != image.shape[1:]:
        found = f"label shape {label.shape}, image shape {image.shape[1:]}"
        problems.append(Problem(case, file, found, "equal shapes"))
    allowed = set(range(len(dataset.classes) + 1))
    if dataset.leaves_out:
        allowed.add(IGNORED)
    bad = _bad_values(label, allowed)
    if bad:
        names = ", ".join(("background", *dataset.classes))
        expected = f"label values 0 to {len(dataset.classes)} ({names})"
        fix = "map or repair the label"
        if looks_like_image(label):
            fix = NO_LABEL
        elif dataset.source is not None:
            fix = (
                "segbench data link PATH --as NAME, with --map OLD=NEW for a class under another "
                "number, or --ignore OLD for voxels to leave out"
            )
        problems.append(Problem(case, file, bad, expected, fix))
    return problems


def _bad_values(label: np.ndarray, allowed: set[int]) -> str:
    """Return the values of a label that stand for no class, in words; empty if there are none."""
    values, counts = np.unique(label, return_counts=True)
    bad = []
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value not in allowed:
            bad.append(f"{value}: {count} voxel{'s' if count > 1 else ''}")
    if not bad:
        return ""
    more = " ..." if len(bad) > SHOWN_VALUES else ""
    return f"label values {', '.join(bad[:SHOWN_VALUES])}{more}"


def _check_geometry(case: Case, dataset: Dataset, file: str) -> list[Problem]:
    problems = []
    if case.spacing is not None:
        positive = all(np.isfinite(step) and step > 0 for step in case.spacing)
        if len(case.spacing) != dataset.dims or not positive:
            expected = f"{dataset.dims} positive numbers in mm"
            problems.append(Problem(case.id, file, f"spacing {case.spacing}", expected))
    if case.affine is not None:
        shape = np.shape(case.affine)
        if shape != (4, 4) or not np.isfinite(case.affine).all():
            problems.append(Problem(case.id, file, f"affine {shape}", "a finite (4, 4) matrix"))
    return problems


# Reading and writing.


def write_case(folder: Path, case: Case, source: Any) -> CaseInfo:
    """Write a checked case so that ``folder`` holds all of it or nothing.

    Raises:
        StorageError: the disk is full or not writable.
    """
    image = np.ascontiguousarray(case.image, dtype=np.float32)
    label = None if case.label is None else np.ascontiguousarray(case.label, dtype=np.uint8)
    temp = temp_path(folder)
    try:
        temp.mkdir(parents=True)
        files = {"image.npy": _save(temp / "image.npy", image)}
        if label is not None:
            files["label.npy"] = _save(temp / "label.npy", label)
        info = describe(case, image, label, files, source)
        with open(temp / "case.json", "xb") as file:
            file.write(json_bytes(info.to_json()))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(temp)
        remove(folder)
        replace(temp, folder)
    except OSError as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise storage_error(error, folder) from error
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return info


def _save(path: Path, array: np.ndarray) -> tuple[int, str]:
    with open(path, "xb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size, file_digest(path)


def describe(
    case: Case,
    image: np.ndarray,
    label: np.ndarray | None,
    files: dict[str, tuple[int, str]],
    source: Any,
) -> CaseInfo:
    """Return the facts of a case.

    Args:
        case: the case.
        image: its image, (C, *S) float32 contiguous.
        label: its label, (*S) uint8 contiguous, or None.
        files: size and digest of each file.
        source: what it was made from.
    """
    labels = {}
    if label is not None:
        for value, voxels in enumerate(np.bincount(label.ravel())):
            if voxels:
                labels[value] = int(voxels)
    affine = None
    if case.affine is not None:
        affine = tuple(tuple(float(value) for value in row) for row in case.affine)
    return CaseInfo(
        id=case.id,
        shape=image.shape[1:],
        spacing=None if case.spacing is None else tuple(float(step) for step in case.spacing),
        affine=affine,
        group=case.group or case.id,
        voxels=array_digest(image),
        label_voxels=None if label is None else array_digest(label),
        has_label=label is not None,
        labels=labels,
        intensity={
            "min": float(image.min()),
            "max": float(image.max()),
            "mean": float(image.mean(dtype=np.float64)),
            "std": float(image.std(dtype=np.float64)),
        },
        files=files,
        source=source,
        made=case.made,
    )


def remove(folder: Path) -> None:
    """Remove a case's folder; it is renamed first, so that no other process sees half of it."""
    if folder.exists():
        old = temp_path(folder)
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)


def read_case(folder: Path, source: Any) -> CaseInfo | None:
    """Return the case in a folder if it is complete, unchanged and made from ``source``."""
    try:
        info = CaseInfo.from_json(json.loads((folder / "case.json").read_bytes()))
        if json.loads(json_bytes(source)) != info.source:
            return None
        for name, (size, digest) in info.files.items():
            file = folder / name
            if file.stat().st_size != size or file_digest(file) != digest:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return info
