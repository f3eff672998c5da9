"""The user's own volumes in a folder with the layout of the Decathlon or of nnU-Net v2.

The data set is named by its path, ``folder:/data/Dataset007_Mine``, or linked once with ``segbench
data link``. ``dataset.json`` names channels and labels; images are in ``imagesTr`` and labels in
``labelsTr``. Unlabeled cases are in ``imagesTr`` too (without a label file) or in ``imagesUn``. A
case in ``imagesTs`` is never used for training unless ``splits_ssl.json`` lists it as unlabeled.

``splits_ssl.json`` contains the lists ``labeled``, ``unlabeled``, ``val`` (not used yet) and
``test``. If the file is missing, one in five labeled cases is drawn for testing with a fixed seed,
and the file is written, so that cases that are added later do not change the test set.

Default preparation: images are reoriented to the nearest RAS axes and resampled to the median
spacing of the training images, with linear interpolation for images and nearest neighbor for
labels. CT: the range from the 0.5 to the 99.5 percentile of the labeled cases' foreground is mapped
to [0, 1], and the image is cropped to the body. Other channels: z-score over the nonzero voxels,
cropped to these voxels. Labels are used for the crop only if the user asks for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.formats.nifti import nifti_header
from segbench.data.formats.read import read_volume
from segbench.data.formats.volume import (
    Volume,
    check_pair,
    require_finite,
    spacing_of,
    whole_labels,
)
from segbench.data.geometry import file_axes
from segbench.data.preparation.adapters import finished_case
from segbench.data.preparation.layouts import (
    FolderLayout,
    case_images,
    layout_warnings,
    read_json,
    read_layout,
    suggest_layout_fix,
)
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.errors import DataError, StorageError, UsageError, did_you_mean
from segbench.storage import atomic_write, json_bytes

LISTS_FILE = "splits_ssl.json"
LISTS = ("labeled", "unlabeled", "val", "test")
LISTS_WITH_LABELS = ("labeled", "val", "test")
SETTINGS = ("spacing", "window", "crop")
CROPS = ("none", "nonzero", "body", "label")
SCALES = {
    "nonorm": Gray(),
    "zscore": Gray(None, "zscore"),
    "rescale_to_0_1": Gray(None, "minmax"),
    "rgb_to_0_1": Gray((0.0, 255.0), "unit"),
}
# A tight crop to the label would reveal where the target is; published recipes leave a margin too.
LABEL_MARGIN = (25, 25)
LABEL_LEAST = 96
TEST_SHARE = 5  # one in five labeled cases is for testing
SEED = 0  # for drawing the test cases
VOXELS_PER_CASE = 10**6  # maximum number of foreground voxels per case for the percentiles
ANISOTROPIC = 3  # ratio of spacings above which cubic patches are a poor choice

Files = dict[str, Any]  # keys: "place", "images" and, if there is one, "label"


@dataset("folder")
class Folder(Dataset):
    """A family of data sets: ``variant`` returns the data set of one folder."""

    family = True
    title = "Your own data: a Decathlon or nnU-Net v2 folder, as folder:/PATH"
    modality = "any"
    license = "yours"
    files = (
        "dataset.json, imagesTr/ and labelsTr/ (missing label: unlabeled), "
        "imagesUn/ and splits_ssl.json if you like",
    )
    protocol = "default"
    layout: ClassVar[FolderLayout]
    settings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def variant(cls, text: str, settings: dict[str, Any]) -> type[Dataset]:
        """Return the data set of one folder; read ``dataset.json`` and list the files.

        A folder that is not available (its disk is not mounted) still gives a data set, so that
        its prepared cases can be used.

        Args:
            text: path of the folder.
            settings: ``spacing`` (three values in mm), ``window`` (two gray values, for CT) and
                ``crop`` (none, nonzero, body or label).
        """
        checked = _checked(settings)
        root = Path(text)
        if root.exists():
            layout = read_layout(root)
        else:
            layout = FolderLayout(f"not available: {root}", (), (), True, "", "not stated", "")
        attributes = {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "family": False,
            "source": root,
            "layout": layout,
            "settings": checked,
            "title": layout.title,
            "classes": layout.classes,
            "channels": len(layout.channels),
            "modality": ", ".join(layout.channels),
            "license": layout.license,
            "citation": layout.citation,
        }
        made = cast("type[Folder]", type(cls.__name__, (cls,), attributes))
        if root.exists():
            made.labeled = len(made().lists()["labeled"])
        return made

    def lists(self) -> dict[str, list[str]]:
        """Return the four lists of ``splits_ssl.json``, or those that will be written to it.

        Raises:
            DataError: the folder or a case is not available, a list has an unknown name or no case,
                a case is listed twice, or a case without a label is in a list that needs one.
        """
        assert self.source is not None
        if not self.source.exists():
            raise DataError(
                "the folder is not available",
                where=self.source,
                fix="mount it again; what has been prepared from it can still be used",
            )
        cases = self.cases()
        file = self.source / LISTS_FILE
        if not file.is_file():
            return drawn_lists(cases, self.source, self.layout)
        lists = stored_lists(file)
        for problem, which in problems_of_lists(lists, cases).items():
            if which:
                raise DataError(
                    problem,
                    where=file,
                    found=", ".join(which[:10]),
                    expected="each case once, on disk",
                    fix=suggest_layout_fix(self.source, self.layout)
                    or "repair the file, or remove it to have the lists drawn again",
                )
        return lists

    def cases(self) -> dict[str, Files]:
        """Return the files of each case, ordered by the numbers in the ids.

        Raises:
            DataError: a case is in two folders.
        """
        assert self.source is not None
        found: dict[str, Files] = {}
        for place in ("imagesTr", "imagesUn", "imagesTs"):
            for case, images in case_images(self.source / place, self.layout).items():
                if case in found:
                    raise DataError(
                        f"case '{case}' lies in two folders",
                        where=self.source,
                        found=f"{found[case]['place']} and {place}",
                        expected="each case once",
                    )
                found[case] = {"place": place, "images": images}
                label = self.source / "labelsTr" / f"{case}{self.layout.ending}"
                if place == "imagesTr" and os.path.lexists(label):
                    found[case]["label"] = label
        return {case: found[case] for case in sorted(found, key=_by_number)}

    def split(self) -> Split:
        """Return the lists as a split; training cases are the labeled, then the unlabeled ones."""
        assert self.source is not None
        lists = self.lists()
        cases = self.cases()
        notes = layout_warnings(self.source, self.layout, cases) + self._notes(lists, cases)
        return Split(
            train=(*lists["labeled"], *lists["unlabeled"]),
            test=tuple(lists["test"]),
            source=LISTS_FILE,
            val=tuple(lists["val"]),
            notes=tuple(notes),
        )

    def _notes(self, lists: dict[str, list[str]], cases: dict[str, Files]) -> list[str]:
        """Return notes for the user about how the lists are used."""
        notes = []
        if lists["val"]:
            notes.append(
                f"{len(lists['val'])} cases of the list val are not used yet: "
                "a run with selection=validation holds out training cases"
            )
        unread = [case for case in lists["unlabeled"] if "label" in cases[case]]
        if unread:
            notes.append(
                f"label files of {len(unread)} cases listed as unlabeled are not read: "
                f"{', '.join(unread[:5])}"
            )
        has_ct = any(_is_ct(name) for name in self.layout.channels)
        if has_ct and not self.settings.get("window"):
            notes.append(
                f"the gray window comes from the labels of {len(lists['labeled'])} cases, even if "
                "a run uses fewer of them: choose it with --window to avoid this"
            )
        return notes

    def find(self, source: Path | None) -> list[RawCase]:
        """Return all cases of the folder; cases that are listed as unlabeled get no label."""
        assert self.source is not None
        if source is not None and source.resolve() != self.source.resolve():
            raise DataError(
                f"data set '{self.name}' is another folder",
                where=source,
                expected=str(self.source),
                fix="leave out --from, or link the new folder: segbench data link PATH --as NAME",
            )
        unlabeled = set(self.lists()["unlabeled"])
        found = []
        for case, files in self.cases().items():
            where = dict(files)
            if case in unlabeled:
                where.pop("label", None)
            found.append(RawCase(case, where))
        return found

    def add_shared_facts(self, raw: Sequence[RawCase], split: Split) -> list[RawCase]:
        """Add the recipe to all cases.

        Spacing and window are computed from the training cases unless the settings give them.
        """
        crop = self._crop(raw)
        train = set(split.train)
        labeled = set(self.lists()["labeled"])
        training = [case for case in raw if case.id in train]
        training_labeled = [case for case in training if case.id in labeled]
        gray = tuple(
            self._gray(name, training_labeled, channel)
            for channel, name in enumerate(self.layout.channels)
        )
        by_label = crop == "label"
        recipe = Recipe(
            spacing=self.settings.get("spacing") or median_spacing(training),
            gray=gray,
            crop=crop,
            margin=LABEL_MARGIN if by_label else (0, 0),
            least=LABEL_LEAST if by_label else 0,
        )
        return [replace(case, where={**case.where, "recipe": recipe}) for case in raw]

    def _crop(self, raw: Sequence[RawCase]) -> Any:
        """Return the crop of the settings, or the default for the first channel.

        Raises:
            DataError: the crop uses the label, but a case has no label.
        """
        usual = "body" if _is_ct(self.layout.channels[0]) else "nonzero"
        crop = self.settings.get("crop") or usual
        unlabeled = [case.id for case in raw if "label" not in case.where]
        if crop == "label" and unlabeled:
            raise DataError(
                "a crop by the label needs a label in every case",
                where=self.source,
                found=", ".join(unlabeled[:10]),
                expected="no unlabeled case",
                fix="crop by the image: nonzero, body or none",
            )
        return crop

    def _gray(self, name: str, labeled: Sequence[RawCase], channel: int) -> Gray:
        """Return the normalization that nnU-Net uses for a channel of this name."""
        if not _is_ct(name):
            return SCALES.get(name.lower(), Gray(None, "zscore_nonzero"))
        window = self.settings.get("window") or foreground_percentiles(labeled, channel)
        if window is None:
            return Gray(None, "minmax")
        low, high = window
        return Gray((float(low), float(high)), "unit")

    def inputs(self) -> dict[str, Any]:
        """Return the settings and, if available, the lists and the contents of ``dataset.json``."""
        assert self.source is not None
        if not self.source.exists():
            return {"settings": self.settings}
        facts = [self.layout.classes, self.layout.channels, self.layout.suffix, self.layout.ending]
        return {"settings": self.settings, "lists": self.lists(), "dataset.json": facts}

    def after_preparation(self) -> None:
        """Write the drawn lists, so that files that are added later do not change them."""
        assert self.source is not None
        keep_lists(self.source / LISTS_FILE, self.lists())

    def load(self, raw: RawCase) -> Case:
        """Return one case, prepared by the recipe; an unlabeled case has no label."""
        where: dict[str, Any] = raw.where
        image, warnings = _read_channels(where["images"])
        warnings += _suspicious(image)
        label = None
        if "label" in where:
            mask = read_volume(where["label"], "label")
            warnings += check_pair(image, mask, where["label"])
            label = whole_labels(mask.array, where["label"], "the labels of dataset.json")
        return finished_case(raw.id, apply(where["recipe"], image, label), warnings)


def _is_ct(channel: str) -> bool:
    return channel.lower() == "ct"


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with tuples in place of lists.

    Raises:
        UsageError: a name is unknown, or a value has the wrong type or range.
    """
    checked = {}
    for name, value in settings.items():
        checked[name] = tuple(value) if isinstance(value, list) else value
    if set(checked) - set(SETTINGS) or checked.get("crop", "none") not in CROPS:
        raise UsageError(
            "unknown setting",
            found=str(settings),
            expected=f"{', '.join(SETTINGS)}; crop {', '.join(CROPS)}",
        )
    spacing = checked.get("spacing", (1, 1, 1))
    window = checked.get("window", (0, 1))
    is_spacing = len(spacing) == 3 and all(0 < step < 1000 for step in spacing)
    is_window = len(window) == 2 and window[0] < window[1] and bool(np.isfinite(window).all())
    if not is_spacing or not is_window:
        raise UsageError(
            "a setting is out of range",
            found=str(settings),
            fix="--spacing 1x1x1 --window -125:275",
            expected="three positive mm; a window of two finite gray values, the lower one first",
        )
    return checked


def stored_lists(file: Path) -> dict[str, list[str]]:
    """Return the lists of ``splits_ssl.json``; a missing list is empty.

    Raises:
        DataError: a list has an unknown name, is not a list of strings, or has no case for training
            or testing.
    """
    content = read_json(file)
    for name in content:
        if name not in LISTS:
            raise DataError(
                f"unknown list '{name}'.{did_you_mean(name, LISTS)}",
                where=file,
                found=", ".join(other for other in content if other not in LISTS),
                expected=", ".join(LISTS),
            )
    lists = {name: content.get(name, []) for name in LISTS}
    if not all(_is_list_of_texts(ids) for ids in lists.values()):
        raise DataError(
            "a list is not a list of texts",
            where=file,
            expected=f"lists of case ids: {', '.join(LISTS)}",
        )
    for name in ("labeled", "test"):
        if not lists[name]:
            raise DataError(
                f"no case in the list '{name}'",
                where=file,
                expected="at least one case to train with and one to test with",
                fix=f"write ids to '{name}', or remove the file to have lists drawn",
            )
    return lists


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def problems_of_lists(
    lists: Mapping[str, list[str]], cases: Mapping[str, Files]
) -> dict[str, list[str]]:
    """Return the cases with each kind of problem; all values are empty if the lists are valid."""
    ids = [case for name in LISTS for case in lists[name]]
    need_label = [case for name in LISTS_WITH_LABELS for case in lists[name] if case in cases]
    return {
        "cases are listed twice": sorted({case for case in ids if ids.count(case) > 1}),
        "listed cases are not on disk": [case for case in ids if case not in cases],
        "cases without a label are in a list that needs one": [
            case for case in need_label if "label" not in cases[case]
        ],
    }


def drawn_lists(
    cases: Mapping[str, Files], root: Path, layout: FolderLayout
) -> dict[str, list[str]]:
    """Return lists for a folder that has none, with cases ordered by number.

    Raises:
        DataError: fewer than two cases have a label.
    """
    labeled = [case for case, files in cases.items() if "label" in files]
    if len(labeled) < 2:
        raise DataError(
            "too few cases with a label",
            where=root,
            fix=suggest_layout_fix(root, layout),
            found="\n".join([str(len(labeled)), *layout_warnings(root, layout, dict(cases))]),
            expected="at least one to train with and one to test with",
        )
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(labeled))
    chosen = order[: max(1, len(labeled) // TEST_SHARE)]
    test = {labeled[index] for index in chosen}
    unlabeled = [
        case
        for case, files in cases.items()
        if "label" not in files and files["place"] != "imagesTs"
    ]
    return {
        "labeled": [case for case in labeled if case not in test],
        "unlabeled": unlabeled,
        "val": [],
        "test": [case for case in labeled if case in test],
    }


def keep_lists(file: Path, lists: dict[str, list[str]]) -> None:
    """Write drawn lists, unless the file exists.

    A folder that cannot be written to is not an error: the same cases always give the same lists.
    """
    if file.exists():
        return
    try:
        atomic_write(file, json_bytes(lists))
    except StorageError:
        return


def _by_number(case: str) -> list[tuple[int, int | str]]:
    """Return a sort key that orders numbers in ids by value; ``7`` and ``07`` remain different."""
    key: list[tuple[int, int | str]] = []
    for part in re.split(r"(\d+)", case):
        if part:
            key.append((0, int(part)) if part.isdecimal() else (1, part))
    key.append((2, case))
    return key


def median_spacing(raw: Iterable[RawCase]) -> tuple[float, float, float] | None:
    """Return the median spacing of the images along the right, anterior and superior axes in mm.

    Return None if no file has a spacing.
    """
    known = []
    for case in raw:
        spacing = _ras_spacing(case.where["images"][0])
        if spacing is not None:
            known.append(spacing)
    if not known:
        return None
    right, anterior, superior = np.median(known, axis=0)
    return float(right), float(anterior), float(superior)


def _ras_spacing(path: Path) -> list[float] | None:
    """Return a file's spacing along the right, anterior and superior axes, or None if unknown."""
    is_nifti = path.name.endswith((".nii", ".nii.gz"))
    affine = nifti_header(path)[1] if is_nifti else read_volume(path).affine
    if affine is None:
        return None
    spacing = spacing_of(affine)
    return [spacing[axis] for axis in file_axes(affine)]


def foreground_percentiles(raw: Iterable[RawCase], channel: int) -> tuple[float, float] | None:
    """Return the 0.5 and 99.5 percentiles of a channel's foreground, or None if there is none.

    At most about ``VOXELS_PER_CASE`` evenly spaced voxels of each case are used.
    """
    inside = []
    for case in raw:
        image, _ = _read_channels(case.where["images"])
        label = read_volume(case.where["label"], "label")
        check_pair(image, label, case.where["label"])
        values = image.array[..., channel] if image.array.ndim == 4 else image.array
        foreground = values[np.rint(label.array) > 0]
        step = max(1, len(foreground) // VOXELS_PER_CASE)
        inside.append(foreground[::step])
    pooled = np.concatenate(inside) if inside else np.empty(0)
    if not pooled.size:
        return None
    low, high = np.percentile(pooled, (0.5, 99.5))
    return round(float(low), 3), round(float(high), 3)


def _read_channels(files: Sequence[Path]) -> tuple[Volume, list[str]]:
    """Return the channels of a case as one volume, (*S) or (*S, C), and warnings.

    Raises:
        DataError: a file is damaged, the channels do not match, or a value is not finite.
    """
    parts = [read_volume(file) for file in files]
    first = parts[0]
    warnings = []
    for file, part in zip(files[1:], parts[1:], strict=True):
        for text in check_pair(first, part, file, "channel"):
            warnings.append(f"{file.name}: {text}")
    array = first.array
    if len(parts) > 1:
        array = np.stack([part.array.astype(np.float32) for part in parts], axis=-1)
    require_finite(array, files[0])
    return Volume(array, first.affine), warnings


def _suspicious(image: Volume) -> list[str]:
    """Return warnings about images that can be used but look wrong."""
    warnings = []
    if image.affine is not None and np.array_equal(np.abs(image.affine[:3, :3]), np.eye(3)):
        warnings.append(
            "spacing of exactly 1 x 1 x 1 mm: if the true one was lost, distances in mm are wrong"
        )
    spacing = image.spacing
    if spacing is not None and max(spacing) > ANISOTROPIC * min(spacing):
        warnings.append(
            f"slices {max(spacing):.3g} mm apart, {min(spacing):.3g} mm in plane: "
            "cubic patches are a poor choice"
        )
    if image.array.min() == image.array.max():
        warnings.append("the image has only one gray value")
    return warnings
