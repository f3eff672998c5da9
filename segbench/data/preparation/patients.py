"""Which patient each case of a folder belongs to, by a rule for names or by a stored list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segbench.errors import DataError, UsageError
from segbench.text import first_few


def checked_rule(rule: object) -> re.Pattern[str]:
    """Return the regular expression of ``--patient``, compiled.

    Raises:
        UsageError: it is no regular expression, or has more than one group.
    """
    expected = r"a regular expression with one group, such as '(patient\d+)'"
    try:
        pattern = re.compile(str(rule))
    except re.error as error:
        raise UsageError(f"--patient: {error}", found=str(rule), expected=expected) from error
    if pattern.groups > 1:
        raise UsageError(
            "--patient: several groups",
            found=str(rule),
            expected=expected,
            fix="write (?:...) for groups that are not the patient",
        )
    return pattern


def patients_by_rule(cases: Iterable[str], pattern: re.Pattern[str], where: Path) -> dict[str, str]:
    """Return the patient of each case: the group of the pattern, or without one the whole match.

    Raises:
        DataError: the pattern finds nothing in some names.
    """
    found = {}
    unmatched = []
    for case in cases:
        match = pattern.search(case)
        patient = match[pattern.groups] if match else None
        if patient:
            found[case] = patient
        else:
            unmatched.append(case)
    if unmatched:
        raise DataError(
            "the rule --patient finds no patient in the names of some cases",
            where=where,
            found=first_few(unmatched),
            expected=f"a part that matches {pattern.pattern} in every name",
            fix=r"another rule, such as --patient '^([^_]+)', or rename the cases",
        )
    return found


def stored_patients(content: object, file: Path) -> dict[str, str] | None:
    """Return the patients that a splits file names by case, None if it names none.

    Raises:
        DataError: ``content`` is something else.
    """
    if content is None:
        return None
    if isinstance(content, Mapping):
        texts = [text for item in content.items() for text in item]
        if all(isinstance(text, str) and text for text in texts):
            return dict(content)
    raise DataError(
        "the patients of the splits file cannot be used",
        where=file,
        found=str(content)[:80],
        expected='a text for each case: "patients": {"case_1": "patient_1"}',
    )


def require_all_named(patients: Mapping[str, str], listed: Iterable[str], file: Path) -> None:
    """Refuse a splits file that names the patients of only some of its cases.

    Raises:
        DataError: names the other cases.
    """
    missing = [case for case in listed if case not in patients]
    if missing:
        raise DataError(
            "the splits file names no patient of some cases",
            where=file,
            found=first_few(missing),
            expected="a patient for every case that is in a list",
            fix="complete 'patients', or remove it",
        )


def require_same_patients(
    stored: Mapping[str, str], by_rule: Mapping[str, str], file: Path
) -> None:
    """Refuse a splits file and a rule that put different cases together.

    Raises:
        DataError: names such a case.
    """
    for case, patient in stored.items():
        if case in by_rule and by_rule[case] != patient:
            raise DataError(
                "the splits file and the rule --patient disagree",
                where=file,
                found=f"case '{case}': patient '{patient}'",
                expected=f"patient '{by_rule[case]}', by the rule",
                fix="remove the file to have the lists drawn by the rule",
            )


def together(cases: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    """Return the cases with those of each patient one after the other, in order of appearance."""
    by_patient: dict[str, list[str]] = {}
    for case in cases:
        by_patient.setdefault(patients[case], []).append(case)
    return [case for members in by_patient.values() for case in members]
