"""``segbench runs``: what has been run, and how it is handed on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Group, Settings, safe, table
from segbench.errors import IntegrityError, UsageError
from segbench.text import safe as inert

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir


@click.group(cls=Group)
def runs() -> None:
    """List, show, verify, hand on, take in and tidy up runs."""


def _facts(run: RunDir) -> dict[str, Any]:
    """What a list tells of a run; unreadable parts are None."""
    facts: dict[str, Any] = {
        "run_id": run.run_id,
        "dir": str(run.path),
        "state": run.state,
        "dataset": run.path.parts[-3],
        "method": run.path.parts[-2],
        "labeled": None,
        "seed": None,
        "dice": None,
        "origin": "own",
    }
    try:
        experiment = run.config()["experiment"]
        facts |= {"labeled": sum(experiment["labeled"].values()), "seed": experiment["seed"]}
        result = run.result()
        dice = [m["columns"]["dice"]["mean"] for m in (result or {"metrics": []})["metrics"]]
        facts["dice"] = 100 * sum(dice) / len(dice) if dice and None not in dice else None
    except (IntegrityError, UsageError, KeyError, TypeError, AttributeError) as error:
        facts["state"], facts["problem"] = "failed", str(error).splitlines()[0]
    if run.origin is not None:
        facts["origin"] = "reported" if run.reported else "verified"
    return facts


@runs.command()
@click.option("--dataset", metavar="NAME", help="Only this data set.")
@click.option(
    "--state", type=click.Choice(["done", "half-done", "failed", "to do"]), help="Only these."
)
@click.pass_obj
def ls(settings: Settings, dataset: str | None, state: str | None) -> None:
    """List runs.

    \b
    segbench runs ls --state half-done
    """
    from segbench.cli.leaderboard import members
    from segbench.results.export import number
    from segbench.results.rundir import all_runs

    facts = [_facts(run) for run in all_runs(settings.root)]
    wanted = members(dataset, (name for f in facts for name in f["dataset"].split("+")))
    found = [
        f
        for f in facts
        if (wanted is None or wanted & {*f["dataset"].split("+")}) and state in (None, f["state"])
    ]
    settings.document = {"schema": "segbench.runs/1", "status": "ok", "runs": found}
    if settings.json:
        return
    if not found:
        settings.say(f"no such runs in {settings.root}")
        return
    columns = [
        ("run", "<"),
        ("data set", "<"),
        ("method", "<"),
        ("labeled", ">"),
        ("seed", ">"),
        ("state", "<"),
        ("Dice %", ">"),
        ("numbers", "<"),
    ]
    click.echo(
        table(
            columns,
            [
                [
                    f["run_id"],
                    f["dataset"],
                    f["method"],
                    f["labeled"],
                    f["seed"],
                    f["state"],
                    number(f["dice"], 1),
                    f["origin"],
                ]
                for f in found
            ],
            drop=("numbers", "labeled", "seed", "data set"),
        )
    )


@runs.command()
@click.argument("wanted", metavar="RUN")
@click.pass_obj
def show(settings: Settings, wanted: str) -> None:
    """Show a run: what it was, what it gave, where it ran, why it failed."""
    from segbench.cli.run import lines
    from segbench.results.rundir import find_run, read_object

    run = find_run(settings.root, wanted)
    facts, experiment, manifest = _facts(run), run.config()["experiment"], run.manifest()
    failed = read_object(run.path / "failed.json")
    settings.document = {
        "schema": "segbench.runs/1",
        "status": "ok",
        **facts,
        "experiment": experiment,
        "failed": failed or None,
        "manifest": manifest,
        "result": run.result() if facts["state"] == "done" else None,
    }
    if settings.json:
        return
    try:
        told = _told(run, facts, experiment, manifest, failed)
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the stored configuration is incomplete", where=run.path / "config.yaml", found=error
        ) from error
    for key, value in told.items():
        if value is not None:
            click.echo(f"{key:<11} {safe(value)}")
    if settings.document["result"]:
        for line in lines(settings.document["result"]):
            click.echo(line)


def _told(
    run: RunDir,
    facts: dict[str, Any],
    experiment: dict[str, Any],
    manifest: dict[str, Any],
    failed: dict[str, Any],
) -> dict[str, Any]:
    """What ``show`` tells of a run before its results."""
    protocol = experiment["protocol"]
    modified = f" (modified: {', '.join(experiment['modified'])})" if experiment["modified"] else ""
    return {
        "folder": run.path,
        "state": facts["state"],
        "numbers": facts["origin"],
        "what": f"{experiment['method']} on {'+'.join(experiment['datasets'])}, {facts['labeled']} labeled, "
        f"seed {experiment['seed']}",
        "protocol": f"{protocol['name']} {protocol['version']}{modified}, {experiment['backbone']}, "
        f"{experiment['precision']}",
        "parameters": ", ".join(f"{k} {v}" for k, v in experiment["params"].items()) or "none",
        "machine": ", ".join(
            str(manifest[k]) for k in ("device", "torch", "platform") if k in manifest
        )
        or None,
        "seconds": manifest.get("train_seconds"),
        "problem": facts.get("problem"),
        "failure": failed.get("what"),
        "why not": (run.origin or {}).get("why") or None,
    }


@runs.command()
@click.argument("wanted", metavar="RUN")
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True, help="Lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.pass_obj
def tail(settings: Settings, wanted: str, count: int, follow: bool) -> None:
    """Show the last lines of a run's log, from any machine that sees its folder."""
    from segbench.results.rundir import find_run

    run = find_run(settings.root, wanted)
    entries = _log(run)
    settings.document = {"status": "ok", "run_id": run.run_id, "lines": entries[-count:]}
    if settings.json:
        return
    for entry in entries[-count:]:
        click.echo(_line(entry))
    while follow and run.state not in ("done", "failed"):
        time.sleep(1)
        fresh = _log(run)
        for entry in fresh[len(entries) :]:
            click.echo(_line(entry))
        entries = fresh


def _log(run: RunDir) -> list[dict[str, Any]]:
    try:
        lines = (run.path / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # the last line may be torn
            continue
        entries += [entry] if isinstance(entry, dict) else []
    return entries


def _line(entry: dict[str, Any]) -> str:
    return inert(
        "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items())
    )


@runs.command()
@click.argument("wanted", metavar="RUN")
@click.pass_obj
def verify(settings: Settings, wanted: str) -> None:
    """Check a finished run: digests, means, weights, and the metrics of the predictions where they are stored."""
    from segbench.results import bundle
    from segbench.results.rundir import find_run
    from segbench.training import checkpoint

    run = find_run(settings.root, wanted)
    records = run.cases()
    result = run.result()
    assert result is not None
    checks = [f"{len(records)} rows of cases: as written, and their means are those of the result"]
    stored = checkpoint.load(run.path / "ckpt") if (run.path / "ckpt").is_dir() else None
    if stored is not None:
        weights = checkpoint.digest(stored[1]["method"])
        if weights != result["weights_sha256"]:
            raise IntegrityError(
                "the weights are not those of the result",
                where=run.path / "ckpt",
                found=weights[:16],
                expected=str(result["weights_sha256"])[:16],
            )
        checks.append("weights: those of the result")
    found = bundle.verify(run, settings.data_root)
    checks.append(
        "predictions: they give the metrics of every case"
        if found["verified"]
        else f"predictions: not checked, {found['why']}"
    )
    if (
        run.origin is not None and found["verified"]
    ):  # without predictions now, it stays what it was
        run.write_json("import.json", {**run.origin, **found})
    for line in checks:
        if not settings.json:
            click.echo(safe(line))
    settings.document = {
        "status": "ok",
        "run_id": run.run_id,
        "dir": str(run.path),
        "checks": checks,
        **found,
    }


@runs.command("export")
@click.argument("wanted", metavar="RUN")
@click.option(
    "-o", "out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="[RUN.zip]"
)
@click.option(
    "--no-predictions",
    is_flag=True,
    help="Leave the predictions out; nobody can verify the numbers then.",
)
@click.option(
    "--device", metavar="DEV", help="Where to predict: auto, cpu, cuda, cuda:N or mps [auto]."
)
@click.pass_obj
def export_run(
    settings: Settings, wanted: str, out: Path | None, no_predictions: bool, device: str | None
) -> None:
    """Write a finished run to one file: settings, log, cases, predictions. No weights, no images, no paths.

    The predictions are made from the run's weights, and must be those that were scored.

    \b
    segbench runs export 3f9c2a7b -o versemi.zip
    """
    from segbench.results import bundle
    from segbench.results.rundir import find_run
    from segbench.storage import make_folder

    run = find_run(settings.root, wanted)
    run.cases()
    out = out or Path(f"{run.run_id}.zip")
    make_folder(out.parent)
    if out.exists() and not settings.yes:
        raise UsageError(
            "the file exists already", where=out, fix="another name (-o), or --yes to replace it"
        )
    if not no_predictions and not (run.path / bundle.PREDICTIONS).is_file():
        _predict(settings, run, device)
    names = bundle.export(run, out, not no_predictions)
    settings.document = {
        "status": "ok",
        "run_id": run.run_id,
        "file": str(out),
        "bytes": out.stat().st_size,
        "files": names,
    }
    if not settings.json:
        click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {', '.join(names)}")


def _predict(settings: Settings, run: RunDir, device: str | None) -> None:
    """Store the predictions of a run, made anew from its weights."""
    from segbench.cli.reporter import reporter
    from segbench.cli.run import machine_of, restore
    from segbench.results import bundle, predictions
    from segbench.storage import atomic_write
    from segbench.training.reload import reevaluate

    machine, show = machine_of(settings, None, device, None), reporter(settings)
    stored = run.result()
    assert stored is not None

    def write(file: Any) -> None:
        with predictions.writer(file) as keep:
            digest = reevaluate(restore(run, machine), stored, machine, show.evaluate, keep)[1]
        if digest != stored["cases_sha256"]:
            raise IntegrityError(
                "on this machine the weights do not give the stored results",
                where=run.path,
                fix="export where it was trained, or --no-predictions",
            )

    try:
        atomic_write(run.path / bundle.PREDICTIONS, write)
    finally:
        show.stop()


@runs.command("import")
@click.argument(
    "bundles", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.pass_obj
def import_run(settings: Settings, bundles: tuple[Path, ...]) -> None:
    """Take in runs of others. Metrics are computed again from the predictions: verified; else they count as reported.

    \b
    segbench runs import versemi.zip
    """
    from segbench.results import bundle

    taken = []
    for path in bundles:
        run, origin = bundle.take_in(path, settings.root, settings.data_root)
        taken.append(
            {
                "run_id": run.run_id,
                "dir": str(run.path),
                "verified": origin["verified"],
                "why": origin["why"],
            }
        )
        if not settings.json:
            click.echo(
                f"{safe(run.path)}: "
                + ("verified" if origin["verified"] else f"reported ({safe(origin['why'])})")
            )
    settings.document = {"status": "ok", "runs": taken}


@runs.command()
@click.argument("wanted", metavar="[RUN]...", nargs=-1)
@click.option(
    "--weights", is_flag=True, help="Weights and predictions of finished runs; their results stay."
)
@click.option("--failed", is_flag=True, help="Failed runs.")
@click.option("--half-done", is_flag=True, help="Runs that were stopped.")
@click.pass_obj
def prune(
    settings: Settings, wanted: tuple[str, ...], weights: bool, failed: bool, half_done: bool
) -> None:
    """Free disk space. Without --yes it only says what would go.

    \b
    segbench runs prune --failed
    segbench runs prune --weights --yes
    """
    from segbench.results.bundle import PREDICTIONS
    from segbench.results.rundir import all_runs, find_run
    from segbench.storage import lock

    states = {"done": weights, "failed": failed, "half-done": half_done}
    if not any(states.values()):
        raise UsageError("say what may go", expected="--weights, --failed, --half-done")
    rows, freed = [], 0
    for run in (
        [find_run(settings.root, w) for w in wanted] if wanted else list(all_runs(settings.root))
    ):
        state = run.state
        damaged = (
            state != "done" and (run.path / "result.json").exists()
        )  # it was finished once: not for us to remove
        parts = (
            []
            if damaged or not states.get(state)
            else [run.path]
            if state != "done"
            else [
                p
                for p in (run.path / "ckpt", run.path / "snapshots", run.path / PREDICTIONS)
                if p.exists()
            ]
        )
        size = sum(
            f.stat().st_size
            for p in parts
            if not p.is_symlink()
            for f in ([p] if p.is_file() else p.rglob("*"))
            if f.is_file()
        )
        if not parts:
            continue
        rows.append([run.run_id, "+".join(run.path.parts[-3:-1]), state, f"{size / 1e6:.1f}"])
        freed += size
        if settings.yes:
            with lock(run.path / "lock"):
                for part in parts:
                    part.unlink() if part.is_file() or part.is_symlink() else shutil.rmtree(part)
    settings.document = {
        "status": "ok",
        "removed": settings.yes,
        "bytes": freed,
        "runs": [r[0] for r in rows],
    }
    if not settings.json:
        if rows:
            click.echo(table([("run", "<"), ("what", "<"), ("state", "<"), ("MB", ">")], rows))
        click.echo(
            f"{freed / 1e6:.1f} MB "
            + ("freed" if settings.yes else "would be freed; --yes does it")
        )
