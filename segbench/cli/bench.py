"""``segbench bench``: plan, run and watch suites."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import (
    Group,
    MachineOptions,
    bundled,
    leak_option,
    machine_options,
    override_option,
)
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import Interrupted, SegbenchError, StorageError, SuiteError

if TYPE_CHECKING:
    from segbench.training.setup import Prepared

suite_overrides = override_option("Set a key of the protocol for all runs, such as augment=strong.")
MOST_MARKS = 6  # in one cell of the table
MOST_LINES = 8  # on runs of one state
MARKS = {
    "done": "ok",
    "running": ">",
    "queued": "q",
    "half-done": "half",
    "stopped": "stop",
    "lost": "lost",
    "failed": "FAIL",
    "to do": ".",
}


@click.group(cls=Group)
def bench() -> None:
    """Plan and run suites of experiments."""


@bench.command()
@click.argument("suite", metavar="SUITE")
@suite_overrides
@click.pass_obj
def plan(settings: Settings, suite: str, overrides: tuple[str, ...]) -> None:
    """Show what `bench run SUITE` would do.

    \b
    segbench bench plan benchmarks/phantom.yaml
    """
    _show_states(settings, suite, overrides)


@bench.command()
@click.argument("suite", metavar="SUITE")
@suite_overrides
@click.pass_obj
def status(settings: Settings, suite: str, overrides: tuple[str, ...]) -> None:
    """Show how many runs of a suite are done.

    \b
    segbench bench status benchmarks/phantom.yaml
    """
    _show_states(settings, suite, overrides)


def _show_states(settings: Settings, suite: str, overrides: tuple[str, ...]) -> None:
    from segbench.cli.suites import prepared_suite
    from segbench.cli.training import machine_of

    machine = machine_of(settings, MachineOptions(device="cpu"))
    runs, problems = prepared_suite(settings, suite, machine, overrides)
    _show(settings, runs, problems, "ok")


@bench.command("run")
@click.argument("suite", metavar="SUITE")
@click.option(
    "-j",
    "slots",
    metavar="N",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Number of runs at once.",
)
@suite_overrides
@machine_options
@leak_option
@click.pass_obj
def run_suite(
    settings: Settings,
    suite: str,
    slots: int,
    overrides: tuple[str, ...],
    machine_options: MachineOptions,
    leak_meter: bool,
) -> None:
    """Execute a suite.

    Finished runs are skipped and half-done ones are resumed. A run that fails does not stop the
    others (exit code 5).

    \b
    segbench bench run benchmarks/la-mini.yaml -j 2
    segbench bench run benchmarks/quick.yaml -o augment=strong
    """
    from segbench.cli.suites import prepared_suite, run_in_slots
    from segbench.cli.training import machine_of
    from segbench.results.attempts import WARNED

    machine = machine_of(settings, machine_options, leak_meter)
    runs, problems = prepared_suite(settings, suite, machine, overrides)
    outcomes = run_in_slots(settings, runs, machine, slots)
    failed = [str(end.run.folder.path) for end in outcomes if end.kind in ("failed", "killed")]
    _show(settings, runs, problems, "done")
    changes = [f"-o {shlex.quote(text)}" for text in overrides]
    command = " ".join(["segbench bench run", shlex.quote(suite), *changes])
    if any(outcome.code == StorageError.code for outcome in outcomes):
        raise StorageError(
            "the disk is full or cannot be written: no more runs were started",
            where=settings.root,
            found="\n".join(failed),
            fix=f"free some space, then continue: {command}",
        )
    if failed or problems:
        reasons = dict.fromkeys(problem.what for problem in problems)
        raise SuiteError(
            f"{len(failed) + len(problems)} of {len(runs) + len(problems)} runs failed "
            "or could not start",
            found="\n".join([*failed, *reasons]),
            fix=f"to try them again: {command}",
        )
    if any(outcome.kind == "stopped" for outcome in outcomes):
        message = "some runs were stopped and have saved their state"
        raise Interrupted(message, WARNED, f"to continue: {command}")
    settings.echo(["to see the results: segbench leaderboard"])


SUBMITTED = ("to do", "half-done", "stopped", "lost")  # states of runs that are handed over


@dataclass(frozen=True)
class SubmitOptions:
    """Which runs ``bench submit`` hands over, and to whom."""

    engine: str = "slurm"
    cluster: Path | None = None
    limit: int | None = None
    retry: bool = False
    dry_run: bool = False


SUBMIT_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "slurm", "ray", "print"]),
        default="slurm",
        show_default=True,
        help="A background process of this machine, job arrays of SLURM, actors of a Ray cluster, "
        "or one command per line.",
    ),
    click.option(
        "--cluster",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Resources and options of the jobs, as YAML.",
    ),
    click.option("--limit", metavar="N", type=click.IntRange(1), help="At most this many runs."),
    click.option("--retry", is_flag=True, help="Also submit failed runs."),
    click.option("--dry-run", is_flag=True, help="Print the batch files, and submit nothing."),
)


def submit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of ``bench submit``; the command gets them as ``options``."""
    return bundled(command, "options", SubmitOptions, SUBMIT_OPTIONS)


@bench.command()
@click.argument("suite", metavar="SUITE")
@suite_overrides
@submit_options
@machine_options
@leak_option
@click.pass_obj
def submit(
    settings: Settings,
    suite: str,
    overrides: tuple[str, ...],
    options: SubmitOptions,
    machine_options: MachineOptions,
    leak_meter: bool,
) -> None:
    """Hand the runs of a suite to a cluster or to a background process, and return.

    It can be repeated: runs that are done, running or queued are left out. `local` works as `bench
    run` does, after the terminal is closed. `ray` joins the cluster that RAY_ADDRESS names. `print`
    writes one command per line, for GNU parallel, PBS and others.

    \b
    segbench bench submit benchmarks/la.yaml --cluster gpu.yaml --device cuda
    segbench bench submit benchmarks/la.yaml --engine print | parallel -j 2
    """
    from segbench.cli.suites import make_derived_stores, prepared_suite, run_in_slots
    from segbench.cli.training import machine_of
    from segbench.results.states import state_of
    from segbench.suites.choose import engine_called, known_jobs
    from segbench.suites.engines import load_cluster, store_configuration
    from segbench.suites.suite import find_suite

    cluster = load_cluster(options.cluster)
    here = options.engine == "local"
    machine = machine_of(settings, machine_options, leak_meter, here=here)
    runs, problems = prepared_suite(settings, suite, machine, overrides)
    folder = settings.root / "jobs" / find_suite(suite).stem

    def work(taken: Sequence[Prepared], slots: int) -> None:
        try:
            run_in_slots(settings, list(taken), machine, slots)
        except SegbenchError as error:  # the suite was stopped, or the disk is full
            settings.say(str(error))

    chosen = engine_called(options.engine, cluster, machine, folder, work)
    wanted = (*SUBMITTED, "failed") if options.retry else SUBMITTED
    known = known_jobs()
    taken = [run for run in runs if state_of(run.folder.path, known) in wanted]
    taken = taken[: options.limit]
    if taken and not options.dry_run:
        make_derived_stores(taken)
        store_configuration(taken)
    submission = chosen.submit(taken, options.dry_run)
    document = {
        "status": "planned" if options.dry_run else "ok",
        "submitted": len(submission.jobs),
        "jobs": submission.jobs,
        "texts": submission.texts,
        "cannot_start": [problem.to_dict() for problem in problems],
    }
    shows_texts = options.engine == "print" or options.dry_run
    settings.show(document, submission.texts if shows_texts else [])
    done = "printed" if shows_texts else "submitted"
    settings.say(f"{len(taken)} of {len(runs)} runs {done}")


@bench.command()
@click.argument("suite", metavar="SUITE")
@suite_overrides
@click.pass_obj
def cancel(settings: Settings, suite: str, overrides: tuple[str, ...]) -> None:
    """End the jobs of a suite that wait or run. Running ones save first.

    \b
    segbench bench cancel benchmarks/la.yaml
    """
    from segbench.cli.suites import prepared_suite
    from segbench.cli.training import machine_of
    from segbench.results.states import JOB, job_of
    from segbench.suites.choose import engine_called, known_jobs
    from segbench.suites.engines import load_cluster

    machine = machine_of(settings, MachineOptions(device="cpu"))
    runs, _ = prepared_suite(settings, suite, machine, overrides)
    known = known_jobs()
    canceled: dict[str, list[str]] = {}
    folders = []
    for run in runs:
        job = job_of(run.folder.path)
        if job.id and job.id in known(job.engine):
            canceled.setdefault(job.engine, []).append(job.id)
            folders.append(run.folder.path)
    for name, jobs in canceled.items():
        engine_called(name, load_cluster(None), machine, settings.root).cancel(jobs)
    for folder in folders:  # without a job, one that was waiting is to do and not lost
        (folder / JOB).unlink(missing_ok=True)
    all_jobs = [job for jobs in canceled.values() for job in jobs]
    settings.show({"status": "ok", "jobs": all_jobs}, [f"{len(all_jobs)} jobs canceled"])


def _show(
    settings: Settings, runs: list[Prepared], problems: list[SegbenchError], status: str
) -> None:
    from segbench.results.states import state_of
    from segbench.suites.choose import known_jobs
    from segbench.suites.estimate import remaining_seconds

    known = known_jobs()
    states = {run.run_id: state_of(run.folder.path, known) for run in runs}
    state_counts = Counter(states.values())
    counts = {state: state_counts[state] for state in MARKS}
    finished = [run for run in runs if states[run.run_id] == "done"]
    unfinished = [run for run in runs if states[run.run_id] != "done"]
    seconds = remaining_seconds(finished, unfinished)
    documents = []
    for run in runs:
        state = states[run.run_id]
        place = {"run_id": run.run_id, "dir": str(run.folder.path), "state": state}
        documents.append({**place, **_details(run, state)})
    settings.show(
        {
            "status": status,
            "counts": counts,
            "remaining_seconds": seconds,
            "cannot_start": [problem.to_dict() for problem in problems],
            "runs": documents,
        },
        _state_lines(runs, states, counts, seconds),
    )


def _details(run: Prepared, state: str) -> dict[str, Any]:
    """Return where a run is at work, which job it waits for, or why it failed."""
    from segbench.results.attempts import read_lease
    from segbench.results.rundir import read_object
    from segbench.results.states import job_of

    if state == "running":
        lease = read_lease(run.folder.path)
        return {} if lease is None else {"lease": asdict(lease)}
    if state in ("queued", "lost"):
        return {"job": job_of(run.folder.path).id}
    if state == "failed":
        failure = read_object(run.folder.path / "failed.json")
        return {"tries": failure.get("tries"), "why": failure.get("what")}
    return {}


def _state_lines(
    runs: list[Prepared],
    states: dict[str, str],
    counts: dict[str, int],
    remaining: float | None,
) -> Iterator[str]:
    """Return the number of runs in each state, and a table of methods against settings."""
    from segbench.results.names import label_of_experiment

    parts = [f"{count} {state}" for state, count in counts.items() if count]
    yield f"{len(runs)} runs: {', '.join(parts)}"
    if remaining:
        minutes = max(1, round(remaining / 60))
        yield f"about {minutes} minutes of one CPU core or GPU are left"

    cells: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        cells.setdefault((label_of_experiment(run.experiment), _column(run)), []).append(
            states[run.run_id]
        )
    names = list(dict.fromkeys(name for name, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = []
    for name in names:
        texts = [_cell(cells.get((name, column), [])) for column in columns]
        rows.append([name, *texts])
    yield table([("method", "<"), *((column, "<") for column in columns)], rows)
    yield from _lines_of_runs(runs, states)
    shown = [f"{MARKS[state]} {state}" for state in MARKS if state in states.values()]
    if any(len(own) <= MOST_MARKS for own in cells.values()):
        yield f"one mark per run: {', '.join(shown)}"


def _lines_of_runs(runs: list[Prepared], states: dict[str, str]) -> Iterator[str]:
    """Say of some running runs where and how far they are, and of failed ones why."""
    from segbench.cli.suite_view import reached, run_name

    counts: Counter[str] = Counter()
    for run in runs:
        state = states[run.run_id]
        if state not in ("running", "failed") or counts[state] >= MOST_LINES:
            continue
        counts[state] += 1
        found = _details(run, state)
        name = run_name(run.experiment)
        if state == "failed":
            yield f"failed: {name}: {found['why']}"
        elif found:
            lease = found["lease"]
            step, left = reached(run.folder.path)
            job = f", job {lease['job']}" if lease["job"] else ""
            rest = f", {left} left" if left else ""
            yield f"running: {name}: {step}{rest} (host {lease['host']}{job})"


def _column(run: Prepared) -> str:
    """Return what runs of one column have in common."""
    from segbench.cli.suites import augment_mark

    experiment = run.experiment
    labeled = ",".join(map(str, dict.fromkeys(experiment.labeled.values())))
    text = f"{'+'.join(experiment.datasets)} {labeled} {experiment.backbone}"
    return text + augment_mark(experiment)


def _cell(states: list[str]) -> str:
    """Return one mark per run, or counts if there are many runs."""
    if len(states) <= MOST_MARKS:
        return " ".join(MARKS[state] for state in states)
    counts = Counter(states)
    parts = [f"{counts['done']} of {len(states)} done"]
    for state in ("running", "queued", "half-done", "stopped", "lost", "failed"):
        if counts[state]:
            parts.append(f"{counts[state]} {state}")
    return ", ".join(parts)
