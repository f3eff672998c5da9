"""AMOS22: 15 abdominal organs in CT and MRI, in the semi-supervised split of DHC.

Three data sets differ in the order of the training cases only, because DHC's lists of labeled cases
do not contain each other: the first 4 cases of ``amos_2p``, the first 10 of ``amos`` (5 %) and the
first 21 of ``amos_10p`` are those lists. Other counts, and all other draws, take cases that no
publication has.

Cases above number 500 are MRI, the others CT; DHC trains on both and so does this split
(182 + 34 training cases, 100 + 20 test cases).

Two layouts can be read:

* the challenge's ``imagesTr/amos_NNNN.nii.gz``, ``labelsTr``, ``imagesVa`` and ``labelsVa``;
* the arrays of DHC, ``<case>_image.npy`` and ``<case>_label.npy`` with axes (z, y, x), in which
  each volume was resized to one shape, whatever its spacing. They are used as they are, and
  distances are in voxels.

Gray values are clipped to -75..275 and scaled to [0, 1], in CT and in MRI, as in DHC. The
challenge's files get a grid of our own: nearest RAS axes, 2 x 2 x 5 mm. DHC's code resizes to
160 x 160 x 80 voxels for the training and to 144 x 144 x 72 in its evaluation, so that its grid is
not certain; on ours, distances are in mm and new scans can be predicted. Results of one layout are
not those of the other: their fingerprints differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.limits import require_size
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.opening import reading
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import require_finite, whole_labels
from segbench.data.preparation.adapters import (
    files_by_case,
    finished_case,
    no_case_found,
    read_lists,
    require_one_layout,
)
from segbench.data.preparation.layouts import find_below
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.errors import DataError

LISTS = Path(__file__).with_name("amos_split.yaml")
WINDOW = (-75.0, 275.0)
RECIPE = Recipe(spacing=(2.0, 2.0, 5.0), gray=(Gray(WINDOW, "unit"),))
SCAN = re.compile(r"(amos_\d{4})\.nii\.gz")
IMAGE_ARRAY = re.compile(r"(amos_\d{4})_image\.npy")
FOLDERS = {"imagesTr": "labelsTr", "imagesVa": "labelsVa"}
ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)


@dataset("amos", paper="Ji et al., NeurIPS 2022 Datasets and Benchmarks")
class Amos(Dataset):
    """The setting with 5 % labeled cases, in which most work reports."""

    title = "AMOS22: 15 abdominal organs, 5 % labeled (DHC)"
    modality = "CT and MRI"
    classes = ORGANS
    license = (
        "The paper's page names a CC BY-NC license. Settle your right to use the files with the "
        "terms of your download before you pass them on."
    )
    citation = (
        "Ji et al., AMOS: A large-scale abdominal multi-organ benchmark for versatile medical "
        "image segmentation, NeurIPS 2022 Datasets and Benchmarks; split: Wang & Li, DHC, MICCAI "
        "2023"
    )
    homepage = "https://amos22.grand-challenge.org"
    files = (
        "'imagesTr/amos_NNNN.nii.gz' (240 cases) and 'imagesVa' (120), with 'labelsTr' and "
        "'labelsVa' of the same names",
        "or '<case>_image.npy' and '<case>_label.npy' (DHC)",
    )
    protocol = "amos"
    labeled = 10
    collection = "AMOS22"
    first: ClassVar[str] = "labeled_5p"  # the list of labeled cases

    def split(self) -> Split:
        """Return 216 train, 24 validation and 120 test cases, the labeled ones first."""
        lists = read_lists(LISTS)
        labeled = lists[self.first]
        others = [case for case in lists["train"] if case not in labeled]
        return Split(
            train=(*labeled, *others),
            test=tuple(lists["test"]),
            source="DHC, Wang & Li, MICCAI 2023",
            val=tuple(lists["val"]),
        )

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the cases of any layout, in ``source`` or any of its subfolders."""
        assert source is not None
        scans = [
            file for file in find_below(source, "amos_*.nii.gz") if file.parent.name in FOLDERS
        ]
        raw = files_by_case(scans, SCAN)
        arrays = files_by_case(find_below(source, "amos_*_image.npy"), IMAGE_ARRAY)
        require_one_layout(
            source, {"the challenge's files": len(raw), "arrays of DHC": len(arrays)}
        )
        if arrays:
            return [RawCase(case, _array_files(case, arrays[case])) for case in sorted(arrays)]
        listed = {*self.split().train, *self.split().val, *self.split().test}
        found = [RawCase(case, _scan_files(raw[case])) for case in sorted(raw) if case in listed]
        if not found:
            raise no_case_found(self, source, "AMOS22")
        return found

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Clip the gray values and scale them as in the arrays of DHC."""
        return _scaled(image)

    def load(self, raw: RawCase) -> Case:
        """Return one case with axes (x, y, z)."""
        where: dict[str, Any] = raw.where
        if "array" in where:
            image = _read_array(where["array"])
            label = whole_labels(_read_array(where["label"]), where["label"], "0 to 15")
            return Case(raw.id, _scaled(image)[None], label)
        scan = read_nifti(where["image"])
        mask, pair_warnings = match(scan, read_nifti(where["label"]), where["label"])
        label = whole_labels(mask.array, where["label"], "0 to 15")
        warnings = [*scan.warnings, *pair_warnings]
        return finished_case(raw.id, apply(where["recipe"], scan, label), warnings)


@dataset("amos_2p", paper="Ji et al., NeurIPS 2022 Datasets and Benchmarks")
class AmosTwoPercent(Amos):
    """The setting with 2 % labeled cases."""

    title = "AMOS22: 15 abdominal organs, 2 % labeled (DHC)"
    labeled = 4
    first = "labeled_2p"


@dataset("amos_10p", paper="Ji et al., NeurIPS 2022 Datasets and Benchmarks")
class AmosTenPercent(Amos):
    """The setting with 10 % labeled cases."""

    title = "AMOS22: 15 abdominal organs, 10 % labeled (DHC)"
    labeled = 21
    first = "labeled_10p"


def _scan_files(image: Path) -> dict[str, Any]:
    label = image.parent.with_name(FOLDERS[image.parent.name]) / image.name
    return {"recipe": RECIPE, "image": image, "label": label}


def _array_files(case: str, image: Path) -> dict[str, Any]:
    return {"array": image, "label": image.with_name(f"{case}_label.npy")}


def _read_array(file: Path) -> np.ndarray:
    """Return a volume (x, y, z) from an array with axes (z, y, x).

    Raises:
        DataError: the file cannot be read, or holds no volume of finite values.
    """
    with reading(file):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        require_size(file, array.shape)
    if array.ndim != 3:
        raise DataError(
            "no volume", where=file, found=f"shape {array.shape}", expected="axes (z, y, x)"
        )
    volume = np.ascontiguousarray(array.transpose(2, 1, 0))
    require_finite(volume, file)
    return volume


def _scaled(image: np.ndarray) -> np.ndarray:
    """Return gray values clipped to the window, with the smallest at 0 and the largest at 1."""
    clipped = np.clip(image.astype(np.float32), *WINDOW)
    low = clipped.min()
    spread = clipped.max() - low
    if not spread > 0:
        return np.zeros_like(clipped)
    scaled: np.ndarray = (clipped - low) / spread
    return scaled
