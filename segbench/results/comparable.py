"""Which runs are comparable: finished runs sorted into tables and rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from segbench.errors import IntegrityError, SegbenchError
from segbench.results.finished import FinishedRun
from segbench.results.folds import fold_count, of_all_folds
from segbench.results.names import BASELINE, ORACLE, label_of
from segbench.results.rundir import RunDir
from segbench.storage import json_bytes


class TableKey(NamedTuple):
    """What runs must have in common to share a table."""

    dataset: str
    labeled: int
    draws: tuple[int, ...]
    backbone: str
    protocol: str
    content: str  # digest of the protocol's values
    fingerprint: str
    split: str
    precision: str
    network: str = ""  # the backbone's parameters
    source: str = ""  # digest of the backbone's code
    engine: str = ""
    folds: int = 0  # of a cross-validation; 0 for the list of test cases


KEY_WORDS = {
    "labeled": "labeled cases",
    "draws": "labeled draws",
    "backbone": "backbone",
    "protocol": "protocol",
    "content": "protocol's content",
    "fingerprint": "prepared data",
    "split": "split",
    "precision": "precision",
    "network": "backbone's parameters",
    "source": "backbone's code",
    "engine": "engine",
    "folds": "test cases",
}


__all__ = ["BASELINE", "ORACLE"]

METHOD = "method"
PUBLISHED = "published"  # a method with the recipe of its authors, beside those of the table
CONTROL = "control"  # a semi-supervised method without unlabeled images


class RowKey(NamedTuple):
    """What runs must have in common to share a row: they differ in seed and draw only."""

    label: str
    variant: str  # digest of the settings, see `settings_digest`
    kind: str = METHOD

    @property
    def is_ablation(self) -> bool:
        """Whether a loss term was left out."""
        return " without " in self.label


class FailedRun(NamedTuple):
    """A run that failed, with the table and the variant that it belongs to."""

    folder: RunDir
    table: TableKey
    variant: str


Loader = Callable[[RunDir], FinishedRun | None]
Rows = dict[RowKey, list[FinishedRun]]
Tables = dict[TableKey, Rows]


@dataclass
class SortedRuns:
    """Finished runs by table and row, failed runs, and warnings about runs that were left out."""

    tables: Tables = field(default_factory=dict)
    failures: list[FailedRun] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _added: set[tuple[TableKey, RowKey, str]] = field(default_factory=set)

    def add(self, run: FinishedRun, keys: Sequence[TableKey], row: RowKey) -> None:
        """Add a finished run to its tables; the copy of a folder counts once."""
        for key in keys:
            mark = (key, row, run.result["run_id"])
            if mark not in self._added:
                self._added.add(mark)
                self.tables.setdefault(key, {}).setdefault(row, []).append(run)


def sort_runs(folders: Iterable[RunDir], load: Loader = FinishedRun.load) -> SortedRuns:
    """Sort finished and failed runs into tables and rows.

    Args:
        load: reads a finished run.
    """
    found = SortedRuns()
    networks = _Networks()
    for folder in folders:
        try:
            run = load(folder)
            if run is None:
                found.failures += _failures(folder, networks)
                continue
            modified = run.result["protocol"]["modified"]
            network = networks.of(folder, run.science, modified)
            names = run.result["datasets"]
            keys = [_table_key(name, run.science, modified, network) for name in names]
            kind = CONTROL if run.without_unlabeled else METHOD
            row = RowKey(label_of(run), settings_digest(run.science), kind)
        except (SegbenchError, RecursionError) as error:
            found.warnings.append(f"{folder.path}: {getattr(error, 'what', error)}; left out")
            continue
        found.add(run, keys, row)
    return found


def _failures(folder: RunDir, networks: _Networks) -> list[FailedRun]:
    """Return the tables that a failed run belongs to; none for a run that is merely unfinished.

    Raises:
        IntegrityError: the stored configuration is incomplete.
    """
    if not folder.has_failed:
        return []
    config = folder.config()
    try:
        science = config["science"]
        modified = config["experiment"]["modified"]
        network = networks.of(folder, science, modified)
        found = []
        for entry in science["datasets"]:
            key = _table_key(entry["name"], science, modified, network)
            hash(key)  # a broken file may hold a list where a name should be
            found.append(FailedRun(folder, key, settings_digest(science)))
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the stored configuration is incomplete", where=folder.path, found=error
        ) from error


class _Networks:
    """The networks of runs: backbone parameters that protocol or user chose, code, and engine.

    Backbone parameters that a method sets itself do not split tables. Only the stored
    configuration shows who chose what. It is slow to read, so runs with the same answer share it.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(
        self, folder: RunDir, science: dict[str, Any], modified: Sequence[str]
    ) -> tuple[str, str, str]:
        """Return the last three parts of a run's ``TableKey``.

        Raises:
            IntegrityError: the stored configuration is incomplete.
        """
        try:
            params = science["backbone_params"]
            identity = [science["method"], science["backbone"], params, *modified]
            mark = json.dumps(identity, sort_keys=True)
            if mark not in self._known:
                self._known[mark] = _chosen_params(folder, science, modified)
            return (
                self._known[mark],
                str(science["sources"].get("backbone")),
                str(science["engine"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                "the stored configuration is incomplete", where=folder.path, found=error
            ) from error


def _chosen_params(folder: RunDir, science: dict[str, Any], modified: Sequence[str]) -> str:
    """Return, as JSON, the backbone parameters that the protocol or the user chose."""
    preset = folder.config()["experiment"]["protocol"]["backbone"]
    chosen = {}
    if preset["name"] == science["backbone"]:
        chosen.update(preset["params"])
    for name, value in science["backbone_params"].items():
        if f"backbone.{name}" in modified:
            chosen[name] = value
    return json_bytes(chosen).decode()


def _table_key(
    name: str, science: dict[str, Any], modified: Sequence[str], network: tuple[str, str, str]
) -> TableKey:
    protocol = science["protocol"]
    title = f"{protocol['name']} {protocol['version']}"
    if "augment" in modified:  # its value is short, and says more than that it was changed
        title += f" +{protocol['augment']}"
    others = [key for key in modified if key != "augment"]
    if others:
        title += f" (modified: {', '.join(others)})"
    datasets = of_all_folds(science)["datasets"]
    data = next(entry for entry in datasets if entry["name"] == name)
    return TableKey(
        name,
        data["labeled"],
        (science.get("draw", 0),),
        science["backbone"],
        title,
        _digest(protocol),
        data["fingerprint"],
        data["split"],
        science["precision"],
        *network,
        fold_count(science),
    )


def settings_digest(science: dict[str, Any], ignored: Sequence[str] = ()) -> str:
    """Return a digest of all settings but seed, draw and fold: code, parameters, network, data.

    Args:
        ignored: more settings to leave out; ``labeled`` stands for the labeled counts.
    """
    kept = {}
    science = of_all_folds(science)
    for key, value in science.items():
        if key not in ("seed", "draw", *ignored):
            kept[key] = value
    if "labeled" in ignored:
        datasets = []
        for entry in science["datasets"]:
            datasets.append({key: value for key, value in entry.items() if key != "labeled"})
        kept["datasets"] = datasets
    return _digest(kept)[:16]


def _digest(value: dict[str, Any]) -> str:
    """Return the sha256 of a value as canonical JSON."""
    return _digest_of_text(json.dumps(value, sort_keys=True))


@cache
def _digest_of_text(text: str) -> str:
    """Return the digest of JSON text. Most runs of a table have the same, and making it is slow."""
    return hashlib.sha256(json_bytes(json.loads(text))).hexdigest()
