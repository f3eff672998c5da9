"""Apply a trained run to new scans: preprocess, predict, and return to the scan's grid.

The preprocessing is the recipe that is stored with the training cases. If there is none, it is
derived from what the prepared cases share: their orientation and spacing, and ``Dataset.normalize``
for the gray values. A crop around the label, as in most published numbers, is left out, because it
needs the label. HDF5 files of a data set that is distributed as preprocessed HDF5 are assumed to be
preprocessed.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from segbench import registry
from segbench.config import Experiment
from segbench.contracts.dataset import Dataset
from segbench.contracts.method import Method
from segbench.data.formats.hdf5 import is_h5
from segbench.data.formats.nifti import load_nifti
from segbench.data.formats.pictures import is_picture, with_channels, write_label_picture
from segbench.data.formats.read import read_volume
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import Volume, as_one_slice, require_finite
from segbench.data.geometry import (
    in_mm,
    orientation_codes,
    reorient,
    sample_on_grid,
    spacing_of,
    translation,
)
from segbench.data.preparation.recipe import AIR, Gray, Recipe, RecipeResult, apply
from segbench.data.store.case_files import ONE_PHASE
from segbench.data.store.downsample import block_mean
from segbench.data.store.store import Store
from segbench.errors import DataError, UsageError
from segbench.evaluation.prediction import Inference, LabelMap, postprocess, predict_image
from segbench.evaluation.scan_files import Scan
from segbench.evaluation.sliding_window import labels_from
from segbench.storage import atomic_write, make_folder

SUSPICIOUS_FACTOR = 3.0  # gray values that differ from the training's by more than this factor
# What surrounds the box of a crop by the image.
OUTSIDE = {"body": f"air (below {AIR:g} HU)", "nonzero": "zeros"}
CROPPED = 0.05  # share of a scan that is more than a margin
AS_STORED = Recipe(orientation="file")  # changes nothing

Array = np.ndarray[Any, Any]

# Header fields that say where a NIfTI volume lies in space.
GEOMETRY_FIELDS = (
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
)


@dataclass
class Prediction:
    """What a run predicts for a scan, on the scan's own grid."""

    scan: Scan
    label: LabelMap  # (*S)
    probabilities: Array  # (K, *S) float32, background first
    affine: Array  # (4, 4) voxel to mm, the identity matrix if the file has none
    oriented: bool  # False: the affine has the spacing only
    steps: list[str]  # descriptions of the preprocessing
    warnings: list[str]

    def save(self, path: str | Path) -> Path:
        """Write the label map as a NIfTI file (.nii.gz or .nii) on the scan's grid, or a picture.

        A picture (.png, .tif or .bmp) is gray, and its values are the class numbers.

        Raises:
            StorageError: the disk is full or not writable.
            DataError: the label map has several slices, and the picture can hold only one.
        """
        file = Path(path)
        make_folder(file.parent)
        if is_picture(file):
            write_label_picture(file, self.label)
        else:
            write_nifti(file, self.label, self)
        return file


class Preprocessing(NamedTuple):
    """How new scans of a data set are prepared."""

    recipe: Recipe
    is_stored: bool  # with the training cases; otherwise derived from what they share


class PreparedScan(NamedTuple):
    """A scan as it is stored, and as the network sees it."""

    scan: Scan
    volume: Volume
    made: RecipeResult
    warnings: list[str]


class Predictor:
    """Predicts scans with one finished run, for one of its data sets.

    Args:
        source: index of the data set in the run.
    """

    def __init__(
        self, method: Method, experiment: Experiment, store: Store, source: int, device: str
    ) -> None:
        protocol = experiment.protocol
        self.inference = Inference(method, protocol, device, experiment.prediction_precision)
        self.store = store
        self.source = source
        self.orientation = _shared_orientation(store)
        self.recipe, self.recipe_is_stored = _preprocessing(store)
        self.dataset = _adapter(store.name, self.recipe_is_stored)
        if not _some_are_oriented(store):
            self.recipe = replace(self.recipe, orientation="file")
        self.trained_on_boxes = self.dataset.boxed
        if self.recipe.crop.startswith("label"):
            self.trained_on_boxes = True
            self.recipe = replace(self.recipe, crop="none")

    def __call__(self, scan: Scan) -> Prediction:
        """Predict one scan.

        Raises:
            DataError: a file is damaged, or not what the run was trained on.
        """
        return self.predicted(self.prepared(scan))

    def prepared(self, scan: Scan) -> PreparedScan:
        """Return a scan that is read and prepared as the training cases; no method runs.

        Raises:
            DataError: a file is damaged, or not what the run was trained on.
        """
        volume, channel_warnings = self._read(scan)
        made = self._prepared(volume)
        warnings = self._warnings(volume) + channel_warnings
        warnings += self._gray_value_warnings(made.image)
        warnings += self._crop_warnings(made)
        return PreparedScan(scan, volume, made, warnings)

    def predicted(self, prepared: PreparedScan) -> Prediction:
        """Return the prediction for a prepared scan."""
        scan = prepared.scan
        prediction = self._predicted(scan, prepared.volume, prepared.made)
        prediction.steps = self._steps(prepared.volume)
        prediction.warnings = prepared.warnings
        if is_h5(scan.files[0]):  # back to the order of the axes in the file
            axes = np.argsort(self.dataset.h5_axes)
            prediction.label = prediction.label.transpose(axes)
            prediction.probabilities = prediction.probabilities.transpose(0, *(1 + axes))
        return prediction

    def predict_array(
        self, image: Array, affine: Array | None = None, is_prepared: bool = False
    ) -> Prediction:
        """Predict a scan that is an array.

        Args:
            image: gray values (C, *S), or (*S) of one channel; of a two-dimensional data set, S has
                two axes or three.
            affine: (4, 4) voxel to mm, right-anterior-superior; None if it is not known.
            is_prepared: whether the image was prepared as the training cases; otherwise it is
                prepared here, as a scan from a file.

        Raises:
            DataError: the array is not what the run was trained on.
        """
        volume, is_flat = self._volume_of(np.asarray(image), affine)
        if is_prepared:
            made = apply(AS_STORED, volume)
            steps: list[str] = []
            warnings: list[str] = []
        else:
            made = self._prepared(volume)
            steps = self._steps(volume)
            warnings = self._warnings(volume) + self._crop_warnings(made)
        warnings += self._gray_value_warnings(made.image)
        prediction = self._predicted(Scan("array", ()), volume, made)
        prediction.steps = steps
        prediction.warnings = warnings
        if is_flat:
            prediction.label = prediction.label[..., 0]
            prediction.probabilities = prediction.probabilities[..., 0]
        return prediction

    def _predicted(self, scan: Scan, volume: Volume, made: RecipeResult) -> Prediction:
        """Predict a preprocessed scan and return to the grid of its volume."""
        pad = made.facts.get("pad", ()) if self.recipe_is_stored else ()
        probabilities = self._probabilities(made.image, pad)
        scan_affine = np.eye(4) if volume.affine is None else volume.affine
        grid = translation(made.facts["crop_offset"]) if made.affine is None else made.affine
        probabilities = sample_on_grid(
            probabilities,
            grid,
            scan_affine,
            volume.array.shape[:3],
            cropped=self.recipe.crop != "none",
        )
        label = labels_from(torch.from_numpy(probabilities))
        label = postprocess(label, self.inference.protocol)
        oriented = volume.affine is None or volume.oriented
        return Prediction(scan, label, probabilities, scan_affine, oriented, [], [])

    def _volume_of(self, image: Array, affine: Array | None) -> tuple[Volume, bool]:
        """Return an array as (X, Y, Z, C), and whether its last axis was added."""
        channels = self.store.channels
        possible_axes = {self.store.dims, 3}
        if all(self.store.cases[case].shape[2:] == (1,) for case in self.store.train):
            possible_axes.add(2)
        for axes in sorted(possible_axes):
            with_channels = image
            if image.ndim == axes and channels == 1:
                with_channels = image[None]
            if with_channels.ndim != axes + 1 or len(with_channels) != channels:
                continue
            is_flat = axes == 2
            spatial = with_channels[..., None] if is_flat else with_channels
            require_finite(spatial)
            array = np.moveaxis(spatial, 0, -1).astype(np.float32)
            return Volume(array, affine), is_flat
        names = "C, X, Y" if self.store.dims == 2 else "C, X, Y, Z"
        raise DataError(
            "the array is not what the run was trained on",
            found=f"shape {image.shape}",
            expected=f"({names}) with {channels} channels",
            fix="reorder the axes: numpy.moveaxis",
        )

    def _read(self, scan: Scan) -> tuple[Volume, list[str]]:
        """Return the scan as (X, Y, Z, C) float32, and warnings about its channels."""
        in_file = self.store.channels if len(scan.files) == 1 else 1
        first = self._read_file(scan.files[0], in_file)
        volumes = [first]
        warnings = list(first.warnings)
        for file in scan.files[1:]:
            volume, channel_warnings = match(first, self._read_file(file, in_file), file, "channel")
            volumes.append(volume)
            warnings += channel_warnings

        arrays = [volume.array for volume in volumes]
        shapes = {array.shape for array in arrays}
        if len(shapes) == 1 and arrays[0].ndim == 3:
            arrays = [np.stack(arrays, axis=-1)]
        is_expected = (
            len(arrays) == 1
            and arrays[0].ndim == 4
            and arrays[0].shape[3] == self.store.channels
            and arrays[0].size > 0
        )
        if not is_expected:
            found = ["x".join(map(str, volume.array.shape)) for volume in volumes]
            raise DataError(
                "the scan is not what the run was trained on",
                where=scan.files[0],
                found=" + ".join(found),
                expected=f"three axes and {self.store.channels} channels, equal in shape",
                fix=self._fix_of_channels(),
            )
        array = arrays[0]
        require_finite(array, scan.files[0])
        return replace(first, array=array.astype(np.float32)), warnings

    def _fix_of_channels(self) -> str:
        """Return how the channels of a scan are given."""
        if self.store.channels == 1:
            return f"{ONE_PHASE}; of several channels, train with all of them"
        return (
            "give a file or a DICOM folder per channel, in the order of training: named "
            "NAME_0000, NAME_0001, ... in one folder, or joined by commas: FIRST,SECOND"
        )

    def _read_file(self, file: Path, channels: int) -> Volume:
        """Read one file of a scan, by the data set's own hook or by the file's ending.

        Args:
            file: the file.
            channels: number of channels that a picture gets.
        """
        own = self.dataset.scan(file)
        if own is not None:
            return Volume(*own)
        volume = read_volume(file)
        if is_picture(file):
            volume = with_channels(volume, channels, file)
        if is_h5(file) and volume.array.ndim == 3:
            return replace(volume, array=volume.array.transpose(self.dataset.h5_axes))
        return as_one_slice(volume)

    def _prepared(self, volume: Volume) -> RecipeResult:
        """Return the scan as the training cases were prepared."""
        is_preprocessed = volume.affine is None and not self.recipe_is_stored
        if is_preprocessed:
            return apply(AS_STORED, volume)
        is_turned = volume.oriented and self.orientation is not None
        if is_turned and volume.affine is not None and self.orientation is not None:
            volume = Volume(*reorient(volume.array, volume.affine, self.orientation))
        made = apply(self.recipe, volume)
        _require_extent(volume, made)
        if self.recipe_is_stored:
            return made
        image = np.asarray(self.dataset.normalize(made.image), np.float32)
        return replace(made, image=image)

    def _steps(self, volume: Volume) -> list[str]:
        """Describe what is done to a scan before it is predicted."""
        if volume.affine is None:
            return []
        steps = []
        codes = orientation_codes(volume.affine)
        target = self.orientation or "RAS"
        if volume.oriented and self._knows_orientation and codes != target:
            steps.append(f"reoriented from {codes} to {target}")
        if self.recipe.spacing is not None and volume.spacing is not None:
            before = in_mm(volume.spacing)
            after = in_mm(self.recipe.spacing)
            if before != after:
                steps.append(f"resampled from {before} to {after}")
        return steps

    @property
    def _knows_orientation(self) -> bool:
        return self.orientation is not None or self.recipe.orientation == "ras"

    @property
    def _trained_without_affine(self) -> bool:
        """Whether the training cases were raw files without a place in space, such as pictures."""
        cases = [self.store.cases[case] for case in self.store.train]
        return self.recipe_is_stored and all(case.affine is None for case in cases)

    def _warnings(self, volume: Volume) -> list[str]:
        """Warn where a scan cannot be treated as the training cases were."""
        warnings = []
        has_affine = volume.affine is not None
        if self.trained_on_boxes and (has_affine or self.recipe_is_stored):
            warnings.append(
                "the training cases were cropped to a box around the label; here the whole scan is "
                "segmented, so expect more false positives"
            )
        if not has_affine and not self._trained_without_affine:
            text = "the scan has no orientation or spacing: its axes are used as they are"
            if not self.recipe_is_stored:
                text += ", and its gray values are assumed to be preprocessed"
            warnings.append(text)
        elif has_affine and volume.oriented and not self._knows_orientation:
            warnings.append(
                "the orientation of the training cases is not recorded: "
                "the scan's axes are used as they are"
            )
        return warnings

    def _gray_value_warnings(self, image: Array) -> list[str]:
        """Warn if the gray values are far from those of the training cases."""
        intensities = [self.store.cases[case].intensity for case in self.store.train]
        lows = [intensity["min"] for intensity in intensities]
        highs = [intensity["max"] for intensity in intensities]
        means = [intensity["mean"] for intensity in intensities]
        ranges = [high - low for low, high in zip(lows, highs, strict=True)]
        largest_sd = max(intensity["std"] for intensity in intensities)

        low = float(image.min())
        high = float(image.max())
        mean = float(image.mean(dtype=np.float64))
        too_wide = high - low > SUSPICIOUS_FACTOR * max(ranges)
        too_narrow = SUSPICIOUS_FACTOR * (high - low) < min(ranges)
        too_dark = mean < min(means) - SUSPICIOUS_FACTOR * largest_sd
        too_bright = mean > max(means) + SUSPICIOUS_FACTOR * largest_sd
        if not (too_wide or too_narrow or too_dark or too_bright):
            return []
        return [
            f"gray values from {low:.4g} to {high:.4g} (mean {mean:.4g}) differ strongly from "
            f"training ({min(lows):.4g} to {max(highs):.4g}, mean {np.mean(means):.4g}): "
            "check modality and units"
        ]

    def _crop_warnings(self, made: RecipeResult) -> list[str]:
        """Warn if a scan has nothing around the body, and all training cases have.

        So it is with CT that is not in Hounsfield units, and with an offset on all gray values.
        """
        if self.recipe.crop not in OUTSIDE or _cropped_share(made.image.shape[1:], made.facts) > 0:
            return []
        for case in self.store.train:
            info = self.store.cases[case]
            if _cropped_share(info.shape, info.made) < CROPPED:
                return []
        return [
            f"the scan has no surroundings of {OUTSIDE[self.recipe.crop]}, and all training cases "
            "have: check modality and units"
        ]

    def _probabilities(self, image: Array, pad: Sequence[float]) -> Array:
        """Return class probabilities (K, X, Y, Z) of a prepared image (C, X, Y, Z)."""
        factors = self.inference.protocol.factors(self.store.name, 3)
        small = image
        if max(factors) > 1:
            small = np.stack([block_mean(channel, factors) for channel in image])
        probabilities = predict_image(
            self.inference, small, image.shape[1:], self.source, self.store.name, pad
        )
        array: Array = probabilities.float().cpu().numpy()
        return array


def _cropped_share(shape: Sequence[int], facts: Mapping[str, Any]) -> float:
    """Return the share of voxels that a crop removed, 0 if that is not recorded."""
    before = facts.get("resampled_shape", shape)
    share: float = 1 - math.prod(shape) / math.prod(before)
    return share


def _require_extent(volume: Volume, made: RecipeResult) -> None:
    """Refuse a scan that resampling to the training cases' spacing would reduce to one voxel."""
    voxels = max(made.facts["resampled_shape"])
    if volume.spacing is not None and voxels == 1 < max(made.facts["source_shape"]):
        raise DataError(
            "implausible spacing: the scan is smaller than one voxel of the training cases",
            found=in_mm(volume.spacing),
            expected=f"a spacing near {in_mm(made.spacing or ())}",
            fix="correct the unit or the spacing in the scan's header",
        )


def _adapter(name: str, recipe_is_stored: bool) -> Dataset:
    """Return the data set's adapter; a plain one if it is gone and the recipe says everything.

    Raises:
        UsageError: there is no such data set any more, and its way to scale gray values is needed.
    """
    try:
        adapter: Dataset = registry.get("dataset", name).cls()
    except UsageError:
        if not recipe_is_stored:
            raise
        return Dataset()
    return adapter


def _shared_orientation(store: Store) -> str | None:
    """Return the orientation of all training cases; None if it is unknown or differs."""
    found: set[str | None] = set()
    for case in store.train:
        info = store.cases[case]
        if info.affine is None or not info.made.get("oriented", True):
            found.add(None)
        else:
            found.add(orientation_codes(np.array(info.affine)))
    return found.pop() if len(found) == 1 else None


def _some_are_oriented(store: Store) -> bool:
    """Return whether the axes of any training case are known to be anatomical."""
    return any(store.cases[case].made.get("oriented", True) for case in store.train)


def _preprocessing(store: Store) -> Preprocessing:
    """Return the recipe stored with the training cases, or one derived from them."""
    stored = _stored_recipe(store)
    if stored is not None:
        return Preprocessing(_recipe_of(stored), is_stored=True)
    spacing = _shared_spacing(store)
    return Preprocessing(replace(AS_STORED, spacing=spacing), is_stored=False)


def _stored_recipe(store: Store) -> Mapping[str, Any] | None:
    """Return the stored recipe of the training cases; None unless all have the same."""
    first: Mapping[str, Any] | None = None
    for case in store.train:
        origin = store.cases[case].source.get("from")
        recipe = origin.get("recipe") if isinstance(origin, Mapping) else None
        if not isinstance(recipe, Mapping):
            return None
        if first is None:
            first = recipe
        elif recipe != first:
            return None
    return first


def _recipe_of(stored: Mapping[str, Any]) -> Recipe:
    """Return a recipe from its stored form, in which tuples are lists."""
    fields: dict[str, Any] = {}
    for name, value in stored.items():
        fields[name] = tuple(value) if isinstance(value, list) else value
    gray = []
    for rule in fields.pop("gray"):
        window = None if rule["window"] is None else tuple(rule["window"])
        gray.append(Gray(window, rule["scale"]))
    return Recipe(**fields, gray=tuple(gray))


def _shared_spacing(store: Store) -> tuple[float, float, float] | None:
    """Return the training cases' spacing in mm; None if unknown, different or of two axes."""
    known = [store.cases[case].spacing for case in store.train]
    if not known or not all(known):
        return None
    spacings = np.array(known)
    differ = np.ptp(spacings, axis=0).max() >= 1e-3 * spacings.min()
    if differ or spacings.shape[1] != 3:
        return None
    x, y, z = spacings[0].tolist()
    return (x, y, z)


def write_nifti(path: Path, array: Array, prediction: Prediction) -> None:
    """Write an array on the scan's grid as a NIfTI file.

    If the scan is a NIfTI file, its geometry is copied exactly, and nothing else of its header.

    Raises:
        StorageError: the disk is full or not writable.
    """
    import nibabel

    files = prediction.scan.files  # none of an array
    make_image: Any = nibabel.Nifti1Image
    if files and files[0].name.lower().endswith((".nii", ".nii.gz")):
        loaded = load_nifti(files[0])
        if loaded.ndim == 2 and array.ndim == 3:
            array = array[:, :, 0]  # two axes, as the scan
        header = _header_with_geometry_of(loaded.header, array)
        image: Any = type(loaded)(array, None, header)
    elif not prediction.oriented:
        image = make_image(array, None, _header_with_spacing(prediction.affine, array))
    else:
        image = make_image(array, prediction.affine)
    content: bytes = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, 6, mtime=0)
    atomic_write(path, content)


def _header_with_geometry_of(scan_header: Any, array: Array) -> Any:
    header = type(scan_header)()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    for field in GEOMETRY_FIELDS:
        header[field] = scan_header[field]
    header["pixdim"][:4] = scan_header["pixdim"][:4]
    return header


def _header_with_spacing(affine: Array, array: Array) -> Any:
    """Return a header with the spacing of a grid, and no orientation."""
    import nibabel

    header: Any = nibabel.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["pixdim"][1:4] = spacing_of(affine)
    header.set_xyzt_units("mm")
    return header
