"""Where the data lie in a folder: below the only folder of an unpacked archive, and behind links."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import filter as fitting
from pathlib import Path

from segbench.contracts.dataset import Dataset, RawCase
from segbench.errors import DataError

DEPTH = 3  # folders with one folder in them that an archive may have around the data


def below(folder: Path, pattern: str) -> list[Path]:
    """Files and folders anywhere below a folder by name, sorted; links to folders are followed, but none is read twice."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        found += [Path(place, name) for name in fitting([*folders, *files], pattern)]
    return sorted(found)


def once(found: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Files or folders by case; links that lead to the same one are no second.

    Raises:
        DataError: two for one case, and nobody can say which one counts; names both.
    """
    first: dict[str, Path] = {}
    for case, path in found:
        other = first.setdefault(case, path)
        if os.path.realpath(other) != os.path.realpath(path):
            raise DataError(f"case '{case}' lies there twice", where=path, found=f"{other} too", expected="each case once",
                            fix="take one of the two out of the folder")
    return first


def find_cases(dataset: Dataset, source: Path, depth: int = DEPTH) -> tuple[Path, list[RawCase]]:
    """The cases of a source, and the folder they were found in: ``source``, or what lies below if all it has is a folder.

    Raises:
        DataError: nothing usable there.
    """
    try:
        return source, dataset.find(source)
    except DataError:
        inner = [p for p in source.iterdir() if p.name[0] not in "._" and p.name not in ("train.list", "test.list")]
        if len(inner) == 1 and inner[0].is_dir() and depth:
            with suppress(DataError):
                return find_cases(dataset, inner[0], depth - 1)
        raise
