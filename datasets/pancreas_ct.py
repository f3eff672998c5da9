"""NIH Pancreas-CT in the two forms that circulate; their numbers must not be mixed.

* ``pancreas_ct``, protocol A (CoraNet, BCP, VerSemi): all axes scaled by the in-plane factor to 1 mm in plane, window
  -125..275 HU to [0, 1], box of the label with 25 voxels around it, 96 at least. 62 train, 18 test.
* ``pancreas_ct_mcnet``, protocol B (MC-Net, MC-Net+): 1 mm cubes by cubic splines, the same window, box of the label in x
  and y only, then mean 0 and deviation 1 of the crop. The published list counts one scan three times (0002, 0025, 0070),
  in train and in test; 0025 and 0070, withdrawn from the archive since, are left out here: 61 train, 19 test.

Read are the archive's DICOM series with its NIfTI labels, or the h5 files that circulate. The series and the labels
agree by index and not by header: slices are stacked by their instance number, and the label's own affine is ignored.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.dicom import read_dicom
from segbench.data.formats.hdf5 import read_h5
from segbench.data.formats.nifti import read_nifti
from segbench.data.preparation.places import below, once
from segbench.data.preparation.recipe import Gray, Recipe, apply, normalize
from segbench.errors import DataError

WITHDRAWN = ("0025", "0070")  # crops of the scan of case 0002
WINDOW = (-125.0, 275.0)  # HU
INSIDE = (
    0.0,
    200.0,
)  # HU: where the mean of an enhanced pancreas must lie; fat and air come in where a label is mirrored
USUAL, SPREAD = (
    (50.0, 130.0),
    80.0,
)  # HU: where it mostly lies, and a deviation that only a mixture of tissues has
FOLDER, LABEL = re.compile(r"PANCREAS_(\d{4})"), re.compile(r"label(\d{4})\.nii(\.gz)?")


@cache
def _lists() -> dict[str, Any]:
    return yaml.safe_load(
        Path(__file__).with_name("pancreas_ct_split.yaml").read_text(encoding="utf-8")
    )


class Pancreas(Dataset):
    """Ids are the archive's four digits."""

    modality = "contrast CT, portal-venous phase"
    classes = ("pancreas",)
    license = "CC BY 3.0"
    citation = (
        "Roth et al., Data from Pancreas-CT, The Cancer Imaging Archive, 2016, 10.7937/K9/TCIA.2016.tNB1kqBU; "
        "Roth et al., DeepOrgan, MICCAI 2015; Clark et al., J Digit Imaging 26(6), 2013"
    )
    homepage = "https://www.cancerimagingarchive.net/collection/pancreas-ct/"
    protocol = "pancreas_ct"
    collection = "NIH Pancreas-CT"
    boxed = True
    labeled = 6
    recipe: ClassVar[Recipe]
    h5: ClassVar[re.Pattern[str]]  # names of the circulating files
    h5_spacing: ClassVar[tuple[float, ...] | None] = None

    def find(self, source: Path | None) -> list[RawCase]:
        """Cases of the archive or the circulating files, wherever below ``source`` they lie."""
        assert source is not None
        files = once((m[1], p) for p in below(source, "*.h5") if (m := self.h5.fullmatch(p.name)))
        h5 = {case: {"layout": "h5", "file": file} for case, file in files.items()}
        raw = self._raw(source)
        if h5 and raw:
            raise DataError(
                "two layouts in one folder: prepared h5 files and the archive's files",
                where=source,
                found=f"{len(h5)} h5 files, {len(raw)} series",
                expected="one of the two",
                fix="keep them in two folders",
            )
        found = {case: where for case, where in (h5 or raw).items() if case not in WITHDRAWN}
        if not found:
            raise DataError(
                "no case of the pancreas data found",
                where=source,
                expected=" ".join(self.files),
                fix=f"segbench data prepare {self.name} --from DIR, which holds images and labels",
            )
        return [RawCase(case, where) for case, where in sorted(found.items())]

    def _raw(self, source: Path) -> dict[str, dict[str, Any]]:
        """Series by case, each with its label; a label without a series (0025, 0070) is no case."""
        labels = once(
            (m[1], p) for p in below(source, "label*.nii*") if (m := LABEL.fullmatch(p.name))
        )
        folders = {
            p: m[1]
            for p in below(source, "PANCREAS_*")
            if p.is_dir() and (m := FOLDER.fullmatch(p.name))
        }
        cases = once(
            (case, p)
            for p, case in folders.items()
            if folders.get(p.parent) != case and _any_slice(p)
        )
        without = sorted(set(cases) - set(labels) - set(WITHDRAWN))
        if without:
            raise DataError(
                f"{len(without)} series have no label file",
                where=source,
                found=", ".join(without[:5]),
                expected="labelNNNN.nii.gz for each PANCREAS_NNNN; the labels are a download of their own",
            )
        return {
            case: {"layout": "dicom", "recipe": self.recipe, "image": folder, "label": labels[case]}
            for case, folder in cases.items()
            if case not in WITHDRAWN
        }

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """As the recipe; the h5 files hold such values."""
        return normalize(image, self.recipe.gray)

    def load(self, raw: RawCase) -> Case:
        """One case; the circulating files are taken as they are, but for the labels' type."""
        where: dict[str, Any] = raw.where
        if where["layout"] == "h5":
            arrays = read_h5(where["file"], ("image", "label"))
            return Case(
                raw.id,
                arrays["image"][None],
                _binary(arrays["label"], where["file"]),
                self.h5_spacing,
            )
        image, label = read_dicom(where["image"], order="instance"), read_nifti(where["label"])
        if image.array.shape != label.array.shape:
            raise DataError(
                "series and label do not fit",
                where=where["label"],
                expected=f"shape {image.array.shape}",
                found=f"shape {label.array.shape}",
            )
        mask = _binary(label.array, where["label"])
        mean = float(image.array[mask > 0].mean()) if mask.any() else 0.0
        if not INSIDE[0] <= mean <= INSIDE[1]:
            raise DataError(
                "the label does not lie on soft tissue",
                where=where["label"],
                found=f"mean {mean:.0f} HU inside",
                expected=f"{INSIDE[0]:.0f} to {INSIDE[1]:.0f} HU",
                fix="take both from the archive: converted files are often mirrored",
            )
        made = apply(self.recipe, image, mask)
        warnings = _doubts(image.array[mask > 0])
        return Case(
            raw.id,
            made.image,
            made.label,
            made.spacing,
            made.affine,
            made={**made.facts, "warnings": warnings + made.doubts},
        )


def _any_slice(folder: Path) -> bool:
    return any(file.name[0] != "." for file in folder.rglob("*.dcm"))


def _doubts(inside: np.ndarray) -> list[str]:
    """Gray values inside the label that are possible but not usual."""
    mean, spread = float(inside.mean()), float(inside.std())
    if USUAL[0] <= mean <= USUAL[1] and spread <= SPREAD:
        return []
    return [
        f"{mean:.0f} HU inside the label, deviation {spread:.0f}; usual are {USUAL[0]:.0f} to {USUAL[1]:.0f} and at "
        f"most {SPREAD:.0f}: look whether label and series fit"
    ]


def _binary(label: np.ndarray, file: Path) -> np.ndarray:
    """0 and 1, stored as any type."""
    whole = np.rint(label)
    if np.abs(label - whole).max(initial=0) > 1e-3 or not np.isin(whole, (0, 1)).all():
        raise DataError(
            "unknown label values",
            where=file,
            found=", ".join(f"{v:g}" for v in np.unique(label)[:8]),
            expected="0 and 1",
        )
    return whole.astype(np.uint8)


RAW = "'PANCREAS_NNNN' folders with one DICOM series each and 'labelNNNN.nii.gz' files, 80 cases, about 10 GB"


@dataset("pancreas_ct", paper="Roth et al., MICCAI 2015")
class ProtocolA(Pancreas):
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
        """CoraNet's and VerSemi's, entry by entry."""
        return Split(
            tuple(_lists()["train"]), tuple(_lists()["test"]), "CoraNet, Shi et al., IEEE TMI 2021"
        )


@dataset("pancreas_ct_mcnet", paper="Roth et al., MICCAI 2015")
class ProtocolB(Pancreas):
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
        """MC-Net's without 0025 and 0070."""
        train, test = (
            tuple(i for i in _lists()["mcnet"][k] if i not in WITHDRAWN) for k in ("train", "test")
        )
        return Split(
            train,
            test,
            "MC-Net, Wu et al., MICCAI 2021, without 0025 and 0070",
            notes=(
                "0025 and 0070 are the scan of case 0002 once more and left out: 61 train and 19 test cases, not 62 and 20",
            ),
        )
