"""Left Atrium 2018: 100 gadolinium-enhanced MR volumes with the left atrial cavity labeled.

Two layouts are read:

* the h5 files that circulate, ``<case>/mri_norm2.h5``: taken as they are (already z-scored and cropped);
* the challenge's own ``<case>/lgemri.nrrd`` and ``laendo.nrrd``, prepared by the published recipe.

Deviation: the recipe draws the margins of its crop at random, unseeded, 10 to 19 voxels in x and y. Here they are
fixed near their mean, so the raw files always give the same volumes, but never those that circulate. The fingerprints
differ, and the prepared cases record ``margin``. Numbers of the literature belong to the circulating files.

The crop uses the label, in test cases too: published numbers are for a box around the true atrium.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.read import read_volume
from segbench.data.formats.volume import Volume, check_pair, require_finite
from segbench.data.preparation.recipe import scan_digest
from segbench.errors import DataError

FOLDER = "2018LA_Seg_Training Set"
H5, IMAGE, LABEL = "mri_norm2.h5", "lgemri.nrrd", "laendo.nrrd"
PATCH = (112, 112)  # x, y: the recipe widens a box that is smaller than the patch
MARGIN = 14  # voxels


@cache
def _lists() -> dict[str, list[str]]:
    return yaml.safe_load(Path(__file__).with_name("la_split.yaml").read_text(encoding="utf-8"))


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
        """80 train and 20 test cases; the same order in every repository that uses the set."""
        lists = _lists()
        return Split(tuple(lists["train"]), tuple(lists["test"]), "UA-MT, Yu et al., MICCAI 2019")

    def find(self, source: Path | None) -> list[RawCase]:
        """Cases in ``source`` or its folder of the circulating name; stray files are ignored."""
        assert source is not None  # only embedded data sets have no source
        base = source / FOLDER if (source / FOLDER).is_dir() else source
        folders = sorted(p for p in base.iterdir() if p.is_dir())
        h5 = [p for p in folders if os.path.lexists(p / H5)]
        raw = [p for p in folders if os.path.lexists(p / IMAGE)]
        if h5 and raw:
            raise DataError(
                "two layouts in one folder: prepared h5 files and raw NRRD files",
                where=base,
                found=f"{len(h5)} x {H5}, {len(raw)} x {IMAGE}",
                expected="one of the two",
                fix="keep them in two folders: their crops differ",
            )
        if not h5 and not raw:
            raise DataError(
                "no case of the left atrium data found",
                where=base,
                expected=" ".join(self.files),
                fix="segbench data prepare la --from DIR, the folder that holds the case folders",
            )
        if h5:
            return [RawCase(p.name, {"layout": "h5", "file": p / H5}) for p in h5]
        return [
            RawCase(
                p.name, {"layout": "nrrd", "margin": MARGIN, "image": p / IMAGE, "label": p / LABEL}
            )
            for p in raw
        ]

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Z-score over the whole scan."""
        return (image - image.mean(dtype=np.float64)) / max(
            float(image.std(dtype=np.float64)), 1e-9
        )

    def load(self, raw: RawCase) -> Case:
        """One volume; z-scored over the whole scan, so neither mean 0 nor standard deviation 1 in the crop."""
        where: dict[str, Any] = raw.where
        if where["layout"] == "h5":
            arrays = read_h5(where["file"], ("image", "label"))
            return Case(raw.id, arrays["image"][None], arrays["label"], self.spacing)
        scan, mask = read_volume(where["image"]), read_volume(where["label"])
        warnings = check_pair(scan, mask, where["label"]) + _doubts(scan, where["image"])
        image, label = _prepare(scan.array, mask.array, where["image"], where["label"])
        made = {
            "scan": scan_digest(scan.array),
            "source_dtype": str(scan.array.dtype),
            "warnings": warnings,
        }
        return Case(raw.id, image[None], label, self.spacing, made=made)


def _doubts(scan: Volume, file: Path) -> list[str]:
    """The header's spacing, where it tells one, must be the challenge's; one that was lost on the way is only told."""
    if scan.spacing is None or np.allclose(scan.spacing, LeftAtrium.spacing, atol=1e-3):
        return []
    if np.allclose(scan.spacing, 1):
        return [
            "the header says 1 x 1 x 1 mm, as where a spacing was lost on the way; 0.625 mm is taken"
        ]
    raise DataError(
        "not the spacing of the challenge's files",
        where=file,
        expected="0.625 x 0.625 x 0.625 mm",
        found=" x ".join(f"{s:.4g}" for s in scan.spacing) + " mm",
        fix="take the challenge's own files",
    )


def _prepare(
    gray: np.ndarray, mask: np.ndarray, image_file: Path, label_file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The recipe of the literature with fixed margins: (X, Y, Z) gray values -> (x, y, Z) float32 and uint8."""
    require_finite(gray, image_file)
    if gray.ndim != 3:
        raise DataError(
            "no volume of gray values",
            where=image_file,
            expected="three axes",
            found=f"shape {gray.shape}",
        )
    values, counts = np.unique(mask, return_counts=True)
    if not np.isin(values, (0, 255)).all():
        bad = ", ".join(
            f"{v}: {n} voxels" for v, n in zip(values, counts, strict=True) if v not in (0, 255)
        )
        raise DataError("unknown label values", where=label_file, found=bad, expected="0 and 255")
    label = (mask == 255).astype(np.uint8)
    spread = gray.std(dtype=np.float64)
    if not label.any() or not spread > 0:
        raise DataError(
            "empty label" if spread > 0 else "an image of one gray value",
            where=image_file.parent,
            expected="an atrium to crop around",
        )
    image = ((gray - gray.mean(dtype=np.float64)) / spread).astype(np.float32)
    box = tuple(
        _side(label.any(axis=other), patch)
        for other, patch in zip(((1, 2), (0, 2)), PATCH, strict=True)
    )
    return image[box], label[box]


def _side(occupied: np.ndarray, patch: int) -> slice:
    """The crop along one axis: the label's extent, ``MARGIN`` voxels on both sides, and what the patch lacks."""
    places = np.flatnonzero(occupied)
    low, high = int(places[0]), int(places[-1])
    more = MARGIN + max(0, (patch - (high - low)) // 2)
    return slice(max(0, low - more), high + 1 + more)
