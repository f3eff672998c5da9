"""Layouts of source folders: nested by archives, and those of the Decathlon and nnU-Net."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import filter as matching_names
from pathlib import Path
from typing import Any

from segbench.contracts.dataset import Dataset, RawCase
from segbench.data.formats.pictures import LOSSY_ENDINGS, PICTURE_ENDINGS
from segbench.data.formats.read import ALL_ENDINGS, DICOM_ENDING, ENDINGS
from segbench.errors import DataError

DEPTH = 3  # an archive may wrap the data in this many folders
LIST_FILES = ("train.list", "test.list")  # of a deliberate copy of part of the data
CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
SHOWN = 5  # names in a message
MAC_FOLDER = "__MACOSX"  # where a Mac puts files named like the real ones
DICOM_LABELS = (
    "convert labels in DICOM to NIfTI: a segmentation (SEG), for example, with dcmqi's "
    "segimage2itkimage, contours (RTSTRUCT) with dcmrtstruct2nii"
)


# Folders nested by archives.


def find_below(folder: Path, pattern: str, hidden: bool = False) -> list[Path]:
    """Return all files and folders below a folder whose name matches, sorted.

    Links to folders are followed, but no folder is read twice. Hidden folders are left out, and
    ``__MACOSX``, where a Mac puts files named like the real ones.

    Args:
        hidden: whether hidden files in visible folders are among them.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = _folders_to_visit(parent, folders)
        for name in matching_names([*folders, *files], pattern):
            if hidden or name[0] != ".":
                found.append(Path(parent, name))
    return sorted(found)


def _folders_to_visit(parent: str, folders: list[str]) -> list[str]:
    """Return the visible folders, links last, so that a link counts as the repeat."""
    visible = [name for name in folders if name != MAC_FOLDER and name[0] != "."]
    return sorted(visible, key=lambda name: (os.path.islink(os.path.join(parent, name)), name))


def one_path_per_case(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Return the path of each case; links to the same file count once.

    Raises:
        DataError: two different paths for one case; names both.
    """
    first: dict[str, Path] = {}
    for case, path in found:
        other = first.setdefault(case, path)
        if os.path.realpath(other) != os.path.realpath(path):
            raise DataError(
                f"case '{case}' was found twice",
                where=path,
                found=f"also {other}",
                expected="each case once",
                fix="remove one of the two from the folder",
            )
    return first


def find_cases(dataset: Dataset, source: Path, depth: int = DEPTH) -> list[RawCase]:
    """Return the cases of a source, looking inside its only folder if the source itself has none.

    Raises:
        DataError: no usable case was found.
    """
    try:
        return dataset.find(source)
    except DataError:
        inner = only_subfolder(source)
        if inner is not None and depth:
            with suppress(DataError):
                return find_cases(dataset, inner, depth - 1)
        raise


def only_subfolder(folder: Path) -> Path | None:
    """Return the only subfolder of a folder that has no files but hidden ones and case lists."""
    inner = [
        path
        for path in folder.iterdir()
        if path.name[0] != "." and path.name not in (MAC_FOLDER, *LIST_FILES)
    ]
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else None


# The Decathlon and nnU-Net layouts: dataset.json, imagesTr/ and labelsTr/.


@dataclass(frozen=True)
class FolderLayout:
    """The content of ``dataset.json`` of a layout."""

    title: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    suffix: bool  # nnU-Net: one file per channel, ``<case>_0000``
    ending: str
    license: str
    citation: str
    announced: object = None  # numTraining
    ignored: int | None = None  # label value of voxels to leave out, nnU-Net's "ignore"

    @property
    def has_pictures(self) -> bool:
        """Whether the images are pictures, whose channels may be in one file."""
        return self.ending.lower() in PICTURE_ENDINGS


def read_layout(root: Path) -> FolderLayout:
    """Read ``dataset.json`` of a folder.

    nnU-Net v2 names channels in ``channel_names``. The Decathlon and nnU-Net v1 name them in
    ``modality``; image names of nnU-Net v1 end in the number of the channel.

    Raises:
        DataError: it is missing, damaged, or asks for something that is not supported.
    """
    file = root / "dataset.json"
    if not (root / "imagesTr").is_dir() or not file.is_file():
        raise DataError(
            "the folder has neither the Decathlon nor the nnU-Net layout",
            where=root,
            expected="dataset.json, imagesTr/ and labelsTr/",
            found=_content_of(root),
        )
    content = read_json(file)
    if "dataset" in content:
        raise DataError(
            "paths inside dataset.json are not supported",
            where=file,
            found="key 'dataset'",
            expected="files in imagesTr/ and labelsTr/",
        )
    ignored = _ignored_value(content)
    channels, classes = _channels_and_classes(file, content)
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending.lower() not in (*ALL_ENDINGS, DICOM_ENDING):
        raise DataError(
            "files of this type cannot be read",
            where=file,
            found=ending,
            expected=" ".join((*ALL_ENDINGS, DICOM_ENDING)),
        )

    def text(key: str) -> str:
        return str(content.get(key, ""))

    return FolderLayout(
        title=text("name") or root.name,
        classes=classes,
        channels=channels,
        suffix="channel_names" in content or _has_channel_numbers(root, ending),
        ending=ending,
        license=text("licence") or text("license") or "not stated",
        citation=text("reference"),
        announced=content.get("numTraining"),
        ignored=ignored,
    )


def _has_channel_numbers(root: Path, ending: str) -> bool:
    """Return whether image names end in a channel number that the names of labels do not have."""
    images = set(files_by_stem(root / "imagesTr", ending))
    labels = set(label_files(root / "labelsTr", ending))
    cases = {CHANNEL_SUFFIX.sub("", name) for name in images if CHANNEL_SUFFIX.search(name)}
    all_have_numbers = all(CHANNEL_SUFFIX.search(name) for name in images)
    return all_have_numbers and not images & labels and bool(cases & labels)


def _ignored_value(content: dict[str, Any]) -> int | None:
    """Take nnU-Net's label "ignore" out of the content; return its value, None without one."""
    labels = content.get("labels")
    if "channel_names" not in content or not isinstance(labels, dict) or "ignore" not in labels:
        return None
    value = labels["ignore"]
    others = [other for name, other in labels.items() if name != "ignore"]
    if not isinstance(value, int) or not all(isinstance(other, int) for other in others):
        return None  # reported with the other labels
    if value not in range(max(others, default=0) + 1, 256):
        return None
    content["labels"] = {name: other for name, other in labels.items() if name != "ignore"}
    return value


def _content_of(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(path.name for path in folder.iterdir())[:10])


def _channels_and_classes(
    file: Path, content: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of channels and of foreground classes, in the order of their numbers.

    Raises:
        DataError: they are missing, their numbers have a gap, or a class has no name of its own.
    """
    names = content.get("channel_names", content.get("modality"))
    labels = content.get("labels")
    if not isinstance(names, dict) or not names or not isinstance(labels, dict):
        raise DataError(
            "channels or labels are missing in dataset.json",
            where=file,
            found=", ".join(content) or "nothing",
            expected="labels, and channel_names (nnU-Net v2) or modality (nnU-Net v1, Decathlon)",
        )
    try:
        channels = tuple(str(names[str(number)]) for number in range(len(names)))
        if "channel_names" in content:  # nnU-Net: name -> value
            by_value = {int(value): name for name, value in labels.items()}
        else:  # Decathlon: value -> name
            by_value = {int(value): name for value, name in labels.items()}
        classes = tuple(str(by_value[value]) for value in range(1, len(by_value)))
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            "channels or labels of dataset.json cannot be used",
            where=file,
            found=f"{names}, {labels}",
            expected="numbers from 0 without a gap; regions of several labels are not supported",
        ) from error
    has_repeats = len(set(classes)) < len(classes)
    has_blanks = not all(name.strip() for name in classes)
    if not classes or has_repeats or has_blanks or "ignore" in classes:
        raise DataError(
            "the labels of dataset.json cannot be used",
            where=file,
            found=", ".join(map(repr, classes)) or "none",
            expected="at least one class, each with a name of its own; "
            "'ignore' needs the highest value",
        )
    return channels, classes


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object that can also be written.

    Raises:
        DataError: it cannot be read, or it is not such an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        # Half a surrogate pair can be read but never written.
        json.dumps(content, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file.name} cannot be read", where=file, found=error, expected="a JSON object"
        ) from error
    return content


def _visible_files(folder: Path) -> list[Path]:
    """Return the sorted content of a folder without hidden files."""
    if not folder.is_dir():
        return []
    paths = sorted(folder.iterdir())
    return [path for path in paths if path.name[0] != "." and path.name != MAC_FOLDER]


def files_by_stem(folder: Path, ending: str) -> dict[str, Path]:
    """Return the files of a folder with an ending, in small or capital letters, by their stem.

    With the ending ``.dcm``, folders count too: each holds the slices of one DICOM series.

    Raises:
        DataError: two files differ only in the letters of the ending, or in how umlauts are stored.
    """
    found: dict[str, Path] = {}
    for path in _visible_files(folder):
        if path.name.lower().endswith(ending.lower()):
            stem = path.name[: -len(ending)]
        elif ending.lower() == DICOM_ENDING and path.is_dir():
            stem = path.name
        else:
            continue
        # Some systems store an umlaut as two characters, so that equal names differ.
        name = unicodedata.normalize("NFC", stem)
        if name in found:
            raise _two_files(name, folder, found[name], path)
        found[name] = path
    return found


def _two_files(name: str, folder: Path, first: Path, second: Path) -> DataError:
    return DataError(
        f"two files of one name: '{name}'",
        where=folder,
        found=f"{first.name} and {second.name}",
        expected="one file",
        fix="remove one of the two",
    )


def label_files(folder: Path, ending: str) -> dict[str, Path]:
    """Return the label files of a folder by their stem.

    Labels of JPEG images have the ending of any picture, because JPEG masks are refused, and labels
    of DICOM series that of any volume.

    Args:
        folder: holds the labels.
        ending: of the images.

    Raises:
        DataError: two files have one name.
    """
    endings: tuple[str, ...] = (ending,)
    if ending.lower() in LOSSY_ENDINGS:
        endings = PICTURE_ENDINGS
    elif ending.lower() == DICOM_ENDING:
        endings = ENDINGS
    found: dict[str, Path] = {}
    for other in endings:
        for name, path in files_by_stem(folder, other).items():
            if name in found:
                raise _two_files(name, folder, found[name], path)
            found[name] = path
    return found


def case_images(folder: Path, layout: FolderLayout) -> dict[str, list[Path]]:
    """Return the image files of each case in a folder, one per channel for nnU-Net.

    All channels of a picture may be in one file, ``<case>_0000.png``, if they are so in all cases.

    Raises:
        DataError: files that do not match the channels of ``dataset.json``.
    """
    files = files_by_stem(folder, layout.ending)
    if not layout.suffix:
        return {case: [path] for case, path in files.items()}
    cases = {name[:-5] for name in files if CHANNEL_SUFFIX.search(name)}
    channels = _channel_files(layout, files)
    names = {case: [f"{case}_{number:04d}" for number in channels] for case in sorted(cases)}
    wanted = [name for case in sorted(cases) for name in names[case]]
    problem = _channel_mismatch(files, wanted)
    if problem:
        raise DataError(
            "the files do not match the channels of dataset.json",
            where=folder,
            found=problem,
            expected=f"<case>_0000{layout.ending} to _{len(layout.channels) - 1:04d} for each case",
        )
    found = {}
    for case in cases:
        found[case] = [files[name] for name in names[case]]
    return found


def _channel_files(layout: FolderLayout, files: Mapping[str, Path]) -> range:
    """Return the numbers of the channels that have files of their own."""
    has_others = any(not name.endswith("_0000") for name in files)
    return range(1 if layout.has_pictures and not has_others else len(layout.channels))


def _channel_mismatch(files: Mapping[str, Path], wanted: list[str]) -> str:
    """Return which files are missing or too many, empty if they match."""
    without_channel = sorted(name for name in files if not CHANNEL_SUFFIX.search(name))
    if without_channel:
        return ", ".join(f"{name} without a channel" for name in without_channel[:SHOWN])
    missing = [name for name in wanted if name not in files]
    if missing:
        return ", ".join(f"no {name}" for name in missing[:SHOWN])
    return "more channels" if len(files) > len(wanted) else ""


def suggest_layout_fix(root: Path, layout: FolderLayout) -> str | None:
    """Return what to change in ``dataset.json`` if the files are there under other names."""
    names = []
    for subfolder in ("imagesTr", "labelsTr"):
        names += [path.name for path in _visible_files(root / subfolder)]
    stems = []
    for name in names:
        if name.lower().endswith(layout.ending.lower()):
            stems.append(name[: -len(layout.ending)])
    if stems:
        has_suffix = any(CHANNEL_SUFFIX.search(stem) for stem in stems)
        if has_suffix and not layout.suffix:
            return (
                "names with _0000 need labels of the same names without it, or the dataset.json "
                "of nnU-Net v2: "
                '"channel_names" instead of "modality", and "labels": {"background": 0, "NAME": 1}'
            )
        return None
    for ending in ALL_ENDINGS:
        if any(name.lower().endswith(ending) for name in names):
            return f'add "file_ending": "{ending}" to dataset.json'
    return None


def layout_warnings(
    root: Path, layout: FolderLayout, cases: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Warn about unused files and an unexpected number of cases: mostly a misspelled name."""
    used = set(_used_files(cases))
    notes = []
    for subfolder in ("imagesTr", "labelsTr", "imagesUn", "labelsTs"):
        unused = [path.name for path in _visible_files(root / subfolder) if path not in used]
        if unused:
            notes.append(
                f"{len(unused)} files in {subfolder} belong to no case and are not read: "
                f"{', '.join(unused[:SHOWN])}; {_expected_in(subfolder, layout, unused)}"
            )
    images = [files for files in cases.values() if files["place"] == "imagesTr"]
    with_label = sum("label" in files for files in images)
    if layout.announced is not None and layout.announced not in (len(images), with_label):
        notes.append(
            f"dataset.json announces numTraining {layout.announced}; "
            f"imagesTr holds {len(images)} cases, {with_label} with a label"
        )
    return notes


def _expected_in(subfolder: str, layout: FolderLayout, unused: Iterable[str]) -> str:
    """Return which files belong into a folder, or how its labels in DICOM are converted."""
    is_dicom = layout.ending == DICOM_ENDING
    in_dicom = any(name.lower().endswith(DICOM_ENDING) or "." not in name for name in unused)
    if is_dicom and in_dicom and subfolder.startswith("labels"):
        return DICOM_LABELS
    label = ".nii.gz" if is_dicom else layout.ending
    return (
        f"expected are <case>{label} in labelsTr or labelsTs and an image of that case in imagesTr "
        "or imagesTs"
    )


def _used_files(cases: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    for files in cases.values():
        yield from files["images"]
        if "label" in files:
            yield files["label"]
