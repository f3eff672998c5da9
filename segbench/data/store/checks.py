"""Checks of a prepared store: leaks between train and test, damaged files, labels nothing can be learned from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import numpy as np

from segbench import registry
from segbench.data.store.case_files import CaseInfo
from segbench.data.store.problem import DataProblems, Problem
from segbench.data.store.store import Store, case_digests, verify
from segbench.progress import Progress

__all__ = [
    "Problem",
    "brief",
    "changed_cases",
    "check_facts",
    "check_split",
    "check_store",
    "require_apart",
    "require_learnable",
    "require_no_leak",
]


def check_split(
    train: Sequence[str], test: Sequence[str], cases: Mapping[str, CaseInfo]
) -> list[Problem]:
    """Cases shared between train and test by id, voxels, the scan they were cut from or group; ids twice or without case.

    Equal voxels inside one list are a warning: the case counts double, but nothing leaks.
    """
    problems = []
    for name, ids in (("train", train), ("test", test)):
        problems += [
            Problem(i, found=f"{n} times in the {name} list", expected="once")
            for i, n in Counter(ids).items()
            if n > 1
        ]
        problems += [
            Problem(i, found=f"in the {name} list but not in the store", expected="a prepared case")
            for i in ids
            if i not in cases
        ]
    both = set(train) & set(test)
    problems += [
        Problem(i, found="in train and in test", expected="in one of them") for i in sorted(both)
    ]
    side = {
        i: name
        for name, ids in (("train", train), ("test", test))
        for i in ids
        if i in cases and i not in both
    }
    voxels, group = (
        _same({i: cases[i].voxels for i in side}),
        _same({i: cases[i].group for i in side}),
    )
    scan = _same(
        {i: digest for i in side if (digest := cases[i].made.get("scan"))}
    )  # before any crop; not always recorded
    for what, same in (
        ("voxels", voxels),
        ("scan", [pair for pair in scan if pair not in voxels]),
        ("group", group),
    ):
        for first, second in same:
            leak = side[first] != side[second]
            if leak or what != "group":  # cases of one group belong together
                problems.append(
                    Problem(
                        second,
                        found=f"same {what} as case {first}: {side[second]} and {side[first]}",
                        expected="no such pair" + (" in train and test" if leak else ""),
                        fix="take one of the two out of the lists" if leak else "",
                        level="error" if leak else "warning",
                    )
                )
    return problems


def _same(keys: Mapping[str, str]) -> list[tuple[str, str]]:
    """Cases with an equal key: the first of them paired with each other one."""
    by_key = defaultdict(list)
    for case, key in keys.items():
        by_key[key].append(case)
    return [(same[0], other) for same in by_key.values() for other in same[1:]]


def check_facts(store: Store, patch: Sequence[int] | None = None) -> list[Problem]:
    """All checks that need no voxels."""
    problems = check_split(store.train, store.test, store.cases)
    for info in store.cases.values():
        if not info.has_label and info.id in store.test:
            problems.append(
                Problem(
                    info.id, found="test case without a label", expected="a label to score against"
                )
            )
        elif info.has_label and not any(
            info.labels.get(k) for k in range(1, len(store.classes) + 1)
        ):
            problems.append(
                Problem(
                    info.id,
                    found="empty label",
                    expected="at least one foreground voxel",
                    level="warning",
                )
            )
        if patch is not None and any(n < p for n, p in zip(info.shape, patch, strict=False)):
            problems.append(
                Problem(
                    info.id,
                    found=f"shape {_x(info.shape)}",
                    expected=f"at least the patch {_x(patch)} (it will be padded)",
                    level="warning",
                )
            )
    problems += _absent(store, store.train, "all training cases")
    return problems


def brief(problems: Iterable[Problem], most: int = 3) -> list[str]:
    """One line for many cases of which the same is expected, else one line each."""
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.expected, problem.fix].append(problem)
    return [
        text
        for same in groups.values()
        for text in (
            map(str, same)
            if len(same) <= most
            else [
                f"{len(same)} cases, such as {same[0].case} ({same[0].found}) | expected {same[0].expected}"
            ]
        )
    ]


def _absent(store: Store, cases: Iterable[str], where: str) -> list[Problem]:
    present = {value for i in cases if i in store.cases for value in store.cases[i].labels}
    return [
        Problem(
            "*", found=f"class {k} ({name}) is absent from {where}", expected="at least one voxel"
        )
        for k, name in enumerate(store.classes, 1)
        if k not in present
    ]


def _x(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def check_store(
    store: Store,
    patch: Sequence[int] | None = None,
    cases: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Read the whole store (or ``cases``) and list everything wrong with it.

    Args:
        patch: size of the training patch; cases below it get a warning.
    """
    chosen = list(store.cases if cases is None else cases)
    problems = [p for p in check_facts(store, patch) if cases is None or p.case in (*chosen, "*")]
    for done, case in enumerate(chosen, 1):
        problems += verify(store, case) or _check_voxels(store, case)
        if progress is not None:
            progress(done, len(chosen), case)
    return problems


def _check_voxels(store: Store, case: str) -> list[Problem]:
    folder, fix, problems = (
        store.root / "cases" / case,
        f"segbench data prepare {store.name} --from DIR",
        [],
    )
    image = store.image(case)
    if image.dtype != np.float32 or image.shape != (store.channels, *store.cases[case].shape):
        problems.append(
            Problem(
                case,
                str(folder / "image.npy"),
                f"{image.dtype} {image.shape}",
                f"float32 {(store.channels, *store.cases[case].shape)}",
                fix,
            )
        )
    if not np.isfinite(image).all():
        problems.append(
            Problem(
                case, str(folder / "image.npy"), "NaN or infinite voxels", "finite gray values", fix
            )
        )
    if store.cases[case].has_label:
        label = store.label(case)
        values = np.flatnonzero(np.bincount(np.ravel(label)))
        if label.shape != store.cases[case].shape or values.max() > len(store.classes):
            problems.append(
                Problem(
                    case,
                    str(folder / "label.npy"),
                    f"shape {_x(label.shape)}, values {values.tolist()}",
                    f"shape {_x(store.cases[case].shape)}, values 0 to {len(store.classes)}",
                    fix,
                )
            )
    return problems


def require_no_leak(store: Store) -> None:
    """Refuse a store whose test cases are known to training; cheap, called before each run.

    Raises:
        DataError: names each pair.
    """
    leaks = [p for p in check_split(store.train, store.test, store.cases) if p.level == "error"]
    if leaks:
        raise DataProblems(
            f"data set '{store.name}': train and test are not apart",
            leaks,
            where=store.root,
            fix=f"segbench data check {store.name}",
        )


def require_apart(stores: Sequence[Store]) -> None:
    """Refuse one training over data sets of which a test case of one is a training case of another.

    Equal voxels or scans tell; and equal patients, between data sets of one collection.

    Raises:
        DataError: names each pair.
    """
    problems = []
    for one, other in permutations(stores, 2):
        kin = _collection(one) and _collection(one) == _collection(other)
        learned = {key: case for case in one.train for key in _keys(one.cases[case], kin)}
        for case in other.test:
            if twin := next(
                (learned[key] for key in _keys(other.cases[case], kin) if key in learned), None
            ):
                problems.append(
                    Problem(
                        f"{other.name}/{case}",
                        expected="no case in both",
                        found=f"a test case, and the training case {one.name}/{twin}",
                    )
                )
    if problems:
        raise DataProblems(
            "the data sets are not apart: what is tested in one is learned in the other",
            problems,
            fix="train them one by one, or take these cases out of a list",
        )


def _keys(info: CaseInfo, patients: object) -> list[tuple[str, str]]:
    keys = [
        ("voxels", info.voxels),
        ("scan", str(info.made.get("scan", ""))),
        ("group", info.group if patients else ""),
    ]
    return [(what, value) for what, value in keys if value]


def _collection(store: Store) -> str:
    return str(registry.get("dataset", store.name).cls.collection)


def require_learnable(store: Store, labeled: int) -> None:
    """Refuse a labeled set (the first ``labeled`` of train) that lacks a label or a whole class.

    Raises:
        DataError: names the cases and classes.
    """
    chosen = store.train[:labeled]
    problems = [
        Problem(i, found="has no label", expected="a label: it is one of the labeled cases")
        for i in chosen
        if not store.cases[i].has_label
    ]
    problems += _absent(store, chosen, f"the {len(chosen)} labeled cases")
    if problems:
        raise DataProblems(
            f"data set '{store.name}': the labeled cases are not enough to learn from",
            problems,
            where=store.root,
            fix="label more cases (--labeled)",
        )


def changed_cases(before: Mapping[str, str], store: Store) -> list[Problem]:
    """What has become of the cases whose ``case_digests`` were ``before``."""
    now, expected = case_digests(store), "the cases that the run began with"
    return [
        Problem(i, str(store.root), what, expected)
        for i in sorted({*before, *now})
        if (
            what := "gone"
            if i not in now
            else "new"
            if i not in before
            else "changed"
            if before[i] != now[i]
            else ""
        )
    ]
