"""The user's own volumes in a folder with the layout of the Decathlon or of nnU-Net v2.

The data set is named by its path, ``folder:/data/Dataset007_Mine``, or linked once with ``segbench
data link``. ``dataset.json`` names channels and labels; images are in ``imagesTr`` and labels in
``labelsTr``. Unlabeled cases are in ``imagesTr`` too (without a label file) or in ``imagesUn``. A
case in ``imagesTs`` is never used for training unless ``splits_ssl.json`` lists it as unlabeled.

``splits_ssl.json`` contains the lists ``labeled``, ``unlabeled``, ``val`` (not used yet) and
``test``, and may name the patient of every case in ``patients``. If the file is missing, one in
five labeled patients is drawn for testing with a fixed seed, and the file is written, so that cases
that are added later do not change the test set. Without a rule (``--patient``) or such a list, each
case counts as a patient of its own. The folds of a cross-validation are those of nnU-Net's
``splits_final.json``, if the folder has it.

Default preparation: images are reoriented to the nearest RAS axes and resampled to the median
spacing of the training images, with linear interpolation for images and nearest neighbor for
labels. CT: the range from the 0.5 to the 99.5 percentile of the labeled cases' foreground is mapped
to [0, 1], and the image is cropped to the body. Other channels: z-score over the nonzero voxels,
cropped to these voxels. Labels are used for the crop only if the user asks for it. An image of two
axes is a volume of one slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.contracts.dataset import IGNORED
from segbench.data.formats.nifti import nifti_header
from segbench.data.formats.read import read_volume
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import (
    Volume,
    as_one_slice,
    holds_value,
    require_finite,
    whole_labels,
)
from segbench.data.geometry import file_axes, spacing_of
from segbench.data.preparation.adapters import finished_case
from segbench.data.preparation.folder_lists import (
    Files,
    FolderLists,
    by_number,
    drawn_lists,
    keep_lists,
    problems_of_lists,
    read_stored_lists,
)
from segbench.data.preparation.layouts import (
    FolderLayout,
    case_images,
    files_by_stem,
    layout_warnings,
    read_layout,
    suggest_layout_fix,
)
from segbench.data.preparation.nnunet_folds import (
    FOLDS_FILE,
    require_patients_in_one_fold,
    validation_folds,
)
from segbench.data.preparation.patients import (
    checked_rule,
    patients_by_rule,
    require_same_patients,
    together,
)
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.errors import DataError, UsageError
from segbench.metrics.grid import extended_axes

LISTS_FILE = "splits_ssl.json"
SETTINGS = ("spacing", "window", "crop", "patient", "map", "ignore")
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
VOXELS_PER_CASE = 10**6  # maximum number of foreground voxels per case for the percentiles
ANISOTROPIC = 3  # ratio of spacings above which cubic patches are a poor choice


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
    patients_known = False
    layout: ClassVar[FolderLayout]
    settings: ClassVar[dict[str, Any]] = {}
    changes: ClassVar[dict[int, int]] = {}  # new label values by those in the files

    @classmethod
    def variant(cls, text: str, settings: dict[str, Any]) -> type[Dataset]:
        """Return the data set of one folder; read ``dataset.json`` and list the files.

        A folder that is not available (its disk is not mounted) still gives a data set, so that
        its prepared cases can be used.

        Args:
            text: path of the folder.
            settings: ``spacing`` (three values in mm), ``window`` (two gray values, for CT),
                ``crop`` (none, nonzero, body or label), ``patient`` (a regular expression that
                finds the patient in the name of a case), ``map`` (new label values by old ones) and
                ``ignore`` (label values to leave out).
        """
        checked = _checked(settings)
        root = Path(text)
        if root.exists():
            layout = read_layout(root)
        else:
            layout = FolderLayout(f"not available: {root}", (), (), True, "", "not stated", "")
        changes = changed_values(layout, checked) if root.exists() else {}
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
            "patients_known": "patient" in checked,
            "changes": changes,
            "leaves_out": IGNORED in changes.values(),
        }
        made = cast("type[Folder]", type(cls.__name__, (cls,), attributes))
        if root.exists():
            known = made().listed()
            patients = known.patients or {}
            made.patients_known = known.patients is not None
            made.labeled = len({patients.get(case, case) for case in known.lists["labeled"]})
        return made

    def lists(self) -> dict[str, list[str]]:
        """Return the four lists, see ``listed``."""
        return self.listed().lists

    def listed(self) -> FolderLists:
        """Return the four lists of ``splits_ssl.json``, or those that will be written to it.

        The patients are found by the rule of the settings, or the file names them.

        Raises:
            DataError: the folder or a case is not available, a list has an unknown name or no case,
                a case is listed twice, a case without a label is in a list that needs one, or the
                patient of a case is not clear.
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
            used = [case for case, files in cases.items() if files["place"] != "imagesTs"]
            by_rule = self._patients_by_rule(used)
            patients = by_rule or {case: case for case in cases}
            return FolderLists(drawn_lists(cases, patients, self.source, self.layout), by_rule)
        stored = read_stored_lists(file)
        for problem, which in problems_of_lists(stored.lists, cases).items():
            if which:
                raise DataError(
                    problem,
                    where=file,
                    found=", ".join(which[:10]),
                    expected="each case once, on disk",
                    fix=suggest_layout_fix(self.source, self.layout)
                    or "repair the file, or remove it to have the lists drawn again",
                )
        by_rule = self._patients_by_rule([case for ids in stored.lists.values() for case in ids])
        if by_rule is not None and stored.patients is not None:
            require_same_patients(stored.patients, by_rule, file)
        return FolderLists(stored.lists, by_rule or stored.patients)

    def _patients_by_rule(self, cases: Sequence[str]) -> dict[str, str] | None:
        """Return the patients of cases by the rule of the settings, None if there is none."""
        assert self.source is not None
        if "patient" not in self.settings:
            return None
        return patients_by_rule(cases, checked_rule(self.settings["patient"]), self.source)

    def cases(self) -> dict[str, Files]:
        """Return the files of each case, ordered by the numbers in the ids.

        Raises:
            DataError: a case is in two folders.
        """
        assert self.source is not None
        found: dict[str, Files] = {}
        labels = files_by_stem(self.source / "labelsTr", self.layout.ending)
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
                if place == "imagesTr" and case in labels:
                    found[case]["label"] = labels[case]
        return {case: found[case] for case in sorted(found, key=by_number)}

    def split(self) -> Split:
        """Return the lists as a split.

        Training cases are the labeled, then the unlabeled ones, but all cases of a patient follow
        the first one.
        """
        assert self.source is not None
        known = self.listed()
        lists = known.lists
        cases = self.cases()
        notes = layout_warnings(self.source, self.layout, cases) + self._notes(lists, cases)
        train = [*lists["labeled"], *lists["unlabeled"]]
        patients = known.patients or {case: case for case in train}
        return Split(
            train=tuple(together(train, patients)),
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
        known = self.listed()
        unlabeled = set(known.lists["unlabeled"])
        patients = known.patients or {}
        folds = self._folds(patients)
        found = []
        for case, files in self.cases().items():
            where = dict(files)
            if case in unlabeled:
                where.pop("label", None)
            if case in folds:
                where["fold"] = folds[case]
            if self.changes and "label" in where:
                where["changes"] = {str(old): new for old, new in self.changes.items()}
            found.append(RawCase(case, where, patients.get(case)))
        return found

    def _folds(self, patients: Mapping[str, str]) -> dict[str, int]:
        """Return the fold of each case by nnU-Net's file in the folder; empty without the file."""
        assert self.source is not None
        file = self.source / FOLDS_FILE
        if not file.is_file():
            return {}
        folds = validation_folds(file)
        require_patients_in_one_fold(folds, patients, file)
        return folds

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
        left_out = [old for old, new in self.changes.items() if new in (0, IGNORED)]
        window = self.settings.get("window") or foreground_percentiles(labeled, channel, left_out)
        if window is None:
            return Gray(None, "minmax")
        low, high = window
        return Gray((float(low), float(high)), "unit")

    def inputs(self) -> dict[str, Any]:
        """Return the settings and, if available, the lists and the contents of ``dataset.json``."""
        assert self.source is not None
        if not self.source.exists():
            return {"settings": self.settings}
        facts: list[Any] = [self.layout.classes, self.layout.channels]
        facts += [self.layout.suffix, self.layout.ending]
        if self.layout.ignored is not None:
            facts.append(self.layout.ignored)
        known = self.listed()
        lists: dict[str, Any] = dict(known.lists)
        if known.patients is not None:
            lists["patients"] = known.patients
        folds = self._folds(known.patients or {})
        if folds:
            lists["folds"] = folds
        return {"settings": self.settings, "lists": lists, "dataset.json": facts}

    def after_preparation(self) -> None:
        """Write the drawn lists, so that files that are added later do not change them."""
        assert self.source is not None
        known = self.listed()
        keep_lists(self.source / LISTS_FILE, known.lists, known.patients)

    def load(self, raw: RawCase) -> Case:
        """Return one case, prepared by the recipe; an unlabeled case has no label."""
        where: dict[str, Any] = raw.where
        image, warnings = _read_channels(where["images"])
        warnings = [*image.warnings, *warnings, *_suspicious(image)]
        label = None
        if "label" in where:
            mask = read_volume(where["label"], "label")
            mask, pair_warnings = match(image, mask, where["label"])
            warnings += pair_warnings
            label = self._labels(mask, where["label"])
        case = finished_case(raw.id, apply(where["recipe"], image, label), warnings)
        if "fold" in where:
            case.made["fold"] = where["fold"]
        return case

    def _labels(self, mask: Volume, file: Path) -> np.ndarray:
        """Return label values as they are prepared.

        Raises:
            DataError: a value is none of a label, or would be taken for one to leave out.
        """
        # Values that uint8 cannot hold, such as -1, can only be left out.
        outside = [old for old in self.changes if not 0 <= old <= 255]
        is_outside = holds_value(mask.array, outside)
        stored = np.where(is_outside, 0, mask.array) if outside else mask.array
        label = whole_labels(stored, file, "the labels of dataset.json")
        if self.leaves_out and IGNORED not in self.changes and (label == IGNORED).any():
            raise DataError(
                "a label value has no meaning",
                where=file,
                found=str(IGNORED),
                expected=f"values 0 to {len(self.classes)}, or those of --map and --ignore",
                fix=f"link the folder again with --map {IGNORED}=NEW or --ignore {IGNORED}",
            )
        if not self.changes:
            return label
        table = np.arange(256, dtype=np.uint8)
        for old, new in self.changes.items():
            if old not in outside:
                table[old] = new
        changed: np.ndarray = table[label]
        changed[is_outside] = IGNORED
        return changed


def changed_values(layout: FolderLayout, settings: dict[str, Any]) -> dict[int, int]:
    """Return the new label values by those in the files.

    Raises:
        UsageError: a value is no label, is changed twice, or is a class and left out.
    """
    try:
        changes = {int(old): int(new) for old, new in settings.get("map", {}).items()}
        ignored = [int(value) for value in settings.get("ignore", ())]
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError("a label value cannot be read", found=str(settings)) from error
    if layout.ignored is not None and layout.ignored not in changes:
        ignored.append(layout.ignored)
    highest = len(layout.classes)
    for old, new in changes.items():
        if not 0 <= old <= 255 or not 0 <= new <= highest or old in ignored:
            raise UsageError(
                f"--map {old}={new}",
                expected=f"an old value up to 255 that is not ignored, a new one up to {highest}",
            )
    for value in ignored:
        if 0 <= value <= highest:
            raise UsageError(
                f"--ignore {value}",
                found="background or a class",
                expected=f"values above {highest} or below 0",
            )
        changes[value] = IGNORED
    return changes


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
    if "patient" in checked:
        checked_rule(checked["patient"])
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
    is_nifti = path.name.lower().endswith((".nii", ".nii.gz"))
    affine = nifti_header(path).matrix if is_nifti else read_volume(path).affine
    if affine is None:
        return None
    spacing = spacing_of(affine)
    return [spacing[axis] for axis in file_axes(affine)]


def foreground_percentiles(
    raw: Iterable[RawCase], channel: int, left_out: Sequence[int] = ()
) -> tuple[float, float] | None:
    """Return the 0.5 and 99.5 percentiles of a channel's foreground, or None if there is none.

    Label values in ``left_out`` are no foreground.

    At most about ``VOXELS_PER_CASE`` evenly spaced voxels of each case are used.
    """
    inside = []
    for case in raw:
        image, _ = _read_channels(case.where["images"])
        label = read_volume(case.where["label"], "label")
        label, _ = match(image, label, case.where["label"])
        values = image.array[..., channel] if image.array.ndim == 4 else image.array
        classes = np.rint(label.array)
        foreground = values[(classes > 0) & ~np.isin(classes, left_out)]
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
    first = as_one_slice(read_volume(files[0]))
    arrays = [first.array]
    warnings = []
    for file in files[1:]:
        part, part_warnings = match(first, read_volume(file), file, "channel")
        arrays.append(part.array)
        warnings += [f"{file.name}: {text}" for text in part_warnings]
    array = first.array
    if len(arrays) > 1:
        array = np.stack([part.astype(np.float32) for part in arrays], axis=-1)
    require_finite(array, files[0])
    return replace(first, array=array), warnings


def _suspicious(image: Volume) -> list[str]:
    """Return warnings about images that can be used but look wrong."""
    warnings = []
    steps = []
    if image.spacing is not None:
        steps = [image.spacing[axis] for axis in extended_axes(image.array.shape[:3])]
    if steps and max(steps) > ANISOTROPIC * min(steps):
        warnings.append(
            f"slices {max(steps):.3g} mm apart, {min(steps):.3g} mm in plane: "
            "cubic patches are a poor choice"
        )
    if image.array.min() == image.array.max():
        warnings.append("the image has only one gray value")
    return warnings
