"""The run directory: all there is of a run, readable without segbench.

``config.yaml``   the resolved experiment and its identity, written first
``data.json``     a digest of every case it began with, to tell later which ones have changed
``log.jsonl``     one line a logged step
``ckpt/``         checkpoints while training, the final weights afterwards
``cases.csv``     one line a test case and class
``manifest.json`` machine, versions, times: what may differ between two runs of one identity
``result.json``   written last and only once; a valid one *is* the mark of a finished run
``failed.json``   why the last attempt failed
``import.json``   of an imported run: from where, and whether its numbers were computed again
"""

from __future__ import annotations

import hashlib
import json
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from segbench.config import Experiment, dump_yaml, load_yaml
from segbench.errors import IntegrityError, SegbenchError, UsageError
from segbench.results.cases import check_metrics, checked, read_cases
from segbench.storage import atomic_write, json_bytes

SCHEMA = "segbench.run/1"
SHOWN = 10  # folders that an error names
CONFIG = {"run_id": str, "experiment": dict, "science": dict, "plugins": list}


@dataclass(frozen=True)
class RunDir:
    """A run directory; nothing is created until something is written."""

    path: Path

    @property
    def run_id(self) -> str:
        """The first eight digits of the identity, from the folder's name."""
        return self.path.name.rsplit("-", 1)[-1]

    def config(self) -> dict[str, Any]:
        """The stored experiment: keys ``run_id``, ``experiment``, ``science``, ``plugins``.

        Raises:
            UsageError: it cannot be read.
            IntegrityError: a key is missing or of another type.
        """
        file = self.path / "config.yaml"
        found = load_yaml(file)
        for key, kind in CONFIG.items():
            if not isinstance(found.get(key), kind) or (
                kind is list and not all(isinstance(f, str) for f in found[key])
            ):
                raise IntegrityError(
                    "the stored configuration is incomplete",
                    where=file,
                    found=f"{key}: {found.get(key)}"[:80],
                    expected="the file as segbench wrote it",
                )
        return found

    def write_config(
        self, run_id: str, experiment: Experiment, science: dict[str, Any], plugins: list[str]
    ) -> None:
        """Write the experiment before training starts."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {
            "schema": SCHEMA,
            "run_id": run_id,
            "experiment": experiment.model_dump(mode="json"),
            "science": science,
            "plugins": plugins,
        }
        atomic_write(self.path / "config.yaml", dump_yaml(content).encode())

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, None of any other.

        Raises:
            IntegrityError: there is a result file, but it or its case table is not what was written.
        """
        file = self.path / "result.json"
        try:
            result = json.loads(file.read_bytes())
            if result["schema"] != SCHEMA:
                raise _other_schema(result["schema"], file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise IntegrityError(
                "the result file cannot be read",
                where=file,
                found=error,
                fix="remove the run directory and run again",
            ) from error
        try:
            cases = hashlib.sha256((self.path / "cases.csv").read_bytes()).hexdigest()
        except OSError as error:
            raise IntegrityError(
                "cases.csv cannot be read",
                where=self.path,
                found=error,
                fix="remove the run directory and run again",
            ) from error
        if cases != result.get("cases_sha256"):
            raise IntegrityError(
                "cases.csv was changed after the run",
                where=self.path / "cases.csv",
                found=cases[:16],
                expected=str(result.get("cases_sha256"))[:16],
            )
        return checked(result, file)

    @property
    def state(self) -> str:
        """``done``, ``half-done``, ``failed`` or ``to do``."""
        try:
            if self.result() is not None:
                return "done"
        except IntegrityError:
            return "failed"
        if (self.path / "failed.json").exists():
            return "failed"
        return "half-done" if any(self.path.glob("ckpt/*.st")) else "to do"

    def cases(self) -> list[dict[str, Any]]:
        """The checked records of a finished run's test cases.

        Raises:
            IntegrityError: they cannot be true, or their means are not those of the result.
        """
        result, file = self.result(), self.path / "cases.csv"
        if result is None:
            raise IntegrityError(
                "the run is not finished", where=self.path, fix=f"segbench resume {self.run_id}"
            )
        records = read_cases(file.read_bytes(), file)
        check_metrics(result, records, file)
        return records

    @property
    def origin(self) -> dict[str, Any] | None:
        """Where an imported run comes from and whether its metrics could be computed again; None for one's own."""
        file = self.path / "import.json"
        try:
            return dict(json.loads(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError):
            return {"verified": False, "why": "import.json cannot be read"}

    @property
    def reported(self) -> bool:
        """Must its numbers be taken on trust?"""
        return self.origin is not None and self.origin.get("verified") is not True

    def manifest(self) -> dict[str, Any]:
        """Times and environment; empty if there are none yet."""
        return read_object(self.path / "manifest.json")

    def leak(self) -> dict[str, Any]:
        """What ``segbench leak`` recorded of this run; empty if nothing."""
        return read_object(self.path / "leak.json")

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the JSON files, atomically."""
        atomic_write(self.path / name, json_bytes(value))

    def fail(self, error: BaseException, stage: str) -> None:
        """Record why the run failed; a later success removes it."""
        known = (
            error.to_dict()
            if isinstance(error, SegbenchError)
            else {"kind": type(error).__name__, "what": str(error)}
        )
        self.write_json(
            "failed.json", {"stage": stage, **known, "traceback": traceback.format_exc()}
        )


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object; empty if there is none or it cannot be read."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_number(value: object) -> TypeGuard[float]:
    """Is it a finite number that a float can hold?"""
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _other_schema(found: object, file: Path) -> IntegrityError:
    """The error for a result of another version; results are never rewritten."""
    newer = (
        isinstance(found, str)
        and found.startswith("segbench.run/")
        and found.rpartition("/")[2].isdecimal()
    )
    newer = newer and int(str(found).rpartition("/")[2]) > int(SCHEMA.rpartition("/")[2])
    return IntegrityError(
        f"results of schema {found} need {'a newer' if newer else 'another'} segbench",
        where=file,
        expected=SCHEMA,
        fix="pip install -U segbench" if newer else "run it again with this version",
    )


def run_folder(
    root: Path, experiment: Experiment, train_sizes: dict[str, int], run_id: str
) -> RunDir:
    """``<root>/runs/<data sets>/<method>/<labeled>of<train>[-d<draw>]-s<seed>-<id8>``: readable first, identity last."""
    counts = f"{sum(experiment.labeled.values())}of{sum(train_sizes.values())}"
    data, draw = "+".join(experiment.datasets), f"-d{experiment.draw}" if experiment.draw else ""
    return RunDir(
        root / "runs" / data / experiment.method / f"{counts}{draw}-s{experiment.seed}-{run_id[:8]}"
    )


def all_runs(root: Path) -> Iterator[RunDir]:
    """Every run directory under ``root``, in order of path."""
    for file in sorted((root / "runs").glob("*/*/*/config.yaml")):
        yield RunDir(file.parent)


def find_run(root: Path, wanted: str) -> RunDir:
    """The run named by its folder or by the start of its id.

    Raises:
        UsageError: none or several fit.
    """
    if wanted and (Path(wanted) / "config.yaml").is_file():
        return RunDir(Path(os.path.abspath(wanted)))
    fits = [
        run
        for run in all_runs(root)
        if wanted
        and run.run_id.startswith(wanted[:8])
        and (len(wanted) <= 8 or str(run.config()["run_id"]).startswith(wanted))
    ]
    if len(fits) == 1:
        return fits[0]
    raise UsageError(
        f"{'several runs fit' if fits else 'no run'} '{wanted}'",
        where=root / "runs",
        found="\n".join(str(run.path) for run in fits[:SHOWN]) or None,
        expected="the id of a run (its folder ends with it) or its folder",
        fix="segbench runs ls",
    )
