"""What every tracker does, and the values that are sent to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segbench.results.rundir import RunDir, is_number

PROJECT = "segbench"  # where a tracker has projects or experiments and the user names none
TRACKING = "tracking.json"  # in a run directory: the name that each tracker has for the run
PERCENT = ("dice", "jaccard")  # stored from 0 to 1, sent as everywhere shown
FIRST_STOP_CODE = 75  # attempts that end with this exit code or a higher one can be resumed


@dataclass(frozen=True)
class TrackedRun:
    """What trackers need to know about a run before its first step.

    Attributes:
        name: the name of its row with data sets and seed.
        group: its data sets; trackers show runs of one group together.
        settings: the resolved experiment.
        root: folder of the results, for trackers that keep files.
        known_as: what the tracker called this run in an earlier attempt; empty in the first one.
    """

    folder: RunDir
    run_id: str
    name: str
    group: str
    settings: dict[str, Any]
    root: Path
    known_as: str = ""


class Tracker:
    """Base class of trackers. Whatever its methods raise ends the tracking, never the run."""

    def __init__(self, run: TrackedRun) -> None:
        """Open the run; one that an earlier attempt opened is continued."""
        self.run = run

    @property
    def known_as(self) -> str:
        """What the tracker calls this run."""
        return ""

    @property
    def last_step(self) -> int:
        """The last step that the tracker holds already, -1 if there is none."""
        return -1

    def record(self, step: int, values: dict[str, float]) -> None:
        """Send the values of one step of the training."""
        raise NotImplementedError

    def result(self, step: int, values: dict[str, float]) -> None:
        """Send the means over the test cases, which were scored after a step."""
        raise NotImplementedError

    def close(self, code: int) -> None:
        """End the attempt: 0 done, 75 and higher stopped, others failed."""


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line of ``log.jsonl``: ``lr`` and ``loss/TERM``."""
    values = {}
    for key, value in line.items():
        if is_number(value) and key not in ("step", "seconds"):
            name = key if key == "lr" else f"loss/{key}"
            values[_plain_name(name)] = float(value)
    return values


def means_of(metrics: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means of a result as ``test/DATASET/CLASS/METRIC``, shares in percent."""
    values = {}
    for entry in metrics:
        for metric, column in entry["columns"].items():
            mean = column["mean"]
            if is_number(mean):
                scale = 100 if metric in PERCENT else 1
                name = f"test/{entry['dataset']}/{entry['class']}/{metric}"
                values[_plain_name(name)] = float(scale * mean)
    return values


def _plain_name(name: str) -> str:
    """Return a name with the characters that all trackers accept."""
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)
