"""``segbench bench``: plan, run and watch suites."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segbench.cli.common import Group, Settings, counts, safe, table
from segbench.cli.run import leak_option, machine_of, machine_options
from segbench.errors import DataError, PluginError, SegbenchError, SuiteError

if TYPE_CHECKING:
    from segbench.suites.local import Outcome
    from segbench.training.setup import Machine, Prepared

MOST_MARKS = 6  # in a cell of the table
MARKS = {"done": "ok", "half-done": "half", "failed": "FAIL", "to do": "."}


@click.group(cls=Group)
def bench() -> None:
    """Plan and run suites of experiments."""


def prepared(
    settings: Settings, suite: str, machine: Machine
) -> tuple[list[Prepared], list[SegbenchError]]:
    """The runs of a suite, checked, nothing started; and why others cannot start (data missing, a plug-in broken), told too.

    Raises:
        SegbenchError: none can run.
    """
    from segbench.suites.suite import choices, expand, find_suite, load_suite
    from segbench.training.setup import prepare

    patients = counts(settings)
    chosen, document = load_suite(find_suite(suite))
    runs: dict[str, Prepared] = {}
    barred: list[SegbenchError] = []
    for choice in choices(chosen):
        try:
            experiments = expand(chosen, document, choice, **patients)
        except (DataError, PluginError) as error:
            barred.append(error)
            continue
        for experiment in experiments:
            try:
                run = prepare(experiment, machine)
                runs[run.run_id] = run  # overlapping entries name a run twice
            except (DataError, PluginError) as error:
                barred.append(error)
    if barred and not runs:
        raise barred[0]
    for reason, count in Counter(map(str, barred)).items():
        settings.say(
            "\n".join([f"{count} runs of the suite cannot start:", *map(safe, reason.splitlines())])
        )
    return list(runs.values()), barred


@bench.command()
@click.argument("suite", metavar="SUITE")
@click.pass_obj
def plan(settings: Settings, suite: str) -> None:
    """Show what `bench run SUITE` would do.

    \b
    segbench bench plan benchmarks/phantom.yaml
    """
    _show(settings, *prepared(settings, suite, machine_of(settings, None, "cpu", None)))


@bench.command()
@click.argument("suite", metavar="SUITE")
@click.pass_obj
def status(settings: Settings, suite: str) -> None:
    """Show how far a suite is."""
    _show(settings, *prepared(settings, suite, machine_of(settings, None, "cpu", None)))


def _show(settings: Settings, runs: list[Prepared], barred: list[SegbenchError]) -> None:
    states = {run.run_id: run.folder.state for run in runs}
    state_counts = Counter(states.values())
    settings.document = {
        "status": "ok",
        "counts": {state: state_counts[state] for state in MARKS},
        "cannot_start": [error.to_dict() for error in barred],
        "runs": [
            {"run_id": r.run_id, "dir": str(r.folder.path), "state": states[r.run_id]} for r in runs
        ],
    }
    if settings.json:
        return
    cells: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        cells.setdefault((_row(run), _column(run)), []).append(states[run.run_id])
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = []
    for name in dict.fromkeys(row for row, _ in cells):
        rows.append([name, *(_cell(cells.get((name, column), [])) for column in columns)])
    found = ", ".join(f"{state_counts[state]} {state}" for state in MARKS if state_counts[state])
    click.echo(f"{len(runs)} runs: {found}")
    click.echo(table([("method", "<"), *((column, "<") for column in columns)], rows))


def _row(run: Prepared) -> str:
    """Return the method, and what sets a reference run apart."""
    experiment = run.experiment
    if experiment.unlabeled == "labeled":
        return f"{experiment.method} (no unlabeled images)"
    return experiment.method


def _column(run: Prepared) -> str:
    experiment = run.experiment
    labeled = ",".join(map(str, dict.fromkeys(experiment.labeled.values())))
    return f"{'+'.join(experiment.datasets)} {labeled} {experiment.backbone}"


def _cell(states: list[str]) -> str:
    """Return a mark per run, or counts where there are many."""
    if len(states) <= MOST_MARKS:
        return " ".join(MARKS[state] for state in states)
    counts = Counter(states)
    done = counts.pop("done", 0)
    others = "".join(f", {count} {state}" for state, count in counts.items() if state != "to do")
    return f"{done} of {len(states)} done{others}"


@bench.command("run")
@click.argument("suite", metavar="SUITE")
@click.option(
    "-j",
    "slots",
    metavar="N",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Runs at once.",
)
@machine_options
@leak_option
@click.pass_obj
def run_suite(
    settings: Settings,
    suite: str,
    slots: int,
    save_every: str | None,
    device: str | None,
    workers: int | None,
    leak_meter: bool,
) -> None:
    """Execute a suite. Finished runs are skipped, half-done ones resumed, a failed one does not stop the rest (exit 5).

    \b
    segbench bench run benchmarks/la-mini.yaml -j 2
    """
    machine = machine_of(settings, save_every, device, workers)
    machine.leak_meter = leak_meter
    runs, barred = prepared(settings, suite, machine)
    outcomes = run_slots(settings, runs, machine, slots)
    failed = [str(o.run.folder.path) for o in outcomes if o.code != 0]
    _show(settings, runs, barred)
    assert settings.document is not None
    settings.document["status"] = "done"
    if failed or barred:
        raise SuiteError(
            f"{len(failed) + len(barred)} of {len(runs) + len(barred)} runs failed or could not start",
            fix=f"segbench bench run {suite} tries them again",
            found="\n".join([*failed, *dict.fromkeys(error.what for error in barred)]),
        )
    if not settings.json:
        click.echo("segbench leaderboard   shows the results")


def run_slots(
    settings: Settings, runs: list[Prepared], machine: Machine, slots: int
) -> list[Outcome]:
    """Execute runs in slots, telling how each ended."""
    from segbench.cli.main import run as main
    from segbench.suites.local import ended, run_all

    todo = sum(not ended(r, machine) for r in runs)
    settings.say(
        f"{len(runs)} runs, {len(runs) - todo} already done, {min(slots, max(todo, 1))} at a time"
    )
    done = [0]

    def tell(outcome: Outcome) -> None:
        done[0] += 1
        settings.say(f"[{done[0]}/{todo}] {describe(outcome)}")

    return run_all(runs, machine, slots, tell, main)


def describe(outcome: Outcome) -> str:
    """One line on a run that ended."""
    from segbench.cli.reporter import duration
    from segbench.suites.local import last_words

    e, folder = outcome.run.experiment, outcome.run.folder
    draw = f", draw {e.draw}" if e.draw else ""
    labeled = sum(e.labeled.values())
    what = f"{_row(outcome.run)} on {'+'.join(e.datasets)}, {labeled} labeled{draw}, seed {e.seed}"
    if outcome.code == 0 and (result := folder.result()):
        dice = [m["columns"]["dice"]["mean"] for m in result["metrics"]]
        shown = " ".join("–" if d is None else f"{100 * d:.1f}" for d in dice)
        return f"{safe(what)}: Dice {shown} in {duration(outcome.seconds)}"
    return "\n".join(
        safe(line)
        for line in [
            f"{what}: FAILED (exit {outcome.code})",
            *last_words(Path(folder.path)).splitlines(),
        ]
    )


def default_slots() -> int:
    """One slot a GPU, or a core: small networks gain more from runs beside each other than from threads."""
    import torch

    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)
