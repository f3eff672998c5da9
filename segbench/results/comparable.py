"""Which runs are comparable: finished ones sorted into tables and rows, by what they must share to stand in one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from segbench.errors import IntegrityError, SegbenchError
from segbench.results.rundir import RunDir
from segbench.storage import json_bytes


class Finished(NamedTuple):
    """A run that can be believed: its result and the records of its cases."""

    result: dict[str, Any]
    run: RunDir
    cases: list[dict[str, Any]]


class Key(NamedTuple):
    """What runs must share to stand in one table."""

    dataset: str
    labeled: int
    draws: tuple[int, ...]
    backbone: str
    protocol: str
    content: str
    fingerprint: str
    split: str
    precision: str
    network: str = ""  # the backbone's parameters
    source: str = ""  # the backbone's code
    engine: str = ""


Rows = dict[tuple[str, str], list[Finished]]  # by label and variant
Groups = dict[Key, Rows]
WORDS = {
    "labeled": "labeled cases",
    "draws": "labeled draws",
    "backbone": "backbone",
    "protocol": "protocol",
    "content": "protocol's content",
    "fingerprint": "prepared data",
    "split": "split",
    "precision": "precision",
    "network": "backbone's parameters",
    "source": "backbone's code",
    "engine": "engine",
}


def sorted_out(runs: Iterable[RunDir]) -> tuple[Groups, list[tuple[RunDir, Key, str]], list[str]]:
    """Finished runs by table and row, failed ones with their table and variant, and warnings on what is neither."""
    groups: Groups = {}
    failures: list[tuple[RunDir, Key, str]] = []
    warnings: list[str] = []
    networks: dict[bytes, str] = {}
    for run in runs:
        try:
            result = run.result()
            if result is None:
                failures += [
                    (run, key, _variant(science)) for key, science in _failed(run, networks)
                ]
                continue
            finished = Finished(result, run, run.cases())
            science, modified = result["science"], result["protocol"]["modified"]
            network = _network(run, science, modified, networks)
            keys = [_key(name, science, modified, network) for name in result["datasets"]]
            row = _label(result, run), _variant(science)
        except (SegbenchError, RecursionError) as error:
            warnings.append(f"{run.path}: {getattr(error, 'what', error)}; left out")
            continue
        for key in keys:
            mine = groups.setdefault(key, {}).setdefault(row, [])
            if all(
                f.result["run_id"] != result["run_id"] for f in mine
            ):  # a copied folder counts once
                mine.append(finished)
    return groups, failures, warnings


def pooled(groups: Groups) -> Iterator[tuple[Key, Rows]]:
    """Tables over all labeled draws of the same data, with the rows that have runs in each of them."""
    families: dict[Key, dict[int, Rows]] = {}
    for key, rows in groups.items():
        families.setdefault(key._replace(draws=()), {})[key.draws[0]] = rows
    for key, draws in families.items():
        shared = [
            row for row in next(iter(draws.values())) if all(row in rows for rows in draws.values())
        ]
        if len(draws) > 1 and shared:
            yield (
                key._replace(draws=tuple(sorted(draws))),
                {row: [f for d in sorted(draws) for f in draws[d][row]] for row in shared},
            )


def _failed(run: RunDir, networks: dict[bytes, str]) -> list[tuple[Key, dict[str, Any]]]:
    """The tables that a failed run belongs to; none for one that is merely not finished."""
    if not (run.path / "failed.json").exists():
        return []
    config = run.config()
    try:
        science, modified = config["science"], config["experiment"]["modified"]
        network = _network(run, science, modified, networks)
        found = [
            (_key(d["name"], science, modified, network), science) for d in science["datasets"]
        ]
        hash(tuple(key for key, _ in found))  # a list where a name should be
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the stored configuration is incomplete", where=run.path, found=error
        ) from error


def _network(
    run: RunDir, science: dict[str, Any], modified: Sequence[str], known: dict[bytes, str]
) -> tuple[str, str, str]:
    """The backbone's parameters that protocol or user chose, its code, and the engine.

    What a method prescribes of its network is its own affair, as its code is. Only the stored configuration tells who
    chose what. It is slow to read: once for all runs with the same answer (``known``).
    """
    try:
        final = science["backbone_params"]
        mark = json_bytes([science["method"], science["backbone"], final, *modified])
        if mark not in known:
            named = run.config()["experiment"]["protocol"]["backbone"]
            preset = named["params"] if named["name"] == science["backbone"] else {}
            known[mark] = json_bytes(
                {**preset, **{k: v for k, v in final.items() if f"backbone.{k}" in modified}}
            ).decode()
        return known[mark], str(science["sources"].get("backbone")), str(science["engine"])
    except (KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(
            "the stored configuration is incomplete", where=run.path, found=error
        ) from error


def _key(
    name: str, science: dict[str, Any], modified: Sequence[str], network: tuple[str, str, str]
) -> Key:
    protocol = science["protocol"]
    text = f"{protocol['name']} {protocol['version']}" + (
        f" (modified: {', '.join(modified)})" if modified else ""
    )
    data = next(d for d in science["datasets"] if d["name"] == name)
    content = hashlib.sha256(json_bytes(protocol)).hexdigest()
    return Key(
        name,
        data["labeled"],
        (science.get("draw", 0),),
        science["backbone"],
        text,
        content,
        data["fingerprint"],
        data["split"],
        science["precision"],
        *network,
    )


def _variant(science: dict[str, Any]) -> str:
    """Digest of what makes two runs of one method different but for seed and draw: code, parameters, network."""
    return hashlib.sha256(
        json_bytes({k: v for k, v in science.items() if k not in ("seed", "draw")})
    ).hexdigest()[:4]


def _label(result: dict[str, Any], run: RunDir) -> str:
    """The method's name with the parameters that are not its defaults, and whether it had several data sets at once."""
    changed = ",".join(f"{k}={v}" for k, v in sorted(result["changed_params"].items()))
    dropped = "".join(f" without {term}" for term in result["without"])
    joint = " (joint)" if len(result["datasets"]) > 1 else ""
    reported = " (reported)" if run.reported else ""
    return result["method"] + (f"[{changed}]" if changed else "") + dropped + joint + reported


def draw_of(finished: Finished) -> int:
    """Which labeled draw a run had."""
    return int(finished.result["science"].get("draw", 0))
