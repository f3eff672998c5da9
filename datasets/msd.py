"""Spleen and lung of the Medical Segmentation Decathlon, in the split of VerSemi (labeled cases only).

The official folders or tars are read. The code that made VerSemi's files has not been released; the recipes here are
ours: nearest RAS axes, 1 mm, a window to [0, 1], and a crop.

* ``msd_spleen``: window -125..275 HU as for the pancreas, box of the label with 25 voxels around it, 96 at least.
* ``msd_lung``: the same box, window -1024..325 HU: the abdominal window would hide a tumor's border towards air. The
  tumor is always near the middle, far easier than finding it. Numbers belong to this variant.
* ``msd_lung_thorax``: box of the body; no label is used. Harder, fair, and possible for unlabeled scans.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from segbench import Archive, Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.nifti import read_nifti
from segbench.data.formats.volume import check_pair, whole_labels
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.errors import DataError

MIRROR = (
    "https://msd-for-monai.s3-us-west-2.amazonaws.com"  # used by MONAI, which gives the digests
)
SOFT = Gray(window=(-125.0, 275.0), scale="unit")
WIDE = Gray(window=(-1024.0, 325.0), scale="unit")
BOX = Recipe(spacing=(1.0, 1.0, 1.0), gray=(SOFT,), crop="label", margin=(25, 25), least=96)


@cache
def _lists(name: str) -> dict[str, list[str]]:
    return yaml.safe_load(
        Path(__file__).with_name(f"{name}_split.yaml").read_text(encoding="utf-8")
    )


class Decathlon(Dataset):
    """One task: ``imagesTr`` and ``labelsTr`` with equal file names; 1 is the target, everything else background."""

    modality = "CT"
    license = "CC BY-SA 4.0"
    citation = (
        "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, 2022; "
        "Simpson et al., arXiv 1902.09063"
    )
    homepage = "https://medicaldecathlon.com"
    task: ClassVar[str]
    lists: ClassVar[str]
    recipe: ClassVar[Recipe]

    def split(self) -> Split:
        """VerSemi's: ascending case numbers, the tail is the test set."""
        lists = _lists(self.lists)
        return Split(
            tuple(lists["train"]), tuple(lists["test"]), "VerSemi, Zeng et al., IEEE TMI 2025"
        )

    def find(self, source: Path | None) -> list[RawCase]:
        """The labeled cases of the task's folder, or of one folder above it."""
        assert source is not None
        base = source if (source / "labelsTr").is_dir() else source / self.task
        if not (base / "labelsTr").is_dir():
            raise DataError(
                f"no {self.task} folder found",
                where=source,
                expected=" ".join(self.files),
                fix=f"segbench data prepare {self.name} --from the folder or tar of {self.task}",
            )
        labels = sorted(
            p
            for p in (base / "labelsTr").iterdir()
            if p.name.endswith(".nii.gz") and p.name[0] not in "._"
        )
        return [
            RawCase(
                p.name.removesuffix(".nii.gz"),
                {"recipe": self.recipe, "image": base / "imagesTr" / p.name, "label": p},
            )
            for p in labels
        ]

    def load(self, raw: RawCase) -> Case:
        """One case by the recipe."""
        where: dict[str, Any] = raw.where
        image, label = read_nifti(where["image"]), read_nifti(where["label"])
        warnings = check_pair(image, label, where["label"])
        values = whole_labels(
            label.array, where["label"], "1 is the target, all other whole numbers are background"
        )
        if others := {
            int(v): int(n)
            for v, n in zip(*np.unique(values[values > 1], return_counts=True), strict=True)
        }:
            warnings.append(
                f"label values taken as background: {', '.join(f'{v}: {n} voxels' for v, n in others.items())}"
            )
        made = apply(self.recipe, image, (values == 1).astype(np.uint8))
        return Case(
            raw.id,
            made.image,
            made.label,
            made.spacing,
            made.affine,
            made={**made.facts, "warnings": warnings + made.doubts},
        )


@dataset("msd_spleen", paper="Antonelli et al., Nature Communications 2022")
class Spleen(Decathlon):
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
    protocol = "msd"
    labeled = 3
    lists = "msd_spleen"
    recipe = BOX


@dataset("msd_lung", paper="Antonelli et al., Nature Communications 2022")
class Lung(Decathlon):
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
    protocol = "msd"
    labeled = 5
    lists = "msd_lung"
    recipe = Recipe(spacing=(1.0, 1.0, 1.0), gray=(WIDE,), crop="label", margin=(25, 25), least=96)


@dataset("msd_lung_thorax", paper="Antonelli et al., Nature Communications 2022")
class LungThorax(Lung):
    title = "Medical Segmentation Decathlon, Task 06: lung tumor, whole thorax"
    recipe = Recipe(spacing=(1.0, 1.0, 1.0), gray=(WIDE,), crop="body")
    protocol = "msd_thorax"
