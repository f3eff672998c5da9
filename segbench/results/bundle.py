"""A run as one file, to be handed on. Whoever takes it in computes its metrics again from the predictions.

A bundle is a zip of files with fixed names and of ``bundle.json``, which holds their sha256. Nothing in it is a path, a
pickle or code: each file is read into memory, within limits, and checked before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from segbench import __version__
from segbench.config import dump_yaml
from segbench.errors import IntegrityError, SegbenchError, UsageError
from segbench.results import predictions
from segbench.results.rundir import RunDir
from segbench.storage import atomic_write, json_bytes, sync_folder, temp_path

SCHEMA = "segbench.bundle/1"
PREDICTIONS = "predictions.zip"
FILES = {
    "config.yaml": 10**6,
    "result.json": 10**8,
    "cases.csv": 10**8,
    "manifest.json": 10**7,
    "log.jsonl": 10**9,
    PREDICTIONS: 4 * 10**9,
}  # the most bytes that each may have
REQUIRED = ("config.yaml", "result.json", "cases.csv")
PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:]{0,99}")


def export(run: RunDir, out: Path, with_predictions: bool = True) -> list[str]:
    """Write a finished run to ``out``; returns the names of what is in it.

    Raises:
        IntegrityError: the run is not finished, or its results are not what was written.
    """
    from segbench.results.leaderboard import plain

    run.cases()
    contents = {
        name: (run.path / name).read_bytes()
        for name in FILES
        if (run.path / name).is_file() and (with_predictions or name != PREDICTIONS)
    }
    # Where things lie on this machine is nobody's business.
    contents["config.yaml"] = dump_yaml({**run.config(), "plugins": []}).encode()
    contents["manifest.json"] = json_bytes(
        plain({k: v for k, v in run.manifest().items() if k != "argv"})
    )
    index = {
        "schema": SCHEMA,
        "segbench": __version__,
        "files": {name: _sha256(c) for name, c in contents.items()},
    }

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {"bundle.json": json_bytes(index), **contents}.items():
                info = zipfile.ZipInfo(name, predictions.DATE)
                info.compress_type = (
                    zipfile.ZIP_STORED if name == PREDICTIONS else zipfile.ZIP_DEFLATED
                )
                archive.writestr(info, content)

    atomic_write(out, write)
    return list(contents)


def read_bundle(path: Path) -> dict[str, bytes]:
    """The files of a bundle.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is not a bundle, is of another schema, or holds anything but what it must.
    """
    if not path.is_file():
        raise UsageError(f"no bundle '{path}'", expected="a file written by: segbench runs export")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            if len(set(names)) < len(names) or not {"bundle.json", *REQUIRED} <= set(names) <= {
                "bundle.json",
                *FILES,
            }:
                raise ValueError(f"files {', '.join(map(repr, names[:20]))}")
            contents = {name: _read(archive, name, FILES.get(name, 10**6)) for name in names}
        index = json.loads(contents.pop("bundle.json"))
        if index["schema"] != SCHEMA:
            raise IntegrityError(
                f"bundles of schema {index['schema']} need another segbench",
                where=path,
                expected=SCHEMA,
            )
        if index["files"] != {name: _sha256(c) for name, c in contents.items()}:
            raise ValueError("digests that differ from those in bundle.json")
    except predictions.BROKEN as error:
        raise IntegrityError(
            "this is not a whole bundle",
            where=path,
            found=error,
            expected="a file written by: segbench runs export",
        ) from error
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(most + 1)  # what the directory says of the size may be a lie
    if len(content) > most:
        raise ValueError(f"{name} of more than {most} bytes")
    return content


def take_in(path: Path, root: Path, data_root: Path) -> tuple[RunDir, dict[str, Any]]:
    """Import a bundle; the second value is what ``import.json`` says: ``verified`` and why not.

    Raises:
        IntegrityError: the bundle is broken, contradicts itself, or its metrics are not those of its predictions.
        UsageError: a run of that identity was imported before, and the bundle adds no predictions to it.
    """
    contents = read_bundle(path)
    (root / "runs").mkdir(parents=True, exist_ok=True)
    temp, old = temp_path(root / "runs" / "import"), temp_path(root / "runs" / "replaced")
    temp.mkdir()
    try:
        for name, content in contents.items():
            (temp / name).write_bytes(content)
        run = RunDir(temp)
        run.cases()
        final = _place(run, root)
        if final.exists() and not _adds(contents, run, RunDir(final)):
            raise UsageError(
                "this run was imported before", where=final, fix=f"segbench runs verify {final}"
            )
        origin = {
            "schema": "segbench.import/1",
            "bundle": path.name,
            "sha256": _sha256(path.read_bytes()),
            "segbench": __version__,
            **checked(run, data_root),
        }
        run.write_json("import.json", origin)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(old)
        temp.rename(final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return RunDir(final), origin


def _adds(contents: dict[str, bytes], new: RunDir, old: RunDir) -> bool:
    """Does a bundle bring the predictions that an import lacks? Numbers that were verified may not change with it."""
    if PREDICTIONS not in contents or (old.path / PREDICTIONS).exists():
        return False
    return old.reported or old.result() == new.result()


def _place(run: RunDir, root: Path) -> Path:
    """Where an imported run goes: beside one's own, never in the place where ``segbench run`` would look for its own."""
    result = run.result()
    assert result is not None
    try:
        config = run.config()
        same = (config["run_id"], config["science"]) == (result["run_id"], result["science"])
    except (SegbenchError, KeyError) as error:
        raise IntegrityError(
            "the bundle's configuration cannot be read", where="config.yaml", found=error
        ) from error
    if not same:
        raise IntegrityError(
            "the bundle's configuration is not that of its result", where="config.yaml"
        )
    parts = [*result["datasets"], result["method"]]
    if not all(PART.fullmatch(p) for p in parts):
        raise IntegrityError(
            "a bundle with names that cannot be",
            found=[str(p)[:60] for p in parts],
            expected="letters, digits and _",
        )
    counts = f"{sum(result['labeled'].values())}of{sum(result['train'].values())}"
    name = f"imported-{counts}-s{result['seed']}-{result['run_id'][:8]}"
    return root / "runs" / "+".join(result["datasets"]) / result["method"] / name


def checked(run: RunDir, data_root: Path) -> dict[str, Any]:
    """Can the metrics be computed from the predictions? ``verified``, and ``why`` not.

    Raises:
        IntegrityError: they can, and are others.
    """
    result = run.result()
    assert result is not None
    if not (run.path / PREDICTIONS).is_file():
        return {"verified": False, "why": "no predictions in the bundle"}
    for name in result["datasets"]:
        why = _recompute(run, name, result["fingerprints"][name], data_root)
        if why:
            return {"verified": False, "why": why}
    return {"verified": True, "why": ""}


def _recompute(run: RunDir, name: str, fingerprint: str, data_root: Path) -> str:
    from segbench.data.store.store import open_store
    from segbench.evaluation.test_set import score
    from segbench.storage import array_digest

    try:
        store = open_store(name, data_root)
    except SegbenchError as error:
        return error.what
    if store.fingerprint != fingerprint:
        return f"the prepared data of '{name}' here are not those of the run"
    records = [r for r in run.cases() if r["dataset"] == name]
    cases = list(dict.fromkeys(r["case"] for r in records))
    if cases != list(store.test):
        raise IntegrityError(
            f"the cases are not the test cases of '{name}'",
            where=run.path / "cases.csv",
            found=f"{len(cases)} cases",
            expected=f"{len(store.test)} in the order of the split",
        )
    labels = predictions.read(
        run.path / PREDICTIONS, [(name, c, tuple(store.cases[c].shape)) for c in cases]
    )
    for case, label in zip(cases, labels, strict=True):
        mine = [r for r in records if r["case"] == case]
        for stored, true in zip(mine, score(label, array_digest(label), store, case), strict=False):
            wrong = [k for k, v in true.items() if not _same(stored.get(k), v)]
            if wrong or len(mine) != len(store.classes):
                raise IntegrityError(
                    f"the predictions do not give the metrics of case '{case}'",
                    where=run.path,
                    found=f"{wrong[:1] or len(mine)}: {stored.get(wrong[0]) if wrong else 'classes'}",
                    expected=true[wrong[0]] if wrong else len(store.classes),
                )
    return ""


def _same(stored: Any, true: Any) -> bool:
    if isinstance(true, float) and isinstance(stored, float):
        return abs(stored - true) <= 1e-9 * max(1.0, abs(true))
    return stored == (list(true) if isinstance(true, tuple) else true)
