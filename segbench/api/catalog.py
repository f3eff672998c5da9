"""What is available: methods, data sets, backbones, protocols, stored runs and prepared data.

The command line imports this module for its help, so nothing heavy is imported at the top.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench import registry
from segbench.api.plugin_titles import first_sentence, summary_in_source, title_in_source
from segbench.api.table import Table
from segbench.errors import SegbenchError
from segbench.registry import Entry

if TYPE_CHECKING:
    from segbench.data.store.store import Store

CATALOG_COLUMNS = ("name", "title", "summary", "origin", "file", "error")


def list_methods() -> Table:
    """Return all methods: name, paper (``title``), what it does (``summary``), origin and file.

    ``error`` says why one cannot be used.
    """
    return Table(plugins("method"), CATALOG_COLUMNS)


def list_datasets(data_root: str | Path | None = None) -> Table:
    """Return all data sets, those that were linked in a folder of prepared data included.

    Args:
        data_root: folder of the prepared data [SEGBENCH_DATA_ROOT, else segbench-data].
    """
    from segbench.api.machine import settings

    settings(data_root=data_root)
    return Table(plugins("dataset"), CATALOG_COLUMNS)


def list_backbones() -> Table:
    """Return all backbones: name, title, origin, file, and why one cannot be used (``error``)."""
    return Table(plugins("backbone"), CATALOG_COLUMNS)


def list_protocols() -> Table:
    """Return the built-in protocols and those of ``SEGBENCH_PATH``: name, title and version."""
    return Table(protocols(), ("name", "title", "origin", "error"))


def list_runs(root: str | Path | None = None) -> Table:
    """Return all stored runs, finished or not, as ``segbench runs ls`` lists them.

    Args:
        root: folder of the results [SEGBENCH_ROOT, else segbench-out].
    """
    from segbench.api.machine import settings
    from segbench.results.facts import run_facts
    from segbench.results.rundir import all_runs

    return Table(run_facts(folder) for folder in all_runs(settings(root).root))


def open_dataset(name: str, data_root: str | Path | None = None) -> Store:
    """Return a prepared data set; one made by code, such as a phantom, is prepared here.

    ``store.train`` and ``store.test`` are the case names, ``store.image(case)`` the prepared gray
    values (C, *S) and ``store.label(case)`` the label map (*S), both read-only; ``store.classes``
    names the label values from 1 on.

    Args:
        name: name of the data set.
        data_root: folder of the prepared data [SEGBENCH_DATA_ROOT, else segbench-data].

    Raises:
        UsageError: the name is unknown, or stands for several data sets.
        DataError: the data set is not prepared, or its files are damaged.
    """
    from segbench.api.machine import settings
    from segbench.data.open import open_store

    return open_store(name, settings(data_root=data_root).data_root)


def plugins(kind: str) -> list[dict[str, Any]]:
    """Return one record per plug-in of a kind."""
    rows = []
    for name in registry.names(kind):
        place = registry.place(kind, name)
        title = ""
        summary = ""
        problem = None
        try:
            title = title_in_source(kind, name) or title_of(registry.get(kind, name))
            summary = summary_in_source(kind, name) or summary_of(registry.get(kind, name))
        except SegbenchError as error:
            problem = f"unavailable: {error.what}"
        rows.append(
            {
                "name": name,
                "title": title,
                "summary": summary,
                "origin": place.origin,
                "file": str(place.file),
                "error": problem,
            }
        )
    return rows


def title_of(entry: Entry) -> str:
    """Return one line: a data set's title, a method's paper, or the start of the docstring."""
    if entry.kind == "dataset":
        return str(entry.cls.title)
    module = inspect.getmodule(entry.cls)
    docstring = inspect.getdoc(entry.cls) or inspect.getdoc(module) or ""
    first_line = docstring.partition("\n")[0]
    if is_family(entry):
        return f"{first_line.rstrip('.')} ({', '.join(entry.cls.variants)})"
    return entry.paper or first_line


def summary_of(entry: Entry) -> str:
    """Return what a plug-in does: the first sentence of its class's docstring."""
    return first_sentence(entry.cls.__doc__ or "")


def is_family(entry: Entry) -> bool:
    """Return whether an entry stands for many backbones, such as ``timm``."""
    return entry.kind == "backbone" and bool(entry.cls.variants) and ":" not in entry.name


def protocols() -> list[dict[str, Any]]:
    """Return one record per protocol."""
    from segbench.config import load_protocol, protocol_names

    rows = []
    for name in protocol_names():
        protocol = load_protocol(name)
        origin = f"version {protocol.version}"
        rows.append(
            {"name": protocol.name, "title": protocol.title, "origin": origin, "error": None}
        )
    return rows
