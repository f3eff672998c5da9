"""ACDC: short-axis cine MRI of the heart, 100 patients with two labeled frames each, three classes.

Three layouts can be read:

* the challenge's own ``training/patientXXX`` folders, in which ``Info.cfg`` names the two frames;
* the h5 volumes of SSL4MIS, ``patientXXX_frameYY.h5`` with axes (slices, rows, columns);
* the h5 slices of SSL4MIS, ``patientXXX_frameYY_slice_N.h5``, stacked by number; they are used for
  frames without a volume.

Each case is one frame with axes (x, y, slices): ``frame01`` is end diastole and ``frame02`` is end
systole, regardless of their numbers in the cine sequence. Gray values are scaled to [0, 1] by the
minimum and maximum of the volume, as in the h5 files; nothing is resampled or cropped. Counts of
labeled cases are counts of patients: 7 means 14 volumes.

The h5 files do not store the spacing, so distances are in voxels of a very anisotropic grid, as in
the literature. With the challenge's files, distances are also given in millimeters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.same_grid import match
from segbench.data.preparation.adapters import (
    files_by_case,
    finished_case,
    no_case_found,
    read_lists,
    require_one_layout,
)
from segbench.data.preparation.layouts import find_below, one_path_per_case
from segbench.data.preparation.recipe import Gray, Recipe, apply, normalize
from segbench.errors import DataError
from segbench.text import first_few

LISTS = Path(__file__).with_name("acdc_split.yaml")
RECIPE = Recipe(orientation="file", gray=(Gray(scale="minmax"),))
FRAMES = {"ED": "frame01", "ES": "frame02"}
VOLUME = re.compile(r"(patient\d{3}_frame\d\d)\.h5")
SLICE = re.compile(r"(patient\d{3}_frame\d\d)_slice_(\d+)\.h5")


@dataset("acdc", paper="Bernard et al., IEEE TMI 2018")
class ACDC(Dataset):
    """ACDC, one case per frame.

    Protocol ``acdc`` trains on slices and ``acdc-3d`` on volumes; metrics are always computed on
    volumes.
    """

    title = "ACDC (Automated Cardiac Diagnosis Challenge)"
    modality = "cine MRI"
    classes = ("right ventricle", "myocardium", "left ventricle")
    license = (
        "CC BY-NC-SA 4.0 according to copies of the data set: non-commercial, cite, share alike."
    )
    citation = (
        "Bernard et al., Deep learning techniques for automatic MRI cardiac multi-structures "
        "segmentation and diagnosis, IEEE TMI 37(11), 2018"
    )
    homepage = "https://www.creatis.insa-lyon.fr/Challenge/acdc/"
    files = (
        "'training/patientXXX/Info.cfg' with the two frames' NIfTI files, for 100 patients",
        "or 'patientXXX_frameYY.h5' volumes and 'slices/patientXXX_frameYY_slice_N.h5' (SSL4MIS), "
        "about 135 MB",
    )
    protocol = "acdc"
    labeled = 7  # patients: 10 %
    h5_axes = (2, 1, 0)  # the files have (slices, rows, columns)

    def split(self) -> Split:
        """Return 70 train, 10 validation and 20 test patients, two frames each.

        The images of patients 074 and 076 are identical.
        """
        lists = read_lists(LISTS)
        return Split(
            train=_both_frames(lists["train"]),
            test=_both_frames(lists["test"]),
            source="SSL4MIS, Luo et al.",
            val=_both_frames(lists["val"]),
        )

    def group(self, case: str) -> str:
        """Return the patient of a frame: ``patient001`` of ``patient001_frame02``."""
        return case.partition("_")[0]

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the cases of any layout, in ``source`` or any of its subfolders."""
        assert source is not None
        raw = _raw_frames(source)
        h5 = _h5_frames(source)
        require_one_layout(
            source, {"the challenge's files": len(raw), "h5 files of SSL4MIS": len(h5)}
        )
        found = raw or h5
        if not found:
            raise no_case_found(self, source, "ACDC")
        return [RawCase(case, where, self.group(case)) for case, where in sorted(found.items())]

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Scale gray values as in the h5 files of SSL4MIS."""
        return normalize(image, RECIPE.gray)

    def load(self, raw: RawCase) -> Case:
        """Return one frame as (1, x, y, slices) with values in [0, 1]."""
        where: dict[str, Any] = raw.where
        if "fault" in where:
            what, details = where["fault"]
            raise DataError(what, **details)
        if where["layout"] == "h5":
            image, label = _read_h5_frame(where["files"])
            return Case(raw.id, image[None], label)
        scan = read_nifti(where["image"])
        mask = read_nifti(where["label"])
        mask, pair_warnings = match(scan, mask, where["label"])
        warnings = [*scan.warnings, *pair_warnings]
        return finished_case(raw.id, apply(RECIPE, scan, mask.array), warnings)


def _both_frames(patients: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{patient}_{frame}" for patient in patients for frame in FRAMES.values())


def _unusable(what: str, **details: Any) -> dict[str, Any]:
    """Describe a frame that cannot be read; the error is raised when the frame is loaded."""
    return {"layout": "none", "fault": (what, details)}


def _raw_frames(source: Path) -> dict[str, dict[str, Any]]:
    """Return the frames in the challenge's own folders."""
    files = find_below(source, "Info.cfg")
    of_patients = [
        (file.parent.name, file) for file in files if file.parent.name.startswith("patient")
    ]
    frames: dict[str, dict[str, Any]] = {}
    for info in one_path_per_case(of_patients).values():
        frames.update(_frames_of_patient(info))
    return frames


def _frames_of_patient(info: Path) -> dict[str, dict[str, Any]]:
    """Return the two frames of a patient's folder, which ``Info.cfg`` names."""
    patient = info.parent.name
    try:
        text = info.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        fault = _unusable(
            "the file cannot be read",
            where=info,
            found=error.strerror,
            expected="a text with ED and ES",
            fix="extract the patient's folder from the archive again",
        )
        return {f"{patient}_{name}": fault for name in FRAMES.values()}
    frames = {}
    for phase, name in FRAMES.items():
        match = re.search(rf"^\s*{phase}\s*:\s*(\d+)\s*$", text, re.MULTILINE)
        if match is None:
            where = _unusable(
                f"the file does not name the {phase} frame",
                where=info,
                expected=f"a line '{phase}: NUMBER'",
            )
        else:
            stem = f"{patient}_frame{int(match[1]):02d}"
            where = {
                "layout": "nifti",
                "recipe": RECIPE,
                "image": _nifti(info.parent, stem),
                "label": _nifti(info.parent, f"{stem}_gt"),
            }
        frames[f"{patient}_{name}"] = where
    return frames


def _nifti(folder: Path, stem: str) -> Path:
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"


def _h5_frames(source: Path) -> dict[str, dict[str, Any]]:
    """Return the frames in h5 files: one volume, or the slices of a frame without a volume."""
    files = find_below(source, "patient*.h5")
    volumes = files_by_case(files, VOLUME)
    slices = {case: numbered for case, numbered in _slices(files).items() if case not in volumes}
    paths = {case: [file] for case, file in volumes.items()}
    for case, numbered in slices.items():
        paths[case] = [numbered[number] for number in sorted(numbered)]
    frames = {}
    for case, frame_files in paths.items():
        fault = _missing_slices(case, sorted(slices[case]), paths) if case in slices else None
        frames[case] = fault or {"layout": "h5", "files": frame_files}
    return frames


def _slices(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Return the files of slices by frame and number."""
    found = []
    for file in files:
        match = SLICE.fullmatch(file.name)
        if match:
            found.append((f"{match[1]} {int(match[2])}", file))
    slices: dict[str, dict[int, Path]] = {}
    for name, file in one_path_per_case(found).items():
        case, _, number = name.partition(" ")
        slices.setdefault(case, {})[int(number)] = file
    return slices


def _missing_slices(
    case: str, numbers: Sequence[int], paths: Mapping[str, list[Path]]
) -> dict[str, Any] | None:
    """Describe a frame with missing slices as unusable; None if all are there.

    Args:
        case: the frame.
        numbers: numbers of its slices, in ascending order.
        paths: files of all frames; the patient's other frame shows whether the last slices are
            missing.
    """
    first = numbers[0]
    other = _other_frame(case)
    depth = _depth(paths.get(other, []))
    if first > 1 or list(numbers) != list(range(first, first + len(numbers))):
        found = f"numbers {first_few(numbers, 50)}"
        expected = "numbers from 1 without a gap"
    elif len(numbers) < depth:
        found = f"{len(numbers)} slices"
        expected = f"{depth}, as {other} of the same patient has"
    else:
        return None
    return _unusable(
        f"slices of {case} are missing",
        where=paths[case][0].parent,
        found=found,
        expected=expected,
    )


def _other_frame(case: str) -> str:
    """Return the patient's other frame."""
    patient, _, frame = case.partition("_")
    first, second = FRAMES.values()
    return f"{patient}_{second if frame == first else first}"


def _depth(files: Sequence[Path]) -> int:
    """Return the number of slices of a frame, or 0 if its volume cannot be read.

    The error is raised when the frame is loaded.
    """
    if not files or SLICE.fullmatch(files[0].name):
        return len(files)
    with suppress(DataError):
        return len(read_h5(files[0], ("label",))["label"])
    return 0


def _read_h5_frame(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label as (columns, rows, slices); the files hold (slices, rows, columns)."""
    parts = [read_h5(file, ("image", "label")) for file in files]
    shape = parts[0]["image"].shape
    for file, part in zip(files, parts, strict=True):
        if part["image"].shape != shape or part["label"].shape != shape:
            raise DataError(
                "the slices of a frame and their labels differ in size",
                where=file,
                found=f"image {part['image'].shape}, label {part['label'].shape}",
                expected=f"{shape} as in {files[0].name}",
            )
    image = _stacked([part["image"] for part in parts])
    label = _stacked([part["label"] for part in parts])
    return image.T, label.T


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """Return slices as one volume; a single array with three axes is already a volume."""
    is_volume = len(arrays) == 1 and arrays[0].ndim != 2
    return arrays[0] if is_volume else np.stack(arrays)
