"""How long the unfinished runs of a suite will take."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from segbench.training.setup import Prepared

Kind = tuple[str, int]  # method and number of data sets, which decide the duration within a suite


def remaining_seconds(finished: Sequence[Prepared], unfinished: Sequence[Prepared]) -> float | None:
    """Return the seconds that unfinished runs will take one after the other.

    A run takes as long as the finished runs of its method in this suite, or else as long as its
    protocol expects. Returns None if neither is known for one of the runs. The time that half-done
    runs have already spent is not subtracted.
    """
    measured = _measured_seconds(finished)
    total = 0.0
    for run in unfinished:
        expected = run.experiment.protocol.expected.seconds
        if _kind(run) in measured:
            total += fmean(measured[_kind(run)])
        elif expected is not None:
            total += expected * len(run.experiment.datasets)  # joint training takes more steps
        else:
            return None
    return total


def _measured_seconds(finished: Sequence[Prepared]) -> dict[Kind, list[float]]:
    """Return the seconds of training and evaluation of finished runs, by kind."""
    found: dict[Kind, list[float]] = {}
    for run in finished:
        manifest = run.folder.manifest()
        training = manifest.get("train_seconds")
        evaluation = manifest.get("evaluation_seconds")
        if isinstance(training, float) and isinstance(evaluation, float):
            found.setdefault(_kind(run), []).append(training + evaluation)
    return found


def _kind(run: Prepared) -> Kind:
    return run.experiment.method, len(run.experiment.datasets)
