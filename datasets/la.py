"""Left Atrium 2018: 100 gadolinium-enhanced MR volumes with the left atrial cavity labeled.

Two layouts can be read:

* the preprocessed h5 files that most papers use, ``<case>/mri_norm2.h5``: already z-scored and
  cropped, used without changes;
* the challenge's own ``<case>/lgemri.nrrd`` and ``laendo.nrrd``, prepared by the published recipe.

Deviation: the recipe draws the margins of its crop, 10 to 19 voxels in x and y, at random without a
seed. Here they are fixed near their mean, so that the raw files always give the same volumes; these
never equal the volumes in the h5 files. The fingerprints differ, and the prepared cases record
``margin``. Published results were computed on the h5 files.

The crop uses the label, also in test cases: published results are for a box around the true atrium.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.read import read_volume
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import Volume, require_finite
from segbench.data.preparation.adapters import no_case_found, read_lists, require_one_layout
from segbench.data.preparation.recipe import scan_digest
from segbench.errors import DataError

LISTS = Path(__file__).with_name("la_split.yaml")
FOLDER = "2018LA_Seg_Training Set"
H5 = "mri_norm2.h5"
IMAGE = "lgemri.nrrd"
LABEL = "laendo.nrrd"
ATRIUM = 255  # value of the challenge's labels
PATCH = (112, 112)  # x, y; the recipe enlarges a box that is smaller than the patch
MARGIN = 14  # voxels


@dataset("la", paper="Xiong et al., Medical Image Analysis 2021")
class LeftAtrium(Dataset):
    """Axes (x, y, z) as in the files; cubic voxels of 0.625 mm, as stated by the challenge."""

    title = "Left Atrium 2018 (Atrial Segmentation Challenge)"
    modality = "gadolinium-enhanced MRI"
    classes = ("left atrium",)
    license = (
        "No license is named on the challenge's pages; access is through the challenge site. "
        "Settle your right to use the files before you pass them on."
    )
    citation = (
        "Xiong et al., A global benchmark of algorithms for segmenting the left atrium from late "
        "gadolinium-enhanced cardiac magnetic resonance imaging, Medical Image Analysis 67, 2021"
    )
    homepage = "https://www.cardiacatlas.org/atriaseg2018-challenge/"
    files = (
        f"'{FOLDER}/<case>/{H5}' for 100 cases, about 235 MB",
        f"or '<case>/{IMAGE}' and '<case>/{LABEL}'",
    )
    protocol = "la"
    boxed = True
    labeled = 8
    spacing = (0.625, 0.625, 0.625)  # mm

    def split(self) -> Split:
        """Return 80 train and 20 test cases, in the order that all public repositories use."""
        lists = read_lists(LISTS)
        return Split(tuple(lists["train"]), tuple(lists["test"]), "UA-MT, Yu et al., MICCAI 2019")

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the cases in ``source``, or in its subfolder ``FOLDER`` if there is one."""
        assert source is not None  # only embedded data sets have no source
        base = source / FOLDER if (source / FOLDER).is_dir() else source
        folders = sorted(path for path in base.iterdir() if path.is_dir())
        h5 = [folder for folder in folders if os.path.lexists(folder / H5)]
        raw = [folder for folder in folders if os.path.lexists(folder / IMAGE)]
        require_one_layout(
            base,
            {f"prepared files {H5}": len(h5), f"raw files {IMAGE}": len(raw)},
            fix="keep them in two folders: their crops differ",
        )
        if not h5 and not raw:
            raise no_case_found(
                self, base, "left atrium", hint=", the folder that holds the case folders"
            )
        if h5:
            return [RawCase(folder.name, {"layout": "h5", "file": folder / H5}) for folder in h5]
        return [RawCase(folder.name, _raw_files(folder)) for folder in raw]

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Z-score gray values over the whole scan."""
        mean = image.mean(dtype=np.float64)
        deviation = max(float(image.std(dtype=np.float64)), 1e-9)
        scored: np.ndarray = (image - mean) / deviation
        return scored

    def load(self, raw: RawCase) -> Case:
        """Return one case.

        Gray values are z-scored over the whole scan, so the crop has neither mean 0 nor standard
        deviation 1.
        """
        where: dict[str, Any] = raw.where
        if where["layout"] == "h5":
            arrays = read_h5(where["file"], ("image", "label"))
            return Case(raw.id, arrays["image"][None], arrays["label"], self.spacing)
        scan = read_volume(where["image"])
        mask = read_volume(where["label"])
        mask, warnings = match(scan, mask, where["label"])
        warnings = [*scan.warnings, *warnings, *_check_spacing(scan, where["image"])]
        image, label = _prepared(scan.array, mask.array, where["image"], where["label"])
        made = {
            "scan": scan_digest(scan.array),
            "source_dtype": str(scan.array.dtype),
            "warnings": warnings,
        }
        return Case(raw.id, image[None], label, self.spacing, made=made)


def _raw_files(folder: Path) -> dict[str, Any]:
    return {
        "layout": "nrrd",
        "margin": MARGIN,
        "image": folder / IMAGE,
        "label": folder / LABEL,
    }


def _check_spacing(scan: Volume, file: Path) -> list[str]:
    """Check that the header has a spacing of 0.625 mm; return a warning if it was reset to 1 mm.

    Raises:
        DataError: the header has another spacing.
    """
    if scan.spacing is None or np.allclose(scan.spacing, LeftAtrium.spacing, atol=1e-3):
        return []
    if np.allclose(scan.spacing, 1):
        return ["the header says 1 x 1 x 1 mm, as if its spacing had been lost; 0.625 mm is used"]
    raise DataError(
        "not the spacing of the challenge's files",
        where=file,
        expected="0.625 x 0.625 x 0.625 mm",
        found=" x ".join(f"{step:.4g}" for step in scan.spacing) + " mm",
        fix="use the challenge's own files",
    )


def _prepared(
    gray: np.ndarray, mask: np.ndarray, image_file: Path, label_file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Z-score the scan and crop it around the atrium in x and y, with fixed margins.

    Args:
        gray: (X, Y, Z) gray values.
        mask: (X, Y, Z) 0 and 255.
        image_file: file of the gray values, for error messages.
        label_file: file of the label, for error messages.

    Returns:
        Crops (x, y, z) of the image, float32, and the label, uint8.

    Raises:
        DataError: the image is not a volume or is constant, or the label is empty or has unknown
            values.
    """
    require_finite(gray, image_file)
    if gray.ndim != 3:
        raise DataError(
            "no volume of gray values",
            where=image_file,
            expected="three axes",
            found=f"shape {gray.shape}",
        )
    _require_known_values(mask, label_file)
    label = (mask == ATRIUM).astype(np.uint8)
    deviation = gray.std(dtype=np.float64)
    is_constant = not deviation > 0
    if is_constant or not label.any():
        raise DataError(
            "the image has only one gray value" if is_constant else "empty label",
            where=image_file.parent,
            expected="an atrium to crop around",
        )
    image = ((gray - gray.mean(dtype=np.float64)) / deviation).astype(np.float32)
    box = (
        _crop_side(label.any(axis=(1, 2)), PATCH[0]),
        _crop_side(label.any(axis=(0, 2)), PATCH[1]),
    )
    return image[box], label[box]


def _require_known_values(mask: np.ndarray, file: Path) -> None:
    values, counts = np.unique(mask, return_counts=True)
    unknown = [
        f"{value}: {count} voxels"
        for value, count in zip(values, counts, strict=True)
        if value not in (0, ATRIUM)
    ]
    if unknown:
        raise DataError(
            "unknown label values",
            where=file,
            found=", ".join(unknown),
            expected=f"0 and {ATRIUM}",
        )


def _crop_side(occupied: np.ndarray, patch: int) -> slice:
    """Return the crop along one axis.

    It covers the label and ``MARGIN`` voxels on both sides, and is enlarged if the label is smaller
    than the patch.
    """
    positions = np.flatnonzero(occupied)
    low = int(positions[0])
    high = int(positions[-1])
    missing = max(0, (patch - (high - low)) // 2)
    around = MARGIN + missing
    return slice(max(0, low - around), high + 1 + around)
