"""Set up and execute the runs of suites."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from segbench.cli.main import run as main
from segbench.cli.reporter import duration
from segbench.cli.settings import Settings
from segbench.cli.suite_view import SuiteView
from segbench.cli.training import case_counts
from segbench.config import Experiment, Machine
from segbench.data.open import derived, open_store
from segbench.errors import DataError, Interrupted, PluginError, SegbenchError, TrainingError
from segbench.results.attempts import signal_name
from segbench.results.names import label_of_experiment, which_cases
from segbench.results.rundir import read_object
from segbench.storage import unchanging_files
from segbench.suites.local import Outcome, ended, last_words, run_all
from segbench.suites.suite import choices, expand, find_suite, load_suite
from segbench.text import safe
from segbench.training.setup import Prepared, prepare

# What concerns one combination of a suite only: its data, or the code of a plug-in.
CANNOT_START = (DataError, PluginError, TrainingError)


def prepared_suite(
    settings: Settings,
    suite: str,
    machine: Machine,
    overrides: Sequence[str] = (),
    replicates: int | None = None,
) -> tuple[list[Prepared], list[SegbenchError]]:
    """Return the runs of a suite, ready to start, and the reasons why others cannot start.

    Args:
        overrides: changes of the protocol for all runs, as given with -o.
        replicates: instead of the suite's own number.

    Raises:
        SegbenchError: none of them can start.
    """
    with unchanging_files():
        runs, problems = _prepared(settings, suite, machine, overrides, replicates)
    if problems and not runs:
        raise problems[0]
    for reason, count in Counter(map(str, problems)).items():
        lines = [safe(line) for line in reason.splitlines()]
        settings.say("\n".join([f"{count} runs of the suite cannot start:", *lines]))
    return list(runs.values()), problems


def _prepared(
    settings: Settings,
    suite: str,
    machine: Machine,
    overrides: Sequence[str],
    replicates: int | None,
) -> tuple[dict[str, Prepared], list[SegbenchError]]:
    """Return the runs by their identity, and why others cannot start."""
    runs: dict[str, Prepared] = {}
    problems: list[SegbenchError] = []
    opener = cache(open_store)  # a data set is opened and its files are looked at once
    for found in _experiments(settings, suite, overrides, replicates):
        if isinstance(found, SegbenchError):
            problems.append(found)
            continue
        try:
            run = prepare(found, machine, opener=opener)
        except CANNOT_START as error:
            problems.append(error)
            continue
        runs[run.run_id] = run  # entries that overlap name a run twice
    return runs, problems


def make_derived_stores(runs: Sequence[Prepared]) -> None:
    """Make the data sets of lower resolution that runs train on.

    Hundreds of jobs that start together would otherwise wait for the first of them.
    """
    made = set()
    for run in runs:
        for store in run.stores:
            factors = run.experiment.protocol.factors(store.name, store.dims)
            if (store.root, str(factors)) not in made:
                derived(store, factors)
                made.add((store.root, str(factors)))


def _experiments(
    settings: Settings, suite: str, overrides: Sequence[str], replicates: int | None
) -> Iterator[Experiment | SegbenchError]:
    """Return the experiments of a suite, or the error of a combination that has none."""
    counts = case_counts(settings)
    loaded, document = load_suite(find_suite(suite))
    if replicates is not None:
        loaded = loaded.model_copy(update={"replicates": replicates})
    for choice in choices(loaded):
        try:
            yield from expand(loaded, document, choice, **counts, overrides=overrides)
        except CANNOT_START as error:
            yield error


def run_in_slots(
    settings: Settings, runs: list[Prepared], machine: Machine, slots: int
) -> list[Outcome]:
    """Execute runs, several at a time, and report how each ended."""
    waiting = sum(not ended(run, machine) for run in runs)
    at_once = min(slots, max(waiting, 1))
    settings.say(f"{len(runs)} runs, {len(runs) - waiting} already done, {at_once} at a time")
    view = SuiteView(settings, waiting, _outcome_text)
    try:
        return run_all(runs, machine, slots, view, main)
    except Interrupted as error:
        error.details["fix"] = view.way_back()
        raise
    finally:
        view.close()


def _outcome_text(outcome: Outcome) -> str:
    experiment = outcome.run.experiment
    which = which_cases(experiment)
    datasets = "+".join(experiment.datasets) + augment_mark(experiment)
    what = (
        f"{label_of_experiment(experiment)} on {datasets}, "
        f"{sum(experiment.labeled.values())} labeled{which}, seed {experiment.seed}"
    )
    folder = outcome.run.folder
    result = folder.result() if outcome.code == 0 else None
    if result is not None:
        means = [row["columns"]["dice"]["mean"] for row in result["metrics"]]
        shown = " ".join("–" if mean is None else f"{100 * mean:.1f}" for mean in means)
        return f"{safe(what)}: Dice {shown} in {duration(outcome.seconds)}"
    if outcome.kind == "busy":
        return f"{safe(what)}: another process works on it; it is looked at again"
    if outcome.kind == "stopped":
        return f"{safe(what)}: stopped; to continue: segbench resume {outcome.run.run_id[:8]}"
    if outcome.tried_again:
        return f"{safe(what)}: killed by {signal_name(-outcome.code)}; it is tried again"
    why = f"exit {outcome.code}"
    if outcome.kind == "killed":
        why = str(read_object(folder.path / "failed.json").get("what", why))
    lines = [f"{what}: FAILED ({why})", *last_words(Path(folder.path)).splitlines()]
    return "\n".join(safe(line) for line in lines)


def augment_mark(experiment: Experiment) -> str:
    """Return an augmentation that is not the protocol's own, such as `` +strong``, or nothing."""
    return f" +{experiment.protocol.augment}" if "augment" in experiment.modified else ""


def default_slots() -> int:
    """Return one slot per GPU; without a GPU, up to two.

    Small networks gain more from runs side by side than from more threads.
    """
    import torch

    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)
