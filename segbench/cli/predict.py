"""``segbench predict``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import (
    Command,
    MachineOptions,
    bundled,
    device_option,
    mismatch_option,
    size_option,
)
from segbench.cli.settings import Settings
from segbench.errors import DataError, UsageError, failures_of_plugin
from segbench.text import first_few, safe

if TYPE_CHECKING:
    from segbench.data.store.problem import Problem
    from segbench.evaluation.new_scans import Prediction, Predictor, PreparedScan
    from segbench.evaluation.scan_files import Scan

# What a malformed file may still raise in a library.
BAD_SCAN = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class OutputOptions:
    """Where and what to write."""

    out: Path
    with_probabilities: bool
    overwrite: bool


OUTPUT_OPTIONS = (
    click.option(
        "-o",
        "--out",
        metavar="DIR",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for the label files.",
    ),
    click.option(
        "--probs",
        "with_probabilities",
        is_flag=True,
        help="Also write the probability of each class, as a 4-D NIfTI file.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace existing results."),
)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about the output; the command gets them as ``output``."""
    return bundled(command, "output", OutputOptions, OUTPUT_OPTIONS)


@click.command(cls=Command)
@click.argument("wanted", metavar="RUN|MODEL")
@click.argument(
    "inputs", metavar="FILE|DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@output_options
@click.option(
    "--dataset", metavar="NAME", help="Data set whose classes to segment, if the run has several."
)
@device_option
@mismatch_option
@size_option
@click.pass_obj
def predict(
    settings: Settings,
    wanted: str,
    inputs: tuple[Path, ...],
    output: OutputOptions,
    dataset: str | None,
    device: str | None,
) -> None:
    """Segment your own scans with a finished RUN, or with a MODEL file that someone shared.

    A MODEL is what "segbench runs export RUN --weights" writes, or hub:OWNER/NAME. Nothing but it
    is needed.

    NIfTI, NRRD, MetaImage (.mha), HDF5 (key 'image'), folders of DICOM slices, single slices (.dcm)
    and pictures (PNG, TIFF, BMP, JPEG) are read. Each result is NAME_seg.nii.gz, on the grid of the
    scan; of a picture, it is a gray picture of the same type (PNG for JPEG) whose values are the
    classes.

    \b
    segbench predict 3f9c2a7b scan.nii.gz -o out/
    segbench predict 3f9c2a7b photos/ -o out/
    segbench predict 3f9c2a7b patient7/t1,patient7/t2 -o out/   # two channels
    segbench predict 3f9c2a7b scans/ dicom_series/ -o out/ --probs
    segbench predict model.zip scan.nii.gz -o out/
    segbench predict hub:OWNER/NAME scan.nii.gz -o out/
    """
    from segbench.data.store.problem import DataProblems
    from segbench.evaluation.scan_files import divided_series, find_scans, left_out
    from segbench.results.model_card import DISCLAIMER
    from segbench.storage import make_folder

    predictor = _predictor(settings, wanted, dataset, device)
    problems: list[Problem] = []
    scans = find_scans(inputs, predictor.store.channels, problems)
    results = {scan.name: _result_files(scan, output) for scan in scans}
    _refuse_to_overwrite(scans, results, output)
    make_folder(output.out)
    settings.say(DISCLAIMER)
    warnings = left_out(inputs, scans) + divided_series(scans)
    for warning in warnings:
        settings.warn(warning)

    for problem in problems:
        settings.say(safe(f"failed: {problem}"))

    documents: list[dict[str, Any]] = []
    for scan in scans:
        try:
            prepared = predictor.prepared(scan)
        except (DataError, *BAD_SCAN) as error:
            if settings.debug and not isinstance(error, DataError):
                raise
            problem = _problem(scan, error)
            problems.append(problem)
            settings.say(safe(f"failed: {problem}"))
            continue
        prediction = _predicted(predictor, prepared)
        documents.append(_write(settings, prediction, predictor, results[scan.name]))
    if problems:
        done = f"; the other {len(documents)} are done" if documents else ""
        raise DataProblems(
            f"{len(problems)} of {len(documents) + len(problems)} scans cannot be segmented",
            problems,
            listed=False,
            fix=f"repair them and repeat the command{done}",
        )
    settings.show(
        {
            "schema": "segbench.predict/1",
            "status": "done",
            "run_id": wanted,
            "notice": DISCLAIMER,
            "scans": documents,
            "warnings": warnings,
        }
    )


def _predictor(
    settings: Settings, wanted: str, dataset: str | None, device: str | None
) -> Predictor:
    """Return the trained network of a model file, of a model on a hub, or of a run."""
    from segbench.api.hub import is_address, pull
    from segbench.api.models import Model
    from segbench.api.runs import Run
    from segbench.cli.training import machine_of
    from segbench.training.model_file import is_model, read_model
    from segbench.training.stored import finished_run

    machine = machine_of(settings, MachineOptions(device=device))
    path = pull(wanted) if is_address(wanted) else Path(wanted)
    if is_model(path):
        model = Model(read_model(path), machine)
        for warning in model.warnings:
            settings.warn(warning)
        return model.predictor(dataset)
    folder, result = finished_run(settings.root, wanted)
    return Run(folder, result, machine).predictor(dataset)


def _predicted(predictor: Predictor, prepared: PreparedScan) -> Prediction:
    """Return the prediction for a scan that could be read.

    Raises:
        TrainingError: the method fails, which is no fault of the scan.
    """
    name = predictor.inference.method.name
    with failures_of_plugin(name, f"predict of {name}, scan {prepared.scan.name}"):
        return predictor.predicted(prepared)


def _problem(scan: Scan, error: Exception) -> Problem:
    """Return what is wrong with a scan that cannot be segmented."""
    from segbench.data.store.problem import Problem

    if not isinstance(error, DataError):
        return Problem(
            scan.name,
            str(scan.files[0]),
            f"{type(error).__name__}: {error}",
            "a scan that can be read",
            "convert it to NIfTI and try again",
        )
    details = error.details
    return Problem(
        scan.name,
        str(details["where"] or scan.files[0]),
        f"{error.what}: {details['found']}",
        str(details["expected"] or ""),
        str(details["fix"] or ""),
    )


def _result_files(scan: Scan, output: OutputOptions) -> list[Path]:
    files = [output.out / f"{scan.name}_seg{scan.ending}"]
    if output.with_probabilities:
        files.append(output.out / f"{scan.name}_probs.nii.gz")
    return files


def _refuse_to_overwrite(
    scans: list[Scan], results: dict[str, list[Path]], output: OutputOptions
) -> None:
    inputs = {file.resolve() for scan in scans for file in scan.files}
    existing = [file for files in results.values() for file in files if file.exists()]
    if any(file.resolve() in inputs for file in existing):
        raise UsageError(
            "a result would replace a scan", where=output.out, fix="choose another folder: -o DIR"
        )
    if existing and not output.overwrite:
        raise UsageError(
            "results exist already",
            where=output.out,
            found=first_few(existing),
            fix="--overwrite, or another folder: -o DIR",
        )


def _write(
    settings: Settings, prediction: Prediction, predictor: Predictor, files: list[Path]
) -> dict[str, Any]:
    """Write the results of one scan, report them and return them as a document."""
    import numpy as np

    from segbench.evaluation.new_scans import write_nifti

    scan = prediction.scan
    prediction.save(files[0])
    if len(files) > 1:
        write_nifti(files[1], np.moveaxis(prediction.probabilities, 0, -1), prediction)
    classes = ["background", *predictor.store.classes]
    counts = np.bincount(prediction.label.ravel(), minlength=len(classes)).tolist()
    voxels = dict(zip(classes, counts, strict=True))
    for warning in prediction.warnings:
        settings.warn(f"{scan.name}: {warning}")

    shape = "x".join(map(str, prediction.label.shape))
    found = []
    for value, name in enumerate(predictor.store.classes, 1):
        found.append(f"{value} {safe(name)}: {voxels[name]:,} voxels")
    steps = "; ".join([*prediction.steps, ", ".join(found)])
    settings.echo([f"{safe(scan.name)}  {shape}  {steps}  -> {safe(files[0])}"])
    return {
        "name": scan.name,
        "inputs": [str(file) for file in scan.files],
        "label": str(files[0]),
        "probabilities": str(files[1]) if len(files) > 1 else None,
        "shape": list(prediction.label.shape),
        "voxels": voxels,
        "steps": prediction.steps,
        "warnings": prediction.warnings,
    }
