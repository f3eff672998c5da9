"""Warnings of one kind put together: one line for all cases that differ only in numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from segbench.data.store.problem import Problem
from segbench.data.store.store import Store
from segbench.text import first_few

# A number, or several joined by x; no part of a name such as case_01 or T1.
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?:x\d+(?:\.\d+)?)*(?!\w)")
ALL_CASES = "*"  # in place of a case: a problem of the whole data set
SHOWN = 3  # cases that a group names


def grouped(problems: Iterable[Problem], total: int) -> list[Problem]:
    """Return problems with warnings of one kind put together. Errors stay as they are.

    Warnings are of one kind if they differ only in the case, its file and numbers, which become
    ranges: "slices 4 to 5 mm apart".

    Args:
        problems: of all cases, in any order.
        total: number of cases.
    """
    groups: dict[tuple[str, ...], list[Problem]] = {}
    for number, problem in enumerate(problems):
        kind: tuple[str, ...] = (NUMBER.sub("0", problem.found), problem.expected, problem.fix)
        if problem.level == "error" or problem.case == ALL_CASES:
            kind = (str(number),)  # a group of its own
        groups.setdefault(kind, []).append(problem)
    return [_together(group, total) for group in groups.values()]


def grouped_warnings(store: Store) -> list[Problem]:
    """Return the warnings of a prepared data set, those of one kind put together."""
    of_cases = []
    known = set()
    for case, info in store.cases.items():
        for text in info.made.get("warnings", ()):
            of_cases.append(Problem(case, found=str(text), level="warning"))
            known.add(f"{case}: {text}")
    others = [text for text in store.warnings if text not in known]
    whole = [Problem(ALL_CASES, found=text, level="warning") for text in others]
    return whole + grouped(of_cases, len(store.cases))


def warning_line(problem: Problem) -> str:
    """Return a warning as one line; one of the whole data set names no case."""
    return problem.found if problem.case == ALL_CASES else str(problem)


def _together(group: Sequence[Problem], total: int) -> Problem:
    """Return a group of warnings of one kind as one, with the cases and the ranges of numbers."""
    first = group[0]
    if len(group) == 1:
        return first
    cases = list(dict.fromkeys(problem.case for problem in group))
    named = f"{len(cases)} of {total} cases ({first_few(cases, SHOWN)})"
    found = _with_ranges([problem.found for problem in group])
    return replace(first, case=named, file="", found=found)


def _with_ranges(texts: Sequence[str]) -> str:
    """Return the first of texts that differ only in numbers, with the range of each number."""
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ranges = [_range(column) for column in columns]
    parts = NUMBER.split(texts[0])
    merged = parts[0]
    for part, shown in zip(parts[1:], ranges, strict=True):
        merged += shown + part
    return merged


def _range(numbers: Sequence[str]) -> str:
    """Return the range of numbers as they are written; of sizes such as 30x28 one per axis."""
    if len(set(numbers)) == 1:
        return numbers[0]
    sizes = [number.split("x") for number in numbers]
    if len({len(size) for size in sizes}) > 1:
        return f"{numbers[0]} and others"
    ends = []
    for axis in zip(*sizes, strict=True):
        ordered = sorted(axis, key=lambda text: float(text.replace(",", "")))
        ends.append((ordered[0], ordered[-1]))
    if len(ends) == 1:
        return " to ".join(ends[0])
    return "x".join(low if low == high else f"{low}-{high}" for low, high in ends)
