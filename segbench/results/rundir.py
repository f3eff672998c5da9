"""The run directory: all files of a run, readable without segbench.

``config.yaml``   the resolved experiment and its identity, written first
``data.json``     a digest of every case at the start, which later shows changed cases
``stores.json``   facts of the prepared data, such as spacings, with which new scans are predicted
``log.jsonl``     one line per logged step
``ckpt/``         checkpoints during training, the final weights afterwards
``cases.csv``     one line per test case and class
``manifest.json`` machine, versions, times: what may differ between two runs of one identity
``result.json``   written once, at the end; a valid one marks a finished run
``failed.json``   why the last attempt failed
``lease.json``    while the run is running: where, how far, and when it last said so
``attempts.jsonl`` starts, ends and kills of all attempts
``tracking.json`` what experiment trackers call the run, with ``--log``
``job.json``      the job of a scheduler that the run was handed to
``import.json``   of an imported run: its source, and whether its numbers were computed again
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeGuard

from segbench.config import Experiment, dump_yaml, load_yaml
from segbench.errors import IntegrityError, SegbenchError
from segbench.results.attempts import history, kill_reason, read_lease
from segbench.results.cases import Record, check_metrics, read_cases
from segbench.results.schema import check_result
from segbench.results.states import state_of
from segbench.storage import atomic_write, json_bytes, make_folder

SCHEMA = "segbench.run/1"
CONFIG_KEYS = {"run_id": str, "experiment": dict, "science": dict, "plugins": list}
MAX_STEP = 2**63  # TensorBoard stores a step in 64 bits


@dataclass(frozen=True)
class RunDir:
    """A run directory; nothing is created until something is written."""

    path: Path

    @property
    def run_id(self) -> str:
        """The first eight digits of the identity, from the folder's name."""
        return self.path.name.rsplit("-", 1)[-1]

    @property
    def short_path(self) -> str:
        """The last three parts of the path: data sets, method and folder."""
        return "/".join(self.path.parts[-3:])

    def config(self) -> dict[str, Any]:
        """Return the stored experiment: ``run_id``, ``experiment``, ``science``, ``plugins``.

        Raises:
            UsageError: it cannot be read.
            IntegrityError: a key is missing or of another type.
        """
        file = self.path / "config.yaml"
        found = load_yaml(file)
        for key, kind in CONFIG_KEYS.items():
            value = found.get(key)
            right_type = isinstance(value, kind)
            if right_type and isinstance(value, list):
                right_type = all(isinstance(item, str) for item in value)
            if not right_type:
                raise IntegrityError(
                    "the stored configuration is incomplete",
                    where=file,
                    found=f"{key}: {value}"[:80],
                    expected="the file as segbench wrote it",
                )
        return found

    def write_config(
        self, run_id: str, experiment: Experiment, science: dict[str, Any], plugins: Iterable[str]
    ) -> None:
        """Write the experiment, before training starts."""
        make_folder(self.path)
        content = {
            "schema": SCHEMA,
            "run_id": run_id,
            "experiment": experiment.model_dump(mode="json"),
            "science": science,
            "plugins": list(plugins),
        }
        atomic_write(self.path / "config.yaml", dump_yaml(content).encode())

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run, None for every other run.

        Raises:
            IntegrityError: there is a result file, but it or its case table was changed.
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
        return check_result(result, file)

    @property
    def state(self) -> str:
        """One of ``states.STATES``; a damaged result counts as failed."""
        found = state_of(self.path)
        if found == "done":
            try:
                self.result()
            except IntegrityError:
                return "failed"
        return found

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt recorded a failure."""
        return (self.path / "failed.json").exists()

    def cases(self, result: dict[str, Any] | None = None) -> list[Record]:
        """Return the checked records of a finished run's test cases.

        Args:
            result: the run's result, if it was read before.

        Raises:
            IntegrityError: their values are impossible, or their means are not those of the result.
        """
        result = self.result() if result is None else result
        if result is None:
            raise IntegrityError(
                "the run is not finished", where=self.path, fix=f"segbench resume {self.run_id}"
            )
        file = self.path / "cases.csv"
        records = read_cases(file.read_bytes(), file)
        check_metrics(result, records, file)
        return records

    @property
    def origin(self) -> dict[str, Any] | None:
        """The source of an imported run, and whether its metrics were verified; else None."""
        file = self.path / "import.json"
        try:
            return dict(json.loads(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError):
            return {"verified": False, "why": "import.json cannot be read"}

    @property
    def reported(self) -> bool:
        """Whether the numbers were imported without being verified."""
        return self.origin is not None and self.origin.get("verified") is not True

    def manifest(self) -> dict[str, Any]:
        """Return times and environment; empty if nothing was recorded."""
        return read_object(self.path / "manifest.json")

    def leak(self) -> dict[str, Any]:
        """Return what ``segbench leak`` recorded; empty if nothing was."""
        return read_object(self.path / "leak.json")

    def components(self) -> dict[str, Any]:
        """Return what ``evaluate --components`` recorded; empty if nothing was."""
        return read_object(self.path / "components.json")

    def log(self) -> list[dict[str, Any]]:
        """Return the lines of ``log.jsonl`` that are objects with a step."""
        try:
            text = (self.path / "log.jsonl").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        lines = []
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):  # an interrupted run may leave half a last line
                continue
            step = record.get("step") if isinstance(record, dict) else None
            if isinstance(step, int) and abs(step) < MAX_STEP:
                lines.append(record)
        return lines

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the JSON files, atomically."""
        atomic_write(self.path / name, json_bytes(value))

    def fail(self, error: BaseException, stage: str) -> None:
        """Record why the run failed; a later success removes the record."""
        if isinstance(error, SegbenchError):
            known = error.to_dict()
        else:
            known = {"kind": type(error).__name__, "what": str(error)}
        tries = max(1, history(self.path).starts)
        record = {"stage": stage, "tries": tries, **known, "traceback": traceback.format_exc()}
        self.write_json("failed.json", record)

    def fail_as_killed(self) -> None:
        """Record that the run counts as failed, because its attempts were killed."""
        found = history(self.path)
        what = kill_reason(found.signal, found.kills)
        record = {"stage": "unknown", "tries": found.starts, "kind": "Killed", "what": what}
        lease = read_lease(self.path)
        if lease is not None:
            record["stage"] = f"{lease.stage} {lease.step} of {lease.total}"
        self.write_json("failed.json", record)


def read_object(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is none or it cannot be read."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number that a float can hold."""
    return isinstance(value, (int, float)) and abs(value) < 1e300


def plain(value: Any) -> Any:
    """Return JSON types; NaN and infinity become None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def _other_schema(found: object, file: Path) -> IntegrityError:
    """Return the error for a result of another version; results are never rewritten."""
    ours = int(SCHEMA.rpartition("/")[2])
    name, _, version = str(found).rpartition("/")
    newer = name == "segbench.run" and version.isdecimal() and int(version) > ours
    return IntegrityError(
        f"results of schema {found} need {'a newer' if newer else 'another'} segbench",
        where=file,
        expected=SCHEMA,
        fix="pip install -U segbench" if newer else "run it again with this version",
    )


def run_folder(
    root: Path, experiment: Experiment, train_sizes: dict[str, int], run_id: str
) -> RunDir:
    """Return the folder of a run: readable parts first, the identity last.

    ``<root>/runs/<data sets>/<method>/<labeled>of<train>[-d<draw>][-f<fold>]-s<seed>-<id8>``
    """
    labeled = sum(experiment.labeled.values())
    train = sum(train_sizes.values())
    draw = f"-d{experiment.draw}" if experiment.draw else ""
    fold = "" if experiment.fold is None else f"-f{experiment.fold}"
    name = f"{labeled}of{train}{draw}{fold}-s{experiment.seed}-{run_id[:8]}"
    return RunDir(root / "runs" / "+".join(experiment.datasets) / experiment.method / name)


def all_runs(root: Path) -> Iterator[RunDir]:
    """Yield every run directory under ``root``, in order of path."""
    for file in sorted((root / "runs").glob("*/*/*/config.yaml")):
        yield RunDir(file.parent)


def has_id(run: RunDir, wanted: str) -> bool:
    """Return whether the run's id begins with ``wanted``; folder names hold eight digits of it."""
    if not run.run_id.startswith(wanted[:8]):
        return False
    return len(wanted) <= 8 or str(run.config()["run_id"]).startswith(wanted)
