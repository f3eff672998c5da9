"""``segbench data``: prepare, check, info, list. Results go to stdout, talk to stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Group, Settings, mismatch_option, safe, size_option
from segbench.cli.reporter import counted

if TYPE_CHECKING:
    from segbench.data.store.problem import Problem
    from segbench.data.store.store import Store
    from segbench.registry import Entry

MARKS = {"error": "✗", "warning": "!", "ok": "✓"}
ASCII = {"error": "x", "warning": "!", "ok": "ok"}


@click.group(cls=Group)
def data() -> None:
    """Prepare, check and describe data sets."""


@data.command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Folder or archive that you downloaded.",
)
@click.option(
    "--download", is_flag=True, help="Fetch the files first, where they have a public address."
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@mismatch_option
@size_option
def prepare(name: str, source: Path | None, download: bool, jobs: int) -> None:
    """Check all cases of a data set and write them in the form training reads. Safe to repeat.

    \b
    segbench data prepare la --from ~/Downloads/LA
    segbench data prepare msd_spleen --download --jobs 4
    segbench data prepare folder:/data/Dataset007_Mine
    """
    from segbench.data.open import prepare as prepare_store
    from segbench.data.preparation.pipeline import expected_files
    from segbench.data.store.checks import check_facts
    from segbench.data.store.problem import DataProblems
    from segbench.errors import UsageError

    entries = _members(name)
    _no_family(entries[0])
    if download:
        source = _downloaded(entries, source)
    source = source or entries[0].cls.source
    needy = [e.name for e in entries if not e.cls.embedded]
    if needy and (source is None or len(entries) > 1):
        raise UsageError(
            f"data set '{needy[0]}' is prepared from files"
            if len(entries) == 1
            else f"'{name}' is a group; prepare its members one by one",
            expected=expected_files(entries[0].cls) or None,
            fix=f"segbench data prepare {needy[0]} --from DIR",
        )
    documents = []
    for entry in entries:
        with counted(_settings(), f"prepare {entry.name}") as progress:
            store = prepare_store(entry.name, source, _settings().data_root, jobs, progress)
        problems = check_facts(store)
        documents.append({**_facts(store), "problems": [vars(p) for p in problems]})
        for warning in store.warnings:
            _talk(f"{_mark('warning')} {warning}")
        for problem in problems:
            _talk(f"{_mark(problem.level)} {problem}")
        _result(f"{_mark('ok')} {store.name}: {_count(store)} prepared in {store.root}")
        if errors := [p for p in problems if p.level == "error"]:
            raise DataProblems(
                f"data set '{store.name}' cannot be used as it is",
                errors,
                listed=False,
                fix="mend the source and prepare it again",
            )
    _document("segbench.data.preparation.pipeline/1", documents)


def _no_family(entry: Entry) -> None:
    from segbench.errors import UsageError

    if entry.cls.family:
        raise UsageError(
            f"'{entry.name}' stands for data sets of your own",
            expected="; ".join(entry.cls.files),
            fix=f"{entry.name}:PATH, such as: segbench data prepare {entry.name}:~/Dataset007_Mine",
        )


def _downloaded(entries: list[Entry], source: Path | None) -> Path:
    """The only archive of a data set, fetched into the folder ``downloads`` of the data root."""
    from segbench.data.preparation.download import fetch
    from segbench.data.preparation.pipeline import expected_files
    from segbench.errors import UsageError

    cls, name = entries[0].cls, entries[0].name
    if source is not None:
        raise UsageError("--download and --from exclude each other", fix="use one of them")
    if (
        len(entries) > 1
        or len(cls.archives) != 1
        or not (cls.archives[0].url and cls.archives[0].digest)
    ):
        raise UsageError(
            f"'{name}' has no stable public address to download from",
            expected=expected_files(cls),
            fix=f"download the files yourself, then: segbench data prepare {name} --from DIR",
        )
    (archive,) = cls.archives
    _talk(f"{archive.name} from {archive.url}")
    _talk(f"license: {cls.license}; cite: {cls.citation}")
    with counted(_settings(), f"download {archive.name}") as progress:
        return fetch(
            archive,
            _settings().data_root / "downloads",
            lambda done, total, file: progress(done // 10**6, max(total // 10**6, 1), "MB"),
        )


@data.command()
@click.argument("name")
@click.option("--case", "cases", multiple=True, help="Only this case (repeatable).")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Check the files it is prepared from instead.",
)
@mismatch_option
@size_option
def check(name: str, cases: tuple[str, ...], source: Path | None) -> None:
    """Read a prepared data set in full, or a folder of files before it is prepared.

    Damaged files, bad labels, cases shared by train and test: lists every problem; exit code 3 if any is an error.

    \b
    segbench data check la
    segbench data check la --from ~/Downloads/LA
    segbench data check folder:/data/Dataset007_Mine
    """
    if source is not None or _unprepared(name):
        _check_source(name, source, cases)
        return
    from segbench.data.open import open_store
    from segbench.data.store.checks import check_store
    from segbench.data.store.problem import DataProblems
    from segbench.errors import unknown

    errors, documents = [], []
    for entry in _members(name):
        store = open_store(entry.name, _settings().data_root, sizes=False)
        for case in cases:
            if case not in store.cases:
                raise unknown("case", case, store.cases)
        with counted(_settings(), f"check {entry.name}") as progress:
            problems = check_store(store, _patch(entry), cases or None, progress)
        bad = [p for p in problems if p.level == "error"]
        errors += bad
        documents.append({**_facts(store), "problems": [vars(p) for p in problems]})
        _show(store, problems, len(cases) or len(store.cases))
    if errors:
        raise DataProblems(
            f"data set '{name}': {_plural(len(errors), 'problem')}",
            errors,
            listed=False,
            fix=f"mend the source, then: segbench data prepare {name} --from DIR",
        )
    _document("segbench.data.check/1", documents)


def _unprepared(name: str) -> bool:
    """Whether a folder of the user's own is not prepared yet: then its files are what can be checked."""
    entry = _members(name)[0]
    return (
        entry.cls.source is not None
        and not (_settings().data_root / entry.name / "store.json").is_file()
    )


def _check_source(name: str, source: Path | None, cases: tuple[str, ...]) -> None:
    from segbench.data.preparation.survey import check_source
    from segbench.data.store.problem import DataProblems
    from segbench.errors import UsageError

    entry, *more = _members(name)
    _no_family(entry)
    if cases or more or entry.cls.embedded:
        raise UsageError(
            "--from is for one data set that is prepared from files, and checks all its cases",
            found=f"{name}{' --case' * bool(cases)}",
            fix=f"segbench data check {name}",
        )
    place = source or entry.cls.source
    with counted(_settings(), f"check {entry.name}") as progress:
        store, problems = check_source(entry, place, progress)
    _show(store, problems, len(store.cases) + len({p.case for p in problems} - {*store.cases, "*"}))
    errors = [p for p in problems if p.level == "error"]
    if errors:
        raise DataProblems(
            f"data set '{name}': {_plural(len(errors), 'problem')}",
            errors,
            listed=False,
            where=place,
            fix=f"mend the files, then: segbench data prepare {name}{f' --from {source}' * bool(source)}",
        )
    _document(
        "segbench.data.check/1",
        [
            {
                "name": entry.name,
                "folder": str(place),
                "cases": len(store.cases),
                "problems": [vars(p) for p in problems],
            }
        ],
    )


@data.command()
@click.argument("name")
def info(name: str) -> None:
    """What a data set is, and what is known of the prepared copy."""
    from segbench.data.open import open_store
    from segbench.errors import DataError, SegbenchError

    documents = []
    for entry in _members(name):
        cls, state = entry.cls, "prepared"
        about = {
            "name": entry.name,
            "title": cls.title,
            "modality": cls.modality,
            "classes": list(cls.classes),
            "license": cls.license,
            "citation": cls.citation,
            "homepage": cls.homepage,
            "protocol": cls.protocol,
            "labeled": cls.labeled,
            "files": list(cls.files),
        }
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


@data.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--as", "name", required=True, metavar="NAME", help="What you call it from now on.")
@click.option(
    "--spacing", metavar="1x1x1", help="mm to resample to [median of the training images]."
)
@click.option(
    "--window",
    metavar="LOW:HIGH",
    help="Gray values of CT channels that become 0 and 1 [percentiles].",
)
@click.option(
    "--crop",
    type=click.Choice(["none", "nonzero", "body", "label"]),
    help="Box to cut to; label: with 25 voxels around it, 96 at least.  [body for CT, else nonzero]",
)
def link(path: Path, name: str, spacing: str | None, window: str | None, crop: str | None) -> None:
    """Give a folder of your own a name. Nothing is copied; the settings are kept with the name.

    \b
    segbench data link ~/Dataset007_Mine --as mine
    segbench data link ~/ct --as ct --spacing 1x1x1 --window -125:275
    segbench data prepare mine
    """
    import re

    from segbench import registry
    from segbench.data.links import write_link
    from segbench.errors import UsageError

    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name):
        raise UsageError(f"--as: '{name}'", expected="a letter, then letters, digits and _")
    settings = {
        "spacing": spacing and _numbers("--spacing", spacing, "x", 3),
        "window": window and _numbers("--window", window, ":", 2),
        "crop": crop,
    }
    family = next(n for n in registry.names("dataset") if registry.get("dataset", n).cls.family)
    known = registry.links().get(name)
    made = registry.Link(
        family, str(path.expanduser().resolve()), {k: v for k, v in settings.items() if v}
    )
    registry.get("dataset", family).cls.variant(made.text, made.settings)
    if known is not None and known.text != made.text:
        raise UsageError(
            f"'{name}' is another folder",
            found=known.text,
            expected=made.text,
            fix="another name: --as NAME",
        )
    registry.add_link(name, made)
    write_link(_settings().data_root, name)
    cls = registry.get("dataset", name).cls
    split = cls().split()
    _result(
        f"{_mark('ok')} {name}: {len(split.train)} train cases, {cls.labeled} of them labeled, {len(split.test)} test; "
        f"next: segbench data prepare {name}"
    )
    _document(
        "segbench.data.link/1",
        [
            {
                "name": name,
                "folder": made.text,
                "settings": made.settings,
                "train": len(split.train),
                "labeled": cls.labeled,
                "test": len(split.test),
            }
        ],
    )


def _numbers(option: str, text: str, sign: str, count: int) -> list[float]:
    from segbench.errors import UsageError

    try:
        numbers = [float(part) for part in text.split(sign)]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UsageError(
            f"{option}: '{text}'", expected=f"{count} numbers with {sign} between them"
        )
    return numbers


@data.command("list")
def list_() -> None:
    """All data sets and whether they are prepared."""
    from segbench import registry
    from segbench.errors import SegbenchError

    documents = []
    for name in registry.names("dataset"):
        try:
            cls = registry.get("dataset", name).cls
            document = {
                "name": name,
                "title": cls.title,
                "classes": list(cls.classes),
                "state": _state(name, cls),
            }
        except SegbenchError as error:
            document = {"name": name, "title": "", "classes": [], "state": f"broken: {error.what}"}
        documents.append(document)
    width = max((len(str(d["name"])) for d in documents), default=0)
    for document in documents:
        _result(f"{document['name']:<{width}}  {document['state']}  {document['title']}")
    _document("segbench.data.list/1", documents)


def _state(name: str, cls: type) -> str:
    from segbench.data.open import open_store
    from segbench.errors import SegbenchError

    if cls.family:  # type: ignore[attr-defined]
        return f"your own folders: {name}:PATH"
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
    voxels = {
        name: sum(i.labels.get(k, 0) for i in infos)
        for k, name in enumerate(("background", *store.classes))
    }
    total = sum(voxels.values()) or 1
    return {
        "name": store.name,
        "folder": str(store.root),
        "train": len(store.train),
        "test": len(store.test),
        "copy": "partial" if store.partial else "whole",
        "channels": store.channels,
        "shape": {
            "min": [min(s) for s in sizes],
            "median": [median(s) for s in sizes],
            "max": [max(s) for s in sizes],
        },
        "spacing_mm": sorted({i.spacing for i in infos if i.spacing}) or None,
        "intensity": {
            "min": min(i.intensity["min"] for i in infos),
            "max": max(i.intensity["max"] for i in infos),
            "mean": median([i.intensity["mean"] for i in infos]),
            "std": median([i.intensity["std"] for i in infos]),
        },
        "voxels": {
            name: {
                "voxels": n,
                "share": n / total,
                "cases": sum(bool(i.labels.get(k)) for i in infos),
            }
            for k, (name, n) in enumerate(voxels.items())
        },
        "bytes": sum(size for i in infos for size, _ in i.files.values()),
        "fingerprint": store.fingerprint,
        "warnings": list(store.warnings),
    }


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
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _show(store: Store, problems: list[Problem], checked: int) -> None:
    from segbench.data.store.checks import check_split

    _result(
        f"{store.name}: {_plural(checked, 'case')} checked, {_plural(len(problems), 'problem')}"
    )
    for problem in problems:
        _result(f" {_mark(problem.level)} {problem}")
    if store.cases and not any(
        p.level == "error" for p in check_split(store.train, store.test, store.cases)
    ):
        _result(
            f" {_mark('ok')} no case, patient or identical volume shared between train and test"
        )


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
