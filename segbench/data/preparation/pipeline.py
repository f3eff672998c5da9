"""From a source folder to the prepared store: find, check, write case by case, then ``store.json``.

A killed call leaves complete cases and no ``store.json``; the next call keeps those whose files,
source and adapter are unchanged. All bad cases are reported together.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from segbench import registry
from segbench.contracts.dataset import Dataset, RawCase, Split
from segbench.data.formats.limits import Limits, limits, set_limits
from segbench.data.preparation.archives import ENDINGS, extract, is_archive
from segbench.data.preparation.layouts import find_cases
from segbench.data.preparation.lists import own_lists, require_disjoint, require_good_ids
from segbench.data.preparation.load import load_checked, problem_of_case
from segbench.data.preparation.survey import check_cases
from segbench.data.store.case_files import CaseInfo, read_case, remove, source_facts, write_case
from segbench.data.store.problem import DataProblems, Problem
from segbench.data.store.store import Store, fingerprint, write_store
from segbench.errors import PLUGIN_FAILURES, DataError, PluginError, StorageError, ended_by_plugin
from segbench.identity.sources import loaded_digest
from segbench.progress import Progress
from segbench.storage import json_bytes, sweep
from segbench.text import first_few


@dataclass(frozen=True)
class Plan:
    """Which cases a store will hold, and the warnings about it."""

    split: Split
    raw: dict[str, RawCase]
    partial: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class CaseOutcome:
    """A case that was prepared or kept, or the problems that prevent it."""

    case: str
    info: CaseInfo | None
    problems: list[Problem] = field(default_factory=list)


# Planning: no voxel is read.


def plan(dataset: Dataset, source: Path | None) -> Plan:
    """Compare what a source holds with the published split.

    A source folder with its own ``train.list`` and ``test.list`` (one case or patient id per line)
    is a deliberate copy of part of the data: only listed cases are used, in the published order.

    Raises:
        DataError: a case is missing, or an id is unsafe, repeated or in two lists.
    """
    if source is not None:
        _require_folder(dataset, source)
    found = dataset.find(None) if source is None else find_cases(dataset, source)
    require_good_ids([raw.id for raw in found], "the source", source)
    raw = {case.id: case for case in found}
    published = dataset.split()
    require_disjoint(published, f"the split of {dataset.name}")
    own: Split | None = None
    warnings: list[str] = []
    if source is not None:
        own, warnings = own_lists(source, published, raw)
        if own is not None:
            require_disjoint(own, str(source))
    split = own or published
    ids = (*split.train, *split.test)
    missing = [case for case in ids if case not in raw]
    if missing:
        raise _missing_cases(dataset, missing, len(ids), source, has_lists=own is not None)
    _require_patients_together(split, raw)
    warnings += split.notes
    unlisted = sorted(set(raw) - {*ids, *split.val})
    if unlisted:
        warnings.append(
            f"{len(unlisted)} cases of the source are in no list and left out: "
            f"{first_few(unlisted)}"
        )
    partial = (split.train, split.test) != (published.train, published.test)
    if partial:
        total = len(published.train) + len(published.test)
        warnings.append(
            f"partial copy: {len(ids)} of {total} published cases; "
            "numbers are not comparable with others"
        )
    return Plan(split, {case: raw[case] for case in ids}, partial, tuple(warnings))


def _require_folder(dataset: Dataset, source: Path) -> None:
    if source.is_file():
        raise DataError(
            "a file of a type that cannot be read",
            where=source,
            expected="a folder, or " + " ".join(ENDINGS),
            fix=f"extract it, then: segbench data prepare {dataset.name} --from DIR",
        )
    if not source.is_dir():
        raise DataError(
            f"no such folder or archive for data set '{dataset.name}'",
            where=source,
            expected=expected_files(dataset),
        )


def _require_patients_together(split: Split, raw: Mapping[str, RawCase]) -> None:
    """Refuse a training list in which other cases stand between those of a patient.

    A labeled count counts patients, so the cases of each one must be consecutive.
    """
    patients = [raw[case].group or case for case in split.train]
    consecutive = Counter(patient for patient, _ in groupby(patients))
    scattered = [patient for patient, count in consecutive.items() if count > 1]
    if scattered:
        raise DataError(
            "the cases of a patient are not consecutive in the training list",
            found=first_few(scattered),
            expected="all cases of a patient one after the other",
        )


def _missing_cases(
    dataset: Dataset, ids: list[str], total: int, source: Path | None, has_lists: bool
) -> DataError:
    if has_lists:
        fix = "complete the folder or remove the cases from its train.list and test.list"
    else:
        fix = (
            "complete the folder; to prepare part of the data on purpose, write the case ids it "
            "holds to train.list and test.list in that folder"
        )
    return DataError(
        f"data set '{dataset.name}': {len(ids)} of {total} cases are missing",
        where=source,
        found=f"nothing for {first_few(ids)}",
        expected=expected_files(dataset),
        fix=fix,
    )


def expected_files(dataset: Dataset | type[Dataset]) -> str:
    """Return what a source must hold and where it comes from, one fact per line."""
    lines = list(dataset.files)
    for archive in dataset.archives:
        facts = [fact for fact in (archive.name, archive.size, archive.digest) if fact]
        lines.append(", ".join(facts))
    if dataset.homepage:
        lines.append(f"from {dataset.homepage}")
    if dataset.license:
        lines.append(f"license: {dataset.license}")
    return "\n".join(lines)


# Identity of what is prepared.


def adapter_identity(entry: registry.Entry) -> dict[str, Any]:
    """Return what identifies the code that prepares a data set."""
    return {
        "dataset": entry.name,
        "version": entry.cls.version,
        "code": loaded_digest("dataset", entry.name),
    }


def digests_of_inputs(dataset: Dataset) -> dict[str, str]:
    """Return a digest of each choice that the user made for a data set."""
    digests = {}
    for name, value in dataset.inputs().items():
        digests[name] = hashlib.sha256(json_bytes(value)).hexdigest()[:16]
    return digests


def _case_source(adapter: dict[str, Any], raw: RawCase) -> dict[str, Any]:
    """Return the code and files of a case; if they are equal, the case can be kept."""
    return {"adapter": adapter, "group": raw.group, "from": source_facts(raw.where)}


# Preparation.


def prepare_all(
    entry: registry.Entry, source: Path | None, root: Path, jobs: int, progress: Progress | None
) -> Store:
    """Prepare a data set in the folder ``root``, whose lock the caller holds.

    Raises:
        TrainingError: the data set's code calls ``sys.exit``, but not for a single case.
    """
    try:
        return _prepare_all(entry, source, root, jobs, progress)
    except SystemExit as error:
        raise ended_by_plugin(error, f"data set {entry.name}") from error


def _prepare_all(
    entry: registry.Entry, source: Path | None, root: Path, jobs: int, progress: Progress | None
) -> Store:
    if source is not None and is_archive(source):
        extracted = _extract_beside(source, root, progress)
        store = _prepare_all(entry, extracted, root, jobs, progress)
        remove(extracted)
        return store
    dataset: Dataset = entry.cls()
    todo = plan(dataset, source)
    shared = _add_shared_facts(dataset, todo, source)
    todo = replace(todo, raw={raw.id: raw for raw in shared})
    adapter = adapter_identity(entry)
    if limits().other_spacing:
        adapter["allowed"] = "affine mismatch"
    _withdraw_store(root, adapter, todo)
    infos: dict[str, CaseInfo] = {}
    problems: list[Problem] = []
    outcomes = _prepare_cases(adapter, list(todo.raw.values()), root / "cases", jobs)
    for done, outcome in enumerate(outcomes, 1):
        problems += outcome.problems
        if outcome.info is not None:
            infos[outcome.case] = outcome.info
        if progress is not None:
            progress(done, len(todo.raw), outcome.case)
    if problems:
        raise _unusable_cases(entry.name, todo, problems, source)
    dataset.after_preparation()
    inputs = digests_of_inputs(dataset)
    if inputs:
        adapter = {**adapter, "inputs": inputs}
    return _write_store(dataset, root, todo, infos, adapter)


def _write_store(
    dataset: Dataset,
    root: Path,
    todo: Plan,
    infos: Mapping[str, CaseInfo],
    adapter: dict[str, Any],
) -> Store:
    cases = {case: infos[case] for case in todo.raw}  # processes finish in another order
    warnings = list(todo.warnings)
    for case, info in cases.items():
        warnings += [f"{case}: {text}" for text in info.made.get("warnings", ())]
    train = todo.split.train
    test = todo.split.test
    return write_store(
        Store(
            name=dataset.name,
            root=root,
            classes=tuple(dataset.classes),
            channels=dataset.channels,
            dims=dataset.dims,
            train=train,
            test=test,
            partial=todo.partial,
            fingerprint=fingerprint(cases.values(), train, test),
            cases=cases,
            warnings=tuple(warnings),
            adapter=adapter,
        )
    )


def _add_shared_facts(dataset: Dataset, todo: Plan, source: Path | None) -> list[RawCase]:
    """Add shared facts such as the common spacing.

    If a file is unreadable, all unreadable files are reported.
    """
    try:
        return dataset.add_shared_facts(list(todo.raw.values()), todo.split)
    except PLUGIN_FAILURES:  # problems of the files are reported first
        _, found = check_cases(dataset, todo.raw.values(), todo.split)
        problems = [problem for problem in found if problem.level == "error"]
        if not problems:
            raise
        raise _unusable_cases(dataset.name, todo, problems, source) from None


def _unusable_cases(
    name: str, todo: Plan, problems: list[Problem], source: Path | None
) -> DataProblems:
    bad = len({problem.case for problem in problems})
    order = {case: position for position, case in enumerate(todo.raw)}
    return DataProblems(
        f"data set '{name}': {bad} of {len(todo.raw)} cases cannot be used",
        sorted(problems, key=lambda problem: order.get(problem.case, len(order))),
        where=source,
        fix=f"repair them, then repeat segbench data prepare {name}; the good cases are kept",
    )


def _extract_beside(archive: Path, root: Path, progress: Progress | None) -> Path:
    """Extract an archive into a folder beside the cases.

    The folder is kept until all cases are prepared, so that a repeated call finds it.
    """
    stat = archive.stat()
    identity = repr((archive.name, stat.st_size, stat.st_mtime_ns))
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    target = root / f"source-{key}"
    sweep(root)
    for old in root.glob("source-*"):
        if old != target:
            remove(old)

    def report_megabytes(done: int, total: int, name: str) -> None:
        if progress is not None:
            progress(done // 10**6, max(total // 10**6, 1), Path(name).name)

    return target if target.is_dir() else extract(archive, target, report_megabytes)


def _withdraw_store(root: Path, adapter: dict[str, Any], todo: Plan) -> None:
    """Remove ``store.json`` before its cases change, and cases that no longer belong.

    ``store.json`` stays if the store was made by the same code from the same files.
    """
    folder = root / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    sweep(root)
    sweep(folder)
    surplus = [path for path in folder.iterdir() if path.name not in todo.raw]
    if surplus or not _is_current(root / "store.json", adapter, todo):
        (root / "store.json").unlink(missing_ok=True)
    for path in surplus:
        remove(path)


def _is_current(file: Path, adapter: dict[str, Any], todo: Plan) -> bool:
    """Return whether ``store.json`` was made by the same code from the same files."""
    try:
        old = json.loads(file.read_bytes())
        made_by = dict(old["adapter"])
        made_by.pop("inputs", None)
        made_from = {case["id"]: case["source"] for case in old["cases"]}
        if made_by != adapter:
            return False
        for case, raw in todo.raw.items():
            # Through JSON, because tuples come back from a file as lists.
            if made_from.get(case) != json.loads(json.dumps(_case_source(adapter, raw))):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _prepare_cases(
    adapter: dict[str, Any], raws: list[RawCase], folder: Path, jobs: int
) -> Iterator[CaseOutcome]:
    """Prepare cases in this process or in ``jobs`` others; outcomes come as they are finished."""
    if jobs <= 1 or len(raws) < 2:
        for raw in raws:
            yield _prepare_case(adapter, raw, folder)
        return
    added = [found.file for found in registry.catalog().values() if found.origin == "--plugin"]
    context = multiprocessing.get_context("spawn")
    settings = (tuple(dict.fromkeys(added)), registry.links(), limits())
    with ProcessPoolExecutor(min(jobs, len(raws)), context, _start_worker, settings) as pool:
        futures = [pool.submit(_prepare_case, adapter, raw, folder) for raw in raws]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise PluginError(
                "a worker process died, perhaps because memory ran out; finished cases are kept",
                fix="repeat the command with --jobs 1",
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(
    plugins: tuple[Path, ...], links: dict[str, registry.Link], allowed: Limits
) -> None:
    """Give a worker the parent's plug-ins, links and limits, and end it with the parent."""
    set_limits(allowed)
    for file in plugins:
        registry.add_file(file)
    for name, link in links.items():
        registry.add_link(name, link)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()  # returns even if the parent is killed
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _prepare_case(adapter: dict[str, Any], raw: RawCase, folder: Path) -> CaseOutcome:
    """Prepare one case, or keep it if it is unchanged.

    An error of the source is returned as a problem, an error of the store is raised.
    """
    dataset: Dataset = registry.get("dataset", adapter["dataset"]).cls()
    target = folder / raw.id
    try:
        source = _case_source(adapter, raw)
        kept = read_case(target, source)
        if kept is None:
            remove(target)
    except StorageError:
        raise
    except PLUGIN_FAILURES as error:  # source files that cannot be listed
        return CaseOutcome(raw.id, None, [problem_of_case(raw, error)])
    if kept is not None:
        return CaseOutcome(raw.id, kept)
    case, problems = load_checked(dataset, raw)
    if case is None:
        return CaseOutcome(raw.id, None, problems)
    return CaseOutcome(raw.id, write_case(target, case, source))
