"""ACDC: short-axis cine MRI of the heart, 100 patients with two labeled frames each, three classes.

Three layouts are read:

* the challenge's own ``training/patientXXX`` folders; ``Info.cfg`` names the two frames;
* the h5 volumes that circulate (SSL4MIS), ``patientXXX_frameYY.h5`` with axes (slices, rows, columns);
* the h5 slices that circulate, ``patientXXX_frameYY_slice_N.h5``, stacked by number for frames without a volume.

Every case is one frame, axes (x, y, slices): ``frame01`` is end diastole, ``frame02`` end systole whatever their numbers
in the cine. Gray values are scaled to [0, 1] by the volume's smallest and largest, as in the circulating files; nothing is
resampled or cropped. A labeled count counts patients: 7 means 14 volumes.

The h5 files carry no spacing, so their distances are in voxels of a very anisotropic grid, as in the literature; from
the challenge's files they come in millimeters as well.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.volume import check_pair
from segbench.data.preparation.places import below, once
from segbench.data.preparation.recipe import Gray, Recipe, apply, normalize
from segbench.errors import DataError
from segbench.text import some

RECIPE = Recipe(orientation="file", gray=(Gray(scale="minmax"),))
FRAMES = {"ED": "frame01", "ES": "frame02"}
VOLUME = re.compile(r"(patient\d{3}_frame\d\d)\.h5")
SLICE = re.compile(r"(patient\d{3}_frame\d\d)_slice_(\d+)\.h5")


@cache
def _lists() -> dict[str, list[str]]:
    return yaml.safe_load(Path(__file__).with_name("acdc_split.yaml").read_text(encoding="utf-8"))


@dataset("acdc", paper="Bernard et al., IEEE TMI 2018")
class ACDC(Dataset):
    """Networks see slices under the ``acdc`` protocol and volumes under ``acdc-3d``; metrics are always on volumes."""

    title = "ACDC (Automated Cardiac Diagnosis Challenge)"
    modality = "cine MRI"
    classes = ("right ventricle", "myocardium", "left ventricle")
    license = (
        "CC BY-NC-SA 4.0 according to copies of the data set: non-commercial, cite, share alike."
    )
    citation = (
        "Bernard et al., Deep learning techniques for automatic MRI cardiac multi-structures segmentation and "
        "diagnosis, IEEE TMI 37(11), 2018"
    )
    homepage = "https://www.creatis.insa-lyon.fr/Challenge/acdc/"
    files = (
        "'training/patientXXX/Info.cfg' with the two frames' NIfTI files, for 100 patients",
        "or 'patientXXX_frameYY.h5' volumes and 'slices/patientXXX_frameYY_slice_N.h5' (SSL4MIS), about 135 MB",
    )
    protocol = "acdc"
    labeled = 7  # patients: 10 %
    h5_axes = (2, 1, 0)  # the files have (slices, rows, columns)

    def split(self) -> Split:
        """70 train, 10 validation and 20 test patients, two frames each; patients 074 and 076 share their images."""
        train, val, test = (
            tuple(f"{p}_{f}" for p in _lists()[k] for f in FRAMES.values())
            for k in ("train", "val", "test")
        )
        return Split(train, test, "SSL4MIS, Luo et al.", val)

    def group(self, case: str) -> str:
        """``patient001`` of ``patient001_frame02``."""
        return case.partition("_")[0]

    def find(self, source: Path | None) -> list[RawCase]:
        """Cases in any of the layouts, wherever below ``source`` they lie."""
        assert source is not None
        infos = once(
            (p.parent.name, p)
            for p in below(source, "Info.cfg")
            if p.parent.name.startswith("patient")
        )
        raw = [case for info in infos.values() for case in _frames(info)]
        h5 = _circulating(source)
        if raw and h5:
            raise DataError(
                "two layouts in one folder: the challenge's files and h5 files",
                where=source,
                found=f"{len(raw)} raw frames, {len(h5)} h5 frames",
                expected="one of the two",
                fix="keep them in two folders",
            )
        if not raw and not h5:
            raise DataError(
                "no case of the ACDC data found",
                where=source,
                expected=" ".join(self.files),
                fix="segbench data prepare acdc --from DIR",
            )
        return [RawCase(case, where, self.group(case)) for case, where in raw or sorted(h5.items())]

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """As the circulating files."""
        return normalize(image, RECIPE.gray)

    def load(self, raw: RawCase) -> Case:
        """One frame as (1, x, y, slices) in [0, 1]."""
        where: dict[str, Any] = raw.where
        if "fault" in where:
            what, details = where["fault"]
            raise DataError(what, **details)
        if where["layout"] == "h5":
            gray, mask = _stacked(where["files"])
            return Case(raw.id, gray[None], mask)
        image, label = read_nifti(where["image"]), read_nifti(where["label"])
        warnings = check_pair(image, label, where["label"])
        made = apply(RECIPE, image, label.array)
        return Case(
            raw.id,
            made.image,
            made.label,
            made.spacing,
            made.affine,
            made={**made.facts, "warnings": warnings + made.doubts},
        )


def _frames(info: Path) -> list[tuple[str, dict[str, Any]]]:
    """The two frames of a patient's folder; what is wrong with one is told when it is loaded, and only if it is wanted."""
    patient, found = info.parent.name, []
    try:
        text = info.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        where = _fault(
            "the file cannot be read",
            where=info,
            found=error.strerror,
            expected="a text with ED and ES",
            fix="take the patient's folder from the archive again",
        )
        return [(f"{patient}_{name}", where) for name in FRAMES.values()]
    for phase, name in FRAMES.items():
        match = re.search(rf"^\s*{phase}\s*:\s*(\d+)\s*$", text, re.MULTILINE)
        if match is None:
            where = _fault(
                f"the file does not name the {phase} frame",
                where=info,
                expected=f"a line '{phase}: NUMBER'",
            )
        else:
            stem = f"{patient}_frame{int(match[1]):02d}"
            image, label = (_nifti(info.parent, stem + end) for end in ("", "_gt"))
            where = {"layout": "nifti", "recipe": RECIPE, "image": image, "label": label}
        found.append((f"{patient}_{name}", where))
    return found


def _fault(what: str, **details: Any) -> dict[str, Any]:
    return {"layout": "none", "fault": (what, details)}


def _nifti(folder: Path, stem: str) -> Path:
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"


def _circulating(source: Path) -> dict[str, dict[str, Any]]:
    """Frames as one volume's file, or as the files of its slices in the order of their numbers."""
    files = below(source, "patient*.h5")
    volumes = once((m[1], p) for p in files if (m := VOLUME.fullmatch(p.name)))
    slices: dict[str, dict[int, Path]] = {}
    for name, path in once(
        (f"{m[1]} {int(m[2])}", p) for p in files if (m := SLICE.fullmatch(p.name))
    ).items():
        case, _, number = name.partition(" ")
        if case not in volumes:
            slices.setdefault(case, {})[int(number)] = path
    frames = {case: [path] for case, path in volumes.items()} | {
        case: [numbered[n] for n in sorted(numbered)] for case, numbered in slices.items()
    }
    found = {case: {"layout": "h5", "files": files} for case, files in frames.items()}
    for case, numbered in slices.items():
        numbers, depth = sorted(numbered), _depth(frames.get(_other(case), []))
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
            wrong, expected = f"numbers {some(numbers, 50)}", "numbers from 1 without a gap"
        elif len(numbers) < depth:
            wrong, expected = (
                f"{len(numbers)} slices",
                f"{depth}, as {_other(case)} of the same patient has",
            )
        else:
            continue
        found[case] = _fault(
            f"slices of {case} are missing",
            where=frames[case][0].parent,
            found=wrong,
            expected=expected,
        )
    return found


def _other(case: str) -> str:
    """The patient's other frame."""
    first, second = FRAMES.values()
    patient, _, frame = case.partition("_")
    return f"{patient}_{second if frame == first else first}"


def _depth(files: list[Path]) -> int:
    """Number of slices of a frame; 0 where its volume cannot be read, which is told when it is loaded."""
    if not files or SLICE.fullmatch(files[0].name):
        return len(files)
    with suppress(DataError):
        return len(read_h5(files[0], ("label",))["label"])
    return 0


def _stacked(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(slices, rows, columns) files to (columns, rows, slices)."""
    parts = [read_h5(file, ("image", "label")) for file in files]
    for file, part in zip(files, parts, strict=True):
        if (
            part["image"].shape != parts[0]["image"].shape
            or part["label"].shape != part["image"].shape
        ):
            raise DataError(
                "the slices of a frame and their labels are of different size",
                where=file,
                found=f"image {part['image'].shape}, label {part['label'].shape}",
                expected=f"{parts[0]['image'].shape} as in {files[0].name}",
            )
    image, label = (
        np.stack([p[k] for p in parts]) if len(parts) > 1 or parts[0][k].ndim == 2 else parts[0][k]
        for k in ("image", "label")
    )
    return image.T, label.T
