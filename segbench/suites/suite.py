"""A suite file: a matrix of choices, resolved to experiments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field

from segbench.config import Experiment, load_yaml, resolve
from segbench.config.schema import Strict, validate
from segbench.config.yaml import Document
from segbench.errors import UsageError, unknown


class Matrix(Strict):
    """Choices; every combination is a run (a joint method's combination covers all data sets of one entry)."""

    method: tuple[str, ...] = Field(min_length=1, description="registered names")
    dataset: tuple[str, ...] = Field(
        min_length=1, description="registered names, groups, or several as 'la,acdc'"
    )
    labeled: tuple[int | str, ...] = Field(
        ("default",), min_length=1, description="counts, '10%', or 'default'"
    )
    draw: tuple[int, ...] = Field(
        (0,), min_length=1, description="which cases are labeled: 0 the list's first"
    )
    backbone: tuple[str, ...] = Field(
        ("default",), min_length=1, description="registered names, or 'default'"
    )
    seed: tuple[int, ...] = Field(
        (0,), min_length=1, description="seeds; three are needed to be ranked"
    )


class Suite(Strict):
    """A suite file."""

    name: str = Field(min_length=1, description="the file's stem")
    title: str = Field("", description="one line")
    protocol: str = Field(
        "default", description="for all runs, or 'default' for each data set's own"
    )
    matrix: Matrix
    params: dict[str, dict[str, Any]] = Field(
        {}, description="of a method, where they differ from its defaults"
    )
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations to leave out")


def find_suite(name_or_path: str) -> Path:
    """A suite file by path, or by name among those that come with segbench.

    Raises:
        UsageError: there is none.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        if path.parent != Path("benchmarks"):
            raise UsageError(
                "no such suite file",
                where=path,
                fix="segbench bench plan phantom plans one that is built in",
            )
        name_or_path = path.stem  # a path as the README writes it, used from elsewhere
    folder = resources.files("segbench.benchmarks")
    known = {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if str(f).endswith(".yaml")}
    if name_or_path in known:
        return known[name_or_path]
    raise unknown("suite", name_or_path, known, fix="segbench bench plan FILE.yaml")


def load_suite(path: Path) -> tuple[Suite, Document]:
    """Read a suite file; every error names file, line and column."""
    document = load_yaml(path)
    if document.get("schema") != 1:
        raise UsageError(
            "schema: expected 1, the version of this format",
            where=document.where("schema"),
            found=document.get("schema"),
        )
    content = {key: value for key, value in document.items() if key != "schema"}
    suite = validate(Suite, content, lambda key: document.where(*key.split(".")))
    for rule in suite.exclude:
        for key in rule:
            if key not in Matrix.model_fields:
                raise unknown(
                    "key of exclude", key, Matrix.model_fields, fix=document.where("exclude")
                )
    for method in suite.params:
        if method not in suite.matrix.method:
            raise UsageError(
                f"params for '{method}', which is not in the matrix",
                where=document.where("params", method),
            )
    return suite, document


def choices(suite: Suite) -> Iterator[dict[str, Any]]:
    """All combinations of a suite, seeds outermost, so that every method has its first result early."""
    m = suite.matrix
    for seed, dataset, labeled, draw, backbone, method in itertools.product(
        m.seed, m.dataset, m.labeled, m.draw, m.backbone, m.method
    ):
        choice = {
            "method": method,
            "dataset": dataset,
            "labeled": labeled,
            "draw": draw,
            "backbone": backbone,
            "seed": seed,
        }
        if not any(_fits(rule, choice) for rule in suite.exclude):
            yield choice


def expand(
    suite: Suite,
    document: Document,
    choice: Mapping[str, Any],
    train_sizes: Any,
    labels: Any = None,
) -> list[Experiment]:
    """The experiments of one combination: several where a single-task method meets several data sets."""
    method, params = choice["method"], suite.params.get(choice["method"], {})
    labeled, backbone = (
        None if choice[key] == "default" else choice[key] for key in ("labeled", "backbone")
    )
    return resolve(
        method,
        dataset=choice["dataset"],
        seed=choice["seed"],
        draw=choice["draw"],
        labeled=labeled,
        backbone=backbone,
        suite=params,
        protocol=None if suite.protocol == "default" else suite.protocol,
        train_sizes=train_sizes,
        labels=labels,
        suite_where={key: document.where("params", method, key) for key in params},
    ).experiments


def _fits(rule: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    return all(
        choice[key] in value if isinstance(value, list) else choice[key] == value
        for key, value in rule.items()
    )
