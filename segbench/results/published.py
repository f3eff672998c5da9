"""Numbers of the literature, with source and checkpoint rule, to be shown beside ours."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from segbench.config import load_yaml

Published = Callable[[str, int], list[dict[str, Any]]]
SHOWN_METRICS = ("dice", "jaccard", "hd95", "asd")


def published(dataset: str, labeled: int) -> list[dict[str, Any]]:
    """Return the literature's numbers under comparable protocols, best Dice first.

    Args:
        labeled: number of labeled cases.
    """
    file = resources.files("segbench.benchmarks") / "published" / "results.yaml"
    content = load_yaml(Path(str(file)))
    reasons = {
        (entry["source"], entry["dataset"], entry["labeled"], entry["method"]): entry["why"]
        for entry in content.get("suspicious", [])
    }
    # A row that names another protocol has other test cases.
    comparable = content["comparable"].get(dataset, [None])
    rows = []
    for row in content["results"]:
        source = content["sources"][row["source"]]
        protocol = row.get("protocol", source.get(f"{dataset}_protocol"))
        if (row["dataset"], row["labeled"]) != (dataset, labeled) or protocol not in comparable:
            continue
        found = {
            "method": row["method"],
            **{metric: row[metric] for metric in SHOWN_METRICS},
            "selection": row.get("checkpoint", source.get("checkpoint", "not_stated")),
            "relation": row["relation"],
            "source": row["source"],
            "work": source["work"],
            "url": source["url"],
            "protocol": protocol,
            "distances": content["distances"],
            "postprocessing": source.get("postprocessing", "not_stated"),
            "note": row.get("note"),
            "doubt": reasons.get((row["source"], dataset, labeled, row["method"])),
            "ours": content["ours"].get(row["method"]),
        }
        rows.append(found)
    return sorted(rows, key=lambda row: -row["dice"])
