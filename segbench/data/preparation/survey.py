"""Checks of the files a data set is prepared from, before anything is written: every bad case, not the first one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np

from segbench import registry
from segbench.contracts.dataset import Dataset, RawCase, Split
from segbench.data.preparation.archives import is_archive
from segbench.data.preparation.pipeline import own_lists
from segbench.data.preparation.places import find_cases
from segbench.data.store.case_files import CaseInfo, check_case, describe, place, valid_id
from segbench.data.store.checks import check_facts
from segbench.data.store.problem import Problem
from segbench.data.store.store import Store
from segbench.errors import DataError, SegbenchError, StorageError
from segbench.progress import Progress, no_progress

MEND = "repair or replace the file, or take the case out"


def check_source(
    entry: registry.Entry,
    source: Path,
    progress: Progress = no_progress,
) -> tuple[Store, list[Problem]]:
    """What a folder holds of a data set, as far as it can be read, and everything that is wrong with it.

    The store is in memory only: facts without files. Nothing of the source is changed.
    """
    dataset: Dataset = entry.cls()
    try:
        if is_archive(source):
            raise DataError(
                "an archive cannot be checked as it is",
                where=source,
                found="an archive",
                expected="a folder",
                fix=f"take it apart, or segbench data prepare {entry.name} --from {source}: it checks too",
            )
        if not source.is_dir():
            raise DataError(
                "no such folder", where=source, expected="; ".join(dataset.files) or None
            )
        found = find_cases(dataset, source)
        published = dataset.split()
    except SegbenchError as error:
        return _store(entry, source, Split((), ()), {}), [problem_of("*", error, str(source))]
    problems = _ids(found, str(source))
    raw = {r.id: r for r in found if valid_id(r.id)}
    split = published
    try:
        split = own_lists(source, published, raw, []) or published
    except DataError as error:
        problems.append(problem_of("*", error, str(source)))
    problems += [
        Problem(
            i,
            str(source),
            "no file of this case",
            "; ".join(dataset.files),
            "complete the folder, or write train.list and test.list of what it holds",
        )
        for i in dict.fromkeys((*split.train, *split.test))
        if i not in raw and valid_id(i)
    ]
    wanted = [raw[i] for i in dict.fromkeys((*split.train, *split.test)) if i in raw]
    problems += [Problem("*", str(source), note, level="warning") for note in split.notes]
    infos, wrong = check_cases(dataset, wanted, split, progress)
    read = Split(
        tuple(i for i in split.train if i in infos), tuple(i for i in split.test if i in infos)
    )
    store = _store(entry, source, read, infos)
    # Missing classes are told only where every case could be read: else the missing ones may hold them.
    facts = [p for p in check_facts(store) if not (wrong and p.case == "*")]
    return store, problems + wrong + [_located(p, raw) for p in facts]


def check_cases(
    dataset: Dataset,
    raws: Iterable[RawCase],
    split: Split,
    progress: Progress = no_progress,
) -> tuple[dict[str, CaseInfo], list[Problem]]:
    """Read every case as for preparation: facts of the good ones, and the problems of all others."""
    raws = list(raws)
    infos: dict[str, CaseInfo] = {}
    problems: list[Problem] = []

    def alone(raw: RawCase) -> RawCase:
        """What all cases share, worked out from this one: another broken file must not stand in its way."""
        return dataset.add_shared_facts([raw], Split((raw.id,), ()))[0]

    for done, raw in enumerate(raws, 1):
        info, wrong = _read(dataset, raw, alone)
        problems += wrong
        if info is not None:
            infos[raw.id] = info
        progress(done, len(raws), raw.id)
    bad = _without_spacing(dataset, [r for r in raws if r.id in infos], split, infos)
    return (
        {i: info for i, info in infos.items() if i not in bad},
        [p for p in problems if p.case not in bad] + [p for wrong in bad.values() for p in wrong],
    )


def _without_spacing(
    dataset: Dataset,
    good: list[RawCase],
    split: Split,
    infos: dict[str, CaseInfo],
) -> dict[str, list[Problem]]:
    """What is wrong with cases that need a spacing only because others tell one, by which all are resampled."""
    bare = [raw for raw in good if infos[raw.id].spacing is None]
    if len(bare) == len(good):
        return {}
    together = cache(lambda: {raw.id: raw for raw in dataset.add_shared_facts(good, split)})
    read = {raw.id: _read(dataset, raw, lambda one: together()[one.id]) for raw in bare}
    return {case: problems for case, (info, problems) in read.items() if info is None}


def _read(
    dataset: Dataset,
    raw: RawCase,
    settled: Callable[[RawCase], RawCase],
) -> tuple[CaseInfo | None, list[Problem]]:
    file = place(raw.where)
    try:
        case = dataset.load(settled(raw))
        problems = check_case(case, dataset, raw.where)
    except StorageError:
        raise
    except SegbenchError as error:
        return None, [problem_of(raw.id, error, file)]
    except (
        Exception
    ) as error:  # an adapter may fail in any way; the case and the file are what the user needs
        return None, [Problem(raw.id, file, f"{type(error).__name__}: {error}", fix=MEND)]
    if problems:
        return None, problems
    if case.group is None:
        case.group = raw.group
    label = None if case.label is None else np.ascontiguousarray(case.label, dtype=np.uint8)
    info = describe(case, np.ascontiguousarray(case.image, dtype=np.float32), label, {}, None)
    doubts = [
        Problem(raw.id, file, str(text), level="warning") for text in case.made.get("warnings", ())
    ]
    if np.ptp(case.image) == 0:
        doubts.append(
            Problem(
                raw.id,
                file,
                "an image of one gray value",
                "differences to learn from",
                level="warning",
            )
        )
    return info, doubts


def problem_of(case: str, error: SegbenchError, file: str) -> Problem:
    """An error about a case as one line of a list."""
    where, found, expected, fix = (
        str(error.details[k] or "") for k in ("where", "found", "expected", "fix")
    )
    return Problem(
        case, where or file, f"{error.what}{found and f': {found}'}", expected, fix or MEND
    )


def _ids(found: list[RawCase], source: str) -> list[Problem]:
    twice = [i for i, n in Counter(r.id for r in found).items() if n > 1]
    return [
        Problem(
            repr(r.id),
            place(r.where) or source,
            "unsafe case id",
            "letters, digits and . _ + -, at most 100",
            "rename the case",
        )
        for r in found
        if not valid_id(r.id)
    ] + [
        Problem(i, source, "case id twice", "each id once", "rename or remove one")
        for i in twice
        if valid_id(i)
    ]


def _located(problem: Problem, raw: dict[str, RawCase]) -> Problem:
    """A problem with the file it is about."""
    file = problem.file or (place(raw[problem.case].where) if problem.case in raw else "")
    return Problem(problem.case, file, problem.found, problem.expected, problem.fix, problem.level)


def _store(entry: registry.Entry, source: Path, split: Split, infos: dict[str, CaseInfo]) -> Store:
    cls = entry.cls
    return Store(
        entry.name,
        source,
        tuple(cls.classes),
        cls.channels,
        cls.dims,
        split.train,
        split.test,
        False,
        "",
        infos,
    )
