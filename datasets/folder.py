"""The user's own volumes in a folder with the layout of the Decathlon or of nnU-Net.

The data set is named by its path, ``folder:/data/Dataset007_Mine``, or linked once with ``segbench
data link``. ``dataset.json`` names channels and labels; images are in ``imagesTr`` and labels in
``labelsTr``. Unlabeled cases are in ``imagesTr`` too (without a label file) or in ``imagesUn``. A
case in ``imagesTs`` is never used for training unless ``splits_ssl.json`` lists it as unlabeled.

``splits_ssl.json`` contains the lists ``labeled``, ``unlabeled``, ``val`` (not used yet) and
``test``, and may name the patient of every case in ``patients``. If the file is missing, cases of
``imagesTs`` with a label in ``labelsTs`` are the test set. Without those, the ``val`` cases of fold
0 of nnU-Net's ``splits_final.json`` are. With neither, one in five labeled patients is drawn for
testing with a fixed seed, and the lists are kept with the link, so that cases that are added later
do not change the test set. Nothing is written to the folder. Without a rule (``--patient``) or such
a list, each case counts as a patient of its own. The folds of a cross-validation are those of
``splits_final.json``, if the folder has it.

Default preparation: images are reoriented to the nearest RAS axes and resampled to the median
spacing of the training images, with linear interpolation for images and nearest neighbor for
labels. CT: the range from the 0.5 to the 99.5 percentile of the labeled cases' foreground is mapped
to [0, 1], and the image is cropped to the body. Other channels: z-score over the nonzero voxels,
cropped to these voxels. Labels are used for the crop only if the user asks for it. An image of two
axes is a volume of one slice.

Pictures (PNG, TIFF, BMP, JPEG) have no spacing and are not resampled. Black is a gray value as all
others: the z-score is over all pixels, and nothing is cropped. With a single class, the value 255
of a mask of 0 and 255 is that class, unless the user gives it another meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.contracts.dataset import IGNORED
from segbench.data.formats.pictures import is_picture, palette_warnings
from segbench.data.formats.read import read_mask
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import Volume, holds_value, whole_labels
from segbench.data.links import keep_setting
from segbench.data.preparation.adapters import finished_case
from segbench.data.preparation.folder_images import (
    foreground_percentiles,
    median_spacing,
    read_channels,
    suspicious,
)
from segbench.data.preparation.folder_lists import (
    DRAWN,
    DRAWN_ORIGIN,
    FOLD_ORIGIN,
    LISTS_FILE,
    LISTS_WITH_LABELS,
    TEST_ORIGIN,
    Files,
    FolderLists,
    by_number,
    drawn_before,
    drawn_lists,
    has_test_labels,
    lists_of_layout,
    problems_of_lists,
    read_stored_lists,
)
from segbench.data.preparation.layouts import (
    FolderLayout,
    case_images,
    label_files,
    layout_warnings,
    read_layout,
    suggest_layout_fix,
)
from segbench.data.preparation.nnunet_folds import (
    FOLDS_FILE,
    read_nnunet_folds,
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

SETTINGS = ("spacing", "window", "crop", "patient", "map", "ignore", DRAWN)
LABELS_OF = {"imagesTr": "labelsTr", "imagesTs": "labelsTs"}  # folder of labels by that of images
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
WHITE = 255  # foreground of a mask of two values


@dataset("folder")
class Folder(Dataset):
    """A family of data sets: ``variant`` returns the data set of one folder."""

    family = True
    title = "Your own data: a Decathlon or nnU-Net folder, as folder:/PATH"
    modality = "any"
    license = "yours"
    files = (
        "dataset.json, imagesTr/ and labelsTr/ (missing label: unlabeled), "
        "imagesUn/, imagesTs/ with labelsTs/, and splits_ssl.json if you like",
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
                finds the patient in the name of a case), ``map`` (new label values by old ones),
                ``ignore`` (label values to leave out) and ``drawn`` (lists that were drawn before).
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
        """Return the four lists: of ``splits_ssl.json``, of nnU-Net's files, or drawn ones.

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
        folds_file = self.source / FOLDS_FILE
        if file.is_file():
            stored = read_stored_lists(file)
        elif folds_file.is_file() or has_test_labels(cases):
            return self._lists_of_layout(cases, folds_file)
        elif DRAWN in self.settings:
            stored = drawn_before(self.settings[DRAWN])
            file = self.source
        else:
            used = [case for case, files in cases.items() if files["place"] != "imagesTs"]
            by_rule = self._patients_by_rule(used)
            patients = by_rule or {case: case for case in cases}
            lists = drawn_lists(cases, patients, self.source, self.layout)
            return self._with_patients(FolderLists(lists, None, DRAWN_ORIGIN, is_drawn=True))
        self._require_usable(stored, cases, file)
        return self._with_patients(stored, file)

    def _with_patients(self, stored: FolderLists, file: Path | None = None) -> FolderLists:
        """Return lists with the patients of their cases, by the rule if there is one.

        Raises:
            DataError: ``file`` names other patients than the rule.
        """
        by_rule = self._patients_by_rule([case for ids in stored.lists.values() for case in ids])
        if by_rule is not None and stored.patients is not None and file is not None:
            require_same_patients(stored.patients, by_rule, file)
        return replace(stored, patients=by_rule or stored.patients)

    def _lists_of_layout(self, cases: dict[str, Files], folds_file: Path) -> FolderLists:
        """Return the lists of ``labelsTs`` or, without one, of the first of nnU-Net's folds."""
        assert self.source is not None
        has_test = has_test_labels(cases)
        fold = None if has_test else read_nnunet_folds(folds_file)[0]
        used = [
            case
            for case, files in cases.items()
            if files["place"] != "imagesTs" or "label" in files
        ]
        by_rule = self._patients_by_rule(used)
        patients = by_rule or {case: case for case in cases}
        origin = TEST_ORIGIN if has_test else FOLD_ORIGIN
        found = FolderLists(lists_of_layout(cases, patients, fold), None, origin)
        self._require_usable(found, cases, folds_file if fold else self.source)
        return self._with_patients(found)

    def _require_usable(self, known: FolderLists, cases: dict[str, Files], where: Path) -> None:
        """Refuse lists with a case twice, without files, or without a label where one is needed.

        Args:
            known: the lists.
            cases: the files of each case.
            where: the file that the lists are from, for messages; the folder if there is none.
        """
        assert self.source is not None
        fix = "repair the file, or remove it to have the lists drawn again"
        if known.is_drawn:
            fix = (
                "bring the files back, or draw the lists again: "
                f"segbench data link {self.source} --as {self.name} --new-lists"
            )
        problems = problems_of_lists(known.lists, cases)
        if not known.lists["labeled"]:
            problems["no labeled case for training"] = ["labelsTr holds none"]
        for problem, which in problems.items():
            if which:
                raise DataError(
                    problem,
                    where=where,
                    found=", ".join(which[:10]),
                    expected="each case once, on disk",
                    fix=suggest_layout_fix(self.source, self.layout) or fix,
                )

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
        for place in ("imagesTr", "imagesUn", "imagesTs"):
            labels: dict[str, Path] = {}
            if place in LABELS_OF:
                labels = label_files(self.source / LABELS_OF[place], self.layout.ending)
            for case, images in case_images(self.source / place, self.layout).items():
                if case in found:
                    raise DataError(
                        f"case '{case}' lies in two folders",
                        where=self.source,
                        found=f"{found[case]['place']} and {place}",
                        expected="each case once",
                    )
                found[case] = {"place": place, "images": images}
                if case in labels:
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
            source=known.origin,
            val=tuple(lists["val"]),
            notes=tuple(notes),
        )

    def _notes(self, lists: dict[str, list[str]], cases: dict[str, Files]) -> list[str]:
        """Return notes for the user about how the lists are used."""
        used = [case for name in LISTS_WITH_LABELS for case in lists[name]]
        masks = [cases[case]["label"] for case in used if "label" in cases[case]]
        values = {*range(1, len(self.classes) + 1), *self.changes}
        notes = palette_warnings(masks, values)
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
        """Return the crop of the settings, or the default for the first channel or for pictures.

        Raises:
            DataError: the crop uses the label, but a case has no label.
        """
        usual = "body" if _is_ct(self.layout.channels[0]) else "nonzero"
        if self.layout.has_pictures:
            usual = "none"
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
            usual = Gray(None, "zscore" if self.layout.has_pictures else "zscore_nonzero")
            return SCALES.get(name.lower(), usual)
        left_out = [old for old, new in self.changes.items() if new in (0, IGNORED)]
        window = self.settings.get("window") or foreground_percentiles(
            labeled, channel, self.channels, left_out
        )
        if window is None:
            return Gray(None, "minmax")
        low, high = window
        return Gray((float(low), float(high)), "unit")

    def inputs(self) -> dict[str, Any]:
        """Return the settings and, if available, the lists and the contents of ``dataset.json``."""
        assert self.source is not None
        settings = {name: value for name, value in self.settings.items() if name != DRAWN}
        if not self.source.exists():
            return {"settings": settings}
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
        return {"settings": settings, "lists": lists, "dataset.json": facts}

    def after_preparation(self) -> None:
        """Keep drawn lists with the link, so that files that are added later do not change them."""
        known = self.listed()
        if known.is_drawn:
            keep_setting(self.name, DRAWN, known.document())

    def load(self, raw: RawCase) -> Case:
        """Return one case, prepared by the recipe; an unlabeled case has no label."""
        where: dict[str, Any] = raw.where
        image, warnings = read_channels(where["images"], self.channels)
        warnings = [*image.warnings, *warnings, *suspicious(image)]
        label = None
        if "label" in where:
            mask = read_mask(where["label"])
            mask, pair_warnings = match(image, mask, where["label"])
            warnings += pair_warnings
            if self._is_two_valued(mask, where["label"]):
                mask = replace(mask, array=mask.array == WHITE)
                warnings.append(f"mask of 0 and {WHITE}: {WHITE} is class 1 ({self.classes[0]})")
            label = self._labels(mask, where["label"])
        case = finished_case(raw.id, apply(where["recipe"], image, label), warnings)
        if "fold" in where:
            case.made["fold"] = where["fold"]
        return case

    def _is_two_valued(self, mask: Volume, file: Path) -> bool:
        """Return whether a mask is a picture whose white pixels can only mean the one class."""
        if not is_picture(file) or len(self.classes) != 1 or WHITE in self.changes:
            return False
        values = np.unique(mask.array).tolist()
        return WHITE in values and set(values) <= {0, WHITE}

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
