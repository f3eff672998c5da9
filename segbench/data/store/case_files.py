"""One prepared case on disk: ``image.npy`` float32 (C, *S), ``label.npy`` uint8 (*S) and ``case.json``."""

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

from segbench.contracts.dataset import Case, Dataset
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
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


@dataclass(frozen=True)
class CaseInfo:
    """What is known of a prepared case without reading a voxel."""

    id: str
    shape: tuple[int, ...]  # (*S)
    spacing: tuple[float, ...] | None  # mm
    affine: tuple[tuple[float, ...], ...] | None
    group: str
    voxels: str  # digest of the image's voxels
    label_voxels: str | None
    has_label: bool
    labels: dict[int, int]  # label value -> voxels
    intensity: dict[str, float]  # min, max, mean, std
    files: dict[str, tuple[int, str]]  # file name -> bytes, digest
    source: Any  # where it came from: names, sizes and times, no folders
    made: dict[str, Any] = field(
        default_factory=dict
    )  # what the preparation found, such as the crop's offset

    def to_json(self) -> dict[str, Any]:
        """The content of ``case.json``."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "labels": {str(k): n for k, n in self.labels.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseInfo:
        """The reverse of ``to_json``; KeyError, TypeError or ValueError if that is not what ``data`` is."""
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        known = {f.name: data[f.name] for f in fields(cls) if f.name != "made"}
        known["made"] = data.get("made", {})  # absent in stores written before there was any
        known["labels"] = {int(k): int(n) for k, n in data["labels"].items()}
        known["files"] = {
            k: (int(size), str(digest)) for k, (size, digest) in data["files"].items()
        }
        for key in ("shape", "spacing"):
            known[key] = None if data[key] is None else tuple(data[key])
        known["affine"] = (
            None if data["affine"] is None else tuple(tuple(row) for row in data["affine"])
        )
        return cls(**known)


def valid_id(case_id: object) -> bool:
    """Whether an id is safe as a folder name, in a table, in HTML and on a terminal."""
    return isinstance(case_id, str) and _ID.fullmatch(case_id) is not None


def paths_in(where: Any) -> list[Path]:
    """All paths inside ``RawCase.where``, whatever it is made of."""
    if isinstance(where, Path):
        return [where]
    if is_dataclass(where) and not isinstance(where, type):
        return [p for f in fields(where) for p in paths_in(getattr(where, f.name))]
    if isinstance(where, Mapping):
        return [p for value in where.values() for p in paths_in(value)]
    if isinstance(where, list | tuple):
        return [p for value in where for p in paths_in(value)]
    return []


def place(where: Any) -> str:
    """The file of a raw case for a message; the common folder if there are several."""
    paths = [str(p) for p in paths_in(where)]
    return os.path.commonpath(paths) if paths else ""


def facts(where: Any) -> Any:
    """``RawCase.where`` as JSON without folders: files become [name, bytes, modification time in ns].

    Two equal results mean that the case need not be prepared again.
    """
    if isinstance(where, Path):
        if where.is_dir():
            return [where.name, *(facts(p) for p in sorted(where.rglob("*")) if p.is_file())]
        try:
            stat = where.stat()
        except OSError:
            return [where.name, None, None]  # load() will say what is wrong with it
        return [where.name, stat.st_size, stat.st_mtime_ns]
    if is_dataclass(where) and not isinstance(where, type):
        return {f.name: facts(getattr(where, f.name)) for f in fields(where)}
    if isinstance(where, Mapping):
        return {str(key): facts(value) for key, value in where.items()}
    if isinstance(where, list | tuple):
        return [facts(value) for value in where]
    return where if isinstance(where, str | int | float | bool | None) else repr(where)


def check_case(case: Case, dataset: Dataset, where: Any) -> list[Problem]:
    """Everything wrong with what an adapter's ``load`` gave; empty means it can be written."""
    image, label, problems = np.asarray(case.image), case.label, []
    own = where.get("label") if isinstance(where, Mapping) else None

    def wrong(found: object, expected: object, fix: str = "") -> None:
        file = (
            str(own) if isinstance(own, Path) and str(found).startswith("label") else place(where)
        )
        problems.append(Problem(case.id, file, str(found), str(expected), fix))

    if image.ndim != dataset.dims + 1 or image.shape[0] != dataset.channels or 0 in image.shape:
        wrong(f"image shape {image.shape}", f"({dataset.channels}, + {dataset.dims} axes)")
    elif image.dtype.kind not in "fiu":
        wrong(f"image type {image.dtype}", "numbers")
    elif not (finite := np.isfinite(image.astype(np.float32, copy=False))).all():
        wrong(f"{(~finite).sum()} voxels are NaN or infinite", "finite gray values")
    if label is not None:
        if label.shape != image.shape[1:]:
            wrong(f"label shape {label.shape}, image shape {image.shape[1:]}", "equal shapes")
        bad = _bad_values(label, len(dataset.classes))
        if bad:
            names = ", ".join(("background", *dataset.classes))
            wrong(
                bad,
                f"label values 0 to {len(dataset.classes)} ({names})",
                "map or repair the label",
            )
    if case.spacing is not None and (
        len(case.spacing) != dataset.dims or not all(np.isfinite(s) and s > 0 for s in case.spacing)
    ):
        wrong(f"spacing {case.spacing}", f"{dataset.dims} positive numbers in mm")
    if case.affine is not None and (
        np.shape(case.affine) != (4, 4) or not np.isfinite(case.affine).all()
    ):
        wrong(f"affine {np.shape(case.affine)}", "a finite (4, 4) matrix")
    return problems


def _bad_values(label: np.ndarray, classes: int) -> str:
    values, counts = np.unique(label, return_counts=True)
    bad = [
        (v, n)
        for v, n in zip(values.tolist(), counts.tolist(), strict=True)
        if v not in range(classes + 1)
    ]
    shown = ", ".join(f"{v}: {n} voxel{'s' * (n > 1)}" for v, n in bad[:8])
    return f"label values {shown}{' ...' if len(bad) > 8 else ''}" if bad else ""


def write_case(folder: Path, case: Case, source: Any) -> CaseInfo:
    """Write a checked case so that ``folder`` holds all of it or nothing.

    Raises:
        StorageError: disk full or not writable.
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
    """What is known of a case by its voxels."""
    labels = (
        {} if label is None else {v: int(n) for v, n in enumerate(np.bincount(label.ravel())) if n}
    )
    intensity = {
        "min": float(image.min()),
        "max": float(image.max()),
        "mean": float(image.mean(dtype=np.float64)),
        "std": float(image.std(dtype=np.float64)),
    }
    return CaseInfo(
        case.id,
        image.shape[1:],
        None if case.spacing is None else tuple(float(s) for s in case.spacing),
        None if case.affine is None else tuple(tuple(float(v) for v in row) for row in case.affine),
        case.group or case.id,
        array_digest(image),
        None if label is None else array_digest(label),
        label is not None,
        labels,
        intensity,
        files,
        source,
        case.made,
    )


def remove(folder: Path) -> None:
    """Remove a case's folder; renamed first, so that nobody ever sees half of it."""
    if folder.exists():
        old = temp_path(folder)
        os.replace(folder, old)
        shutil.rmtree(old, ignore_errors=True)


def read_case(folder: Path, source: Any) -> CaseInfo | None:
    """The case in ``folder`` if it is whole, unchanged and made from ``source``; else None (it must be made again)."""
    try:
        info = CaseInfo.from_json(json.loads((folder / "case.json").read_bytes()))
        same = json.loads(json_bytes(source)) == info.source
        whole = all(
            (folder / name).stat().st_size == size and file_digest(folder / name) == digest
            for name, (size, digest) in info.files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return info if same and whole else None
