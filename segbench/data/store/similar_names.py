"""Names of cases that look like visits, frames or timepoints of one patient."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# A date is one part of a name; other parts are runs of digits or of letters.
DATE = r"(?:19|20)\d{2}[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?!\d)"
PART = re.compile(rf"{DATE}|\d+|[^\W\d_]+")
# Words that begin the part of a name which says when or how a patient was scanned.
TIMES = "baseline day days followup month pre post time timepoint visit week year ed es fu t tp v"
SCANS = "end fr frame phase rep repeat run scan ses session study"
WHEN = frozenset(f"{TIMES} {SCANS}".split())


class Stem(NamedTuple):
    """What a name begins with, before the part that may say when the patient was scanned."""

    text: str
    has_number: bool
    by_word: bool  # whether a word such as ``visit`` follows


def suspected_patients(ids: Iterable[str]) -> dict[str, list[str]]:
    """Return cases that may be of one patient, by the part of the name that they share.

    The names of such cases differ only in what follows a word such as ``visit``, or only in the
    last part: ``patient01_visit0`` and ``patient01_visit1``, ``12-a`` and ``12-b``. A part that all
    names share, as in ``case_1`` and ``case_2``, is no patient.
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


def suggested_rule(stem: str) -> str:
    """Return a regular expression that finds such a part in the names of all cases."""
    if not re.search(r"\d", stem):
        return "^([^_.-]+)"
    pattern = ""
    for run in re.findall(r"\d+|\D+", stem):
        pattern += r"\d+" if run.isdigit() else re.escape(run).replace(r"\-", "-")
    return f"({pattern})"


def _stem(case: str) -> Stem:
    parts = list(PART.finditer(case))
    has_number = False
    for part in parts:
        if part.start() > 0 and part[0].lower() in WHEN:
            return Stem(case[: part.start()].rstrip("_-. "), has_number, True)
        has_number = has_number or part[0][0].isdigit()
    last = parts[-1].start() if len(parts) > 1 else len(case)
    text = case[:last].rstrip("_-. ")
    return Stem(text, re.search(r"\d", text) is not None, False)
