"""``segbench data``: prepare, check, describe and link data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.link import link
from segbench.cli.options import Group, mismatch_option, size_option
from segbench.cli.reporter import counting
from segbench.cli.settings import Settings
from segbench.cli.terminal import mark, plural, table, wrapped
from segbench.errors import SegbenchError, UsageError, unknown
from segbench.text import first_few, safe

if TYPE_CHECKING:
    from segbench.data.store.problem import Problem
    from segbench.data.store.store import Store
    from segbench.registry import Entry

CHECK_SCHEMA = "segbench.data.check/1"
ABOUT = ("title", "modality", "classes", "license", "citation", "homepage", "protocol", "labeled")
MEGABYTE = 10**6


def _required_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """Return the name of a data set; without one, say how a folder of the user is named."""
    if value:
        return value
    folder = context.params.get("source")
    example = (
        f"folder:{folder}" if folder else "folder:PATH, or a name that segbench data list shows"
    )
    raise UsageError(
        "no data set is named",
        expected="NAME",
        fix=f"segbench data {context.info_name} {example}",
    )


@click.group(cls=Group)
def data() -> None:
    """Prepare, check and describe data sets."""


data.add_command(link)


# -- prepare ---------------------------------------------------------------------------------------


@data.command()
@click.argument("name", required=False, callback=_required_name)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Folder or archive that you downloaded.",
)
@click.option(
    "--download", is_flag=True, help="Download the files first, if they have a public address."
)
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of processes.",
)
@click.option(
    "--write-lists",
    is_flag=True,
    help="Of a folder of your own: write lists that were drawn to its splits_ssl.json, for others "
    "who use the folder. Without this option, nothing is written to the folder.",
)
@mismatch_option
@size_option
@click.pass_obj
def prepare(
    settings: Settings,
    name: str,
    source: Path | None,
    download: bool,
    jobs: int,
    write_lists: bool,
) -> None:
    """Check all cases of a data set and store them in the form that training reads.

    It is safe to repeat this.

    \b
    segbench data prepare la --from ~/Downloads/LA
    segbench data prepare msd_spleen --download --jobs 4
    segbench data prepare folder:/data/Dataset007_Mine
    """
    from segbench.cli.documents import datasets_document

    entries = _members(name)
    _refuse_family(entries[0])
    if download:
        source = _downloaded(settings, entries, source)
    source = source or entries[0].cls.source
    _require_source(name, entries, source)
    documents = [_prepare(settings, entry, source, jobs) for entry in entries]
    if entries[0].cls.source is not None:
        _show_lists(settings, entries[0].name, write_lists)
    settings.show(datasets_document("segbench.data.prepare/1", documents))


def prepare_new_folders(settings: Settings, names: str) -> None:
    """Prepare the folders of the user among data sets, unless they have been prepared before.

    Prepared data that are out of date stay as they are: opening them says what has changed.
    """
    from segbench import registry
    from segbench.config.experiment import find_datasets

    for chosen in find_datasets(names):
        entry = registry.get("dataset", chosen.name)
        if entry.cls.source is not None and not _is_prepared(settings, entry.name):
            _prepare(settings, entry, entry.cls.source, jobs=1)
            _show_lists(settings, entry.name, write=False)


def _show_lists(settings: Settings, name: str, write: bool) -> None:
    """Show where the lists of a user's folder come from; write drawn ones to it if asked."""
    from segbench import registry
    from segbench.data.preparation.folder_lists import DRAWN, DRAWN_ORIGIN, write_lists

    link = registry.links().get(name)
    drawn = link.settings.get(DRAWN) if link else None
    origin = registry.get("dataset", name).cls().split().source
    if link is None or drawn is None or origin != DRAWN_ORIGIN:
        settings.echo([safe(f"  lists: {origin}")])
        return
    if write:
        file = write_lists(Path(link.text), drawn)
        settings.echo([safe(f"  lists: {origin}; written to {file}")])
        return
    kept = settings.data_root / name / "link.json"
    settings.echo(
        [
            safe(f"  lists: {origin}; kept in {kept}"),
            "  nothing is written to your folder; --write-lists would add its splits_ssl.json",
        ]
    )


def _prepare(settings: Settings, entry: Entry, source: Path | None, jobs: int) -> dict[str, Any]:
    """Prepare one data set, report it and return its document.

    Raises:
        DataProblems: the data set cannot be used as it is.
    """
    from segbench.data.open import prepare as prepare_store
    from segbench.data.store.checks import check_facts
    from segbench.data.store.problem import DataProblems
    from segbench.data.store.warning_groups import grouped, grouped_warnings, warning_line

    with counting(settings, f"prepare {entry.name}") as progress:
        store = prepare_store(entry.name, source, settings.data_root, jobs, progress)
    problems = check_facts(store)
    for warning in grouped_warnings(store):
        settings.say(safe(f"{mark('warning')} {warning_line(warning)}"))
    for problem in grouped(problems, len(store.cases)):
        settings.say(safe(f"{mark(problem.level)} {problem}"))
    settings.echo([safe(f"{mark('ok')} {store.name}: {_counts(store)} prepared in {store.root}")])
    errors = _errors(problems)
    if errors:
        raise DataProblems(
            f"data set '{store.name}' cannot be used as it is",
            errors,
            listed=False,
            fix="repair the source files and prepare it again",
        )
    return {**_facts(store), "problems": [vars(problem) for problem in problems]}


def _refuse_family(entry: Entry) -> None:
    """Refuse a name such as ``folder``, which needs a path."""
    if entry.cls.family:
        example = f"segbench data prepare {entry.name}:~/Dataset007_Mine"
        raise UsageError(
            f"'{entry.name}' stands for data sets of your own and needs a path",
            expected="; ".join(entry.cls.files),
            fix=f"{entry.name}:PATH, such as: {example}",
        )


def _require_source(name: str, entries: Sequence[Entry], source: Path | None) -> None:
    """Refuse to prepare a data set without its files, or several from the same files."""
    from segbench.data.preparation.pipeline import expected_files

    need_files = [entry.name for entry in entries if not entry.cls.embedded]
    if not need_files or (source is not None and len(entries) == 1):
        return
    what = f"data set '{need_files[0]}' is prepared from files"
    if len(entries) > 1:
        what = f"'{name}' is a group; prepare its members one by one"
    raise UsageError(
        what,
        expected=expected_files(entries[0].cls) or None,
        fix=f"segbench data prepare {need_files[0]} --from DIR",
    )


def _downloaded(settings: Settings, entries: Sequence[Entry], source: Path | None) -> Path:
    """Download the archive of a data set below the data root and return its path."""
    from segbench.data.preparation.download import fetch
    from segbench.data.preparation.pipeline import expected_files

    if source is not None:
        raise UsageError("--download and --from exclude each other", fix="use one of them")
    dataset = entries[0].cls
    name = entries[0].name
    archives = dataset.archives
    if len(entries) > 1 or len(archives) != 1 or not (archives[0].url and archives[0].digest):
        raise UsageError(
            f"'{name}' has no stable public address to download from",
            expected=expected_files(dataset),
            fix=f"download the files yourself, then: segbench data prepare {name} --from DIR",
        )
    archive = archives[0]
    settings.say(safe(f"{archive.name} from {archive.url}"))
    settings.say(safe(f"license: {dataset.license}; cite: {dataset.citation}"))
    with counting(settings, f"download {archive.name}") as progress:

        def report(done: int, total: int, name: str) -> None:
            progress(done // MEGABYTE, max(total // MEGABYTE, 1), "MB")

        return fetch(archive, settings.data_root / "downloads", report)


# -- check -----------------------------------------------------------------------------------------


@data.command()
@click.argument("name", required=False, callback=_required_name)
@click.option("--case", "cases", multiple=True, help="Only this case; may be repeated.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Check these source files instead of the prepared data set.",
)
@mismatch_option
@size_option
@click.pass_obj
def check(settings: Settings, name: str, cases: tuple[str, ...], source: Path | None) -> None:
    """Read a prepared data set in full, or a folder of files before it is prepared.

    Every problem is listed, such as damaged files, bad labels, and cases that are in both train and
    test. The exit code is then 3. Warnings do not change it, and one line stands for those that
    differ only in numbers.

    \b
    segbench data check la
    segbench data check la --from ~/Downloads/LA
    segbench data check folder:/data/Dataset007_Mine
    """
    if source is not None or _is_unprepared_folder(settings, name):
        _check_source(settings, name, source, cases)
    else:
        _check_prepared(settings, name, cases)


def _is_unprepared_folder(settings: Settings, name: str) -> bool:
    """Return whether a name means a folder of the user that is not prepared yet."""
    entry = _members(name)[0]
    is_folder = entry.cls.source is not None
    return is_folder and not _is_prepared(settings, entry.name)


def _is_prepared(settings: Settings, name: str) -> bool:
    return (settings.data_root / name / "store.json").is_file()


def _check_prepared(settings: Settings, name: str, cases: tuple[str, ...]) -> None:
    from segbench.cli.documents import datasets_document
    from segbench.config.protocol import NO_PROTOCOL, load_protocol
    from segbench.data.open import open_store
    from segbench.data.store.checks import check_store

    errors = []
    documents = []
    for entry in _members(name):
        store = open_store(entry.name, settings.data_root, sizes=False)
        for case in cases:
            if case not in store.cases:
                raise unknown("case", case, store.cases)
        own = entry.cls.protocol
        # A planned patch follows the shapes of the data.
        patch = None if own == NO_PROTOCOL else load_protocol(own).least
        with counting(settings, f"check {entry.name}") as progress:
            problems = check_store(store, patch, cases or None, progress)
        errors += _errors(problems)
        document = {**_facts(store), "problems": [vars(problem) for problem in problems]}
        settings.echo(_check_lines(store, problems, len(cases) or len(store.cases)))
        if entry.cls.source is not None and not cases:
            document["files"] = _show_file_count(settings, entry, entry.cls.source)
        documents.append(document)
    fix = f"repair the source files, then: segbench data prepare {name} --from DIR"
    _raise_if_any(errors, name, fix)
    settings.show(datasets_document(CHECK_SCHEMA, documents))


def _check_source(
    settings: Settings, name: str, source: Path | None, cases: tuple[str, ...]
) -> None:
    from segbench.cli.documents import datasets_document
    from segbench.data.preparation.survey import check_source

    entries = _members(name)
    entry = entries[0]
    _refuse_family(entry)
    if cases or len(entries) > 1 or entry.cls.embedded:
        raise UsageError(
            "--from checks all cases of one data set that is prepared from files",
            found=f"{name} --case" if cases else name,
            fix=f"segbench data check {name}",
        )
    folder = source or entry.cls.source
    with counting(settings, f"check {entry.name}") as progress:
        store, problems = check_source(entry, folder, progress)
    unreadable = {problem.case for problem in problems} - {*store.cases, "*"}
    settings.echo(_check_lines(store, problems, len(store.cases) + len(unreadable)))
    files = _show_file_count(settings, entry, folder)
    option = f" --from {source}" if source else ""
    fix = f"repair the files, then: segbench data prepare {name}{option}"
    _raise_if_any(_errors(problems), name, fix, folder)
    document = {
        "name": entry.name,
        "folder": str(folder),
        "cases": len(store.cases),
        "files": files,
        "problems": [vars(problem) for problem in problems],
    }
    settings.show(datasets_document(CHECK_SCHEMA, [document]))


def _check_lines(store: Store, problems: Sequence[Problem], checked: int) -> list[str]:
    from segbench.data.store.checks import check_split, patients_are_known
    from segbench.data.store.warning_groups import grouped

    shown = grouped(problems, checked)
    errors = len(_errors(shown))
    counts = f"{plural(checked, 'case')} checked, {plural(errors, 'problem')}"
    if len(shown) > errors:
        counts += f", {plural(len(shown) - errors, 'warning')}"
    lines = [f"{store.name}: {counts}"]
    lines += [f" {mark(problem.level)} {problem}" for problem in shown]
    if store.cases and not _errors(check_split(store.train, store.test, store.cases)):
        if patients_are_known(store):
            no_leak = "no case, patient or identical volume is shared between train and test"
        else:
            no_leak = (
                "no case or identical volume is shared between train and test; "
                "patients are not known"
            )
        lines.append(f" {mark('ok')} {no_leak}")
    return [safe(line) for line in lines]


def _show_file_count(settings: Settings, entry: Entry, folder: Path) -> dict[str, Any] | None:
    """Show how many volume files of a source folder are read, and return it as a document."""
    from segbench.data.preparation.survey import count_files

    count = count_files(entry, folder)
    if count is None:
        return None
    level = "warning" if count.unread else "ok"
    line = f" {mark(level)} {count.read} of {plural(count.on_disk, 'volume file')} on disk are read"
    if count.unread:
        line += f"; not read: {first_few(count.unread)}"
    settings.echo([safe(line)])
    return count._asdict()


def _errors(problems: Sequence[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.level == "error"]


def _raise_if_any(
    errors: Sequence[Problem], name: str, fix: str, folder: Path | None = None
) -> None:
    from segbench.data.store.problem import DataProblems

    if errors:
        what = f"data set '{name}': {plural(len(errors), 'problem')}"
        raise DataProblems(what, errors, listed=False, where=folder, fix=fix)


# -- info ------------------------------------------------------------------------------------------


@data.command()
@click.argument("name")
@click.pass_obj
def info(settings: Settings, name: str) -> None:
    """Describe a data set and its prepared copy.

    \b
    segbench data info la
    """
    from segbench.cli.documents import datasets_document, spacing_ranges
    from segbench.config.protocol import NO_PROTOCOL

    documents = []
    lines = []
    for entry in _members(name):
        document = _about(settings, entry)
        documents.append(document)
        shown = {**document, "spacing_mm": spacing_ranges(document.get("spacing_mm"))}
        if shown["protocol"] == NO_PROTOCOL:
            shown["protocol"] = f"planned from the data: segbench protocol new --dataset {name}"
        shown.pop("warnings", None)
        for key, value in shown.items():
            if value not in ("", [], None):
                lines += wrapped(f"{key:<12} {_text(value)}", " " * 13)
        for text in _warnings(settings, entry):
            lines += wrapped(f"warning      {text}", " " * 13)
        lines.append("")
    settings.show(datasets_document("segbench.data.info/1", documents), lines)


def _warnings(settings: Settings, entry: Entry) -> list[str]:
    """Return the warnings about a prepared data set, a line for each kind."""
    from segbench.data.open import open_store
    from segbench.data.store.warning_groups import grouped_warnings, warning_line

    if not _is_prepared(settings, entry.name):
        return []
    try:
        store = open_store(entry.name, settings.data_root)
    except SegbenchError:
        return []
    return [warning_line(warning) for warning in grouped_warnings(store)]


def _about(settings: Settings, entry: Entry) -> dict[str, Any]:
    """Return the facts about a data set, and those about its prepared copy if there is one."""
    from segbench.data.open import open_store

    about: dict[str, Any] = {"name": entry.name}
    about.update({key: getattr(entry.cls, key) for key in ABOUT})
    about["classes"] = list(about["classes"])
    about["files"] = list(entry.cls.files)
    if entry.cls.embedded and not _is_prepared(settings, entry.name):
        return {**about, "state": "generated on first use"}
    try:
        facts = _facts(open_store(entry.name, settings.data_root))
    except SegbenchError as error:
        return {**about, "state": error.what}
    return {**about, "state": "prepared", **facts}


def _facts(store: Store) -> dict[str, Any]:
    """Return what a prepared store holds, as JSON types."""
    from statistics import median

    cases = list(store.cases.values())
    sizes = [[case.shape[axis] for case in cases] for axis in range(store.dims)]
    return {
        "name": store.name,
        "folder": str(store.root),
        "train": len(store.train),
        "test": len(store.test),
        "copy": "partial" if store.partial else "whole",
        "channels": store.channels,
        "shape": {
            "min": [min(axis) for axis in sizes],
            "median": [median(axis) for axis in sizes],
            "max": [max(axis) for axis in sizes],
        },
        "spacing_mm": sorted({case.spacing for case in cases if case.spacing}) or None,
        "intensity": {
            "min": min(case.intensity["min"] for case in cases),
            "max": max(case.intensity["max"] for case in cases),
            "mean": median(case.intensity["mean"] for case in cases),
            "std": median(case.intensity["std"] for case in cases),
        },
        "voxels": _class_sizes(store),
        "bytes": sum(_bytes(case.files) for case in cases),
        "fingerprint": store.fingerprint,
        "warnings": list(store.warnings),
    }


def _class_sizes(store: Store) -> dict[str, dict[str, Any]]:
    """Return the voxels of each class, their share, and the number of cases that have the class."""
    from segbench.contracts.dataset import IGNORED

    cases = list(store.cases.values())
    sizes: dict[str, dict[str, Any]] = {}
    for value, name in enumerate(("background", *store.classes)):
        counts = [case.labels.get(value, 0) for case in cases]
        with_class = sum(count > 0 for count in counts)
        sizes[name] = {"voxels": sum(counts), "cases": with_class}
    ignored = [case.labels.get(IGNORED, 0) for case in cases]
    if any(ignored):
        sizes["(left out)"] = {"voxels": sum(ignored), "cases": sum(count > 0 for count in ignored)}
    total = sum(size["voxels"] for size in sizes.values()) or 1
    for size in sizes.values():
        size["share"] = size["voxels"] / total
    return sizes


def _bytes(files: Any) -> int:
    return sum(size for size, _ in files.values())


def _text(value: Any) -> str:
    """Return a value as one line for people."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        numbers = value and all(isinstance(part, int | float) for part in value)
        return (" x " if numbers else ", ").join(_text(part) for part in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# -- list ------------------------------------------------------------------------------------------


@data.command("list")
@click.pass_obj
def list_datasets(settings: Settings) -> None:
    """List all data sets and whether they are prepared.

    \b
    segbench data list
    """
    from segbench import registry
    from segbench.cli.documents import datasets_document

    documents = [_listed(settings, name) for name in registry.names("dataset")]
    columns = [("data set", "<"), ("state", "<"), ("what", "<")]
    rows = [[document[key] for key in ("name", "state", "title")] for document in documents]
    shown = table(columns, rows, wrap=("state", "what"))
    settings.show(datasets_document("segbench.data.list/1", documents), [shown])


def _listed(settings: Settings, name: str) -> dict[str, Any]:
    from segbench import registry

    try:
        dataset = registry.get("dataset", name).cls
        return {
            "name": name,
            "title": dataset.title,
            "classes": list(dataset.classes),
            "state": _state(settings, name, dataset),
        }
    except SegbenchError as error:
        return {"name": name, "title": "", "classes": [], "state": f"broken: {error.what}"}


def _state(settings: Settings, name: str, dataset: Any) -> str:
    from segbench.data.open import open_store

    if dataset.family:
        return f"your own folders: {name}:PATH"
    if dataset.members:
        return f"group of {', '.join(dataset.members)}"
    if dataset.embedded:
        return "generated on first use"
    try:
        return f"prepared, {_counts(open_store(name, settings.data_root))}"
    except SegbenchError as error:
        return error.what.removeprefix(f"data set '{name}' is ")


# -- shared ----------------------------------------------------------------------------------------


def _members(name: str) -> list[Entry]:
    """Return the data sets that a name means: the members of a group, or the one data set."""
    from segbench import registry

    entry = registry.get("dataset", name)
    return [registry.get("dataset", member) for member in entry.cls.members] or [entry]


def _counts(store: Store) -> str:
    partial = " (partial copy)" if store.partial else ""
    return f"{len(store.train)} train + {len(store.test)} test cases{partial}"
