"""The command that repeats a run, from what the run stored."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segbench.config import protocol_names
from segbench.config.experiment import ALL, labeled_count
from segbench.config.schema import flatten
from segbench.results.finished import FinishedRun
from segbench.text import safe


def command(runs: Sequence[FinishedRun]) -> str:
    """Return the line that repeats runs of a row: one experiment with several seeds or folds."""
    stored = runs[0].folder.config()
    experiment = stored["experiment"]
    labeled = _labeled(experiment["labeled"], runs[0].result["train"])
    if runs[0].fold is not None and runs[0].fully_labeled:
        labeled = ALL  # the folds differ by a patient
    protocol = experiment["protocol"]["name"]
    seeds = sorted({run.seed for run in runs})
    words = [
        *_program(experiment.get("processes", 1)),
        "run",
        experiment["method"],
        "--dataset",
        ",".join(experiment["datasets"]),
    ]
    if labeled:
        words += ["--labeled", labeled]
    if experiment.get("draw"):
        words += ["--draw", experiment["draw"]]
    folds = sorted({run.fold for run in runs if run.fold is not None})
    if folds:
        words += ["--fold", ",".join(map(str, folds))]
    if experiment.get("unlabeled", "all") != "all":
        words += ["--unlabeled", experiment["unlabeled"]]
    words += [
        "--backbone",
        experiment["backbone"],
        "--protocol",
        protocol if protocol in protocol_names() else f"{protocol}.yaml",
        "--seeds",
        ",".join(map(str, seeds)),
    ]
    for key, value in _overrides(experiment, runs[0]).items():
        words += ["-o", f"{key}={_plain(value)}"]
    for file in stored["plugins"]:
        words += ["--plugin", Path(file).name]
    return shlex.join(map(str, words)) + _comments(experiment, labeled)


def _program(processes: int) -> list[Any]:
    if processes == 1:
        return ["segbench"]
    return ["torchrun", "--nproc-per-node", processes, "-m", "segbench.cli.main"]


def _overrides(experiment: Mapping[str, Any], run: FinishedRun) -> dict[str, Any]:
    """Return the settings that differ from protocol and method."""
    protocol = {key: value for key, value in experiment["protocol"].items() if key != "backbone"}
    values = flatten(protocol)
    changed = {key: values[key] for key in experiment["modified"] if key in values}
    changed.update(run.result["changed_params"])
    return changed


def _comments(experiment: Mapping[str, Any], labeled: str) -> str:
    """Return what options cannot express, as comments of the shell."""
    text = ""
    if not labeled:
        counts = [f"{count} of {name}" for name, count in experiment["labeled"].items()]
        text += f"  # labeled: {safe(', '.join(counts))}"
    if experiment["without"]:
        terms = safe(", ".join(experiment["without"]))
        text += f"  # without {terms}: segbench ablate {shlex.quote(experiment['method'])}"
    return text


def _labeled(counts: Mapping[str, int], train: Mapping[str, int]) -> str:
    """Return the value of ``--labeled`` for these counts: a number or a percentage.

    Empty if no single value gives all of them. Of several percentages, the roundest is taken.
    """
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    fits = [percent for percent in range(1, 101) if _gives(percent, counts, train)]
    if not fits:
        return ""
    roundest = min(fits, key=lambda percent: (percent % 10, percent % 5, percent))
    return f"{roundest}%"


def _gives(percent: int, counts: Mapping[str, int], train: Mapping[str, int]) -> bool:
    share = f"{percent}%"
    return all(labeled_count(share, train[name]) == count for name, count in counts.items())


def _plain(value: Any) -> str:
    """Return a value as ``-o`` reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, (list, tuple)):
        return str(value)
    if len(value) > 1 and all(isinstance(item, int) for item in value):
        return "x".join(map(str, value))
    return f"[{','.join(map(_plain, value))}]"
