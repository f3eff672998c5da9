"""Lay out real volumes as three folders of one's own, to be trained without a single option.

    python benchmarks/planner/own_folders.py OUT --acdc ACDC --la LA

ACDC holds ``data/patientXXX_frameYY.h5``, ``train.list`` and ``test.list``; LA is what unpacking
the 2018 volumes gives. The folders, each for ``segbench run METHOD --dataset folder:OUT/NAME``:

    Dataset027_ACDC   nnU-Net v2, volumes of thick slices
    Task02_Heart      Decathlon, left atria
    Dataset127_Slices nnU-Net v2, PNG pictures: the slices of ACDC

The cases of the first seven patients (ACDC) and the first eight cases (left atrium) of the training
lists keep their labels, as in the hand-made protocols; the test lists are ``labelsTs``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
from PIL import Image

LABELED_PATIENTS = 7
LABELED_ATRIA = 8
# The circulating files of ACDC state no spacing. These are the medians of the published headers.
ACDC_SPACING = (1.52, 1.52, 10.0)
LA_SPACING = (0.625, 0.625, 0.625)
CLASSES = ("right ventricle", "myocardium", "left ventricle")


@dataclass(frozen=True)
class Scan:
    """One volume, last axis across slices, and the folder of its label: Tr, Ts, or none."""

    name: str
    image: np.ndarray[Any, Any]
    label: np.ndarray[Any, Any]
    part: str  # "Tr" or "Ts"
    is_labeled: bool


def acdc(folder: Path) -> Iterator[Scan]:
    """Return the volumes of the training and test patients."""
    train = (folder / "train.list").read_text().split()
    test = (folder / "test.list").read_text().split()
    for patient in train + test:
        for file in sorted((folder / "data").glob(f"{patient}_*.h5")):
            with h5py.File(file) as content:
                image = np.moveaxis(content["image"][:], 0, -1)
                label = np.moveaxis(content["label"][:], 0, -1)
            is_labeled = patient in train[:LABELED_PATIENTS] or patient in test
            yield Scan(file.stem, image, label, "Ts" if patient in test else "Tr", is_labeled)


def left_atria(folder: Path) -> Iterator[Scan]:
    """Return the volumes of the training and test list, under the names of the Decathlon."""
    train = (folder / "train.list").read_text().split()
    test = (folder / "test.list").read_text().split()
    for number, case in enumerate(train + test, start=1):
        with h5py.File(folder / "2018LA_Seg_Training Set" / case / "mri_norm2.h5") as content:
            image = content["image"][:]
            label = content["label"][:]
        is_labeled = number <= LABELED_ATRIA or case in test
        yield Scan(f"la_{number:03}", image, label, "Ts" if case in test else "Tr", is_labeled)


def make_folders(out: Path) -> None:
    """Make the four folders of a data set."""
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (out / name).mkdir(parents=True, exist_ok=True)


def write_volumes(out: Path, scans: Iterator[Scan], spacing: tuple[float, ...], end: str) -> None:
    """Write NIfTI files; ``end`` follows the name of a case in the name of its image."""
    make_folders(out)
    affine = np.diag([*spacing, 1.0])
    for scan in scans:
        image = nibabel.Nifti1Image(scan.image.astype(np.float32), affine)
        nibabel.save(image, out / f"images{scan.part}" / f"{scan.name}{end}.nii.gz")
        if scan.is_labeled:
            label = nibabel.Nifti1Image(scan.label.astype(np.uint8), affine)
            nibabel.save(label, out / f"labels{scan.part}" / f"{scan.name}.nii.gz")


def write_slices(out: Path, scans: Iterator[Scan]) -> None:
    """Write each slice as a gray picture of 8 bits, and its mask."""
    make_folders(out)
    for scan in scans:
        low, high = scan.image.min(), scan.image.max()
        gray = np.round((scan.image - low) / (high - low) * 255).astype(np.uint8)
        for index in range(gray.shape[-1]):
            case = f"{scan.name}_slice{index:02}"
            picture = Image.fromarray(np.ascontiguousarray(gray[..., index]))
            picture.save(out / f"images{scan.part}" / f"{case}_0000.png")
            if scan.is_labeled:
                mask = np.ascontiguousarray(scan.label[..., index].astype(np.uint8))
                Image.fromarray(mask).save(out / f"labels{scan.part}" / f"{case}.png")


def write_json(out: Path, content: dict[str, Any]) -> None:
    """Write dataset.json."""
    (out / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")


def nnunet_json(channel: str, ending: str, cases: int) -> dict[str, Any]:
    """Return the dataset.json of nnU-Net v2."""
    labels = {"background": 0}
    for value, name in enumerate(CLASSES, start=1):
        labels[name] = value
    return {
        "channel_names": {"0": channel},
        "labels": labels,
        "numTraining": cases,
        "file_ending": ending,
    }


def decathlon_json(out: Path) -> dict[str, Any]:
    """Return the dataset.json of the Decathlon: pairs for training, images for testing."""
    labels = sorted(file.name for file in (out / "labelsTr").iterdir())
    images = sorted(file.name for file in (out / "imagesTs").iterdir())
    training = []
    for name in labels:
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    return {
        "name": "LeftAtrium",
        "description": "Left atrium",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium"},
        "numTraining": len(training),
        "numTest": len(images),
        "training": training,
        "test": [f"./imagesTs/{name}" for name in images],
    }


def main() -> None:
    """Read the command line and write the folders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--acdc", type=Path, required=True)
    parser.add_argument("--la", type=Path, required=True)
    arguments = parser.parse_args()
    volumes = arguments.out / "Dataset027_ACDC"
    write_volumes(volumes, acdc(arguments.acdc), ACDC_SPACING, "_0000")
    images = len(list((volumes / "labelsTr").iterdir()))
    write_json(volumes, nnunet_json("cineMRI", ".nii.gz", images))
    slices = arguments.out / "Dataset127_Slices"
    write_slices(slices, acdc(arguments.acdc))
    pictures = len(list((slices / "labelsTr").iterdir()))
    write_json(slices, nnunet_json("cineMRI", ".png", pictures))
    atria = arguments.out / "Task02_Heart"
    write_volumes(atria, left_atria(arguments.la), LA_SPACING, "")
    write_json(atria, decathlon_json(atria))


if __name__ == "__main__":
    main()
