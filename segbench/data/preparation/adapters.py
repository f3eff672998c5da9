"""Steps that several data set adapters share, from published lists to the finished case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from segbench.contracts.dataset import Case, Dataset
from segbench.data.preparation.layouts import one_path_per_case
from segbench.data.preparation.recipe import RecipeResult
from segbench.errors import DataError


@cache
def read_lists(file: Path) -> dict[str, Any]:
    """Return the case lists of a published split from the YAML file beside an adapter."""
    lists: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return lists


def files_by_case(paths: Iterable[Path], pattern: re.Pattern[str]) -> dict[str, Path]:
    """Return the files whose whole name matches, by the pattern's first group, which is the case.

    Raises:
        DataError: two different files for one case.
    """
    found = []
    for path in paths:
        match = pattern.fullmatch(path.name)
        if match:
            found.append((match[1], path))
    return one_path_per_case(found)


def require_one_layout(
    source: Path, cases: Mapping[str, int], fix: str = "keep them in two folders"
) -> None:
    """Refuse a folder with cases in two layouts.

    Args:
        source: the folder.
        cases: number of cases in each layout, by the layout's name in words.
        fix: what to do about it.

    Raises:
        DataError: more than one layout has cases.
    """
    present = {layout: count for layout, count in cases.items() if count}
    if len(present) > 1:
        raise DataError(
            "two layouts in one folder: " + " and ".join(present),
            where=source,
            found=", ".join(f"{count} cases as {layout}" for layout, count in present.items()),
            expected="one of the two",
            fix=fix,
        )


def no_case_found(dataset: Dataset, source: Path, data: str, hint: str = "") -> DataError:
    """Return the error for a folder without any case of the data set.

    Args:
        dataset: says what a complete source holds and how it is prepared.
        source: the folder.
        data: name of the data in words.
        hint: which folder to give, where that is not obvious.
    """
    return DataError(
        f"no case of the {data} data found",
        where=source,
        expected=" ".join(dataset.files),
        fix=f"segbench data prepare {dataset.name} --from DIR{hint}",
    )


def finished_case(case: str, made: RecipeResult, warnings: list[str]) -> Case:
    """Return a case made by a recipe, with the warnings of reading it and those of the recipe."""
    return Case(
        case,
        made.image,
        made.label,
        made.spacing,
        made.affine,
        made={**made.facts, "warnings": warnings + made.warnings},
    )
