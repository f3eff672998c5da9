"""Numbers of the literature, with source, checkpoint rule and leaks, to be shown beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from segbench import registry
from segbench.config import load_yaml

Published = Callable[[str, int], list[dict[str, Any]]]
SHOWN_METRICS = ("dice", "jaccard", "hd95", "asd")
# What a number had that a test should not have, as `leak` in the file, in words for a reader.
LEAKS = {
    "labels_of_unlabelled": "its training read labels of images that count as unlabeled",
    "selection_on_test": "its checkpoint was selected on the test cases",
    "evaluated_on_validation": "its numbers are of validation cases, or include them",
}


def published(dataset: str, labeled: int) -> list[dict[str, Any]]:
    """Return the literature's numbers on comparable test cases, best Dice first.

    Args:
        labeled: number of labeled cases.
    """
    return [row for row in all_published(dataset, labeled) if row["comparable"]]


def all_published(dataset: str, labeled: int) -> list[dict[str, Any]]:
    """Return the literature's numbers on any test cases, best Dice first.

    Args:
        labeled: number of labeled cases.
    """
    content = _content()
    found = []
    for row in content["results"]:
        if (row["dataset"], row["labeled"]) == (dataset, labeled):
            found.append(_described(row, content))
    return sorted(found, key=lambda row: -row["dice"])


def published_settings() -> list[tuple[str, int]]:
    """Return the data sets and numbers of labeled cases with published numbers, as in the file."""
    found: dict[tuple[str, int], None] = {}
    for row in _content()["results"]:
        found[row["dataset"], row["labeled"]] = None
    return list(found)


@cache
def _content() -> dict[str, Any]:
    file = resources.files("segbench.benchmarks") / "published" / "results.yaml"
    return load_yaml(Path(str(file)))


def _described(row: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the file with what its source says."""
    dataset = row["dataset"]
    source = content["sources"][row["source"]]
    protocol = row.get("protocol", source.get(f"{dataset}_protocol"))
    selection = row.get("checkpoint", source.get("checkpoint", "not_stated"))
    # A row that names another protocol has other test cases.
    comparable = content["comparable"].get(dataset, [None])
    ours = content["ours"].get(row["method"])
    return {
        "method": row["method"],
        **{metric: row[metric] for metric in SHOWN_METRICS},
        "selection": selection,
        "leaks": _leaks(row, source, selection),
        "relation": row["relation"],
        "source": row["source"],
        "work": source["work"],
        "url": source["url"],
        "protocol": protocol,
        "comparable": protocol in comparable,
        "distances": content["distances"],
        "postprocessing": source.get("postprocessing", "not_stated"),
        "note": row.get("note"),
        "doubt": _doubt(row, content),
        "ours": ours if ours in registry.names("method") else None,
    }


def _leaks(row: Mapping[str, Any], source: Mapping[str, Any], selection: str) -> list[str]:
    """Return the leaks of a row: its own, its source's for this data set, and the rule's."""
    found = [row.get("leak"), source.get("leak", {}).get(row["dataset"])]
    if selection == "best_on_test":
        found.append("selection_on_test")
    return [leak for leak in LEAKS if leak in found]


def _doubt(row: Mapping[str, Any], content: Mapping[str, Any]) -> str | None:
    """Return why a row cannot be correct as printed; None if nothing is known against it."""
    for entry in content["suspicious"]:
        if all(entry[key] == row[key] for key in ("source", "dataset", "labeled", "method")):
            return str(entry["why"])
    return None
