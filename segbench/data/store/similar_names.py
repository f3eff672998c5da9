"""Names of cases that look like visits, frames or timepoints of one patient."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# A date is one part of a name; other parts are runs of digits or of letters.
DATE = r"(?:19|20)\d{2}[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)"
PART = re.compile(rf"{DATE}|\d+|[^\W\d_]+")
# Words that begin the part of a name which says when or how a patient was scanned.
TIMES = "baseline day days followup month pre post time timepoint visit week year ed es fu t tp"
SCANS = "end fr frame phase rep repeat run scan ses session study v"
WHEN = frozenset(f"{TIMES} {SCANS}".split())
# Words that say so even at the start of a name, before a patient who has only a number.
FIRST_WHEN = frozenset(f"{TIMES} fr frame ses session".split())
SHORTEST_NAME = 3  # letters of a patient's name without a number


class Stem(NamedTuple):
    """The part of a name that may be the patient.

    It ends before the part that may say when the patient was scanned, or begins after it.
    """

    text: str
    has_number: bool
    by_word: bool  # whether a word such as ``visit`` follows


def suspected_patients(ids: Iterable[str]) -> dict[str, list[str]]:
    """Return cases that may be of one patient, by the part of the name that they share.

    The names of such cases differ only in what follows a word such as ``visit``, or only in the
    last part: ``patient01_visit0`` and ``patient01_visit1``, ``12-a`` and ``12-b``. The word may
    also come first, as in ``visit0_patient01``. A part that all names share, as in ``case_1`` and
    ``case_2``, is no patient.
    """
    by_stem: dict[Stem, list[str]] = {}
    count = 0
    for case in ids:
        count += 1
        by_stem.setdefault(_stem(case), []).append(case)
    found = {}
    for stem, cases in by_stem.items():
        may_be_patient = stem.has_number or stem.by_word
        is_certain = stem.has_number and stem.by_word
        if len(cases) > 1 and may_be_patient and (is_certain or len(cases) < count):
            found[stem.text] = cases
    return found


def suggested_rule(stem: str, case: str) -> str:
    """Return a regular expression that finds such a part in the names of all cases.

    Args:
        stem: the part.
        case: the name of a case that has it.
    """
    if re.search(r"\d", stem):
        rule = f"({_pattern(stem)})"
        found = re.search(rule, case)
        if found and found[1] == stem:
            return rule
        before = case[: case.rindex(stem)]
        return f"^{_pattern(before, any_word=True)}{rule}"
    return "^([^_.-]+)" if case.startswith(stem) else "([^_.-]+)$"


def _pattern(text: str, any_word: bool = False) -> str:
    """Return a regular expression for a text with other numbers, and with ``any_word`` other words.

    The separators stay.
    """
    pattern = ""
    for run in re.findall(r"\d+|[^\W\d_]+|[\W_]+", text):
        if run.isdigit():
            pattern += r"\d+"
        elif any_word and run.isalpha():
            pattern += "[A-Za-z]+"
        else:
            pattern += re.escape(run).replace(r"\-", "-")
    return pattern


def _stem(case: str) -> Stem:
    parts = list(PART.finditer(case))
    after_time = _after_time(case, parts)
    if after_time:
        return Stem(after_time, re.search(r"\d", after_time) is not None, True)
    has_number = False
    for part in parts:
        if part.start() > 0 and part[0].lower() in WHEN:
            return Stem(case[: part.start()].rstrip("_-. "), has_number, True)
        has_number = has_number or part[0][0].isdigit()
    last = parts[-1].start() if len(parts) > 1 else len(case)
    text = case[:last].rstrip("_-. ")
    return Stem(text, re.search(r"\d", text) is not None, False)


def _after_time(case: str, parts: list[re.Match[str]]) -> str:
    """Return the part of a name that follows the time of the scan, if the name begins with that.

    It ends with its last number, or before another word such as ``run``. It is empty if what
    follows is too little to be a patient: a number, except after a word that means a time, or one
    or two letters.
    """
    first = parts[0][0].lower()
    is_date = re.fullmatch(DATE, first) is not None
    if not is_date and first not in WHEN:
        return ""
    rest = parts[1:]
    if not is_date and len(rest) > 1 and rest[0][0].isdigit():
        rest = rest[1:]
    kept = []
    for part in rest:
        if part[0].lower() in WHEN:
            break
        kept.append(part)
    numbers = [part for part in kept if part[0].isdigit()]
    letters = sum(len(part[0]) for part in kept if part[0].isalpha())
    if numbers:
        is_patient = letters > 0 or is_date or first in FIRST_WHEN
        end = numbers[-1].end()
    else:
        is_patient = letters >= SHORTEST_NAME
        end = kept[-1].end() if kept else 0
    return case[kept[0].start() : end] if is_patient else ""
