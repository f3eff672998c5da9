"""A board as static pages: an index, a page per data set and a page per run.

Links lead from page to page by relative paths; nothing is fetched from elsewhere, and there are no
pictures of cases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from markupsafe import Markup

from segbench import registry
from segbench.config import dump_yaml
from segbench.errors import SegbenchError
from segbench.report import figures
from segbench.report.commands import command
from segbench.report.content import Content, gather
from segbench.report.page import ENVIRONMENT, common_remarks, overview_of, table_sections
from segbench.report.templating import SEARCH, rendered
from segbench.results.board import Board
from segbench.results.cite import bibtex
from segbench.results.comparable import METHOD
from segbench.results.export import as_json
from segbench.results.facts import mean_dice
from segbench.results.finished import FinishedRun
from segbench.results.rundir import RunDir, all_runs
from segbench.text import first_few

INDEX = "index.html"
DOCUMENT = "board.json"
BADGE = "badge.json"
HOME = "All data sets"
STATUSES = ("own", "verified", "reported")  # the first of two copies of a run counts
NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class SiteRun:
    """A run and its place on the site."""

    run: FinishedRun
    name: str  # of its row
    status: str  # one of STATUSES
    page: str

    def line(self) -> dict[str, Any]:
        """Return what the index shows of it."""
        result = self.run.result
        return {
            "id": self.run.folder.run_id,
            "name": self.name,
            "datasets": ", ".join(result["datasets"]),
            "labeled": sum(result["labeled"].values()),
            "draw": self.run.draw,
            "fold": self.run.fold,
            "seed": self.run.seed,
            "dice": mean_dice(result["metrics"]),
            "status": self.status,
        }


@dataclass
class Site:
    """What the pages show."""

    title: str
    content: Content
    runs: list[SiteRun]
    dataset_pages: dict[str, str] = field(default_factory=dict)  # by name of the data set

    @property
    def methods(self) -> int:
        """The number of methods that are compared."""
        rows = [row for board in self.content.boards for row in board.rows]
        return len({row.method for row in rows if row.kind == METHOD})

    @property
    def datasets(self) -> list[str]:
        """The data sets, and the groups whose mean is shown."""
        return list(self.dataset_pages)

    @property
    def counts(self) -> str:
        """What the site holds, in words."""
        single = {board.dataset for board in self.content.boards if not board.is_mean}
        parts = [(len(self.runs), "run"), (self.methods, "method"), (len(single), "data set")]
        return ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in parts)


def status_of(folder: RunDir) -> str:
    """Return where the numbers of a run come from, one of ``STATUSES``."""
    if folder.origin is None:
        return "own"
    return "reported" if folder.reported else "verified"


def collect(roots: Iterable[Path], title: str, variants: bool = False) -> Site:
    """Return the site of all finished runs of result folders.

    Of two copies of a run, an own one counts before a verified and a reported one.

    Args:
        title: heading of the index.
        variants: whether to show ablations and rows with other parameters, see ``boards``.
    """
    folders = [run for root in roots for run in all_runs(root)]
    folders.sort(key=lambda folder: STATUSES.index(status_of(folder)))
    content = gather(_each_once(folders), variants)
    site = Site(title, content, [])
    for board in content.boards:
        if board.dataset not in site.dataset_pages:
            page = _free_name(f"datasets/{_file_name(board.dataset)}", site.dataset_pages.values())
            site.dataset_pages[board.dataset] = page
    shown: dict[str, SiteRun] = {}
    for board in content.boards:
        for row in board.rows:
            for run in row.runs:
                key = str(run.result["run_id"])
                taken = [other.page for other in shown.values()]
                page = _free_name(f"runs/{_file_name(run.folder.run_id)}", taken)
                shown.setdefault(key, SiteRun(run, row.method, status_of(run.folder), page))
    site.runs = list(shown.values())
    return site


def _each_once(folders: Iterable[RunDir]) -> Iterator[RunDir]:
    """Yield the folders without later copies of a finished run."""
    seen = set()
    for folder in folders:
        identity = _stored_identity(folder)
        if identity is None or identity not in seen:
            yield folder
        seen.add(identity)


def _stored_identity(folder: RunDir) -> str | None:
    """Return the identity of a finished run; None if it is not finished or cannot be read."""
    try:
        result = folder.result()
    except SegbenchError:
        return None
    return None if result is None else str(result["run_id"])


def _file_name(name: str) -> str:
    return NOT_A_NAME.sub("-", name).lstrip(".") or "unnamed"


def _free_name(stem: str, taken: Iterable[str]) -> str:
    """Return the path of a page that no other page has, on any file system."""
    names = {name.lower() for name in taken}
    page = f"{stem}.html"
    number = 2
    while page.lower() in names:
        page = f"{stem}-{number}.html"
        number += 1
    return page


# -- pages -----------------------------------------------------------------------------------------


def pages(site: Site) -> Iterator[tuple[str, str]]:
    """Yield the relative path and the text of each file of a site, in a fixed order."""
    yield INDEX, _index(site)
    for dataset, page in site.dataset_pages.items():
        yield page, _dataset_page(site, dataset)
    for shown in site.runs:
        yield shown.page, _run_page(site, shown)
    yield DOCUMENT, json.dumps(as_json(site.content.boards, None), indent=1, allow_nan=False)
    yield BADGE, json.dumps(_badge(site))


def _index(site: Site) -> str:
    boards = site.content.boards
    links = {**_run_links(site, ""), **site.dataset_pages}
    return rendered(
        "site_index.html",
        SEARCH,
        title=site.title,
        counts=site.counts,
        warnings=[*site.content.failures, *site.content.warnings],
        overview=overview_of(boards),
        tables=_table_lines(site),
        runs=[shown.line() for shown in site.runs],
        folds=any(shown.run.fold is not None for shown in site.runs),
        links=links,
    )


def _table_lines(site: Site) -> list[dict[str, Any]]:
    """Return what the index shows of each table."""
    lines = []
    positions: dict[str, int] = {}
    for board in site.content.boards:
        position = positions.get(board.dataset, 0) + 1
        positions[board.dataset] = position
        best = max(board.rows, key=_dice_of_method, default=None)
        is_known = best is not None and _dice_of_method(best) > -1
        lines.append(
            {
                "board": board,
                "href": f"{site.dataset_pages[board.dataset]}#t{position}",
                "methods": sum(row.kind == METHOD for row in board.rows),
                "best": best.method if best is not None and is_known else "–",
                "dice": best.dice if best is not None and is_known else nan,
            }
        )
    return lines


def _dice_of_method(row: Any) -> float:
    """Return a method's Dice, -1 for a reference row and an undefined mean."""
    is_counted = row.kind == METHOD and row.dice == row.dice
    return float(row.dice) if is_counted else -1.0


def _run_links(site: Site, prefix: str) -> dict[str, str]:
    """Return the pages of runs by the first digits of their identities."""
    return {shown.run.folder.run_id: f"{prefix}{shown.page}" for shown in site.runs}


def _dataset_page(site: Site, dataset: str) -> str:
    boards = [board for board in site.content.boards if board.dataset == dataset]
    common = common_remarks(boards)
    content = Content(boards)
    return rendered(
        "site_dataset.html",
        title=_dataset_title(dataset),
        home=HOME,
        facts=_dataset_facts(dataset, boards),
        sections=table_sections(boards, {}, common),
        common=common,
        links=_run_links(site, "../"),
        bibtex=bibtex(content.runs),
    )


def _dataset_title(dataset: str) -> str:
    try:
        return registry.get("dataset", dataset).cls.title or dataset
    except SegbenchError:  # the plug-in is not available here
        return dataset


def _dataset_facts(dataset: str, boards: Sequence[Board]) -> list[tuple[str, str]]:
    """Return what is known of a data set, as names and texts."""
    facts = [("name", dataset)]
    if boards[0].is_mean:
        facts.append(("mean over", ", ".join(boards[0].datasets)))
    try:
        cls = registry.get("dataset", dataset).cls
    except SegbenchError:
        return facts
    known = {
        "modality": cls.modality,
        "classes": ", ".join(cls.classes),
        "license": cls.license,
        "citation": cls.citation,
    }
    return facts + [(name, value) for name, value in known.items() if value]


def _run_page(site: Site, shown: SiteRun) -> str:
    run = shown.run
    result = run.result
    unit = "mm" if "hd95_mm" in result["metrics"][0]["columns"] else "vox"
    datasets = []
    for name in result["datasets"]:
        if name in site.dataset_pages:
            datasets.append((name, f"../{site.dataset_pages[name]}"))
    return rendered(
        "site_run.html",
        title=f"{shown.name} on {first_few(result['datasets'])}{_fold_text(run)}, seed {run.seed}",
        home=HOME,
        datasets=datasets,
        status=_status_text(run.folder, shown.status),
        verified=shown.status != "reported",
        metrics=[_metric_line(entry, unit) for entry in result["metrics"]],
        cases=[_case_line(record, unit) for record in run.cases],
        unit=unit,
        curves=Markup(figures.curves(shown.name, [run.log])) if run.log else "",
        facts=_run_facts(run),
        reproduce=command([run]),
        protocol=dump_yaml(run.science["protocol"]),
        bibtex=bibtex([run.folder]),
    )


def _fold_text(run: FinishedRun) -> str:
    return "" if run.fold is None else f", fold {run.fold}"


def _status_text(folder: RunDir, status: str) -> str:
    origin = folder.origin or {}
    bundle = f"{origin.get('bundle')} (sha256 {origin.get('sha256')})"
    if status == "own":
        return "Own run: trained by the maintainers of this board."
    if status == "verified":
        return f"Verified: the scores were computed again from the predictions of {bundle}."
    why = origin.get("why") or "no reason recorded"
    return f"Reported in {bundle}, not verified and not ranked: {why}."


def _metric_line(entry: Mapping[str, Any], unit: str) -> dict[str, Any]:
    means = {name: column["mean"] for name, column in entry["columns"].items()}
    counts = {"n": entry["counts"]["n"], "missed": entry["counts"]["empty_prediction"]}
    names = {"class": entry["class"], "dataset": entry["dataset"]}
    return {**names, **_percent_and_distances(means, unit), **counts}


def _case_line(record: Mapping[str, Any], unit: str) -> dict[str, Any]:
    names = {"case": record["case"], "class": record["class"]}
    return {**names, **_percent_and_distances(record, unit)}


def _percent_and_distances(values: Mapping[str, Any], unit: str) -> dict[str, float]:
    found = {}
    for name in ("dice", "jaccard"):
        value = values[name]
        found[name] = nan if value is None else 100 * value
    for name in ("hd95", "asd"):
        value = values[f"{name}_{unit}"]
        found[name] = nan if value is None else value
    return found


def _run_facts(run: FinishedRun) -> list[tuple[str, str]]:
    """Return the settings of a run, as names and texts."""
    result = run.result
    protocol = result["protocol"]
    labeled = []
    for name in result["datasets"]:
        labeled.append(f"{result['labeled'][name]} of {result['train'][name]} cases of {name}")
    manifest = run.manifest
    machine = [f"{key} {manifest[key]}" for key in ENVIRONMENT if key in manifest]
    facts = {
        "run": result["run_id"],
        "labeled": "; ".join(labeled),
        "draw, seed": f"{run.draw}, {run.seed}{_fold_text(run)}",
        "network": result["backbone"],
        "parameters": _listed({**run.science["params"], **_prefixed(run.science)}),
        "protocol": f"{protocol['name']} {protocol['version']}",
        "modified": ", ".join(protocol["modified"]),
        "steps": f"{result['steps']:,}",
        "checkpoint": result["selection"],
        "precision": result["precision"],
        "weights sha256": result["weights_sha256"],
        "machine": ", ".join(machine),
    }
    for name in result["datasets"]:
        facts[f"data of {name}"] = f"fingerprint {result['fingerprints'][name]}"
    return [(name, str(value)) for name, value in facts.items() if value]


def _prefixed(science: Mapping[str, Any]) -> dict[str, Any]:
    return {f"backbone.{key}": value for key, value in science["backbone_params"].items()}


def _listed(values: Mapping[str, Any]) -> str:
    return " · ".join(f"{key} = {value}" for key, value in values.items())


def _badge(site: Site) -> dict[str, Any]:
    """Return the badge of a board, in the form that badge services read."""
    message = site.counts.partition(", ")[2]
    return {"schemaVersion": 1, "label": "segbench", "message": message, "color": "blue"}
