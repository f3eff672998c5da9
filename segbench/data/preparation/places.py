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
LISTS = ("train.list", "test.list")  # of a deliberate copy of part of the data


def below(folder: Path, pattern: str) -> list[Path]:
    """Files and folders anywhere below a folder by name, sorted; links to folders are followed, but none is read twice.

    Hidden ones are left out, and what a Mac adds to its archives: ``__MACOSX`` holds files named like the true ones.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            (name for name in folders if name != "__MACOSX" and name[0] != "."),
            key=lambda name: (os.path.islink(os.path.join(place, name)), name),
        )
        found += [
            Path(place, name) for name in fitting([*folders, *files], pattern) if name[0] != "."
        ]
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
            raise DataError(
                f"case '{case}' lies there twice",
                where=path,
                found=f"{other} too",
                expected="each case once",
                fix="take one of the two out of the folder",
            )
    return first


def find_cases(dataset: Dataset, source: Path, depth: int = DEPTH) -> list[RawCase]:
    """The cases of a source, or of what lies below if all it has is a folder.

    Raises:
        DataError: nothing usable there.
    """
    try:
        return dataset.find(source)
    except DataError:
        inner = _only_folder(source)
        if inner is not None and depth:
            with suppress(DataError):
                return find_cases(dataset, inner, depth - 1)
        raise


def find_lists(source: Path, depth: int = DEPTH) -> tuple[Path, ...]:
    """``train.list`` and ``test.list`` of a source, or of what lies below if all it has is a folder; empty without them."""
    files = tuple(source / name for name in LISTS)
    if all(file.is_file() for file in files):
        return files
    inner = _only_folder(source) if depth else None
    return find_lists(inner, depth - 1) if inner is not None else ()


def _only_folder(folder: Path) -> Path | None:
    inner = [p for p in folder.iterdir() if p.name[0] not in "._" and p.name not in LISTS]
    return inner[0] if len(inner) == 1 and inner[0].is_dir() else None
