"""A trained run on scans it has never seen: through the preprocessing it was trained with, and back to the scan's own grid.

The preprocessing is the recipe stored with the training cases. Data that came without one is described by what its prepared
cases share: orientation, spacing, and ``Dataset.normalize`` for the gray values. A crop around the label, as in most
published numbers, is left out: it needs the label. An HDF5 file of data that is spread so is taken as prepared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segbench import registry
from segbench.contracts.dataset import Dataset
from segbench.contracts.method import Method
from segbench.data.formats.hdf5 import is_h5
from segbench.data.formats.read import ENDINGS, read_volume, stem
from segbench.data.formats.volume import Volume, check_pair, require_finite
from segbench.data.geometry import orientation_codes, reorient, sample_on_grid, translation
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.data.store.downsample import block_mean
from segbench.data.store.store import Store
from segbench.errors import DataError, UsageError
from segbench.evaluation.prediction import Inference, postprocess, predict_image
from segbench.evaluation.sliding_window import labels_from
from segbench.storage import atomic_write
from segbench.text import first_few

SLICE = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names: case and channel
FAR = 3.0  # times the training's: a scan that differs by more in the width or place of its gray values is suspicious


@dataclass(frozen=True)
class Scan:
    """One scan by its name and files: one, or one a channel; a folder is a DICOM series."""

    name: str
    files: tuple[Path, ...]


@dataclass
class Prediction:
    """What was found in a scan, on the scan's own grid."""

    scan: Scan
    label: np.ndarray  # (*S) uint8
    probabilities: np.ndarray  # (K, *S) float32, background first
    affine: np.ndarray  # (4, 4) voxel to mm, the unit matrix where the file tells none
    steps: list[str]  # what was done to the scan, in words
    warnings: list[str]


def find_scans(paths: Iterable[Path], channels: int) -> list[Scan]:
    """The scans that files and folders name. A folder is one DICOM series, or holds files and folders of series.

    With several channels ``case_0000.nii.gz``, ``case_0001.nii.gz``, ... are one scan.

    Raises:
        DataError: nothing there.
        UsageError: two scans of one name, whose results would overwrite each other.
    """
    found: list[Scan] = []
    for path in paths:
        if not path.exists():
            raise DataError("no such file or folder", where=path)
        files = [path] if not path.is_dir() or _has_dicom(path) else _volumes(path)
        if len(files) == 1 and files[0].is_dir():
            files = [path]  # a patient's folder with one study in it
        if not files:
            raise DataError(
                "no scan in the folder",
                where=path,
                expected=" ".join(ENDINGS) + ", or DICOM slices",
            )
        found += (
            _grouped(files, channels) if channels > 1 else [Scan(_name(f), (f,)) for f in files]
        )
    if (
        channels == 1
        and len(plain := {s.name.removesuffix("_0000") for s in found}) == len(found)
        and all(plain)
    ):
        found = [
            replace(s, name=s.name.removesuffix("_0000")) for s in found
        ]  # as the label files are called
    for name, n in Counter(s.name for s in found).items():
        if n > 1:
            raise UsageError(
                f"{n} scans are called '{name}': their results would overwrite each other",
                found=", ".join(str(s.files[0]) for s in found if s.name == name),
                fix="predict them in two calls with two output folders",
            )
    return found


def left_out(paths: Iterable[Path], scans: Iterable[Scan]) -> list[str]:
    """A warning for each folder on the files in it that belong to no scan; hidden ones are left alone."""
    from segbench.data.formats.dicom import dicom_files
    from segbench.data.preparation.layouts import find_below

    read = {
        f
        for scan in scans
        for file in scan.files
        for f in (dicom_files(file) if file.is_dir() else (file,))
    }
    lost = {
        path: [p.relative_to(path) for p in find_below(path, "*") if p.is_file() and p not in read]
        for path in paths
    }
    return [
        f"{path}: not taken as scans: {first_few(files)}" for path, files in lost.items() if files
    ]


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else stem(path)


def _volumes(folder: Path) -> list[Path]:
    """Volume files in a folder, and its folders of DICOM slices, by name; hidden files are left alone."""
    return [
        p
        for p in sorted(folder.iterdir())
        if not p.name.startswith(".")
        and (_has_dicom(p, deep=True) if p.is_dir() else p.name.lower().endswith(ENDINGS))
    ]


def _has_dicom(folder: Path, deep: bool = False) -> bool:
    from segbench.data.formats.dicom import dicom_files

    files = dicom_files(folder)
    return bool(files) and (deep or any(f.parent == folder for f in files))


def _grouped(files: Sequence[Path], channels: int) -> list[Scan]:
    groups: dict[str, list[tuple[int | None, Path]]] = {}
    for file in files:
        match = SLICE.fullmatch(_name(file))
        groups.setdefault(match[1] if match else _name(file), []).append(
            (int(match[2]) if match else None, file)
        )
    for name, members in groups.items():
        numbers = sorted(n for n, _ in members if n is not None)
        if numbers != list(range(channels)) and (numbers or len(members) > 1):
            raise DataError(
                f"the files of scan '{name}' are not its channels",
                where=members[0][1].parent,
                found=", ".join(sorted(file.name for _, file in members)),
                fix="one file a channel, each once",
                expected=", ".join(f"{name}_{n:04d}" for n in range(channels)),
            )
    return [
        Scan(name, tuple(file for _, file in sorted(members, key=lambda m: m[0] or 0)))
        for name, members in groups.items()
    ]


class Predictor:
    """Predicts scans with one finished run, for one of its data sets."""

    def __init__(
        self, method: Method, experiment: Any, store: Store, source: int, device: str
    ) -> None:
        self.protocol = experiment.protocol
        self.inference = Inference(method, self.protocol, device, experiment.precision)
        self.store = store
        self.source = source
        self.dataset: Dataset = registry.get("dataset", store.name).cls()
        self.codes = _orientation(store)
        recipe, self.stored = _recipe(store)
        by_label = recipe.crop.startswith("label")
        self.boxed = by_label or self.dataset.boxed
        self.recipe = replace(recipe, crop="none") if by_label else recipe

    def __call__(self, scan: Scan) -> Prediction:
        """Predict one scan.

        Raises:
            DataError: a file is damaged, or not what the run was trained on.
        """
        volume, doubts = self._read(scan)
        affine, shape = (
            np.eye(4) if volume.affine is None else volume.affine,
            volume.array.shape[:3],
        )
        steps, warnings = self._told(volume)
        warnings += doubts
        turned = volume
        if volume.affine is not None and self.codes is not None:
            turned = Volume(*reorient(volume.array, volume.affine, self.codes))
        prepared = volume.affine is None and not self.stored
        made = apply(Recipe(orientation="file") if prepared else self.recipe, turned)
        image = (
            made.image
            if prepared or self.stored
            else np.asarray(self.dataset.normalize(made.image), np.float32)
        )
        warnings += self._unlike(image)
        probabilities = self._probabilities(image, made.facts.get("pad", ()) if self.stored else ())
        grid = translation(made.facts["crop_offset"]) if made.affine is None else made.affine
        probabilities = sample_on_grid(
            probabilities, grid, affine, shape, self.recipe.crop != "none"
        )
        label = postprocess(labels_from(torch.from_numpy(probabilities)), self.protocol)
        if is_h5(scan.files[0]):  # back to the axes of the file
            axes = np.argsort(self.dataset.h5_axes)
            label, probabilities = label.transpose(axes), probabilities.transpose(0, *1 + axes)
        return Prediction(scan, label, probabilities, affine, steps, warnings)

    def _volume(self, file: Path) -> Volume:
        """Return one file of a scan, read by the data set's own hook or, without one, by the file's ending."""
        own = self.dataset.scan(file)
        if own is not None:
            return Volume(*own)
        volume = read_volume(file)
        if is_h5(file) and volume.array.ndim == 3:
            return Volume(volume.array.transpose(self.dataset.h5_axes), None)
        return volume

    def _read(self, scan: Scan) -> tuple[Volume, list[str]]:
        """The scan as (X, Y, Z, C) float32, and warnings."""
        volumes = [self._volume(file) for file in scan.files]
        doubts = [
            text
            for file, volume in zip(scan.files[1:], volumes[1:], strict=True)
            for text in check_pair(volumes[0], volume, file, "channel")
        ]
        arrays = [v.array for v in volumes]
        if len({a.shape for a in arrays}) == 1 and arrays[0].ndim == 3:
            arrays = [np.stack(arrays, axis=-1)]
        array = arrays[0]
        if (
            len(arrays) > 1
            or array.ndim != 4
            or array.shape[3] != self.store.channels
            or 0 in array.shape
        ):
            raise DataError(
                "the scan is not what the run was trained on",
                where=scan.files[0],
                found=" + ".join("x".join(map(str, v.array.shape)) for v in volumes),
                expected=f"three axes and {self.store.channels} channels, equal in shape",
            )
        require_finite(array, scan.files[0])
        return Volume(array.astype(np.float32), volumes[0].affine), doubts

    def _told(self, volume: Volume) -> tuple[list[str], list[str]]:
        """What will be done to a scan, in words, and warnings."""
        steps: list[str] = []
        warnings: list[str] = []
        if self.boxed and (volume.affine is not None or self.stored):
            warnings.append(
                "the training cases were cut to a box around the label, which nobody knows here: the whole scan "
                "is searched, and more may be found than there is"
            )
        if volume.affine is None:
            warnings.append(
                "the file tells no space: its axes are taken as they are"
                + ("" if self.stored else ", and its gray values as prepared")
            )
            return steps, warnings
        codes = orientation_codes(volume.affine)
        if self.codes is None and self.recipe.orientation != "ras":
            warnings.append(
                "the training data's orientation is not recorded: the axes are taken as in the file"
            )
        elif codes != (self.codes or "RAS"):
            steps.append(f"turned from {codes} to {self.codes or 'RAS'}")
        if self.recipe.spacing is not None and volume.spacing is not None:
            steps.append(f"resampled from {_mm(volume.spacing)} to {_mm(self.recipe.spacing)}")
        return steps, warnings

    def _unlike(self, image: np.ndarray) -> list[str]:
        """A warning where the gray values are far from those of the training cases."""
        cases = [self.store.cases[case].intensity for case in self.store.train]
        widths = [c["max"] - c["min"] for c in cases]
        low, high = min(c["min"] for c in cases), max(c["max"] for c in cases)
        spread, means = FAR * max(c["std"] for c in cases), [c["mean"] for c in cases]
        width, mean = float(image.max() - image.min()), float(image.mean(dtype=np.float64))
        if (
            width <= FAR * max(widths)
            and FAR * width >= min(widths)
            and min(means) - spread <= mean <= max(means) + spread
        ):
            return []
        return [
            f"gray values from {image.min():.4g} to {image.max():.4g} (mean {mean:.4g}) differ strongly from training "
            f"({low:.4g} to {high:.4g}, mean {np.mean(means):.4g}): check modality and units"
        ]

    def _probabilities(self, image: np.ndarray, pad: Sequence[float]) -> np.ndarray:
        """(K, X, Y, Z) of a prepared image (C, X, Y, Z)."""
        factors, small = self.protocol.factors(self.store.name, 3), image
        if max(factors) > 1:
            small = np.stack([block_mean(channel, factors) for channel in image])
        return (
            predict_image(self.inference, small, image.shape[1:], self.source, self.store.name, pad)
            .float()
            .cpu()
            .numpy()
        )


def _orientation(store: Store) -> str | None:
    """The orientation all training cases have; None if it is unknown or differs."""
    affines = [store.cases[case].affine for case in store.train]
    codes = {None if affine is None else orientation_codes(np.array(affine)) for affine in affines}
    return codes.pop() if len(codes) == 1 else None


def _recipe(store: Store) -> tuple[Recipe, bool]:
    """The recipe stored with the training cases, and True; else what the cases share, and False."""
    infos = [store.cases[case] for case in store.train]
    found = [
        i.source["from"].get("recipe") if isinstance(i.source.get("from"), Mapping) else None
        for i in infos
    ]
    if isinstance(found[0], Mapping) and all(f == found[0] for f in found):
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in found[0].items()
        }
        gray = tuple(
            Gray(None if g["window"] is None else tuple(g["window"]), g["scale"])
            for g in plain.pop("gray")
        )
        return Recipe(**plain, gray=gray), True
    spacings = (
        np.array([i.spacing for i in infos]) if all(i.spacing for i in infos) else np.empty((0, 3))
    )
    same = len(spacings) > 0 and np.ptp(spacings, axis=0).max() < 1e-3 * spacings.min()
    if not same or spacings.shape[1] != 3:
        return Recipe(orientation="file"), False
    a, b, c = map(float, spacings[0])
    return Recipe(orientation="file", spacing=(a, b, c)), False


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"


def write_nifti(path: Path, array: np.ndarray, prediction: Prediction) -> None:
    """An array on the scan's grid as a NIfTI file with the scan's exact geometry and nothing else of its header.

    Raises:
        StorageError: disk full or not writable.
    """
    import nibabel

    image: Any = nibabel.Nifti1Image(array, prediction.affine)
    source = prediction.scan.files[0]
    if source.name.lower().endswith((".nii", ".nii.gz")):
        loaded: Any = nibabel.load(source)
        old, header = loaded.header, loaded.header_class()
        header.set_data_shape(array.shape)
        header.set_data_dtype(array.dtype)
        for key in (
            "qform_code",
            "sform_code",
            "quatern_b",
            "quatern_c",
            "quatern_d",
            "qoffset_x",
            "qoffset_y",
            "qoffset_z",
            "srow_x",
            "srow_y",
            "srow_z",
            "xyzt_units",
        ):
            header[key] = old[key]
        header["pixdim"][:4] = old["pixdim"][:4]
        image = type(loaded)(array, None, header)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        import gzip

        content = gzip.compress(content, 6, mtime=0)
    atomic_write(path, content)
