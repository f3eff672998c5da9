"""The user's own volumes in one of the two usual folder forms: Medical Segmentation Decathlon or nnU-Net v2.

``folder:/data/Dataset007_Mine``, or linked once by ``segbench data link``. ``dataset.json`` names channels and labels;
cases lie in ``imagesTr`` with ``labelsTr``, unlabeled ones among them (no label file) or in ``imagesUn``. ``imagesTs``
is never trained on unless ``splits_ssl.json`` lists a case of it as unlabeled.

``splits_ssl.json`` holds the lists ``labeled``, ``unlabeled``, ``val`` (of no use yet) and ``test``. Where it is missing,
one case with a label in five is set aside for testing with a fixed seed, and the file is written, so that later cases
change nothing.

Preparation, where no setting says otherwise: nearest RAS axes; the median spacing of the training images, image linear,
label nearest; CT: the 0.5 and 99.5 percentile of the labeled cases' foreground to [0, 1], cropped to the body; other
channels: z-score over the voxels that are not 0, cropped to what is not 0. No label decides about a crop unless asked to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

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
from segbench.data.preparation.layouts import (
    Form,
    case_images,
    help_with_form,
    oddities,
    read_form,
    read_json,
)
from segbench.data.preparation.recipe import Gray, Recipe, apply
from segbench.errors import DataError, StorageError, UsageError, did_you_mean
from segbench.storage import atomic_write, json_bytes

LISTS = ("labeled", "unlabeled", "val", "test")
SETTINGS = ("spacing", "window", "crop")
CROPS = ("none", "nonzero", "body", "label")
SCALES = {
    "nonorm": Gray(),
    "zscore": Gray(None, "zscore"),
    "rescale_to_0_1": Gray(None, "minmax"),
    "rgb_to_0_1": Gray((0.0, 255.0), "unit"),
}
TEST_SHARE, SEED = 5, 0  # one labeled case in five, drawn with this seed


@dataset("folder")
class Folder(Dataset):
    """A family: ``variant`` makes the data set of one folder."""

    family = True
    title = "Your own data: a Decathlon or nnU-Net v2 folder, as folder:/PATH"
    modality = "any"
    license = "yours"
    files = (
        "dataset.json, imagesTr/ and labelsTr/ (missing label: unlabeled), imagesUn/ and splits_ssl.json if you like",
    )
    protocol = "default"
    form: ClassVar[Form]
    settings: ClassVar[dict[str, Any]] = {}

    @classmethod
    def variant(cls, text: str, settings: dict[str, Any]) -> type[Dataset]:
        """The data set of one folder; reads ``dataset.json`` and lists files. A folder that is not there now (a disk that is
        not mounted) still gives a data set: what was prepared from it can be used.

        ``settings``: ``spacing`` (three mm), ``window`` (two gray values, for CT channels), ``crop`` (none, nonzero, body,
        label).
        """
        settings = _checked(settings)
        root = Path(text)
        form = (
            read_form(root)
            if root.exists()
            else Form(f"not there now: {root}", (), (), True, "", "not stated", "")
        )
        facts = {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "family": False,
            "source": root,
            "form": form,
            "settings": settings,
            "title": form.title,
            "classes": form.classes,
            "channels": len(form.channels),
            "modality": ", ".join(form.channels),
            "license": form.license,
            "citation": form.citation,
        }
        made: Any = type(cls.__name__, (cls,), facts)
        if root.exists():
            made.labeled = len(made().lists()["labeled"])
        return made

    def lists(self) -> dict[str, list[str]]:
        """The four lists of ``splits_ssl.json``, or those that will be written there.

        Raises:
            DataError: a list of another name, no case to train or test with, or an id that is listed twice, not on disk, or
                needs a label and has none.
        """
        assert self.source is not None
        if not self.source.exists():
            raise DataError(
                "the folder is not there now",
                where=self.source,
                fix="mount it again; what has been prepared from it can be used all the same",
            )
        file, cases = self.source / "splits_ssl.json", self.cases()
        if not file.is_file():
            return drawn(cases, self.source, self.form)
        content = read_json(file)
        if unknown := [name for name in content if name not in LISTS]:
            raise DataError(
                f"unknown list '{unknown[0]}'.{did_you_mean(unknown[0], LISTS)}",
                where=file,
                found=", ".join(unknown),
                expected=", ".join(LISTS),
            )
        lists = {name: content.get(name, []) for name in LISTS}
        if any(
            not isinstance(ids, list) or not all(isinstance(i, str) for i in ids)
            for ids in lists.values()
        ):
            raise DataError(
                "a list is not a list of texts",
                where=file,
                expected=f"lists of case ids: {', '.join(LISTS)}",
            )
        if empty := [name for name in ("labeled", "test") if not lists[name]]:
            raise DataError(
                f"no case in the list '{empty[0]}'",
                where=file,
                expected="at least one case to train with and one to test with",
                fix=f"write ids to '{empty[0]}', or remove the file to have lists drawn",
            )
        ids = [i for name in LISTS for i in lists[name]]
        wrong = {
            "listed twice": sorted({i for i in ids if ids.count(i) > 1}),
            "not on disk": [i for i in ids if i not in cases],
            "listed with a label they have not": [
                i
                for name in ("labeled", "val", "test")
                for i in lists[name]
                if i in cases and "label" not in cases[i]
            ],
        }
        for what, which in wrong.items():
            if which:
                raise DataError(
                    f"cases {what}",
                    where=file,
                    found=", ".join(which[:10]),
                    expected="each case once, on disk",
                    fix=help_with_form(self.source, self.form)
                    or "mend the file, or remove it to have it drawn anew",
                )
        return lists

    def cases(self) -> dict[str, dict[str, Any]]:
        """Files of every case by id, in the order of the numbers in the ids."""
        assert self.source is not None
        found: dict[str, dict[str, Any]] = {}
        for place in ("imagesTr", "imagesUn", "imagesTs"):
            for case, images in case_images(self.source / place, self.form).items():
                if case in found:
                    raise DataError(
                        f"case '{case}' lies in two folders",
                        where=self.source,
                        found=f"{found[case]['place']} and {place}",
                        expected="each case once",
                    )
                label = self.source / "labelsTr" / f"{case}{self.form.ending}"
                found[case] = {"place": place, "images": images}
                if place == "imagesTr" and os.path.lexists(label):
                    found[case]["label"] = label
        return {case: found[case] for case in sorted(found, key=_by_number)}

    def split(self) -> Split:
        """Training cases in the order labeled, unlabeled."""
        assert self.source is not None
        lists, cases = self.lists(), self.cases()
        notes = oddities(self.source, self.form, cases)
        if lists["val"]:
            notes.append(
                f"{len(lists['val'])} cases of the list val are set aside, for no use yet: a run with "
                "selection=validation holds out training cases"
            )
        if unread := [i for i in lists["unlabeled"] if "label" in cases[i]]:
            notes.append(
                f"label files of {len(unread)} cases listed as unlabeled are not read: {', '.join(unread[:5])}"
            )
        if "ct" in (name.lower() for name in self.form.channels) and not self.settings.get(
            "window"
        ):
            notes.append(
                f"the gray window comes from the labels of {len(lists['labeled'])} cases, also where a run counts "
                "fewer as labeled: give --window to choose it without them"
            )
        return Split(
            (*lists["labeled"], *lists["unlabeled"]),
            tuple(lists["test"]),
            "splits_ssl.json",
            tuple(lists["val"]),
            tuple(notes),
        )

    def find(self, source: Path | None) -> list[RawCase]:
        """All cases of the folder."""
        if (
            source is not None
            and self.source is not None
            and source.resolve() != self.source.resolve()
        ):
            raise DataError(
                f"data set '{self.name}' is another folder",
                where=source,
                expected=str(self.source),
                fix="leave --from out, or link the new folder: segbench data link PATH --as NAME",
            )
        unlabeled = set(self.lists()["unlabeled"])
        return [
            RawCase(case, {k: v for k, v in files.items() if k != "label" or case not in unlabeled})
            for case, files in self.cases().items()
        ]

    def settle(self, raw: Sequence[RawCase], split: Split) -> list[RawCase]:
        """The recipe of all cases: spacing and window from the training cases, where no setting gives them."""
        assert self.source is not None
        lists = self.lists()
        training = [r for r in raw if r.id in set(split.train)]
        ct = [name.lower() == "ct" for name in self.form.channels]
        crop: Any = self.settings.get("crop") or ("body" if ct[0] else "nonzero")
        bare = [r.id for r in raw if "label" not in r.where]
        if crop == "label" and bare:
            raise DataError(
                "a crop by the label needs one in every case",
                where=self.source,
                found=", ".join(bare[:10]),
                expected="no unlabeled case",
                fix="crop by the image: nonzero, body or none",
            )
        window = self.settings.get("window")
        labeled = [r for r in training if r.id in set(lists["labeled"])]
        gray = tuple(
            _gray(name, window or (percentiles(labeled, channel) if is_ct else None))
            for channel, (name, is_ct) in enumerate(zip(self.form.channels, ct, strict=True))
        )
        margin, least = (
            ((25, 25), 96) if crop == "label" else ((0, 0), 0)
        )  # as published ones: the box alone would tell all
        recipe = Recipe(
            spacing=self.settings.get("spacing") or median_spacing(training),
            gray=gray,
            crop=crop,
            margin=margin,
            least=least,
        )
        return [replace(r, where={**r.where, "recipe": recipe}) for r in raw]

    def inputs(self) -> dict[str, Any]:
        """The link's settings and, while the folder is there, its lists and what ``dataset.json`` says."""
        assert self.source is not None
        if not self.source.exists():
            return {"settings": self.settings}
        form = [self.form.classes, self.form.channels, self.form.suffix, self.form.ending]
        return {"settings": self.settings, "lists": self.lists(), "dataset.json": form}

    def prepared(self) -> None:
        """From now on later files change nothing."""
        assert self.source is not None
        keep_lists(self.source / "splits_ssl.json", self.lists())

    def load(self, raw: RawCase) -> Case:
        """One case by the recipe, without a label where it counts as unlabeled."""
        where: dict[str, Any] = raw.where
        (image, warnings), label = _stacked(where["images"]), None
        warnings += _doubts(image)
        if "label" in where:
            volume = read_volume(where["label"], "label")
            warnings += check_pair(image, volume, where["label"])
            label = whole_labels(volume.array, where["label"], "the labels of dataset.json")
        made = apply(where["recipe"], image, label)
        return Case(
            raw.id,
            made.image,
            made.label,
            made.spacing,
            made.affine,
            made={**made.facts, "warnings": warnings + made.doubts},
        )


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with their values' types and ranges."""
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    spacing, window = known.get("spacing", (1, 1, 1)), known.get("window", (0, 1))
    if set(known) - set(SETTINGS) or known.get("crop", "none") not in CROPS:
        raise UsageError(
            "unknown setting",
            found=str(settings),
            expected=f"{', '.join(SETTINGS)}; crop {', '.join(CROPS)}",
        )
    if (
        len(spacing) != 3
        or not all(0 < s < 1000 for s in spacing)
        or len(window) != 2
        or not window[0] < window[1]
        or not np.isfinite(window).all()
    ):
        raise UsageError(
            "a setting makes no sense",
            found=str(settings),
            fix="--spacing 1x1x1 --window -125:275",
            expected="three positive mm; a window of two finite gray values that rises",
        )
    return known


def drawn(cases: dict[str, dict[str, Any]], root: Path, form: Form) -> dict[str, list[str]]:
    """Lists for a folder without them; cases in the order of their numbers.

    Raises:
        DataError: fewer than two cases have a label.
    """
    labeled = [case for case, files in cases.items() if "label" in files]
    if len(labeled) < 2:
        raise DataError(
            "too few cases with a label",
            where=root,
            fix=help_with_form(root, form),
            found="\n".join([str(len(labeled)), *oddities(root, form, cases)]),
            expected="at least one to train with and one to test with",
        )
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(labeled))
    test = {labeled[i] for i in order[: max(1, len(labeled) // TEST_SHARE)]}
    return {
        "labeled": [c for c in labeled if c not in test],
        "unlabeled": [
            c for c, files in cases.items() if "label" not in files and files["place"] != "imagesTs"
        ],
        "val": [],
        "test": [c for c in labeled if c in test],
    }


def keep_lists(file: Path, lists: dict[str, list[str]]) -> None:
    """Write lists that were drawn, unless the folder cannot be written to: the same cases give the same lists."""
    if not file.exists():
        try:
            atomic_write(file, json_bytes(lists))
        except StorageError:
            return


def _by_number(case: str) -> list[tuple[int, int | str]]:
    """Numbers inside ids sort by value; ``7`` and ``07`` stay two ids."""
    parts: list[tuple[int, int | str]] = [
        (0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", case) if p
    ]
    return [*parts, (2, case)]


def _gray(name: str, window: Iterable[float] | None) -> Gray:
    """nnU-Net's rule: the channel's name picks the normalization."""
    if name.lower() == "ct":
        low, high = window if window is not None else (None, None)
        return (
            Gray((float(low), float(high)), "unit")
            if low is not None and high is not None
            else Gray(None, "minmax")
        )
    return SCALES.get(name.lower(), Gray(None, "zscore_nonzero"))


def median_spacing(raw: Iterable[RawCase]) -> tuple[float, float, float] | None:
    """Per axis the median of the images, in the order right, anterior, superior; None if no file says its spacing."""
    known = [s for r in raw if (s := _ras_spacing(r.where["images"][0])) is not None]
    if not known:
        return None
    a, b, c = (float(v) for v in np.median(known, axis=0))
    return a, b, c


def _ras_spacing(path: Path) -> list[float] | None:
    affine = (
        nifti_header(path)[1]
        if path.name.endswith((".nii", ".nii.gz"))
        else read_volume(path).affine
    )
    if affine is None:
        return None
    spacing = spacing_of(affine)
    return [spacing[axis] for axis in file_axes(affine)]


def percentiles(
    raw: Iterable[RawCase], channel: int, most: int = 10**6
) -> tuple[float, float] | None:
    """The 0.5 and 99.5 percentile of a channel inside the labels, of at most ``most`` evenly spread voxels a case."""
    inside = []
    for case in raw:
        image, label = _stacked(case.where["images"])[0], read_volume(case.where["label"], "label")
        check_pair(image, label, case.where["label"])
        chosen = (image.array[..., channel] if image.array.ndim == 4 else image.array)[
            np.rint(label.array) > 0
        ]
        inside.append(chosen[:: max(1, len(chosen) // most)])
    pooled = np.concatenate(inside) if inside else np.empty(0)
    if not pooled.size:
        return None
    low, high = np.percentile(pooled, (0.5, 99.5))
    return round(float(low), 3), round(float(high), 3)


def _stacked(files: Sequence[Path]) -> tuple[Volume, list[str]]:
    """The channels of a case as one volume, (*S) or (*S, C), and warnings."""
    parts = [read_volume(file) for file in files]
    warnings = [
        f"{file.name}: {text}"
        for file, part in zip(files[1:], parts[1:], strict=True)
        for text in check_pair(parts[0], part, file, "channel")
    ]
    array = (
        parts[0].array
        if len(parts) == 1
        else np.stack([p.array.astype(np.float32) for p in parts], axis=-1)
    )
    require_finite(array, files[0])
    return Volume(array, parts[0].affine), warnings


def _doubts(image: Volume) -> list[str]:
    """What can be used but looks wrong."""
    notes, spacing = [], image.spacing
    if (
        spacing is not None
        and image.affine is not None
        and np.array_equal(np.abs(image.affine[:3, :3]), np.eye(3))
    ):
        notes.append(
            "spacing of exactly 1 x 1 x 1 mm: if it was lost on the way, distances in mm are wrong"
        )
    if spacing is not None and max(spacing) > 3 * min(spacing):
        notes.append(
            f"slices {max(spacing):.3g} mm apart, {min(spacing):.3g} mm in plane: cubic patches are a poor choice"
        )
    if image.array.min() == image.array.max():
        notes.append("an image of one gray value")
    return notes
