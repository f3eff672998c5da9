"""``segbench runs``: list, check, exchange and delete stored runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.exchange import export_run, import_run, pull_model, push_run
from segbench.cli.options import Group
from segbench.cli.settings import Settings
from segbench.cli.terminal import table, wrapped
from segbench.errors import IntegrityError, UsageError
from segbench.results.states import STATES, UNFINISHED
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir

SCHEMA = "segbench.runs/1"


@click.group(cls=Group)
def runs() -> None:
    """List, show, verify, export, import, share and prune runs."""


# -- ls and show -----------------------------------------------------------------------------------


@runs.command()
@click.option("--dataset", metavar="NAME", help="Only this data set.")
@click.option(
    "--state",
    type=click.Choice(STATES),
    help="Only runs in this state.",
)
@click.pass_obj
def ls(settings: Settings, dataset: str | None, state: str | None) -> None:
    """List runs.

    \b
    segbench runs ls --state half-done
    """
    from segbench.results.choose import datasets_called
    from segbench.results.facts import run_facts
    from segbench.results.index import Index
    from segbench.results.rundir import all_runs

    index = Index(settings.root)
    facts = [run_facts(run, index) for run in all_runs(settings.root)]
    index.save()
    known = {name for fact in facts for name in fact["dataset"].split("+")}
    wanted = datasets_called(dataset, known)
    shown = []
    for fact in facts:
        names = set(fact["dataset"].split("+"))
        if (wanted is None or wanted & names) and state in (None, fact["state"]):
            shown.append(fact)
    document = {"schema": SCHEMA, "status": "ok", "runs": shown}
    if shown:
        settings.show(document, [_facts_table(shown)])
    else:
        settings.show(document)
        settings.say(f"no such runs in {settings.root}")


def _facts_table(facts: list[dict[str, Any]]) -> str:
    from segbench.results.export import number

    columns = [
        ("run", "<"),
        ("data set", "<"),
        ("method", "<"),
        ("labeled", ">"),
        ("draw", ">"),
        ("fold", ">"),
        ("seed", ">"),
        ("state", "<"),
        ("Dice %", ">"),
        ("numbers", "<"),
    ]
    keys = ["run_id", "dataset", "row", "labeled", "draw", "fold", "seed", "state"]
    if not any(fact["draw"] for fact in facts):
        keys.remove("draw")
        columns.remove(("draw", ">"))
    if all(fact["fold"] is None for fact in facts):
        keys.remove("fold")
        columns.remove(("fold", ">"))
    rows = []
    for fact in facts:
        cells = ["–" if fact[key] is None else fact[key] for key in keys]
        rows.append([*cells, number(fact["dice"], 1), fact["origin"]])
    return table(columns, rows, drop=("numbers", "Dice %", "labeled"))


@runs.command()
@click.argument("wanted", metavar="RUN")
@click.pass_obj
def show(settings: Settings, wanted: str) -> None:
    """Show the settings of a run, its results, where it ran, and why it failed.

    \b
    segbench runs show 3f9c2a7b
    """
    from segbench.cli.documents import result_lines
    from segbench.results.facts import run_facts
    from segbench.results.names import find_run
    from segbench.results.rundir import read_object

    run = find_run(settings.root, wanted)
    document = {
        "schema": SCHEMA,
        "status": "ok",
        **run_facts(run),
        "experiment": run.config()["experiment"],
        "failed": read_object(run.path / "failed.json") or None,
        "manifest": run.manifest(),
        "result": None,
    }
    if document["state"] == "done":
        document["result"] = run.result()
    if settings.json:
        settings.show(document)
        return
    try:
        summary = _summary(run, document)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the stored configuration is incomplete", where=run.path / "config.yaml", found=error
        ) from error
    lines = []
    for key, value in summary.items():
        if value is not None:
            lines += wrapped(f"{key:<11} {value}", " " * 12)
    if document["result"]:
        for line in result_lines(document["result"]):
            lines += wrapped(line)
    settings.show(document, lines)


def _summary(run: RunDir, document: dict[str, Any]) -> dict[str, Any]:
    """Return what ``show`` prints above the results."""
    experiment = document["experiment"]
    manifest = document["manifest"]
    protocol = f"{experiment['protocol']['name']} {experiment['protocol']['version']}"
    if experiment["modified"]:
        protocol += f" (modified: {', '.join(experiment['modified'])})"
    parameters = [f"{name} {value}" for name, value in experiment["params"].items()]
    machine = [str(manifest[key]) for key in ("device", "torch", "platform") if key in manifest]
    datasets = "+".join(experiment["datasets"])
    cases = f", draw {document['draw']}" if document["draw"] else ""
    if document["fold"] is not None:
        cases += f", fold {document['fold']}"
    failure = document["failed"] or {}
    origin = run.origin or {}
    return {
        "folder": run.path,
        "state": document["state"],
        "numbers": document["origin"],
        "what": f"{document['row']} on {datasets}, {document['labeled']} labeled{cases}, seed "
        f"{experiment['seed']}",
        "protocol": f"{protocol}, {experiment['backbone']}, {experiment['precision']}",
        "parameters": ", ".join(parameters) or "none",
        "machine": ", ".join(machine) or None,
        "seconds": manifest.get("train_seconds"),
        "problem": document.get("problem"),
        "failure": failure.get("what"),
        "unverified": origin.get("why") or None,
    }


# -- tail ------------------------------------------------------------------------------------------


@runs.command()
@click.argument("wanted", metavar="RUN")
@click.option(
    "-n",
    "count",
    metavar="N",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Number of lines.",
)
@click.option("-f", "--follow", is_flag=True, help="Print new lines until the run ends.")
@click.pass_obj
def tail(settings: Settings, wanted: str, count: int, follow: bool) -> None:
    """Show the last lines of a run's log. This works on any machine that can read its folder.

    \b
    segbench runs tail 3f9c2a7b -f
    """
    from segbench.results.names import find_run

    run = find_run(settings.root, wanted)
    entries = run.log()
    document = {"status": "ok", "run_id": run.run_id, "lines": entries[-count:]}
    settings.show(document, map(_log_line, entries[-count:]))
    while follow and not settings.json and run.state not in ("done", "failed"):
        time.sleep(1)
        printed = len(entries)
        entries = run.log()
        settings.echo(map(_log_line, entries[printed:]))


def _log_line(entry: dict[str, Any]) -> str:
    parts = []
    for key, value in entry.items():
        parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    return safe("  ".join(parts))


# -- verify ----------------------------------------------------------------------------------------


@runs.command()
@click.argument("wanted", metavar="RUN")
@click.pass_obj
def verify(settings: Settings, wanted: str) -> None:
    """Check a finished run: digests, means, weights, and the metrics of stored predictions.

    \b
    segbench runs verify 3f9c2a7b
    """
    from segbench.results import bundle
    from segbench.training.stored import finished_run

    run, result = finished_run(settings.root, wanted)
    records = run.cases()
    checks = [f"{len(records)} rows of cases are unchanged and give the means of the result"]
    if _verified_weights(run, result):
        checks.append("weights: those of the result")
    found = bundle.verify(run, settings.data_root)
    if found["verified"]:
        checks.append("predictions: they give the metrics of every case")
    else:
        checks.append(f"predictions: not checked, {found['why']}")
    # An imported run whose predictions were deleted here keeps its status.
    if run.origin is not None and found["verified"]:
        run.write_json("import.json", {**run.origin, **found})
    document = {
        "status": "ok",
        "run_id": run.run_id,
        "dir": str(run.path),
        "checks": checks,
        **found,
    }
    settings.show(document, map(safe, checks))


def _verified_weights(run: RunDir, result: dict[str, Any]) -> bool:
    """Check the digest of stored weights; return False if there are none.

    Raises:
        IntegrityError: they are not the weights of the result.
    """
    from segbench.training import checkpoint

    folder = run.path / "ckpt"
    stored = checkpoint.load(folder) if folder.is_dir() else None
    if stored is None:
        return False
    digest = checkpoint.digest(stored[1]["method"])
    if digest != result["weights_sha256"]:
        raise IntegrityError(
            "the weights are not those of the result",
            where=folder,
            found=digest[:16],
            expected=str(result["weights_sha256"])[:16],
        )
    return True


runs.add_command(export_run)
runs.add_command(import_run)
runs.add_command(push_run)
runs.add_command(pull_model)


# -- prune -----------------------------------------------------------------------------------------


@runs.command()
@click.argument("wanted", metavar="[RUN|METHOD]...", nargs=-1)
@click.option(
    "--weights",
    is_flag=True,
    help="Delete weights and predictions of finished runs, but not their results.",
)
@click.option("--failed", is_flag=True, help="Delete failed runs.")
@click.option("--half-done", is_flag=True, help="Delete interrupted runs.")
@click.pass_obj
def prune(
    settings: Settings, wanted: tuple[str, ...], weights: bool, failed: bool, half_done: bool
) -> None:
    """Free disk space. Without --yes it only shows what would be deleted.

    \b
    segbench runs prune --failed
    segbench runs prune --weights --yes
    """
    from segbench.results.names import find_runs
    from segbench.results.rundir import all_runs

    options = {"done": weights, "failed": failed, **dict.fromkeys(UNFINISHED, half_done)}
    states = {state for state, chosen in options.items() if chosen}
    if not states:
        raise UsageError("say what to delete", expected="--weights, --failed or --half-done")
    selected = [run for name in wanted for run in find_runs(settings.root, name)]
    selected = selected or list(all_runs(settings.root))
    rows = []
    freed = 0
    for run in selected:
        state = run.state
        paths = _deletable(run) if state in states else []
        if not paths:
            continue
        size = sum(_size(path) for path in paths)
        freed += size
        what = "+".join(run.path.parts[-3:-1])
        rows.append([run.run_id, what, state, f"{size / 1e6:.1f}"])
        if settings.yes:
            _delete(run, paths)
    document = {
        "status": "ok",
        "removed": settings.yes,
        "bytes": freed,
        "runs": [row[0] for row in rows],
    }
    settings.show(document, _prune_lines(rows, freed, settings.yes))


def _deletable(run: RunDir) -> list[Path]:
    """Return what may be deleted of a run: everything, or the weights of a finished one."""
    from segbench.results.bundle import PREDICTIONS

    if run.state == "done":
        parts = [run.path / name for name in ("ckpt", "snapshots", PREDICTIONS)]
        return [part for part in parts if part.exists()]
    if (run.path / "result.json").exists():
        return []  # it was finished once and is damaged now: the user must decide
    return [run.path]


def _size(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder; symbolic links do not count."""
    if path.is_symlink():
        return 0
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _delete(run: RunDir, paths: list[Path]) -> None:
    from segbench.storage import lock

    with lock(run.path / "lock"):
        for path in paths:
            if path.is_file() or path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)


def _prune_lines(rows: list[list[str]], freed: int, done: bool) -> Iterator[str]:
    if rows:
        yield table([("run", "<"), ("what", "<"), ("state", "<"), ("MB", ">")], rows)
    outcome = "freed" if done else "would be freed; to do it, add --yes"
    yield f"{freed / 1e6:.1f} MB {outcome}"
