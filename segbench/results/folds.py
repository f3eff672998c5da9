"""Cross-validation: the runs of all folds of one seed, seen as one run on all cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from segbench.metrics.aggregate import aggregate
from segbench.results.finished import FinishedRun


@dataclass
class CrossValidated(FinishedRun):
    """The runs of several folds with the same settings, seed and draw; their cases are pooled.

    ``folder`` and ``result`` are those of the first fold. ``cases`` are those of all folds.
    """

    runs: tuple[FinishedRun, ...]  # in the order of the folds

    @property
    def parts(self) -> tuple[FinishedRun, ...]:
        """The runs of the folds."""
        return self.runs

    @property
    def fold_of_case(self) -> dict[str, int]:
        """The fold in which each case was tested."""
        found = {}
        for run in self.runs:
            assert run.fold is not None
            found.update(dict.fromkeys((record["case"] for record in run.cases), run.fold))
        return found

    @property
    def missing_folds(self) -> list[int]:
        """The folds that have no finished run."""
        finished = {run.fold for run in self.runs}
        return [fold for fold in range(fold_count(self.science)) if fold not in finished]

    def metrics(self, dataset: str) -> list[dict[str, Any]]:
        """Return the means over the cases of all folds, one entry per class."""
        return [entry for entry in self._pooled if entry["dataset"] == dataset]

    @cached_property
    def _pooled(self) -> list[dict[str, Any]]:
        found = []
        for stored in self.result["metrics"]:
            key = (stored["dataset"], stored["class"])
            own = [record for record in self.cases if (record["dataset"], record["class"]) == key]
            means = aggregate(own, policy=stored["policy"]).to_dict()
            found.append({"dataset": stored["dataset"], "class": stored["class"], **means})
        return found

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The mean time of a training; empty if a run recorded none."""
        seconds = [run.manifest.get("train_seconds") for run in self.runs]
        known = [value for value in seconds if isinstance(value, (int, float))]
        if len(known) < len(seconds):
            return {}
        return {"train_seconds": sum(known) / len(known)}


def fold_count(science: dict[str, Any]) -> int:
    """Return the number of folds of a run's cross-validation; 0 for the list of test cases."""
    if science.get("fold") is None:
        return 0
    return int(science["datasets"][0]["folds"]["count"])


def cross_validated(runs: Iterable[FinishedRun]) -> list[FinishedRun]:
    """Return one run for all folds of each draw and seed."""
    groups: dict[tuple[int, int], dict[int, FinishedRun]] = {}
    for run in runs:
        assert run.fold is not None
        groups.setdefault((run.draw, run.seed), {})[run.fold] = run
    return [_joined([folds[fold] for fold in sorted(folds)]) for folds in groups.values()]


def _joined(runs: Sequence[FinishedRun]) -> CrossValidated:
    first = runs[0]
    cases = [record for run in runs for record in run.cases]
    smallest = {entry["name"]: entry["folds"]["train"] for entry in first.science["datasets"]}
    labeled = {name: min(count, smallest[name]) for name, count in first.result["labeled"].items()}
    lists = {entry["name"]: entry["folds"]["lists"] for entry in first.science["datasets"]}
    result = {**first.result, "train": smallest, "labeled": labeled, "splits": lists}
    return CrossValidated(first.folder, result, cases, tuple(runs))


def of_all_folds(science: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings without what differs between the folds of a cross-validation.

    The training lists of the folds differ by at most one patient: where all are labeled, the
    labeled count is that of the smallest list.
    """
    if science.get("fold") is None:
        return science
    datasets = []
    for entry in science["datasets"]:
        folds = entry["folds"]
        labeled = min(entry["labeled"], folds["train"])
        datasets.append({**entry, "labeled": labeled, "split": folds["lists"]})
    kept = {key: value for key, value in science.items() if key != "fold"}
    return {**kept, "datasets": datasets}
