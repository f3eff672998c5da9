"""Checks of a prepared store: leaks between train and test, damaged files, useless labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np

from segbench import registry
from segbench.contracts.dataset import IGNORED
from segbench.data.store.case_files import CaseInfo
from segbench.data.store.problem import DataProblems, Problem
from segbench.data.store.similar_names import suggested_rule, suspected_patients
from segbench.data.store.store import Store, case_digests, verify
from segbench.progress import Progress

MOST_CLIPPED = 0.5  # share of labeled voxels that a gray window may clip without a warning

__all__ = [
    "Problem",
    "changed_cases",
    "check_facts",
    "check_names",
    "check_split",
    "check_store",
    "patients_are_known",
    "require_apart",
    "require_learnable",
    "require_no_ignored",
    "require_no_leak",
    "summarize_problems",
]


# Leaks within one data set.


def check_split(
    train: Sequence[str], test: Sequence[str], cases: Mapping[str, CaseInfo]
) -> list[Problem]:
    """Find cases shared by train and test: by id, voxels, scan before the crop, or patient.

    Also reports repeated ids and ids without a case. Equal voxels inside one list are a warning:
    the case counts double, but nothing leaks.
    """
    problems = []
    for name, ids in (("train", train), ("test", test)):
        problems += _list_problems(name, ids, cases)
    in_both = set(train) & set(test)
    for case in sorted(in_both):
        problems.append(Problem(case, found="in train and in test", expected="in one of them"))
    side = {}
    for name, ids in (("train", train), ("test", test)):
        for case in ids:
            if case in cases and case not in in_both:
                side[case] = name
    same_voxels = _equal_pairs({case: cases[case].voxels for case in side})
    # Digest of the scan before any crop, which is not always recorded.
    scans = {case: cases[case].made.get("scan") for case in side}
    same_scan = _equal_pairs({case: digest for case, digest in scans.items() if digest})
    same_group = _equal_pairs({case: cases[case].group for case in side})
    for pair in same_voxels:
        problems.append(_shared("voxels", pair, side))
    for pair in same_scan:
        if pair not in same_voxels:
            problems.append(_shared("scan", pair, side))
    for first, second in same_group:
        if side[first] != side[second]:  # in one list, the cases of a patient belong together
            problems.append(_shared("patient", (first, second), side))
    return problems


def patients_are_known(store: Store) -> bool:
    """Return whether it is known which cases are of one patient."""
    cls = registry.get("dataset", store.name).cls
    has_groups = any(info.group != info.id for info in store.cases.values())
    return has_groups or bool(cls.patients_known)


def check_names(name: str, train: Sequence[str], test: Sequence[str]) -> list[Problem]:
    """Warn if patients are not known and the names of cases look like visits of one patient.

    Args:
        name: name of the data set.
        train: its training cases.
        test: its test cases.
    """
    cls = registry.get("dataset", name).cls
    suspected = suspected_patients((*train, *test))
    if cls.patients_known or not suspected:
        return []
    tested = set(test)

    def is_divided(cases: Sequence[str]) -> bool:
        return 0 < sum(case in tested for case in cases) < len(cases)

    divided = {stem: cases for stem, cases in suspected.items() if is_divided(cases)}
    stem, cases = next(iter((divided or suspected).items()))
    pair = cases[:2]
    if divided:
        trained_case = next(case for case in cases if case not in tested)
        tested_case = next(case for case in cases if case in tested)
        pair = [f"{trained_case} (train)", f"{tested_case} (test)"]
    place = "last" if cases[0].startswith(stem) else "first"
    fix = f"segbench data link {cls.source} --as NAME --patient '{suggested_rule(stem, cases[0])}'"
    if divided and (cls.source / "splits_ssl.json").is_file():
        fix += ", and remove its splits_ssl.json to have the lists drawn by patient"
    return [
        Problem(
            "*",
            found=f"patients are not known, and the names {pair[0]} and {pair[1]} "
            f"differ only in the {place} part",
            expected="all visits, frames or timepoints of a patient on one side of the split",
            fix=fix,
            level="warning",
        )
    ]


def _list_problems(name: str, ids: Sequence[str], cases: Mapping[str, CaseInfo]) -> list[Problem]:
    problems = []
    for case, count in Counter(ids).items():
        if count > 1:
            problems.append(
                Problem(case, found=f"{count} times in the {name} list", expected="once")
            )
    for case in ids:
        if case not in cases:
            problems.append(
                Problem(
                    case,
                    found=f"in the {name} list but not in the store",
                    expected="a prepared case",
                )
            )
    return problems


def _equal_pairs(keys: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return cases with an equal key: the first of them paired with each other one."""
    by_key = defaultdict(list)
    for case, key in keys.items():
        by_key[key].append(case)
    pairs = []
    for first, *others in by_key.values():
        pairs += [(first, other) for other in others]
    return pairs


def _shared(what: str, pair: tuple[str, str], side: Mapping[str, str]) -> Problem:
    """Return the problem of two cases that share something; an error across train and test."""
    first, second = pair
    found = f"same {what} as case {first}: {side[second]} and {side[first]}"
    if side[first] == side[second]:
        return Problem(second, found=found, expected="no such pair", level="warning")
    return Problem(
        second,
        found=found,
        expected="no such pair in train and test",
        fix="remove one of the two from the lists",
    )


def require_no_leak(store: Store) -> None:
    """Refuse a store that shares cases between train and test; cheap, called before each run.

    Raises:
        DataError: names each pair.
    """
    found = check_split(store.train, store.test, store.cases)
    leaks = [problem for problem in found if problem.level == "error"]
    if leaks:
        raise DataProblems(
            f"data set '{store.name}': train and test share cases",
            leaks,
            where=store.root,
            fix=f"segbench data check {store.name}",
        )


# Checks of all cases.


def check_facts(store: Store, patch: Sequence[int] | None = None) -> list[Problem]:
    """Run all checks that need no voxels.

    Args:
        store: the data set.
        patch: size of the training patch; smaller cases get a warning.
    """
    problems = check_split(store.train, store.test, store.cases)
    if not patients_are_known(store):
        problems += check_names(store.name, store.train, store.test)
    for info in store.cases.values():
        if not info.has_label and info.id in store.test:
            problems.append(
                Problem(
                    info.id, found="test case without a label", expected="a label to score against"
                )
            )
        elif info.has_label and not _has_foreground(info, len(store.classes)):
            problems.append(
                Problem(
                    info.id,
                    found="empty label",
                    expected="at least one foreground voxel",
                    level="warning",
                )
            )
        if patch is not None and _is_smaller(info.shape, patch):
            problems.append(
                Problem(
                    info.id,
                    found=f"shape {_shape_text(info.shape)}",
                    expected=f"at least the patch {_shape_text(patch)} (it will be padded)",
                    level="warning",
                )
            )
    for info in store.cases.values():
        problems += _clipped_labels(info)
    problems += _missing_classes(store, store.train, "all training cases")
    if store.test:
        problems += _missing_classes(store, store.test, "all test cases", "warning")
    return problems


def _clipped_labels(info: CaseInfo) -> list[Problem]:
    """Warn if the gray window clips most of the labeled voxels: their units may be others."""
    problems = []
    for fact in info.made.get("clipped", ()):
        if fact["share"] > MOST_CLIPPED:
            low, high = fact["window"]
            smallest, largest = fact["values"]
            problems.append(
                Problem(
                    info.id,
                    found=f"{100 * fact['share']:.0f} % of the labeled voxels lie outside the gray "
                    f"window {low:g} to {high:g}: their values are {smallest:g} to {largest:g}",
                    expected="a window that keeps most of the target",
                    fix="check the units of the image (CT is in HU), or choose another window "
                    "(your own data: segbench data link --window)",
                    level="warning",
                )
            )
    return problems


def _has_foreground(info: CaseInfo, classes: int) -> bool:
    return any(info.labels.get(value) for value in range(1, classes + 1))


def _is_smaller(shape: Sequence[int], patch: Sequence[int]) -> bool:
    return any(size < edge for size, edge in zip(shape, patch, strict=False))


def _missing_classes(
    store: Store, cases: Iterable[str], where: str, level: str = "error"
) -> list[Problem]:
    present: set[int] = set()
    for case in cases:
        if case in store.cases:
            present.update(store.cases[case].labels)
    problems = []
    for value, name in enumerate(store.classes, 1):
        if value not in present:
            found = f"class {value} ({name}) is absent from {where}"
            problems.append(Problem("*", found=found, expected="at least one voxel", level=level))
    return problems


def _shape_text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def summarize_problems(problems: Iterable[Problem], most: int = 3) -> list[str]:
    """Return one line per problem, but a single line for more than ``most`` of the same kind."""
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.expected, problem.fix].append(problem)
    lines = []
    for same in groups.values():
        if len(same) <= most:
            lines += [str(problem) for problem in same]
        else:
            first = same[0]
            lines.append(
                f"{len(same)} cases, such as {first.case} ({first.found}) "
                f"| expected {first.expected}"
            )
    return lines


def check_store(
    store: Store,
    patch: Sequence[int] | None = None,
    cases: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Read a store in full and list everything that is wrong with it.

    What preparation warned about, such as a header without orientation, is listed again.

    Args:
        store: the data set.
        patch: size of the training patch; smaller cases get a warning.
        cases: read only these; None reads all.
        progress: called after each case.
    """
    chosen = list(store.cases if cases is None else cases)
    problems = []
    for problem in check_facts(store, patch):
        if cases is None or problem.case == "*" or problem.case in chosen:
            problems.append(problem)
    for done, case in enumerate(chosen, 1):
        for text in store.cases[case].made.get("warnings", ()):
            problems.append(Problem(case, found=str(text), level="warning"))
        problems += verify(store, case) or _check_voxels(store, case)
        if progress is not None:
            progress(done, len(chosen), case)
    return problems


def _check_voxels(store: Store, case: str) -> list[Problem]:
    """Compare the voxels of an undamaged case with what the store says about them."""
    folder = store.root / "cases" / case
    problems = []

    def report(file: Path, found: str, expected: str) -> None:
        fix = f"segbench data prepare {store.name} --from DIR"
        problems.append(Problem(case, str(file), found, expected, fix))

    shape = store.cases[case].shape
    image = store.image(case)
    image_shape = (store.channels, *shape)
    if image.dtype != np.float32 or image.shape != image_shape:
        report(folder / "image.npy", f"{image.dtype} {image.shape}", f"float32 {image_shape}")
    if not np.isfinite(image).all():
        report(folder / "image.npy", "NaN or infinite voxels", "finite gray values")
    if store.cases[case].has_label:
        label = store.label(case)
        values = np.flatnonzero(np.bincount(np.ravel(label)))
        if IGNORED in store.cases[case].labels:
            values = values[values != IGNORED]
        if label.shape != shape or values.max() > len(store.classes):
            report(
                folder / "label.npy",
                f"shape {_shape_text(label.shape)}, values {values.tolist()}",
                f"shape {_shape_text(shape)}, values 0 to {len(store.classes)}",
            )
    return problems


def require_learnable(store: Store, labeled: int) -> None:
    """Refuse a labeled set in which a patient has no label or a class is missing.

    Args:
        store: the data set.
        labeled: the first this many patients of the training list are the labeled set.

    Raises:
        DataError: names the cases and classes.
    """
    chosen = store.labeled(labeled)
    problems = []
    with_label = set(store.patients_with_label)
    for patient in store.patients[:labeled]:
        if patient not in with_label:
            case = next(case for case in store.train if store.cases[case].group == patient)
            problems.append(
                Problem(
                    case,
                    found="has no label",
                    expected="a label, because it is one of the labeled cases",
                )
            )
    problems += _missing_classes(store, chosen, f"the {len(chosen)} labeled cases")
    if problems:
        raise DataProblems(
            f"data set '{store.name}': the labeled cases are not enough to learn from",
            problems,
            where=store.root,
            fix="label more cases (--labeled)",
        )


def require_no_ignored(store: Store, labeled: int, method: str) -> None:
    """Refuse labels with voxels to leave out if the losses of a method cannot do that.

    Args:
        store: the data set.
        labeled: the first this many patients of the training list are the labeled set.
        method: name of the method, for the message.

    Raises:
        DataProblems: names the cases.
    """
    problems = []
    for case in store.labeled(labeled):
        ignored = store.cases[case].labels.get(IGNORED)
        if ignored:
            problems.append(
                Problem(
                    case,
                    found=f"{ignored:,} voxels to leave out",
                    expected="a class for every voxel",
                )
            )
    if problems:
        raise DataProblems(
            f"method '{method}' does not say that its losses leave voxels out",
            problems,
            where=store.root,
            fix="set skips_ignored = True in the method's class if they do (the losses of "
            "segbench.nn.losses do), or choose another method",
        )


# Leaks among data sets that are trained together.


def require_apart(stores: Sequence[Store]) -> None:
    """Refuse a joint training in which a test case of one data set is a training case of another.

    Cases are equal if their voxels or scans are; within one collection also if the patients are.

    Raises:
        DataError: names each pair.
    """
    problems = []
    for trained, tested in permutations(stores, 2):
        collection = _collection(trained)
        by_patient = collection != "" and collection == _collection(tested)
        known = {}
        for case in trained.train:
            for key in _identity_keys(trained.cases[case], by_patient):
                known[key] = case
        for case in tested.test:
            keys = _identity_keys(tested.cases[case], by_patient)
            twin = next((known[key] for key in keys if key in known), None)
            if twin is not None:
                problems.append(
                    Problem(
                        f"{tested.name}/{case}",
                        found=f"a test case, and the training case {trained.name}/{twin}",
                        expected="no case in both",
                    )
                )
    if problems:
        raise DataProblems(
            "the data sets share cases: a test case of one is a training case of another",
            problems,
            fix="train the data sets one by one, or remove these cases from a list",
        )


def _identity_keys(info: CaseInfo, by_patient: bool) -> list[tuple[str, str]]:
    """Return what makes a case the same as one of another data set."""
    keys = [("voxels", info.voxels), ("scan", str(info.made.get("scan", "")))]
    if by_patient:
        keys.append(("group", info.group))
    return [(what, value) for what, value in keys if value]


def _collection(store: Store) -> str:
    return str(registry.get("dataset", store.name).cls.collection)


def changed_cases(before: Mapping[str, str], store: Store) -> list[Problem]:
    """Return which cases have changed, appeared or disappeared.

    Args:
        before: an earlier result of ``case_digests``.
        store: the data set now.
    """
    now = case_digests(store)
    problems = []
    for case in sorted({*before, *now}):
        if before.get(case) == now.get(case):
            continue
        if case not in now:
            found = "gone"
        elif case not in before:
            found = "new"
        else:
            found = "changed"
        problems.append(
            Problem(case, str(store.root), found, expected="the cases that the run began with")
        )
    return problems
