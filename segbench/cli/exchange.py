"""``segbench runs export``, ``import``, ``push`` and ``pull``: runs and weights for others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from segbench.cli.options import DEVICES, Command, MachineOptions
from segbench.cli.settings import Settings
from segbench.cli.terminal import plural
from segbench.errors import IntegrityError, SegbenchError, SuiteError, UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir

MOST_LINES = 5  # of a list in an error


@click.command("export", cls=Command)
@click.argument("wanted", metavar="RUN|SUITE.yaml")
@click.option(
    "-o",
    "out",
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    help="File to write, or an existing folder for it [RUN.zip]; of a suite, the folder [SUITE].",
)
@click.option(
    "--no-predictions",
    is_flag=True,
    help="Leave out the predictions; the numbers cannot be verified then.",
)
@click.option(
    "--weights",
    is_flag=True,
    help="Export the trained network with a model card instead, for: segbench predict FILE.",
)
@click.option("--device", metavar="DEV", help=f"Where to predict: {DEVICES} [auto].")
@click.pass_obj
def export_run(
    settings: Settings,
    wanted: str,
    out: Path | None,
    no_predictions: bool,
    weights: bool,
    device: str | None,
) -> None:
    """Write a finished run to one file with its settings, log, cases and predictions.

    Of a SUITE, all finished runs are written to a folder, one file per run; files that are there
    already are kept.

    The file has no weights, no images and no paths. The predictions are computed from the weights
    and must be those that were scored.

    With --weights the file holds what predicting needs: the trained network (safetensors), its
    settings, how scans are prepared, and a card with license, data, scores and limits. No case is
    named in it.

    \b
    segbench runs export 3f9c2a7b -o versemi.zip
    segbench runs export 3f9c2a7b --weights -o model.zip
    segbench runs export mine.yaml -o bundles
    """
    from segbench.results.names import find_run

    if weights and (no_predictions or device is not None):
        raise UsageError(
            "--weights exports the network, no predictions",
            found="--no-predictions" if no_predictions else "--device",
            fix="leave it out",
        )
    options = ExportOptions(weights, not no_predictions, device)
    if wanted.endswith((".yaml", ".yml")):
        _export_suite(settings, wanted, out, options)
        return
    run = find_run(settings.root, wanted)
    run.cases()  # raises unless it is finished and intact
    file = _free_place(settings, out, options.file_name(run))
    names = _export(settings, run, file, options)
    size = file.stat().st_size
    document = {
        "status": "ok",
        "run_id": run.run_id,
        "file": str(file),
        "bytes": size,
        "files": names,
    }
    settings.show(document, [f"{file}: {size / 1e6:.1f} MB, {', '.join(names)}"])
    if weights:
        settings.say(f"to use it: segbench predict {safe(file)} SCAN -o DIR")


@dataclass(frozen=True)
class ExportOptions:
    """What of a run is exported."""

    weights: bool  # the trained network instead of the results
    predictions: bool
    device: str | None

    def file_name(self, run: RunDir) -> str:
        """Return the usual name of the file."""
        return f"{run.run_id}-weights.zip" if self.weights else f"{run.run_id}.zip"


def _export(settings: Settings, run: RunDir, file: Path, options: ExportOptions) -> list[str]:
    """Write a run to a file, and return the names of what is in it."""
    from segbench.results import bundle

    if options.weights:
        from segbench.training.model_file import write_model

        return write_model(run, file)
    if options.predictions and not (run.path / bundle.PREDICTIONS).is_file():
        _store_predictions(settings, run, options.device)
    return bundle.export(run, file, options.predictions)


def _export_suite(settings: Settings, suite: str, out: Path | None, options: ExportOptions) -> None:
    """Export all finished runs of a suite to a folder.

    Raises:
        UsageError: there is no such suite, or none of its runs is finished.
        SuiteError: some runs could not be exported; the others are.
    """
    from segbench.cli.suite_runs import suite_runs
    from segbench.cli.training import machine_of
    from segbench.storage import make_folder
    from segbench.suites.suite import find_suite

    file = find_suite(suite)
    machine = machine_of(settings, MachineOptions(device=options.device))
    runs, unfinished = suite_runs(settings, file, machine)
    finished = [run for run in runs if run.state == "done"]
    if not finished:
        raise UsageError(
            "no run of the suite is finished",
            where=settings.root,
            found="\n".join(unfinished[:MOST_LINES]) or None,
            fix=f"segbench bench run {suite}",
        )
    folder = out or Path(file.stem)
    make_folder(folder)
    written: list[Path] = []
    kept: list[Path] = []
    problems: list[str] = []
    for run in finished:
        target = folder / options.file_name(run)
        if target.exists() and not settings.yes:
            kept.append(target)
            continue
        try:
            _export(settings, run, target, options)
        except SegbenchError as error:
            problems.append(f"{run.short_path}: {error.what}")
            continue
        written.append(target)
        settings.echo([f"{safe(target)}: {safe(run.short_path)}"])
    document = {
        "status": "ok",
        "dir": str(folder),
        "files": [str(target) for target in written],
        "kept": [str(target) for target in kept],
        "unfinished": unfinished,
    }
    there = f", {len(kept)} there already (--yes replaces them)" if kept else ""
    lines = [f"{safe(folder)}: {plural(len(written), 'run')} exported{there}"]
    lines += [f"not finished: {safe(line)}" for line in unfinished]
    settings.show(document, lines)
    if problems:
        raise SuiteError(
            f"{len(problems)} of {plural(len(finished), 'run')} could not be exported",
            where=folder,
            found="\n".join(problems[:MOST_LINES]),
            fix="segbench runs export RUN says more about one of them",
        )


def _free_place(settings: Settings, out: Path | None, name: str) -> Path:
    """Return the file to write, in a folder that exists.

    Args:
        out: a file, or an existing folder for a file called ``name``.

    Raises:
        UsageError: there is such a file already, and --yes was not given.
    """
    from segbench.storage import make_folder

    file = out or Path(name)
    if file.is_dir():
        file = file / name
    make_folder(file.parent)
    if file.exists() and not settings.yes:
        raise UsageError(
            "the file exists already",
            where=file,
            fix="choose another name with -o, or replace the file with --yes",
        )
    return file


def _store_predictions(settings: Settings, run: RunDir, device: str | None) -> None:
    """Predict the test cases of a run from its weights, and store the predictions.

    Raises:
        IntegrityError: they are not the predictions that were scored.
    """
    from segbench.cli.reporter import reporting
    from segbench.cli.training import machine_of
    from segbench.results import bundle, predictions
    from segbench.storage import atomic_write
    from segbench.training.reload import reevaluate
    from segbench.training.stored import finished_run, restore

    _, result = finished_run(settings.root, str(run.path))
    machine = machine_of(settings, MachineOptions(device=device))
    restored = restore(run, machine)

    with reporting(settings) as reporter:

        def write(file: IO[bytes]) -> None:
            with predictions.writer(file) as keep:
                _, digest, _ = reevaluate(restored, result, machine, reporter.evaluate, keep)
            if digest != result["cases_sha256"]:
                raise IntegrityError(
                    "on this machine the weights do not reproduce the stored results",
                    where=run.path,
                    fix="export on the machine it was trained on, or use --no-predictions",
                )

        atomic_write(run.path / bundle.PREDICTIONS, write)


@click.command("import", cls=Command)
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.pass_obj
def import_run(settings: Settings, files: tuple[Path, ...]) -> None:
    """Import runs that others exported.

    Metrics are recomputed from the predictions. If they agree, the run counts as verified,
    otherwise as reported. Of several files, one that cannot be imported does not stop the others.

    \b
    segbench runs import versemi.zip
    segbench runs import bundles/*.zip
    """
    documents: list[dict[str, Any]] = []
    failures: list[SegbenchError] = []
    refused: list[str] = []
    for file in files:
        try:
            document = _imported(settings, file, is_one_of_many=len(files) > 1)
        except SegbenchError as error:
            if len(files) == 1:
                raise
            failures.append(error)
            refused.append(f"{file}: {error.what}")
            settings.echo([f"{safe(file)}: refused, {safe(error.what)}"])
            continue
        documents.append(document)
        settings.echo([_import_line(document)])
    lines = [_summary(documents, failures)] if len(files) > 1 else []
    settings.show({"status": "ok", "runs": documents}, lines)
    if failures:
        damaged = [error for error in failures if isinstance(error, IntegrityError)]
        kind = IntegrityError if damaged else UsageError
        raise kind(
            f"{len(failures)} of {len(files)} files cannot be imported",
            found="\n".join(refused[:MOST_LINES]),
            expected="files written by: segbench runs export",
            fix="segbench runs import FILE says more about one of them; the others are imported",
        )


def _imported(settings: Settings, file: Path, is_one_of_many: bool) -> dict[str, Any]:
    """Import a bundle, and return what became of it.

    Raises:
        SegbenchError: it cannot be imported; or the run is there already, and it is the only one.
    """
    from segbench.results import bundle

    try:
        run, origin = bundle.take_in(file, settings.root, settings.data_root)
    except bundle.AlreadyImported as error:
        if not is_one_of_many:
            raise
        return {"file": str(file), "dir": str(error.details["where"]), "new": False}
    return {
        "file": str(file),
        "run_id": run.run_id,
        "dir": str(run.path),
        "new": True,
        "verified": origin["verified"],
        "why": origin["why"],
    }


def _import_line(document: dict[str, Any]) -> str:
    if not document["new"]:
        return f"{safe(document['file'])}: there already"
    status = "verified" if document["verified"] else f"reported ({safe(document['why'])})"
    return f"{safe(document['dir'])}: {status}"


def _summary(documents: list[dict[str, Any]], failures: list[SegbenchError]) -> str:
    """Return how many runs were imported, in words."""
    new = [document for document in documents if document["new"]]
    verified = sum(document["verified"] for document in new)
    counts = [
        (verified, "verified"),
        (len(new) - verified, "reported"),
        (len(documents) - len(new), "there already"),
        (len(failures), "refused"),
    ]
    return ", ".join(f"{count} {word}" for count, word in counts if count)


@click.command("push", cls=Command)
@click.argument("wanted", metavar="RUN")
@click.argument("address", metavar="hub:OWNER/NAME")
@click.option("--public", is_flag=True, help="Let everyone read a repository that is created now.")
@click.pass_obj
def push_run(settings: Settings, wanted: str, address: str, public: bool) -> None:
    """Write the weights of a finished run, with their model card, to a repository of a hub.

    A repository that does not exist is created, and only you can read it unless --public is given.
    This needs: pip install "segbench[hub]". HF_TOKEN says who you are.

    \b
    segbench runs push 3f9c2a7b hub:OWNER/NAME
    """
    from segbench.api.hub import push
    from segbench.results.names import find_run

    run = find_run(settings.root, wanted)
    commit = push(run, address, public)
    document = {"status": "ok", "run_id": run.run_id, "address": address, "commit": commit}
    settings.show(document, [f"{safe(address)}: commit {safe(commit)}"])
    settings.say(f"to use it: segbench predict {safe(address)} SCAN -o DIR")


@click.command("pull", cls=Command)
@click.argument("address", metavar="hub:OWNER/NAME[@REVISION]")
@click.option(
    "-o",
    "out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files [NAME].",
)
@click.pass_obj
def pull_model(settings: Settings, address: str, out: Path | None) -> None:
    """Read a model from a hub into a folder, and compare its digests.

    "segbench predict" takes the address itself, too. This needs: pip install "segbench[hub]".

    \b
    segbench runs pull hub:OWNER/NAME -o model
    """
    from segbench.api.hub import parse, pull

    folder = out or Path(parse(address).name.rpartition("/")[2])
    if folder.exists() and any(folder.iterdir()) and not settings.yes:
        raise UsageError(
            "the folder holds files already",
            where=folder,
            fix="choose another one with -o, or replace the files with --yes",
        )
    pull(address, folder)
    document = {"status": "ok", "address": address, "dir": str(folder)}
    settings.show(document, [f"{safe(address)}: {safe(folder)}"])
    settings.say(f"to use it: segbench predict {safe(folder)} SCAN -o DIR")
