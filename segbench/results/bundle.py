"""A run as one file. Importing it recomputes its metrics from the predictions.

A bundle is a zip of files with fixed names and of ``bundle.json``, which holds their sha256.
Nothing in it is a path, a pickle or code: each file is read into memory, within limits, and checked
before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench import __version__
from segbench.config import dump_yaml
from segbench.data.store.store import Store, read_store
from segbench.errors import DataError, IntegrityError, SegbenchError, UsageError
from segbench.metrics import is_of_older_rule
from segbench.results import predictions
from segbench.results.cases import Record
from segbench.results.rundir import RunDir, plain
from segbench.storage import atomic_write, json_bytes, sync_folder, temp_path

SCHEMA = "segbench.bundle/1"
PREDICTIONS = "predictions.zip"
INDEX = "bundle.json"
MAX_INDEX_BYTES = 10**6
FILES = {  # the most bytes that each may have
    "config.yaml": 10**6,
    "result.json": 10**8,
    "cases.csv": 10**8,
    "manifest.json": 10**7,
    "log.jsonl": 10**9,
    PREDICTIONS: 4 * 10**9,
}
REQUIRED = ("config.yaml", "result.json", "cases.csv")
PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_:]{0,99}")
EXPORT_AGAIN = "export the run again: segbench runs export RUN"


class AlreadyImported(UsageError):
    """A run is here already, and the bundle adds nothing to it."""


def export(run: RunDir, out: Path, with_predictions: bool = True) -> list[str]:
    """Write a finished run to ``out``; return the names of the files in it.

    Raises:
        IntegrityError: the run is not finished, or its results were changed.
    """
    run.cases()
    contents = {}
    for name in FILES:
        wanted = with_predictions or name != PREDICTIONS
        if wanted and (run.path / name).is_file():
            contents[name] = (run.path / name).read_bytes()
    # Paths of this machine are left out.
    contents["config.yaml"] = dump_yaml({**run.config(), "plugins": []}).encode()
    manifest = {key: value for key, value in run.manifest().items() if key != "argv"}
    contents["manifest.json"] = json_bytes(plain(manifest))
    index = {
        "schema": SCHEMA,
        "segbench": __version__,
        "files": {name: _sha256(content) for name, content in contents.items()},
    }

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {INDEX: json_bytes(index), **contents}.items():
                info = zipfile.ZipInfo(name, predictions.DATE)
                is_zip = name == PREDICTIONS
                info.compress_type = zipfile.ZIP_STORED if is_zip else zipfile.ZIP_DEFLATED
                archive.writestr(info, content)

    atomic_write(out, write)
    return list(contents)


def read_bundle(path: Path) -> dict[str, bytes]:
    """Return the files of a bundle.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is not a bundle, has another schema, or holds other files.
    """
    if not path.is_file():
        raise UsageError(f"no bundle '{path}'", expected="a file written by: segbench runs export")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            _check_names(names)
            contents = {}
            for name in names:
                contents[name] = _read(archive, name, FILES.get(name, MAX_INDEX_BYTES))
        index = json.loads(contents.pop(INDEX))
        if index["schema"] != SCHEMA:
            raise IntegrityError(
                f"bundles of schema {index['schema']} need another segbench",
                where=path,
                expected=SCHEMA,
            )
        digests = {name: _sha256(content) for name, content in contents.items()}
        if index["files"] != digests:
            raise ValueError("digests that differ from those in bundle.json")
    except predictions.BROKEN as error:
        raise IntegrityError(
            "the bundle is incomplete or damaged",
            where=path,
            found=error,
            expected="a file written by: segbench runs export",
        ) from error
    return contents


def _check_names(names: list[str]) -> None:
    """Raise ValueError unless these are the files of a bundle, each once."""
    required = {INDEX, *REQUIRED}
    allowed = {INDEX, *FILES}
    if len(set(names)) < len(names) or not required <= set(names) <= allowed:
        raise ValueError(f"files {', '.join(map(repr, names[:20]))}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(most + 1)  # the size in the directory may be false
    if len(content) > most:
        raise ValueError(f"{name} of more than {most} bytes")
    return content


def take_in(path: Path, root: Path, data_root: Path) -> tuple[RunDir, dict[str, Any]]:
    """Import a bundle; return the run and the content of ``import.json``.

    Raises:
        IntegrityError: the bundle is damaged, contradicts itself, or its metrics are not those of
            its predictions.
        AlreadyImported: the run was imported before, and the bundle adds no predictions to it.
    """
    contents = read_bundle(path)
    (root / "runs").mkdir(parents=True, exist_ok=True)
    temp = temp_path(root / "runs" / "import")
    replaced = temp_path(root / "runs" / "replaced")
    temp.mkdir()
    try:
        for name, content in contents.items():
            (temp / name).write_bytes(content)
        run = RunDir(temp)
        run.cases()
        final = _destination(run, root)
        if final.exists() and not _adds_predictions(contents, run, RunDir(final)):
            raise AlreadyImported(
                "this run was imported before", where=final, fix=f"segbench runs verify {final}"
            )
        origin = {
            "schema": "segbench.import/1",
            "bundle": path.name,
            "sha256": _sha256(path.read_bytes()),
            "segbench": __version__,
            **verify(run, data_root),
        }
        run.write_json("import.json", origin)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            final.rename(replaced)
        temp.rename(final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return RunDir(final), origin


def _adds_predictions(contents: dict[str, bytes], new: RunDir, old: RunDir) -> bool:
    """Return whether a bundle brings the predictions that an import lacks.

    Numbers that were verified before must not change.
    """
    if PREDICTIONS not in contents or (old.path / PREDICTIONS).exists():
        return False
    return old.reported or old.result() == new.result()


def _destination(run: RunDir, root: Path) -> Path:
    """Return where an imported run goes: never where ``segbench run`` looks for its own runs."""
    result = _consistent_result(run)
    parts = [*result["datasets"], result["method"]]
    if not all(PART.fullmatch(part) for part in parts):
        raise IntegrityError(
            "the bundle holds invalid names",
            found=[str(part)[:60] for part in parts],
            expected="letters, digits and _",
        )
    labeled = sum(result["labeled"].values())
    train = sum(result["train"].values())
    name = f"imported-{labeled}of{train}-s{result['seed']}-{result['run_id'][:8]}"
    return root / "runs" / "+".join(result["datasets"]) / str(result["method"]) / name


def _consistent_result(run: RunDir) -> dict[str, Any]:
    """Return the result of a bundle's run, whose configuration must be that of the result."""
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
    return result


def verify(run: RunDir, data_root: Path) -> dict[str, Any]:
    """Recompute the metrics from the predictions; return ``verified`` and ``why`` not.

    Raises:
        IntegrityError: the metrics differ.
    """
    result = run.result()
    assert result is not None
    if not (run.path / PREDICTIONS).is_file():
        return {"verified": False, "why": "no predictions in the bundle"}
    for name in result["datasets"]:
        why_not = _recompute(run, name, result, data_root)
        if why_not:
            return {"verified": False, "why": why_not}
    return {"verified": True, "why": ""}


def _recompute(run: RunDir, name: str, result: Mapping[str, Any], data_root: Path) -> str:
    """Recompute the metrics of one data set; return why that is not possible, empty if it is."""
    from segbench.data.open import open_store

    try:
        store = open_store(name, data_root)
    except SegbenchError as error:
        return error.what
    if store.fingerprint != result["fingerprints"][name]:
        return f"the prepared data of '{name}' here are not those of the run"
    store = _with_fold(store, result)
    records = [record for record in run.cases() if record["dataset"] == name]
    if any(is_of_older_rule(record) for record in records):
        return f"distances on '{name}' are of an older rule for volumes of one slice"
    _compare(run, records, store, run.path)
    return ""


def _with_fold(store: Store, result: Mapping[str, Any]) -> Store:
    """Return a data set with the lists of the fold that a run was trained on, if it was one."""
    from segbench.data.sampling.folds import with_fold

    fold = result["science"].get("fold")
    return store if fold is None else with_fold(store, fold)


def _compare(run: RunDir, records: list[Record], store: Store, where: Path) -> None:
    """Score the predictions of a run for one data set again.

    Args:
        records: the stored scores of the data set.
        where: the file or folder that an error names.

    Raises:
        IntegrityError: the cases are not those of the split, or the scores differ.
    """
    from segbench.evaluation.test_set import score

    cases = list(dict.fromkeys(record["case"] for record in records))
    if cases != list(store.test):
        raise IntegrityError(
            f"the cases are not the test cases of '{store.name}'",
            where=where,
            found=f"{len(cases)} cases",
            expected=f"{len(store.test)} in the order of the split",
            fix="train on the published split and export that run",
        )
    wanted = [(store.name, case, tuple(store.cases[case].shape)) for case in cases]
    labels = predictions.read(run.path / PREDICTIONS, wanted)
    for case, label in zip(cases, labels, strict=True):
        own = [record for record in records if record["case"] == case]
        true = score(label, store, case)
        _check_case(where, case, own, true)


def _check_case(where: Path, case: str, stored: list[Record], true: list[Record]) -> None:
    """Raise IntegrityError unless the stored records of a case are the recomputed ones."""
    problem = f"the predictions do not give the metrics of case '{case}'"
    if len(stored) != len(true):
        raise IntegrityError(
            problem,
            where=where,
            found=f"{len(stored)} classes",
            expected=f"{len(true)} classes",
            fix=EXPORT_AGAIN,
        )
    for own, recomputed in zip(stored, true, strict=True):
        for name, value in recomputed.items():
            if not _same(own.get(name), value):
                raise IntegrityError(
                    problem,
                    where=where,
                    found=f"{name}: {own.get(name)}",
                    expected=value,
                    fix=EXPORT_AGAIN,
                )


def _same(stored: Any, true: Any) -> bool:
    if isinstance(true, float) and isinstance(stored, float):
        return abs(stored - true) <= 1e-9 * max(1.0, abs(true))
    return bool(stored == (list(true) if isinstance(true, tuple) else true))


# -- references that only a board has --------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """A bundle whose predictions give its scores."""

    result: dict[str, Any]
    cases: int
    warnings: list[str]


def check_against(path: Path, references: Path) -> Checked:
    """Score the predictions of a bundle with the test labels of prepared data.

    Nothing is imported. The scores must be those of the bundle, to rounding.

    Args:
        references: the folder of a prepared data set, or a folder that holds several.

    Raises:
        UsageError: there is no such bundle.
        DataError: a data set of the bundle is not prepared there.
        IntegrityError: the bundle is damaged or has no predictions, its cases are not those of the
            split, or its scores are not those of its predictions.
    """
    contents = read_bundle(path)
    if PREDICTIONS not in contents:
        raise IntegrityError(
            "the bundle has no predictions, so its numbers cannot be checked",
            where=path,
            found=", ".join(contents),
            expected=PREDICTIONS,
            fix="export the run without --no-predictions",
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, content in contents.items():
            (Path(folder) / name).write_bytes(content)
        run = RunDir(Path(folder))
        records = run.cases()
        result = _consistent_result(run)
        warnings = []
        for name in result["datasets"]:
            store = _reference_store(references, name)
            if store.fingerprint != result["fingerprints"][name]:
                warnings.append(
                    f"the prepared data of '{name}' are not those that the run was trained on; "
                    "the test cases are scored with the labels here"
                )
            own = [record for record in records if record["dataset"] == name]
            _require_current_rule(own, name, path)
            _compare(run, own, _with_fold(store, result), path)
    return Checked(result, len({(row["dataset"], row["case"]) for row in records}), warnings)


def _require_current_rule(records: list[Record], name: str, path: Path) -> None:
    if any(is_of_older_rule(record) for record in records):
        raise IntegrityError(
            f"distances on '{name}' are of an older rule for volumes of one slice",
            where=path,
            fix="evaluate the run with this version, then export it again",
        )


def _reference_store(references: Path, name: str) -> Store:
    """Return the prepared data set of that name, in a folder of its own or among others."""
    is_store = (references / "store.json").is_file()
    folder = references if is_store else references / name
    if not (folder / "store.json").is_file():
        raise DataError(
            f"no prepared data set '{name}' to score against",
            where=folder,
            expected="store.json, as written by: segbench data prepare",
            fix="--against DIR, a prepared data set or the folder that holds it",
        )
    store = read_store(folder)
    if store.name != name:
        raise DataError(
            f"the bundle is about '{name}', the references are not",
            where=folder,
            found=f"data set '{store.name}'",
            expected=f"data set '{name}'",
            fix="--against DIR, the folder that holds all prepared data sets",
        )
    return store
