"""Read one raw case with its adapter and check it."""

from __future__ import annotations

from segbench.contracts.dataset import Case, Dataset, RawCase
from segbench.data.store.case_files import check_case, common_path
from segbench.data.store.problem import Problem
from segbench.errors import PLUGIN_FAILURES, StorageError

REPAIR = "repair or replace the file, or remove the case"


def load_checked(dataset: Dataset, raw: RawCase) -> tuple[Case | None, list[Problem]]:
    """Return the case, or None and everything that is wrong with it.

    Raises:
        StorageError: the disk is full or not writable, which is no fault of the case.
    """
    try:
        case = dataset.load(raw)
        problems = check_case(case, dataset, raw.where)
    except StorageError:
        raise
    except PLUGIN_FAILURES as error:  # the user needs the case and the file
        return None, [problem_of_case(raw, error)]
    if case.id != raw.id:
        problems.append(
            Problem(
                raw.id,
                file=common_path(raw.where),
                found=f"load gave id {case.id!r}",
                expected=repr(raw.id),
            )
        )
    if case.group is None:
        case.group = raw.group
    return (None if problems else case), problems


def problem_of_case(raw: RawCase, error: Exception | SystemExit) -> Problem:
    """Return an error about a raw case as a problem that names its file and a fix."""
    return Problem.from_error(raw.id, error, common_path(raw.where), REPAIR)
