"""Case lists: checks of their ids, and the ``train.list`` and ``test.list`` of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from segbench.contracts.dataset import RawCase, Split
from segbench.data.preparation.layouts import DEPTH, LIST_FILES, only_subfolder
from segbench.data.store.case_files import valid_id
from segbench.errors import DataError
from segbench.text import first_few

ID_RULE = "a letter or digit, then up to 99 letters, digits or . _ + -"


def unsafe_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids that are not safe as a folder name, in a table or on a terminal."""
    return [case for case in ids if not valid_id(case)]


def repeated_ids(ids: Iterable[str]) -> list[str]:
    """Return the ids that occur more than once."""
    return [case for case, count in Counter(ids).items() if count > 1]


def require_good_ids(ids: Sequence[str], what: str, where: object) -> None:
    """Refuse unsafe and repeated ids.

    Args:
        ids: case ids.
        what: what holds them, in words.
        where: its path.

    Raises:
        DataError: names the ids.
    """
    unsafe = unsafe_ids(ids)
    if unsafe:
        raise DataError(
            f"unsafe case id in {what}",
            where=where,
            found=", ".join(repr(case) for case in unsafe[:10]),
            expected=ID_RULE,
            fix="rename the case",
        )
    repeated = repeated_ids(ids)
    if repeated:
        raise DataError(
            f"case id twice in {what}",
            where=where,
            found=first_few(repeated),
            expected="each id once",
        )


def require_disjoint(split: Split, where: str) -> None:
    """Refuse a split with unsafe or repeated ids, or with a case in two of its lists.

    Raises:
        DataError: names the ids.
    """
    lists = {"train": split.train, "val": split.val, "test": split.test}
    for name, ids in lists.items():
        require_good_ids(ids, f"the {name} list", where)
    for first, second in combinations(lists, 2):
        shared = sorted(set(lists[first]) & set(lists[second]))
        if shared:
            raise DataError(
                f"the same case is in {first} and {second}",
                where=where,
                found=first_few(shared),
                expected="no case in both",
            )


def find_lists(source: Path, depth: int = DEPTH) -> tuple[Path, ...]:
    """Return ``train.list`` and ``test.list`` of a source or its only subfolder, or nothing."""
    files = tuple(source / name for name in LIST_FILES)
    if all(file.is_file() for file in files):
        return files
    inner = only_subfolder(source) if depth else None
    return find_lists(inner, depth - 1) if inner is not None else ()


def own_lists(
    source: Path, published: Split, raw: Mapping[str, RawCase]
) -> tuple[Split | None, list[str]]:
    """Return the split by a source's own lists, in the published order, and warnings about it.

    A line of a list is the id of a case or of a patient.

    Args:
        source: the folder.
        published: the split of the data set.
        raw: the cases found in the folder.

    Returns:
        The split (None if the source has no lists), and warnings.

    Raises:
        DataError: a list cannot be read, or has an unsafe or repeated id.
    """
    files = find_lists(source)
    if not files:
        return None, []
    order = (*published.train, *published.test)
    patients = _cases_by_patient(order, raw)
    warnings = []
    lists = []
    for file in files:
        lines = _read_lines(file)
        require_good_ids(lines, file.name, source)
        unknown = [line for line in lines if line not in order and line not in patients]
        if unknown:
            warnings.append(
                f"{file.name}: {len(unknown)} ids are not in the published split and left out: "
                f"{first_few(unknown)}"
            )
        members = set()
        for line in lines:
            members.update(patients.get(line, [line]))
        lists.append(tuple(case for case in order if case in members))
    train, test = lists
    moved = (set(train) & set(published.test)) | (set(test) & set(published.train))
    if moved:
        warnings.append(
            f"the source's lists move {len(moved)} cases to the other side of the published split: "
            f"{first_few(sorted(moved))}"
        )
    title = f"{published.source} (own lists)".strip()
    return Split(train, test, title, notes=published.notes), warnings


def _cases_by_patient(order: Iterable[str], raw: Mapping[str, RawCase]) -> dict[str, list[str]]:
    """Return the cases of each patient that the source names, in the published order."""
    patients: dict[str, list[str]] = {}
    for case in order:
        patient = raw[case].group if case in raw else None
        if patient:
            patients.setdefault(patient, []).append(case)
    return patients


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the list cannot be read",
            where=file,
            found=error,
            expected="UTF-8 text, one case id per line",
            fix="save it as UTF-8",
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
