"""Find the scans that the user names: files, folders of files, and DICOM series."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from segbench.data.formats.pictures import is_picture, result_ending
from segbench.data.formats.read import (
    ALL_ENDINGS,
    DICOM_ENDING,
    ENDINGS,
    stem,
    without_previews,
)
from segbench.data.store.problem import Problem
from segbench.errors import DataError, SegbenchError, UsageError
from segbench.text import first_few

CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")  # nnU-Net's names: case and channel
FIRST_CHANNEL = "_0000"


@dataclass(frozen=True)
class Scan:
    """One scan: its name and its files, one or one per channel. A folder is a DICOM series."""

    name: str
    files: tuple[Path, ...]

    @property
    def ending(self) -> str:
        """Ending of its label map: as the scan for a picture that keeps values, otherwise NIfTI."""
        first = self.files[0]
        return result_ending(first) if is_picture(first) else ".nii.gz"


def find_scans(
    paths: Iterable[Path], channels: int, problems: list[Problem] | None = None
) -> list[Scan]:
    """Return the scans that files and folders name.

    A folder is one DICOM series, or holds files and folders of series; pictures beside these are
    previews and not read. With several channels, files or folders named ``case_0000``,
    ``case_0001``, ... are one scan, and so are paths that a comma joins: ``t1,t2``.

    Args:
        paths: files and folders.
        channels: number of channels of a scan.
        problems: list to which paths that do not exist or hold no scan are added, if at least one
            other path holds a scan.

    Raises:
        DataError: a path does not exist or holds no scan, and ``problems`` is None; or no path
            holds a scan.
        UsageError: two scans have one name, so one result would overwrite the other.
    """
    scans: list[Scan] = []
    errors: dict[Path, DataError] = {}
    for path in paths:
        try:
            scans += _scans_in(path, channels)
        except DataError as error:
            errors[path] = error
    if errors and (problems is None or not scans):
        raise next(iter(errors.values()))
    if problems is not None:
        problems += [Problem.from_error(path.name, error) for path, error in errors.items()]
    if channels == 1:
        scans = _without_channel_numbers(scans)
    _require_distinct_names(scans)
    return scans


def _scans_in(path: Path, channels: int) -> list[Scan]:
    parts = _channel_paths(path)
    if len(parts) > 1:
        return [_scan_of_channels(parts, channels)]
    files = _volume_files(path)
    if channels > 1:
        return _grouped_by_channel(files, channels)
    return [Scan(_name(file), (file,)) for file in files]


def _channel_paths(path: Path) -> list[Path]:
    """Return the paths of the channels that commas join; a path that exists is one path."""
    if path.exists() or "," not in str(path):
        return [path]
    return [Path(part).expanduser() for part in str(path).split(",")]


def _scan_of_channels(parts: Sequence[Path], channels: int) -> Scan:
    """Return the scan of files or DICOM folders, one per channel.

    It has the name that ``case_0000``, ``case_0001``, ... share; otherwise that of the folder that
    holds all series, or of the first path.

    Raises:
        DataError: a path does not exist, or there are more or fewer than the run has channels.
    """
    for part in parts:
        if not part.exists():
            raise DataError("no such file or folder", where=part)
    if len(parts) != channels:
        raise DataError(
            "other channels than the run was trained on",
            where=parts[0],
            found=f"{len(parts)} paths joined by commas",
            expected=f"{channels}, in the order of training",
        )
    return Scan(_shared_name(parts), tuple(parts))


def _shared_name(parts: Sequence[Path]) -> str:
    cases = set()
    for part in parts:
        match = CHANNEL_FILE.fullmatch(_name(part))
        cases.add(match[1] if match else None)
    case = cases.pop()
    if case is not None and not cases:
        return case
    parents = {part.resolve().parent for part in parts}
    are_series = all(part.is_dir() for part in parts)
    return parents.pop().name if are_series and len(parents) == 1 else _name(parts[0])


def left_out(paths: Iterable[Path], scans: Iterable[Scan]) -> list[str]:
    """Return a warning for each folder with visible files that belong to no scan."""
    from segbench.data.formats.dicom import dicom_files
    from segbench.data.preparation.layouts import find_below

    read: set[Path] = set()
    for scan in scans:
        for file in scan.files:
            read.update(dicom_files(file) if file.is_dir() else (file,))
    warnings = []
    folders = [part for path in paths for part in _channel_paths(path)]
    for path in folders:
        unread = []
        for file in find_below(path, "*"):
            if file.is_file() and file not in read:
                unread.append(file.relative_to(path))
        if unread:
            warnings.append(f"{path}: not read as scans: {first_few(unread)}")
    return warnings


def divided_series(scans: Iterable[Scan]) -> list[str]:
    """Return a warning for each DICOM series of which several slices are scans of their own."""
    from segbench.data.formats.dicom import series_of_slice

    by_series: dict[str, list[Path]] = defaultdict(list)
    for scan in scans:
        for file in scan.files:
            if file.is_file() and file.name.lower().endswith(DICOM_ENDING):
                with suppress(SegbenchError):  # reported when the scan is read
                    by_series[series_of_slice(file)].append(file)
    warnings = []
    for series, files in by_series.items():
        if series and len(files) > 1:
            warnings.append(
                f"{len(files)} files are slices of one series, and each is segmented alone: "
                f"{first_few(file.name for file in files)}. To segment them as a volume, give "
                f"their folder: {files[0].parent}"
            )
    return warnings


def _volume_files(path: Path) -> list[Path]:
    """Return the volumes that a path names: files, and folders of DICOM slices."""
    if not path.exists():
        raise DataError("no such file or folder", where=path)
    if not path.is_dir() or _has_dicom(path):
        return [path]
    files = _volumes_in(path)
    if not files:
        raise DataError(
            "no scan in the folder",
            where=path,
            expected=" ".join(ALL_ENDINGS) + ", or DICOM slices",
        )
    if len(files) == 1 and files[0].is_dir():
        return [path]  # a patient's folder with a single study in it
    return files


def _volumes_in(folder: Path) -> list[Path]:
    """Return the files of volumes or pictures and the folders of DICOM slices, sorted by name."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            is_volume = _has_dicom(path, deep=True)
        else:
            is_volume = path.name.lower().endswith(ALL_ENDINGS)
        if is_volume:
            found.append(path)
    return without_previews(found)


def _has_dicom(folder: Path, deep: bool = False) -> bool:
    """Return whether a folder holds DICOM slices itself or, with ``deep``, anywhere below it.

    Files that are DICOM only by name are included where there is no other volume, because reading
    them reports what is wrong.
    """
    from segbench.data.formats.dicom import dicom_files, files_called_dicom

    files = dicom_files(folder)
    if not any(path.name.lower().endswith(ENDINGS) for path in folder.iterdir()):
        files += files_called_dicom(folder)
    if deep:
        return bool(files)
    return any(file.parent == folder for file in files)


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else stem(path)


def _grouped_by_channel(files: Sequence[Path], channels: int) -> list[Scan]:
    """Put the files of one scan together, in the order of their channel numbers.

    A single file has all channels, also a picture with the number of the first one.
    """
    groups: dict[str, list[tuple[int | None, Path]]] = defaultdict(list)
    for file in files:
        match = CHANNEL_FILE.fullmatch(_name(file))
        if match is None:
            groups[_name(file)].append((None, file))
        else:
            groups[match[1]].append((int(match[2]), file))

    scans = []
    for name, members in groups.items():
        by_number = {number: file for number, file in members if number is not None}
        is_complete = sorted(by_number) == list(range(channels)) and len(members) == channels
        has_first_only = list(by_number) == [0] and is_picture(by_number[0])
        is_single_file = len(members) == 1 and (not by_number or has_first_only)
        if not is_complete and not is_single_file:
            raise DataError(
                f"the files of scan '{name}' are not its channels",
                where=members[0][1].parent,
                found=", ".join(sorted(file.name for _, file in members)),
                fix="one file per channel, each once; or paths joined by commas: FIRST,SECOND",
                expected=", ".join(f"{name}_{number:04d}" for number in range(channels)),
            )
        ordered = sorted(members, key=lambda member: member[0] or 0)
        scans.append(Scan(name, tuple(file for _, file in ordered)))
    return scans


def _without_channel_numbers(scans: list[Scan]) -> list[Scan]:
    """Remove ``_0000`` from the names, unless two scans would get one name."""
    names = {scan.name.removesuffix(FIRST_CHANNEL) for scan in scans}
    if len(names) < len(scans) or "" in names:
        return scans
    return [replace(scan, name=scan.name.removesuffix(FIRST_CHANNEL)) for scan in scans]


def _require_distinct_names(scans: list[Scan]) -> None:
    by_name: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        by_name[scan.name].append(scan)
    for name, members in by_name.items():
        if len(members) > 1:
            raise UsageError(
                f"{len(members)} scans are called '{name}': "
                "their results would overwrite each other",
                found=", ".join(str(scan.files[0]) for scan in members),
                fix="predict them in two calls with two output folders",
            )
