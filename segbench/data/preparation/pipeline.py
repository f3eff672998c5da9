"""From a source folder to the prepared store: find, check, write case by case, then ``store.json``.

A killed call leaves whole cases and no ``store.json``; the next one keeps those whose files, source and adapter are
unchanged. All bad cases are reported together.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from segbench import registry
from segbench.contracts.dataset import Dataset, RawCase, Split
from segbench.data.formats.limits import Limits, limits, set_limits
from segbench.data.preparation.archives import ENDINGS, extract, is_archive
from segbench.data.preparation.places import find_cases, find_lists
from segbench.data.store.case_files import (
    CaseInfo,
    check_case,
    facts,
    place,
    read_case,
    remove,
    valid_id,
    write_case,
)
from segbench.data.store.problem import DataProblems, Problem
from segbench.data.store.store import (
    Store,
    adapter_facts,
    fingerprint,
    inputs_digests,
    write_store,
)
from segbench.errors import DataError, PluginError, SegbenchError, StorageError
from segbench.progress import Progress
from segbench.storage import sweep
from segbench.text import some

Result = tuple[str, CaseInfo | None, list[Problem]]


@dataclass(frozen=True)
class Plan:
    """Which cases a store will hold, and what is to be said about it."""

    split: Split
    raw: dict[str, RawCase]
    partial: bool
    warnings: tuple[str, ...]


def plan(dataset: Dataset, source: Path | None) -> Plan:
    """Compare what a source holds with the published split; reads no voxel.

    A source folder with its own ``train.list`` and ``test.list`` (one case or group id per line) may be a deliberate
    copy of part of the data: it gives what it lists, in the published order.

    Raises:
        DataError: a case is missing, an id is unsafe, twice in the lists or in both.
    """
    if source is not None and source.is_file():
        raise DataError(
            "a file of a kind that is not read",
            where=source,
            expected="a folder, or " + " ".join(ENDINGS),
            fix=f"take it apart, then: segbench data prepare {dataset.name} --from DIR",
        )
    if source is not None and not source.is_dir():
        raise DataError(
            f"no such folder or archive for data set '{dataset.name}'",
            where=source,
            expected=expected_files(dataset),
        )
    found = dataset.find(None) if source is None else find_cases(dataset, source)
    _check_ids([raw.id for raw in found], "the source", source)
    raw, split = {r.id: r for r in found}, dataset.split()
    published = split
    warnings: list[str] = []
    _check_split(split, f"the split of {dataset.name}")
    own = None if source is None else own_lists(source, split, raw, warnings)
    if own is not None:
        _check_split(own, str(source))
        split = own
    ids = (*split.train, *split.test)
    missing = [i for i in ids if i not in raw]
    if missing:
        raise _missing(dataset, missing, len(ids), source, own is not None)
    _check_patients(split, raw)
    warnings += split.notes
    extra = sorted(set(raw) - {*ids, *split.val})
    if extra:
        warnings.append(
            f"{len(extra)} cases of the source are in no list and left out: {some(extra)}"
        )
    partial = (split.train, split.test) != (published.train, published.test)
    if partial:
        total = len(published.train) + len(published.test)
        warnings.append(
            f"partial copy: {len(ids)} of {total} published cases; numbers are not comparable with others"
        )
    return Plan(split, {i: raw[i] for i in ids}, partial, tuple(warnings))


def _check_patients(split: Split, raw: dict[str, RawCase]) -> None:
    """A number of labeled cases counts patients, so the cases of one must stand together."""
    runs = [group for group, _ in groupby(raw[i].group or i for i in split.train)]
    apart = [group for group, n in Counter(runs).items() if n > 1]
    if apart:
        raise DataError(
            "the cases of a patient do not stand together in the training list",
            found=some(apart),
            expected="all cases of a patient one after the other",
        )


def _check_ids(ids: Sequence[str], what: str, source: object) -> None:
    bad = [i for i in ids if not valid_id(i)]
    if bad:
        raise DataError(
            f"unsafe case id in {what}",
            where=source,
            found=", ".join(repr(i) for i in bad[:10]),
            expected="a letter or digit, then up to 99 of letters, digits and . _ + -",
            fix="rename the case",
        )
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise DataError(
            f"case id twice in {what}", where=source, found=some(twice), expected="each id once"
        )


def _check_split(split: Split, what: str) -> None:
    lists = {"train": split.train, "val": split.val, "test": split.test}
    for name, ids in lists.items():
        _check_ids(ids, f"the {name} list", what)
    for one, other in combinations(lists, 2):
        both = sorted(set(lists[one]) & set(lists[other]))
        if both:
            raise DataError(
                f"the same case is in {one} and {other}",
                where=what,
                found=some(both),
                expected="no case in both",
            )


def own_lists(
    source: Path, published: Split, raw: dict[str, RawCase], warnings: list[str]
) -> Split | None:
    """The split of a source's own lists in the published order; None if the source has no lists."""
    files = find_lists(source)
    if not files:
        return None
    order = (*published.train, *published.test)
    groups = {
        r.group: [i for i in order if i in raw and raw[i].group == r.group]
        for r in raw.values()
        if r.group
    }
    lists = []
    for file in files:
        try:
            lines = [
                line.strip()
                for line in file.read_text(encoding="utf-8-sig").splitlines()
                if line.strip()
            ]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "the list cannot be read",
                where=file,
                found=error,
                expected="UTF-8 text, one case id per line",
                fix="save it as UTF-8",
            ) from error
        _check_ids(lines, file.name, source)
        unknown = [x for x in lines if x not in order and not groups.get(x)]
        if unknown:
            warnings.append(
                f"{file.name}: {len(unknown)} ids are not in the published split and left out: "
                f"{some(unknown)}"
            )
        members = {i for x in lines for i in groups.get(x, [x])}
        lists.append(tuple(i for i in order if i in members))
    moved = sorted((set(lists[0]) & set(published.test)) | (set(lists[1]) & set(published.train)))
    if moved:
        warnings.append(
            f"the source's lists place {len(moved)} cases otherwise than the published split: "
            f"{some(moved)}"
        )
    return Split(
        lists[0], lists[1], f"{published.source} (own lists)".strip(), notes=published.notes
    )


def _missing(
    dataset: Dataset, ids: list[str], total: int, source: Path | None, listed: bool
) -> DataError:
    fix = (
        "complete the folder or take the cases out of its train.list and test.list"
        if listed
        else "complete the folder; to prepare part of the data on purpose, write the case ids it holds to "
        "train.list and test.list in that folder"
    )
    return DataError(
        f"data set '{dataset.name}': {len(ids)} of {total} cases are missing",
        where=source,
        found=f"nothing for {some(ids)}",
        expected=expected_files(dataset),
        fix=fix,
    )


def expected_files(dataset: Dataset | type[Dataset]) -> str:
    """What a source must hold and where it comes from, one fact a line."""
    lines = list(dataset.files)
    for archive in dataset.archives:
        lines.append(", ".join(filter(None, (archive.name, archive.size, archive.digest))))
    lines += [f"from {dataset.homepage}"] if dataset.homepage else []
    return "\n".join(lines + ([f"license: {dataset.license}"] if dataset.license else []))


def _settled(dataset: Dataset, todo: Plan, source: Path | None) -> list[RawCase]:
    """The cases with what they share; where a broken file stands in its way, all broken files are told."""
    from segbench.data.preparation.survey import check_cases

    try:
        return dataset.add_shared_facts(list(todo.raw.values()), todo.split)
    except (
        Exception
    ):  # an adapter may fail in any way; what can be said about the files comes first
        problems = [
            p for p in check_cases(dataset, todo.raw.values(), todo.split)[1] if p.level == "error"
        ]
        if not problems:
            raise
        raise _unusable(dataset.name, todo, problems, source) from None


def _unusable(name: str, todo: Plan, problems: list[Problem], source: Path | None) -> DataProblems:
    bad = len({p.case for p in problems})
    return DataProblems(
        f"data set '{name}': {bad} of {len(todo.raw)} cases cannot be used",
        sorted(problems, key=lambda p: list(todo.raw).index(p.case)),
        where=source,
        fix=f"mend them, then repeat segbench data prepare {name}; the good cases are kept",
    )


def prepare_all(
    entry: registry.Entry, source: Path | None, root: Path, jobs: int, progress: Progress | None
) -> Store:
    """``store.prepare`` behind its lock."""
    if source is not None and is_archive(source):
        source = _taken_apart(source, root, progress)
        store = prepare_all(entry, source, root, jobs, progress)
        remove(source)
        return store
    dataset: Dataset = entry.cls()
    todo = plan(dataset, source)
    todo = replace(todo, raw={r.id: r for r in _settled(dataset, todo, source)})
    adapter = adapter_facts(entry)
    if limits().other_spacing:
        adapter["allowed"] = "affine mismatch"
    _withdraw(root, adapter, todo)
    infos: dict[str, CaseInfo] = {}
    problems: list[Problem] = []
    results = _run(adapter, list(todo.raw.values()), root / "cases", jobs)
    for done, (case, info, wrong) in enumerate(results, 1):
        problems += wrong
        if info is not None:
            infos[case] = info
        if progress is not None:
            progress(done, len(todo.raw), case)
    if problems:
        raise _unusable(entry.name, todo, problems, source)
    dataset.after_preparation()
    train, test, cases = todo.split.train, todo.split.test, {i: infos[i] for i in todo.raw}
    warnings = (
        *todo.warnings,
        *(f"{i}: {text}" for i, info in cases.items() for text in info.made.get("warnings", ())),
    )
    if inputs := inputs_digests(dataset):
        adapter = {**adapter, "inputs": inputs}
    return write_store(
        Store(
            entry.name,
            root,
            tuple(dataset.classes),
            dataset.channels,
            dataset.dims,
            train,
            test,
            todo.partial,
            fingerprint(cases.values(), train, test),
            cases,
            warnings,
            adapter=adapter,
        )
    )


def _taken_apart(archive: Path, root: Path, progress: Progress | None) -> Path:
    """The archive's content in a folder beside the cases: kept until they are all prepared, so that a repeat finds it."""
    stat = archive.stat()
    key = hashlib.sha256(repr((archive.name, stat.st_size, stat.st_mtime_ns)).encode()).hexdigest()[
        :12
    ]
    target = root / f"source-{key}"
    sweep(root)
    for old in root.glob("source-*"):
        if old != target:
            remove(old)

    def megabytes(done: int, total: int, name: str) -> None:
        if progress is not None:
            progress(done // 10**6, max(total // 10**6, 1), Path(name).name)

    return target if target.is_dir() else extract(archive, target, megabytes)


def _withdraw(root: Path, adapter: dict[str, Any], todo: Plan) -> None:
    """Take back ``store.json`` before its cases change, and remove cases that do not belong any more.

    Nothing is taken back if the store was made by the same code from the same files.
    """
    folder = root / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(root)
    sweep(folder)
    try:
        old = json.loads((root / "store.json").read_bytes())
        made = {c["id"]: c["source"] for c in old["cases"]}
        keep = {k: v for k, v in old["adapter"].items() if k != "inputs"} == adapter and all(
            made.get(i) == json.loads(json.dumps(_source(adapter, raw)))
            for i, raw in todo.raw.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        keep = False
    if not keep:
        (root / "store.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.name not in todo.raw:
            (root / "store.json").unlink(missing_ok=True)
            remove(path)


def _source(adapter: dict[str, Any], raw: RawCase) -> dict[str, Any]:
    return {"adapter": adapter, "group": raw.group, "from": facts(raw.where)}


def _run(adapter: dict[str, Any], raws: list[RawCase], folder: Path, jobs: int) -> Iterator[Result]:
    if jobs <= 1 or len(raws) < 2:
        yield from (_one(adapter, raw, folder) for raw in raws)
        return
    context = multiprocessing.get_context("spawn")
    known = (tuple(registry._state.files), registry.links(), limits())
    with ProcessPoolExecutor(min(jobs, len(raws)), context, _start_worker, known) as pool:
        futures = [pool.submit(_one, adapter, raw, folder) for raw in raws]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise PluginError(
                "a worker process died, perhaps for lack of memory; finished cases are kept",
                fix="repeat the command with --jobs 1",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(
    plugins: tuple[Path, ...], links: dict[str, registry.Link], allowed: Limits
) -> None:
    """Know what the parent knows of the user's plug-ins, data sets and wishes, and die with it, even if it is killed."""
    set_limits(allowed)
    for file in plugins:
        registry.add_file(file)
    for name, link in links.items():
        registry.add_link(name, link)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _one(adapter: dict[str, Any], raw: RawCase, folder: Path) -> Result:
    """Prepare one case, or keep it; an error of the source is a finding, an error of the store is raised."""
    dataset: Dataset = registry.get("dataset", adapter["dataset"]).cls()
    try:
        source = _source(adapter, raw)
        kept = read_case(folder / raw.id, source)
        if kept is not None:
            return raw.id, kept, []
        remove(folder / raw.id)
        case = dataset.load(raw)
        problems = check_case(case, dataset, raw.where)
        if case.id != raw.id:
            problems.append(
                Problem(raw.id, place(raw.where), f"load gave id {case.id!r}", repr(raw.id))
            )
        if case.group is None:
            case.group = raw.group
    except StorageError:
        raise
    except SegbenchError as error:
        where, found, expected, fix = (
            str(error.details[k] or "") for k in ("where", "found", "expected", "fix")
        )
        return (
            raw.id,
            None,
            [
                Problem(
                    raw.id,
                    where or place(raw.where),
                    f"{error.what}{found and f': {found}'}",
                    expected,
                    fix,
                )
            ],
        )
    except (
        Exception
    ) as error:  # an adapter may fail in any way; the case and the file are what the user needs
        return raw.id, None, [Problem(raw.id, place(raw.where), f"{type(error).__name__}: {error}")]
    return (
        (raw.id, None, problems)
        if problems
        else (raw.id, write_case(folder / raw.id, case, source), [])
    )
