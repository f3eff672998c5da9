"""Spleen and lung of the Medical Segmentation Decathlon: labeled cases in the split of VerSemi.

The official folders or tar files are read. The code that prepared VerSemi's files has not been
released, so the recipes here are our own: reorient to the nearest RAS axes, resample to 1 mm, map a
gray-value window to [0, 1], and crop.

* ``msd_spleen``: window -125..275 HU as for the pancreas; crop to the label's bounding box plus 25
  voxels on each side, at least 96 voxels per axis.
* ``msd_lung``: the same crop, with window -1024..325 HU, because the abdominal window would hide
  the border between tumor and air. The tumor is always near the center, which is far easier than
  finding it. Results hold for this variant only.
* ``msd_lung_thorax``: crop to the body, without using a label. It is harder and fair, and it works
  for unlabeled scans.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segbench import Archive, Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import whole_labels
from segbench.data.preparation.adapters import finished_case, read_lists
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.errors import DataError

# The mirror that MONAI uses; MONAI publishes the digests.
MIRROR = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
ENDING = ".nii.gz"
SOFT_TISSUE = Gray(window=(-125.0, 275.0), scale="unit")
LUNG_AND_TISSUE = Gray(window=(-1024.0, 325.0), scale="unit")


def _box(gray: Gray) -> Recipe:
    """Return the recipe that crops to a box around the label."""
    return Recipe(spacing=(1.0, 1.0, 1.0), gray=(gray,), crop="label", margin=(25, 25), least=96)


class Decathlon(Dataset):
    """One task of the Decathlon: ``imagesTr`` and ``labelsTr`` with the same file names.

    Label value 1 is the target; all other values are background.
    """

    modality = "CT"
    license = "CC BY-SA 4.0"
    citation = (
        "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, "
        "2022; Simpson et al., arXiv 1902.09063"
    )
    homepage = "https://medicaldecathlon.com"
    protocol = "msd"
    task: ClassVar[str]  # name of the official folder
    lists: ClassVar[Path]
    recipe: ClassVar[Recipe]

    def split(self) -> Split:
        """Return VerSemi's split: cases by number; the last ones are the test set."""
        lists = read_lists(self.lists)
        return Split(
            tuple(lists["train"]), tuple(lists["test"]), "VerSemi, Zeng et al., IEEE TMI 2025"
        )

    def find(self, source: Path | None) -> list[RawCase]:
        """Return the labeled cases; ``source`` is the task's folder or the folder that holds it."""
        assert source is not None
        base = source if (source / "labelsTr").is_dir() else source / self.task
        if not (base / "labelsTr").is_dir():
            raise DataError(
                f"no {self.task} folder found",
                where=source,
                expected=" ".join(self.files),
                fix=f"segbench data prepare {self.name} --from the folder or tar of {self.task}",
            )
        cases = []
        for label in sorted((base / "labelsTr").iterdir()):
            if label.name.endswith(ENDING) and label.name[0] not in "._":
                image = base / "imagesTr" / label.name
                where = {"recipe": self.recipe, "image": image, "label": label}
                cases.append(RawCase(label.name.removesuffix(ENDING), where))
        return cases

    def load(self, raw: RawCase) -> Case:
        """Return one case, prepared by the recipe."""
        where: dict[str, Any] = raw.where
        image = read_nifti(where["image"])
        label = read_nifti(where["label"])
        label, pair_warnings = match(image, label, where["label"])
        warnings = [*image.warnings, *pair_warnings]
        values = whole_labels(
            label.array, where["label"], "1 is the target, all other whole numbers are background"
        )
        warnings += _other_values(values)
        target = (values == 1).astype(np.uint8)
        return finished_case(raw.id, apply(self.recipe, image, target), warnings)


def _other_values(values: np.ndarray) -> list[str]:
    """Warn about label values that are neither background nor the target."""
    others, counts = np.unique(values[values > 1], return_counts=True)
    if not len(others):
        return []
    listed = [f"{value}: {count} voxels" for value, count in zip(others, counts, strict=True)]
    return [f"label values used as background: {', '.join(listed)}"]


@dataset("msd_spleen", paper="Antonelli et al., Nature Communications 2022")
class Spleen(Decathlon):
    """Task 09, cropped to a box around the spleen."""

    title = "Medical Segmentation Decathlon, Task 09: spleen"
    classes = ("spleen",)
    task = "Task09_Spleen"
    files = (
        f"'{task}/imagesTr/spleen_N.nii.gz' and 'labelsTr' of the same names, 41 cases",
        f"or {task}.tar",
    )
    archives = (
        Archive(
            f"{task}.tar",
            f"{MIRROR}/{task}.tar",
            digest="md5:410d4a301da4e5b2f6f86ec3ddba524e",
            size="about 1.5 GB",
        ),
    )
    labeled = 3
    lists = Path(__file__).with_name("msd_spleen_split.yaml")
    recipe = _box(SOFT_TISSUE)


@dataset("msd_lung", paper="Antonelli et al., Nature Communications 2022")
class Lung(Decathlon):
    """Task 06, cropped to a box around the tumor."""

    title = "Medical Segmentation Decathlon, Task 06: lung tumor, box around the tumor"
    classes = ("lung tumor",)
    task = "Task06_Lung"
    files = (
        f"'{task}/imagesTr/lung_NNN.nii.gz' and 'labelsTr' of the same names, 63 cases",
        f"or {task}.tar",
    )
    collection = task
    archives = (
        Archive(
            f"{task}.tar", f"{MIRROR}/{task}.tar", digest="md5:8afd997733c7fc0432f71255ba4e52dc"
        ),
    )
    labeled = 5
    lists = Path(__file__).with_name("msd_lung_split.yaml")
    recipe = _box(LUNG_AND_TISSUE)


@dataset("msd_lung_thorax", paper="Antonelli et al., Nature Communications 2022")
class LungThorax(Lung):
    """Task 06, cropped to the body."""

    title = "Medical Segmentation Decathlon, Task 06: lung tumor, whole thorax"
    recipe = Recipe(spacing=(1.0, 1.0, 1.0), gray=(LUNG_AND_TISSUE,), crop="body")
    protocol = "msd_thorax"
