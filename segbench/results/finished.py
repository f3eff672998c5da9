"""A finished run: its result, its test cases and, read on demand, the files beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from segbench.results.cases import Record
from segbench.results.rundir import RunDir, is_number

LEAK_KEYS = ("last", "validation_best", "test_best", "gap", "test_evaluations")


@dataclass
class FinishedRun:
    """A run whose result and case table agree with each other."""

    folder: RunDir
    result: dict[str, Any]
    cases: list[Record]

    @classmethod
    def load(cls, folder: RunDir) -> FinishedRun | None:
        """Read a run; None if it is not finished.

        Raises:
            IntegrityError: the result or its case table is not what was written.
        """
        result = folder.result()
        if result is None:
            return None
        return cls(folder, result, folder.cases(result))

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.result["seed"])

    @cached_property
    def reported(self) -> bool:
        """Whether the numbers were imported without being verified."""
        return self.folder.reported

    @property
    def draw(self) -> int:
        """The number of the labeled draw."""
        return int(self.result["science"].get("draw", 0))

    @property
    def fold(self) -> int | None:
        """The fold of a cross-validation that was tested; None for the list of test cases."""
        fold = self.result["science"].get("fold")
        return None if fold is None else int(fold)

    @property
    def parts(self) -> tuple[FinishedRun, ...]:
        """The single runs: itself, or those of all folds of a cross-validation."""
        return (self,)

    @property
    def without_unlabeled(self) -> bool:
        """Whether the unlabeled stream showed labeled images only."""
        return bool(self.result.get("unlabeled", "all") == "labeled")

    @property
    def fully_labeled(self) -> bool:
        """Whether all training cases of all data sets were labeled."""
        labeled = self.result["labeled"]
        return all(labeled[name] == self.result["train"][name] for name in self.result["datasets"])

    @property
    def science(self) -> dict[str, Any]:
        """The settings that the run id is made of."""
        science: dict[str, Any] = self.result["science"]
        return science

    def metrics(self, dataset: str) -> list[dict[str, Any]]:
        """Return the stored means of a data set, one entry per class."""
        return [entry for entry in self.result["metrics"] if entry["dataset"] == dataset]

    def cases_of(self, dataset: str) -> list[Record]:
        """Return the records of a data set."""
        return [record for record in self.cases if record["dataset"] == dataset]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Times and environment; empty if nothing was recorded."""
        return self.folder.manifest()

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Lines of the training log; damaged lines are left out."""
        return self.folder.log()

    @cached_property
    def leak(self) -> dict[str, Any]:
        """What ``segbench leak`` recorded; empty if absent or malformed."""
        found = self.folder.leak()
        complete = all(is_number(found.get(key)) for key in LEAK_KEYS)
        return found if complete else {}
