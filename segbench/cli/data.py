"""``segbench data``: prepare, check, info, list. Results go to stdout, talk to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Group, Settings, safe

if TYPE_CHECKING:
    from segbench.data.problem import Problem
    from segbench.data.store import Store
    from segbench.registry import Entry

MARKS = {"error": "✗", "warning": "!", "ok": "✓"}
ASCII = {"error": "x", "warning": "!", "ok": "ok"}


@click.group(cls=Group)
def data() -> None:
    """Prepare, check and describe data sets."""


@data.command()
@click.argument("name")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder with the files you downloaded.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
def prepare(name: str, source: Path | None, jobs: int) -> None:
    """Check all cases of a data set and write them in the form training reads. Safe to repeat.

    Example: segbench data prepare la --from ~/Downloads/LA
    """
    from segbench.data import store as stores
    from segbench.data.checks import check_facts
    from segbench.data.problem import DataProblems
    from segbench.errors import UsageError

    entries = _members(name)
    needy = [e.name for e in entries if not e.cls.embedded]
    if needy and (source is None or len(entries) > 1):
        raise UsageError(f"data set '{needy[0]}' is prepared from files" if len(entries) == 1 else
                         f"'{name}' is a group; prepare its members one by one",
                         expected="\n".join(entries[0].cls.files) or None,
                         fix=f"segbench data prepare {needy[0]} --from DIR")
    documents = []
    for entry in entries:
        with _progress(f"prepare {entry.name}") as progress:
            store = stores.prepare(entry.name, source, _settings().data_root, jobs, progress)
        problems = check_facts(store)
        documents.append({**_facts(store), "problems": [vars(p) for p in problems]})
        for warning in store.warnings:
            _talk(f"{_mark('warning')} {warning}")
        for problem in problems:
            _talk(f"{_mark(problem.level)} {problem}")
        _result(f"{_mark('ok')} {store.name}: {_count(store)} prepared in {store.root}")
        errors = [p for p in problems if p.level == "error"]
        if errors:
            raise DataProblems(f"data set '{store.name}' cannot be used as it is", errors, listed=False,
                               fix="mend the source and prepare it again")
    _document("segbench.data.prepare/1", documents)


@data.command()
@click.argument("name")
@click.option("--case", "cases", multiple=True, help="Only this case (repeatable).")
def check(name: str, cases: tuple[str, ...]) -> None:
    """Read a prepared data set in full: damaged files, bad labels, cases shared by train and test.

    Lists every problem; exit code 3 if any is an error.
    """
    from segbench.data.checks import check_store
    from segbench.data.problem import DataProblems
    from segbench.data.store import open_store
    from segbench.errors import unknown

    errors, documents = [], []
    for entry in _members(name):
        store = open_store(entry.name, _settings().data_root, sizes=False)
        for case in cases:
            if case not in store.cases:
                raise unknown("case", case, store.cases)
        with _progress(f"check {entry.name}") as progress:
            problems = check_store(store, _patch(entry), cases or None, progress)
        bad = [p for p in problems if p.level == "error"]
        errors += bad
        documents.append({**_facts(store), "problems": [vars(p) for p in problems]})
        _show(store, problems, len(cases) or len(store.cases))
    if errors:
        raise DataProblems(f"data set '{name}': {_plural(len(errors), 'problem')}", errors, listed=False,
                           fix=f"mend the source, then: segbench data prepare {name} --from DIR")
    _document("segbench.data.check/1", documents)


@data.command()
@click.argument("name")
def info(name: str) -> None:
    """What a data set is, and what is known of the prepared copy."""
    from segbench.data.store import open_store
    from segbench.errors import DataError, SegbenchError

    documents = []
    for entry in _members(name):
        cls, state = entry.cls, "prepared"
        about = {"name": entry.name, "title": cls.title, "modality": cls.modality, "classes": list(cls.classes),
                 "licence": cls.licence, "citation": cls.citation, "homepage": cls.homepage, "protocol": cls.protocol,
                 "labeled": cls.labeled, "files": list(cls.files)}
        facts: dict[str, Any] = {}
        try:
            if cls.embedded and not (_settings().data_root / entry.name / "store.json").is_file():
                raise DataError("made by code on first use")
            facts = _facts(open_store(entry.name, _settings().data_root))
        except SegbenchError as error:
            state = error.what
        documents.append({**about, "state": state, **facts})
        for key, value in documents[-1].items():
            if value not in ("", [], None):
                _result(f"{key:<12} {_text(value)}")
        _result("")
    _document("segbench.data.info/1", documents)


@data.command("list")
def list_() -> None:
    """All data sets and whether they are prepared."""
    from segbench import registry
    from segbench.errors import SegbenchError

    documents = []
    for name in registry.names("dataset"):
        try:
            cls = registry.get("dataset", name).cls
            document = {"name": name, "title": cls.title, "classes": list(cls.classes), "state": _state(name, cls)}
        except SegbenchError as error:
            document = {"name": name, "title": "", "classes": [], "state": f"broken: {error.what}"}
        documents.append(document)
    width = max((len(str(d["name"])) for d in documents), default=0)
    for document in documents:
        _result(f"{document['name']:<{width}}  {document['state']}  {document['title']}")
    _document("segbench.data.list/1", documents)


def _state(name: str, cls: type) -> str:
    from segbench.data.store import open_store
    from segbench.errors import SegbenchError

    if cls.members:  # type: ignore[attr-defined]
        return "group of " + ", ".join(cls.members)  # type: ignore[attr-defined]
    if cls.embedded:  # type: ignore[attr-defined]
        return "made by code"
    try:
        return f"prepared, {_count(open_store(name, _settings().data_root))}"
    except SegbenchError as error:
        return error.what.removeprefix(f"data set '{name}' is ")


def _settings() -> Settings:
    return click.get_current_context().find_object(Settings) or Settings()


def _members(name: str) -> list[Entry]:
    from segbench import registry

    entry = registry.get("dataset", name)
    return [registry.get("dataset", member) for member in entry.cls.members] or [entry]


def _patch(entry: Entry) -> tuple[int, ...] | None:
    from segbench.config.protocol import load_protocol

    return load_protocol(entry.cls.protocol).least


def _facts(store: Store) -> dict[str, Any]:
    """What a prepared store holds, as JSON."""
    from statistics import median

    infos = list(store.cases.values())
    sizes = [[i.shape[axis] for i in infos] for axis in range(store.dims)]
    voxels = {name: sum(i.labels.get(k, 0) for i in infos) for k, name in enumerate(("background", *store.classes))}
    total = sum(voxels.values()) or 1
    return {
        "name": store.name, "folder": str(store.root), "train": len(store.train), "test": len(store.test),
        "copy": "partial" if store.partial else "whole", "channels": store.channels,
        "shape": {"min": [min(s) for s in sizes], "median": [median(s) for s in sizes],
                  "max": [max(s) for s in sizes]},
        "spacing_mm": sorted({i.spacing for i in infos if i.spacing}) or None,
        "intensity": {"min": min(i.intensity["min"] for i in infos), "max": max(i.intensity["max"] for i in infos),
                      "mean": median([i.intensity["mean"] for i in infos]),
                      "std": median([i.intensity["std"] for i in infos])},
        "voxels": {name: {"voxels": n, "share": n / total,
                          "cases": sum(bool(i.labels.get(k)) for i in infos)}
                   for k, (name, n) in enumerate(voxels.items())},
        "bytes": sum(size for i in infos for size, _ in i.files.values()),
        "fingerprint": store.fingerprint, "warnings": list(store.warnings)}


def _count(store: Store) -> str:
    return f"{len(store.train)} train + {len(store.test)} test cases{' (partial copy)' if store.partial else ''}"


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _text(value: Any) -> str:
    """One line for people: nested values as ``key value``."""
    if isinstance(value, dict):
        return "; ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        numbers = value and all(isinstance(v, int | float) for v in value)
        return (" x " if numbers else ", ").join(_text(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _show(store: Store, problems: list[Problem], checked: int) -> None:
    from segbench.data.checks import check_split

    _result(f"{store.name}: {_plural(checked, 'case')} checked, {_plural(len(problems), 'problem')}")
    for problem in problems:
        _result(f" {_mark(problem.level)} {problem}")
    if not any(p.level == "error" for p in check_split(store.train, store.test, store.cases)):
        _result(f" {_mark('ok')} no case, patient or identical volume shared between train and test")


def _mark(level: str) -> str:
    try:
        MARKS[level].encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII[level]
    return MARKS[level]


def _result(line: str) -> None:
    if not _settings().json:
        click.echo(safe(line))


def _talk(line: str) -> None:
    _settings().say(safe(line))


def _document(schema: str, datasets: list[dict[str, Any]]) -> None:
    _settings().document = {"schema": schema, "status": "done", "datasets": datasets}


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal; elsewhere a line at each tenth, so that a log shows life and stays short."""
    if _settings().quiet:
        yield lambda done, total, case: None
        return
    if not sys.stderr.isatty():
        def line(done: int, total: int, case: str) -> None:
            if done == total or done * 10 // total > (done - 1) * 10 // total:
                _talk(f"{title}  {done}/{total}  {case}")
        yield line
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(escape(title), total=None)
        yield lambda done, total, case: bars.update(bar, completed=done, total=total,
                                                    description=f"{escape(title)}  {escape(case)}")
