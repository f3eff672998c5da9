"""Check the files of a data set before preparation: lists every bad case and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segbench import registry
from segbench.contracts.dataset import Case, Dataset, RawCase, Split
from segbench.data.formats.pictures import PICTURE_ENDINGS, is_picture
from segbench.data.formats.read import DICOM_ENDING, ENDINGS
from segbench.data.preparation.archives import is_archive
from segbench.data.preparation.layouts import find_below, find_cases
from segbench.data.preparation.lists import ID_RULE, own_lists, repeated_ids, unsafe_ids
from segbench.data.preparation.load import REPAIR, load_checked, problem_of_case
from segbench.data.store.case_files import CaseInfo, common_path, describe, paths_in, valid_id
from segbench.data.store.checks import check_facts
from segbench.data.store.problem import Problem
from segbench.data.store.store import Store
from segbench.errors import PLUGIN_FAILURES, DataError, SegbenchError, StorageError
from segbench.progress import Progress, no_progress

# Of formats that hold volumes and are not read.
OTHER_ENDINGS = (
    ".mhd",
    ".nhdr",
    ".hdr",
    ".img",
    ".mgz",
    ".mgh",
    ".mnc",
    ".npy",
    ".npz",
    ".nii.bz2",
)
MAC_SIDE_FILE = "._"  # begins the name


def check_source(
    entry: registry.Entry,
    source: Path,
    progress: Progress = no_progress,
) -> tuple[Store, list[Problem]]:
    """Return what a folder holds of a data set as far as it can be read, and all problems.

    The store exists in memory only and has no files. The source is not changed.
    """
    dataset: Dataset = entry.cls()
    try:
        _require_folder(dataset, source)
        found = find_cases(dataset, source)
        published = dataset.split()
    except SegbenchError as error:
        empty = _store_in_memory(entry, source, Split((), ()), {})
        return empty, [Problem.from_error("*", error, str(source), REPAIR)]
    problems = _id_problems(found, str(source))
    raw = {case.id: case for case in found if valid_id(case.id)}
    split = published
    try:
        own, _ = own_lists(source, published, raw)
        split = own or published
    except DataError as error:
        problems.append(Problem.from_error("*", error, str(source), REPAIR))
    wanted = []
    for case in dict.fromkeys((*split.train, *split.test)):
        if case in raw:
            wanted.append(raw[case])
        elif valid_id(case):
            problems.append(_missing(case, dataset, source))
    problems += [Problem("*", str(source), note, level="warning") for note in split.notes]
    infos, case_problems = check_cases(dataset, wanted, split, progress)
    readable = Split(
        train=tuple(case for case in split.train if case in infos),
        test=tuple(case for case in split.test if case in infos),
    )
    store = _store_in_memory(entry, source, readable, infos)
    return store, problems + case_problems + _fact_problems(store, raw, bool(case_problems))


class FileCount(NamedTuple):
    """The volume files below a folder, and those of them that belong to the cases in use."""

    on_disk: int
    read: int
    unread: tuple[str, ...]  # paths below the folder


def count_files(entry: registry.Entry, source: Path) -> FileCount | None:
    """Count the volume files of a folder, whatever their names; None if its cases are not found.

    Volumes of formats that are not read are counted, and hidden ones, but not what is in hidden
    folders, nor the side files of a Mac. Files of cases whose names are refused are not read.
    Pictures count if any of them is read.
    """
    dataset: Dataset = entry.cls()
    if not source.is_dir():
        return None
    try:
        found = find_cases(dataset, source)
        published = dataset.split()
        own, _ = own_lists(source, published, {case.id: case for case in found})
    except SegbenchError:
        return None
    split = own or published
    used = {*split.train, *split.test}
    read: set[Path] = set()
    for raw in found:
        if raw.id in used and valid_id(raw.id):
            for path in paths_in(raw.where):
                read.update(find_below(path, "*") if path.is_dir() else (path,))
    endings: tuple[str, ...] = (*ENDINGS, DICOM_ENDING, *OTHER_ENDINGS)
    if any(is_picture(path) for path in read):
        endings = (*endings, *PICTURE_ENDINGS)
    on_disk = []
    for path in find_below(source, "*", hidden=True):
        is_volume = path.name.lower().endswith(endings)
        if is_volume and path.is_file() and not path.name.startswith(MAC_SIDE_FILE):
            on_disk.append(path)
    unread = [str(path.relative_to(source)) for path in on_disk if path not in read]
    return FileCount(len(on_disk), len(on_disk) - len(unread), tuple(unread))


def _require_folder(dataset: Dataset, source: Path) -> None:
    if is_archive(source):
        raise DataError(
            "an archive cannot be checked as it is",
            where=source,
            found="an archive",
            expected="a folder",
            fix=f"extract it, or segbench data prepare {dataset.name} --from {source}: "
            "it checks all cases too",
        )
    if not source.is_dir():
        raise DataError("no such folder", where=source, expected="; ".join(dataset.files) or None)


def _missing(case: str, dataset: Dataset, source: Path) -> Problem:
    return Problem(
        case,
        file=str(source),
        found="no file of this case",
        expected="; ".join(dataset.files),
        fix="complete the folder, or write train.list and test.list of the cases it holds",
    )


def _fact_problems(store: Store, raw: Mapping[str, RawCase], incomplete: bool) -> list[Problem]:
    """Return what the facts of all cases reveal, with the file of each case.

    Args:
        store: the readable cases.
        raw: where each case was found.
        incomplete: some cases have problems. Classes missing from all cases are then not reported,
            because the unreadable cases may contain them.
    """
    problems = []
    for problem in check_facts(store):
        if incomplete and problem.case == "*":
            continue
        file = problem.file
        if not file and problem.case in raw:
            file = common_path(raw[problem.case].where)
        problems.append(
            Problem(problem.case, file, problem.found, problem.expected, problem.fix, problem.level)
        )
    return problems


def check_cases(
    dataset: Dataset,
    raws: Iterable[RawCase],
    split: Split,
    progress: Progress = no_progress,
) -> tuple[dict[str, CaseInfo], list[Problem]]:
    """Read every case as preparation does; return facts of the good cases, and all problems."""
    raws = list(raws)
    infos: dict[str, CaseInfo] = {}
    problems: list[Problem] = []

    def add_facts_alone(raw: RawCase) -> RawCase:
        """Add shared facts as if this were the only case; other files need not be readable."""
        return dataset.add_shared_facts([raw], Split((raw.id,), ()))[0]

    for done, raw in enumerate(raws, 1):
        info, case_problems = _survey_case(dataset, raw, add_facts_alone)
        problems += case_problems
        if info is not None:
            infos[raw.id] = info
        progress(done, len(raws), raw.id)
    good = [raw for raw in raws if raw.id in infos]
    for case, case_problems in _resampling_problems(dataset, good, split, infos).items():
        del infos[case]
        problems = [problem for problem in problems if problem.case != case] + case_problems
    return infos, problems


def _resampling_problems(
    dataset: Dataset, good: list[RawCase], split: Split, infos: Mapping[str, CaseInfo]
) -> dict[str, list[Problem]]:
    """Return problems of cases without a spacing if the data set is resampled."""
    without_spacing = [raw for raw in good if infos[raw.id].spacing is None]
    if len(without_spacing) == len(good):
        return {}

    @cache
    def with_shared_facts() -> dict[str, RawCase]:
        return {raw.id: raw for raw in dataset.add_shared_facts(good, split)}

    def add_facts_of_all(raw: RawCase) -> RawCase:
        return with_shared_facts()[raw.id]

    found = {}
    for raw in without_spacing:
        info, problems = _survey_case(dataset, raw, add_facts_of_all)
        if info is None:
            found[raw.id] = problems
    return found


def _survey_case(
    dataset: Dataset, raw: RawCase, add_shared_facts: Callable[[RawCase], RawCase]
) -> tuple[CaseInfo | None, list[Problem]]:
    """Return the facts of a case and warnings about it, or None and its problems."""
    try:
        ready = add_shared_facts(raw)
    except StorageError:
        raise
    except PLUGIN_FAILURES as error:
        return None, [problem_of_case(raw, error)]
    case, problems = load_checked(dataset, ready)
    if case is None:
        return None, problems
    image = np.ascontiguousarray(case.image, dtype=np.float32)
    label = None if case.label is None else np.ascontiguousarray(case.label, dtype=np.uint8)
    return describe(case, image, label, {}, None), _case_warnings(case, common_path(raw.where))


def _case_warnings(case: Case, file: str) -> list[Problem]:
    warnings = []
    for text in case.made.get("warnings", ()):
        warnings.append(Problem(case.id, file, str(text), level="warning"))
    if np.ptp(case.image) == 0:
        warnings.append(
            Problem(
                case.id,
                file,
                found="an image of a single gray value",
                expected="contrast to learn from",
                level="warning",
            )
        )
    return warnings


def _id_problems(found: list[RawCase], source: str) -> list[Problem]:
    problems = []
    ids = [raw.id for raw in found]
    unsafe = set(unsafe_ids(ids))
    for raw in found:
        if raw.id in unsafe:
            problems.append(
                Problem(
                    repr(raw.id),
                    file=common_path(raw.where) or source,
                    found="unsafe case id",
                    expected=ID_RULE,
                    fix="rename the case",
                )
            )
    for case in repeated_ids(ids):
        if case not in unsafe:
            problems.append(
                Problem(
                    case,
                    file=source,
                    found="case id twice",
                    expected="each id once",
                    fix="rename or remove one",
                )
            )
    return problems


def _store_in_memory(
    entry: registry.Entry, source: Path, split: Split, infos: dict[str, CaseInfo]
) -> Store:
    return Store(
        name=entry.name,
        root=source,
        classes=tuple(entry.cls.classes),
        channels=entry.cls.channels,
        dims=entry.cls.dims,
        train=split.train,
        test=split.test,
        partial=False,
        fingerprint="",
        cases=infos,
    )
