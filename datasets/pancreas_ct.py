"""NIH Pancreas-CT in the two versions that papers use; their results must not be mixed.

* ``pancreas_ct``, protocol A (CoraNet, BCP, VerSemi): all axes are scaled by the factor that gives
  1 mm in plane; the window -125..275 HU is mapped to [0, 1]; crop to the label's bounding box plus
  25 voxels on each side, at least 96 voxels per axis. 62 train and 18 test cases.
* ``pancreas_ct_mcnet``, protocol B (MC-Net, MC-Net+): voxels of 1 mm by cubic spline interpolation;
  the same window; crop to the label's bounding box in x and y only; then z-score over the crop. The
  published lists contain one scan three times (0002, 0025, 0070), both in train and in test. 0025
  and 0070, which the archive has withdrawn, are left out here: 61 train and 19 test cases.

Either the archive's DICOM series and NIfTI labels or the h5 files that authors share can be read.
Series and labels match by voxel index, not by header: slices are stacked by instance number, and
the affine of the label is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.dicom import read_dicom
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.nifti import read_nifti
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

LISTS = Path(__file__).with_name("pancreas_ct_split.yaml")
WITHDRAWN = ("0025", "0070")  # crops of the scan of case 0002
WINDOW = (-125.0, 275.0)  # HU
# HU: possible means inside an enhanced pancreas. A mirrored label includes fat and air, and its
# mean is outside this range.
POSSIBLE_MEAN = (0.0, 200.0)
# HU: usual means, and a standard deviation that is exceeded only by a mixture of tissues.
USUAL_MEAN = (50.0, 130.0)
USUAL_DEVIATION = 80.0
FOLDER = re.compile(r"PANCREAS_(\d{4})")
LABEL = re.compile(r"label(\d{4})\.nii(?:\.gz)?")


class Pancreas(Dataset):
    """Base class of both protocols. Case ids are the four digits of the archive."""

    modality = "contrast CT, portal-venous phase"
    classes = ("pancreas",)
    license = "CC BY 3.0"
    citation = (
        "Roth et al., Data from Pancreas-CT, The Cancer Imaging Archive, 2016, "
        "10.7937/K9/TCIA.2016.tNB1kqBU; Roth et al., DeepOrgan, MICCAI 2015; "
        "Clark et al., J Digit Imaging 26(6), 2013"
    )
    homepage = "https://www.cancerimagingarchive.net/collection/pancreas-ct/"
    protocol = "pancreas_ct"
    collection = "NIH Pancreas-CT"
    boxed = True
    labeled = 6
    recipe: ClassVar[Recipe]
    h5: ClassVar[re.Pattern[str]]  # names of the shared files
    h5_spacing: ClassVar[tuple[float, ...] | None] = None

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the cases of the archive or of the h5 files, in ``source`` or its subfolders."""
        assert source is not None
        h5 = {
            case: {"layout": "h5", "file": file}
            for case, file in files_by_case(find_below(source, "*.h5"), self.h5).items()
        }
        raw = self._raw(source)
        require_one_layout(
            source, {"prepared h5 files": len(h5), "the archive's DICOM series": len(raw)}
        )
        found = h5 or raw
        cases = [
            RawCase(case, where) for case, where in sorted(found.items()) if case not in WITHDRAWN
        ]
        if not cases:
            raise no_case_found(self, source, "pancreas", hint=", which holds images and labels")
        return cases

    def _raw(self, source: Path) -> dict[str, dict[str, Any]]:
        """Return series and label of each case.

        Labels without a series (0025, 0070) are ignored.
        """
        labels = files_by_case(find_below(source, "label*.nii*"), LABEL)
        series = _series_folders(find_below(source, "PANCREAS_*"))
        without = sorted(set(series) - set(labels) - set(WITHDRAWN))
        if without:
            raise DataError(
                f"{len(without)} series have no label file",
                where=source,
                found=", ".join(without[:5]),
                expected="labelNNNN.nii.gz for each PANCREAS_NNNN; labels are a separate download",
            )
        return {
            case: {"layout": "dicom", "recipe": self.recipe, "image": folder, "label": labels[case]}
            for case, folder in series.items()
            if case not in WITHDRAWN
        }

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Scale gray values as the recipe does; the h5 files have the same scale."""
        return normalize(image, self.recipe.gray)

    def load(self, raw: RawCase) -> Case:
        """Return one case; of h5 files, only the type of the labels is changed."""
        where: dict[str, Any] = raw.where
        if where["layout"] == "h5":
            arrays = read_h5(where["file"], ("image", "label"))
            label = _binary(arrays["label"], where["file"])
            return Case(raw.id, arrays["image"][None], label, self.h5_spacing)
        image = read_dicom(where["image"], order="instance")
        mask = read_nifti(where["label"], placed=False)
        if image.array.shape != mask.array.shape:
            raise DataError(
                "series and label do not match",
                where=where["label"],
                expected=f"shape {image.array.shape}",
                found=f"shape {mask.array.shape}",
            )
        label = _binary(mask.array, where["label"])
        inside = image.array[label > 0]
        _require_soft_tissue(inside, where["label"])
        made = apply(self.recipe, image, label)
        return finished_case(raw.id, made, [*image.warnings, *_unusual_tissue(inside)])


def _series_folders(paths: Iterable[Path]) -> dict[str, Path]:
    """Return for each case the outermost folder that contains slices."""
    folders = {}
    for path in paths:
        match = FOLDER.fullmatch(path.name)
        if match and path.is_dir():
            folders[path] = match[1]
    outermost = [
        (case, folder)
        for folder, case in folders.items()
        if folders.get(folder.parent) != case and _has_slices(folder)
    ]
    return one_path_per_case(outermost)


def _has_slices(folder: Path) -> bool:
    return any(not file.name.startswith(".") for file in folder.rglob("*.dcm"))


def _require_soft_tissue(inside: np.ndarray, file: Path) -> None:
    """Reject a label whose voxels cannot be pancreas: converted files are often mirrored.

    Args:
        inside: HU of the voxels inside the label.
        file: file of the label, for error messages.
    """
    mean = float(inside.mean()) if inside.size else 0.0
    low, high = POSSIBLE_MEAN
    if not low <= mean <= high:
        raise DataError(
            "the label does not lie on soft tissue",
            where=file,
            found=f"mean {mean:.0f} HU inside",
            expected=f"{low:.0f} to {high:.0f} HU",
            fix="use both from the archive: converted files are often mirrored",
        )


def _unusual_tissue(inside: np.ndarray) -> list[str]:
    """Warn about gray values inside the label that are possible but unusual."""
    mean = float(inside.mean())
    deviation = float(inside.std())
    low, high = USUAL_MEAN
    if low <= mean <= high and deviation <= USUAL_DEVIATION:
        return []
    return [
        f"{mean:.0f} HU inside the label, standard deviation {deviation:.0f}; usual are "
        f"{low:.0f} to {high:.0f} and at most {USUAL_DEVIATION:.0f}: check whether label and "
        "series match"
    ]


def _binary(label: np.ndarray, file: Path) -> np.ndarray:
    """Return a label with values 0 and 1 of any type as uint8."""
    whole = np.rint(label)
    if np.abs(label - whole).max(initial=0) > 1e-3 or not np.isin(whole, (0, 1)).all():
        raise DataError(
            "unknown label values",
            where=file,
            found=", ".join(f"{value:g}" for value in np.unique(label)[:8]),
            expected="0 and 1",
        )
    binary: np.ndarray = whole.astype(np.uint8)
    return binary


RAW = (
    "'PANCREAS_NNNN' folders with one DICOM series each and 'labelNNNN.nii.gz' files, 80 cases, "
    "about 10 GB"
)


@dataset("pancreas_ct", paper="Roth et al., MICCAI 2015")
class ProtocolA(Pancreas):
    """Protocol A: values in [0, 1], cropped to a box around the pancreas in all axes."""

    title = "NIH Pancreas-CT, protocol A (CoraNet, BCP, VerSemi)"
    files = (RAW, "or 'NNNN.h5' or 'dataNNNN.h5' for 80 cases (CoraNet, VerSemi)")
    recipe = Recipe(
        orientation="file",
        spacing=(1.0, 1.0, 1.0),
        in_plane=True,
        gray=(Gray(WINDOW, "unit"),),
        crop="label",
        margin=(25, 26),
        least=96,
    )
    h5 = re.compile(r"(?:data)?(\d{4})\.h5")

    def split(self) -> Split:
        """Return the split of CoraNet and VerSemi, which agree in every entry."""
        lists = read_lists(LISTS)
        return Split(
            tuple(lists["train"]), tuple(lists["test"]), "CoraNet, Shi et al., IEEE TMI 2021"
        )


@dataset("pancreas_ct_mcnet", paper="Roth et al., MICCAI 2015")
class ProtocolB(Pancreas):
    """Protocol B: z-scored values, cropped to a box around the pancreas in x and y."""

    title = "NIH Pancreas-CT, protocol B (MC-Net) without the scan that counts three times"
    files = (RAW, "or 'imageNNNN_norm.h5' files (MC-Net)")
    protocol = "pancreas_ct_mcnet"
    recipe = Recipe(
        orientation="file",
        spacing=(1.0, 1.0, 1.0),
        order=3,
        gray=(Gray(WINDOW, "zscore"),),
        crop="label_xy",
        margin=(25, 24),
        least=96,
        scale_last=True,
    )
    h5 = re.compile(r"image(\d{4})_norm\.h5")
    h5_spacing = (1.0, 1.0, 1.0)

    def split(self) -> Split:
        """Return MC-Net's split without 0025 and 0070."""
        lists = read_lists(LISTS)["mcnet"]
        return Split(
            train=tuple(case for case in lists["train"] if case not in WITHDRAWN),
            test=tuple(case for case in lists["test"] if case not in WITHDRAWN),
            source="MC-Net, Wu et al., MICCAI 2021, without 0025 and 0070",
            notes=(
                "0025 and 0070 repeat the scan of case 0002 and are left out: "
                "61 train and 19 test cases, not 62 and 20",
            ),
        )
