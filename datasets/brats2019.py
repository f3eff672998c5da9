"""BraTS 2019: brain tumors in MRI, 335 cases with four sequences, in the split of SSL4MIS.

Two data sets read the same files:

* ``brats2019``: the whole tumor (all labels together) in FLAIR alone, as SSL4MIS and the work after
  it train; one channel, one class.
* ``brats2019_regions``: T1, T1 with contrast, T2 and FLAIR as four channels, and the three labels
  of the challenge as classes that do not overlap. The challenge's regions follow from them: the
  whole tumor is all three, the tumor core is all but edema.

Two layouts can be read:

* the challenge's ``MICCAI_BraTS_2019_Data_Training/HGG|LGG/<case>/<case>_flair.nii.gz`` and so on;
* for ``brats2019`` the h5 files of SSL4MIS, ``<case>.h5``, which are used without changes.

Deviations from the preparation of SSL4MIS, whose files can therefore not be made from the
challenge's: it clips the brightest 0.1 % of the voxels, its z-score also shifts the background, and
its crop leaves out the last plane of the brain on each axis. Here the gray values of the brain are
z-scored, the background stays 0, and the crop is the box of all voxels that are not 0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import Volume, whole_labels
from segbench.data.preparation.adapters import (
    files_by_case,
    finished_case,
    no_case_found,
    read_lists,
    require_one_layout,
)
from segbench.data.preparation.layouts import find_below
from segbench.data.preparation.recipe import Gray, Recipe, apply, normalize
from segbench.errors import DataError

LISTS = Path(__file__).with_name("brats2019_split.yaml")
RECIPE = Recipe(orientation="file", gray=(Gray(scale="zscore_nonzero"),), crop="nonzero")
SEGMENTATION = re.compile(r"(BraTS19_\w+)_seg\.nii(?:\.gz)?")
PREPARED = re.compile(r"(BraTS19_\w+)\.h5")
LABELS = (0, 1, 2, 4)  # background, necrotic core, edema, enhancing tumor; 3 is not used


@dataset("brats2019", paper="Menze et al., IEEE TMI 2015")
class WholeTumor(Dataset):
    """The whole tumor in FLAIR."""

    title = "BraTS 2019: whole tumor in FLAIR"
    modality = "MRI (FLAIR)"
    classes: ClassVar[tuple[str, ...]] = ("whole tumor",)
    license = (
        "No license is named; access after registration, under the terms of the challenge. "
        "Settle your right to use the files before you pass them on."
    )
    citation = (
        "Menze et al., The multimodal brain tumor image segmentation benchmark (BRATS), IEEE TMI "
        "34(10), 2015; Bakas et al., Scientific Data 4:170117, 2017; Bakas et al., "
        "arXiv 1811.02629"
    )
    homepage = "https://www.med.upenn.edu/cbica/brats2019/data.html"
    files: ClassVar[tuple[str, ...]] = (
        "'<HGG or LGG>/<case>/<case>_flair.nii.gz' and '<case>_seg.nii.gz', 335 cases",
        "or '<case>.h5' (SSL4MIS)",
    )
    protocol = "brats2019"
    labeled = 25
    collection = "BraTS 2019"
    sequences: ClassVar[tuple[str, ...]] = ("flair",)

    def split(self) -> Split:
        """Return 250 train, 25 validation and 60 test cases."""
        lists = read_lists(LISTS)
        return Split(
            train=tuple(lists["train"]),
            test=tuple(lists["test"]),
            source="SSL4MIS, Luo et al.",
            val=tuple(lists["val"]),
        )

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the cases of any layout, in ``source`` or any of its subfolders."""
        assert source is not None
        raw = files_by_case(find_below(source, "BraTS19_*_seg.nii*"), SEGMENTATION)
        prepared = files_by_case(find_below(source, "BraTS19_*.h5"), PREPARED)
        require_one_layout(
            source, {"the challenge's files": len(raw), "h5 files of SSL4MIS": len(prepared)}
        )
        if prepared:
            self._require_one_channel(source)
            return [RawCase(case, {"h5": file}) for case, file in sorted(prepared.items())]
        if not raw:
            raise no_case_found(self, source, "BraTS 2019")
        return [RawCase(case, self._files(case, raw[case])) for case in sorted(raw)]

    def _require_one_channel(self, source: Path) -> None:
        if self.channels > 1:
            raise DataError(
                f"the h5 files of SSL4MIS cannot be read as {self.name}",
                where=source,
                found="FLAIR and the whole tumor only",
                expected=self.files[0],
                fix="give the folder of the challenge's files, or prepare brats2019",
            )

    def _files(self, case: str, segmentation: Path) -> dict[str, Any]:
        ending = segmentation.name.removeprefix(f"{case}_seg")
        images = [segmentation.with_name(f"{case}_{name}{ending}") for name in self.sequences]
        return {"recipe": RECIPE, "images": images, "label": segmentation}

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Z-score the voxels of each channel that are not 0."""
        return normalize(image, RECIPE.gray)

    def load(self, raw: RawCase) -> Case:
        """Return one case; the axes are those of the file."""
        where: dict[str, Any] = raw.where
        if "h5" in where:
            arrays = read_h5(where["h5"], ("image", "label"))
            label = whole_labels(arrays["label"], where["h5"], "0 and 1")
            return Case(raw.id, arrays["image"][None].astype(np.float32), label)
        image, warnings = _channels(where["images"])
        mask, pair_warnings = match(image, read_nifti(where["label"]), where["label"])
        label = self.label_of(_checked(mask.array, where["label"]))
        return finished_case(
            raw.id, apply(where["recipe"], image, label), [*warnings, *pair_warnings]
        )

    def label_of(self, values: np.ndarray) -> np.ndarray:
        """Return the label map (*S) of the challenge's label values."""
        return (values > 0).astype(np.uint8)


@dataset("brats2019_regions", paper="Menze et al., IEEE TMI 2015")
class Regions(WholeTumor):
    """Three classes that do not overlap, in four channels."""

    title = "BraTS 2019: three tumor labels in four sequences"
    modality = "MRI (T1, T1 with contrast, T2, FLAIR)"
    classes = ("necrotic core", "edema", "enhancing tumor")
    channels = 4
    files = ("'<HGG or LGG>/<case>/<case>_t1|t1ce|t2|flair|seg.nii.gz', 335 cases",)
    sequences = ("t1", "t1ce", "t2", "flair")

    def label_of(self, values: np.ndarray) -> np.ndarray:
        """Return the label map (*S); the challenge's label 4 is class 3."""
        return np.where(values == 4, np.uint8(3), values.astype(np.uint8))


def _channels(files: list[Path]) -> tuple[Volume, list[str]]:
    """Return the sequences of a case as one volume (*S, C), and warnings about their headers.

    Raises:
        DataError: a file cannot be read, or its grid is not that of the first one.
    """
    first = read_nifti(files[0])
    arrays = [first.array]
    warnings = list(first.warnings)
    for file in files[1:]:
        other, pair_warnings = match(first, read_nifti(file), file)
        arrays.append(other.array)
        warnings += pair_warnings
    if len(arrays) == 1:
        return first, warnings
    return Volume(np.stack(arrays, axis=-1), first.affine, first.oriented), warnings


def _checked(array: np.ndarray, file: Path) -> np.ndarray:
    """Return label values of the challenge.

    Raises:
        DataError: there is another value.
    """
    values = whole_labels(array, file, "0, 1, 2 and 4")
    unknown = sorted(set(np.unique(values).tolist()) - set(LABELS))
    if unknown:
        raise DataError(
            "label values that the challenge does not have",
            where=file,
            found=", ".join(map(str, unknown)),
            expected="0, 1 (necrotic core), 2 (edema) and 4 (enhancing tumor)",
            fix="use the challenge's own file",
        )
    return values
