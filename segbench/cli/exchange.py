"""``segbench runs export`` and ``import``: runs and weights as files."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from segbench.cli.options import DEVICES, Command, MachineOptions
from segbench.cli.settings import Settings
from segbench.errors import IntegrityError, UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.results.rundir import RunDir


@click.command("export", cls=Command)
@click.argument("wanted", metavar="RUN")
@click.option(
    "-o",
    "out",
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    help="File to write, or an existing folder for it [RUN.zip].",
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

    The file has no weights, no images and no paths. The predictions are computed from the weights
    and must be those that were scored.

    With --weights the file holds what predicting needs: the trained network (safetensors), its
    settings, how scans are prepared, and a card with license, data, scores and limits. No case is
    named in it.

    \b
    segbench runs export 3f9c2a7b -o versemi.zip
    segbench runs export 3f9c2a7b --weights -o model.zip
    """
    from segbench.results.names import find_run

    run = find_run(settings.root, wanted)
    run.cases()  # raises unless it is finished and intact
    if weights and (no_predictions or device is not None):
        raise UsageError(
            "--weights exports the network, no predictions",
            found="--no-predictions" if no_predictions else "--device",
            fix="leave it out",
        )
    name = f"{run.run_id}-weights.zip" if weights else f"{run.run_id}.zip"
    file = _free_place(settings, out, name)
    if weights:
        from segbench.training.model_file import write_model

        names = write_model(run, file)
    else:
        names = _export_bundle(settings, run, file, no_predictions, device)
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


def _export_bundle(
    settings: Settings, run: RunDir, file: Path, no_predictions: bool, device: str | None
) -> list[str]:
    """Write a run with its predictions to a file, and return the names of what is in it."""
    from segbench.results import bundle

    if not no_predictions and not (run.path / bundle.PREDICTIONS).is_file():
        _store_predictions(settings, run, device)
    return bundle.export(run, file, not no_predictions)


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
    otherwise as reported.

    \b
    segbench runs import versemi.zip
    """
    from segbench.results import bundle

    documents = []
    for file in files:
        run, origin = bundle.take_in(file, settings.root, settings.data_root)
        verified = origin["verified"]
        documents.append(
            {
                "run_id": run.run_id,
                "dir": str(run.path),
                "verified": verified,
                "why": origin["why"],
            }
        )
        status = "verified" if verified else f"reported ({safe(origin['why'])})"
        settings.echo([f"{safe(run.path)}: {status}"])
    settings.show({"status": "ok", "runs": documents})
