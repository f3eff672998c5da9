"""A suite file: a matrix of choices, resolved to experiments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from segbench import registry
from segbench.config import Experiment, load_yaml, resolve
from segbench.config.overrides import parse_overrides
from segbench.config.protocol import Augment
from segbench.config.schema import Strict, flatten, validate
from segbench.config.yaml import Document
from segbench.errors import UsageError, unknown

DEFAULT = "default"
AugmentChoice = Literal["default", Augment]


class Matrix(Strict):
    """Choices. Every combination is a run; a joint method trains on all data sets of one entry."""

    method: tuple[str, ...] = Field(
        min_length=1,
        description="registered names, with parameters where one is to differ: "
        "'versemi[variant=released,ramp=true]'",
    )
    dataset: tuple[str, ...] = Field(
        min_length=1, description="registered names, groups, or several as 'la,acdc'"
    )
    labeled: tuple[int | str, ...] = Field(
        (DEFAULT,), min_length=1, description="counts, '10%', 'all' or 'default'"
    )
    draw: tuple[int, ...] = Field(
        (0,), min_length=1, description="which cases are labeled: 0 the list's first"
    )
    fold: tuple[int, ...] = Field(
        (), description="folds of a cross-validation, such as [0, 1, 2, 3, 4]; without: no folds"
    )
    unlabeled: tuple[Literal["all", "labeled"], ...] = Field(
        ("all",), min_length=1, description="images of the unlabeled stream"
    )
    backbone: tuple[str, ...] = Field(
        (DEFAULT,), min_length=1, description="registered names, or 'default'"
    )
    augment: tuple[AugmentChoice, ...] = Field(
        ("default",),
        min_length=1,
        description="augmentations as in protocols, or 'default' for the protocol's own",
    )
    seed: tuple[int, ...] = Field(
        (0,), min_length=1, description="seeds; three are needed to be ranked"
    )


class Suite(Strict):
    """A suite file."""

    name: str = Field(min_length=1, description="the file's stem")
    title: str = Field("", description="one line")
    protocol: str = Field(DEFAULT, description="for all runs, or 'default' for each data set's own")
    matrix: Matrix
    replicates: int = Field(
        0,
        ge=0,
        le=1000,
        description="draw k with seed k for k = 0, 1, ..., instead of draw and seed",
    )
    reference: str | None = Field(
        None,
        description="a supervised method; adds it, the oracle (it with all labels), "
        "and every other method without unlabeled images",
    )
    params: dict[str, dict[str, Any]] = Field(
        {}, description="of a method, where they differ from its defaults"
    )
    overrides: dict[str, Any] = Field(
        {}, description="keys of the protocol with other values, for all runs: steps: 500"
    )
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations to leave out")

    @model_validator(mode="after")
    def _check_replicates(self) -> Suite:
        if self.replicates and (self.matrix.draw != (0,) or self.matrix.seed != (0,)):
            raise ValueError("replicates: leave draw and seed out of the matrix, they go together")
        return self


@dataclass(frozen=True)
class Combination:
    """One combination of a suite."""

    method: str  # as in the matrix: a name, with parameters in brackets if there are any
    dataset: str
    labeled: int | str
    draw: int
    unlabeled: str
    backbone: str
    seed: int
    augment: str = DEFAULT
    fold: int | None = None


def method_name(entry: str) -> str:
    """Return the registered name of a method entry such as ``versemi[variant=released]``."""
    return entry.partition("[")[0].strip()


def method_params(entry: str, where: str) -> dict[str, Any]:
    """Return the parameters in the brackets of a method entry.

    Raises:
        UsageError: the entry has another form; names the line ``where``.
    """
    _, bracket, rest = entry.partition("[")
    if not bracket:
        return {}
    inside, closing, after = rest.partition("]")
    if not closing or after.strip():
        raise UsageError(
            f"method '{entry}'",
            where=where,
            expected="a name, or a name with parameters: versemi[variant=released,ramp=true]",
        )
    values = parse_overrides(inside.split(","), origin=where)
    return {key: value.value for key, value in values.items()}


def find_suite(name_or_path: str) -> Path:
    """Return a suite file by its path, or by its name among those that come with segbench.

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
    files = [Path(str(file)) for file in folder.iterdir()]
    known = {file.stem: file for file in files if file.suffix == ".yaml"}
    if name_or_path in known:
        return known[name_or_path]
    raise unknown("suite", name_or_path, known, fix="segbench bench plan FILE.yaml")


def load_suite(path: Path) -> tuple[Suite, Document]:
    """Read a suite file.

    Raises:
        UsageError: a wrong key or value; names file, line and column.
    """
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
    names = {method_name(entry) for entry in suite.matrix.method}
    for method in suite.params:
        if method not in names:
            raise UsageError(
                f"params for '{method}', which is not in the matrix",
                where=document.where("params", method),
            )
    return suite, document


def choices(suite: Suite) -> Iterator[Combination]:
    """Yield all combinations, seed after seed, so that every method has its first result early."""
    seen = set()
    for choice in _all_choices(suite):
        if choice in seen or any(_fits(rule, choice) for rule in suite.exclude):
            continue
        seen.add(choice)
        yield choice


def _all_choices(suite: Suite) -> Iterator[Combination]:
    matrix = suite.matrix
    if suite.replicates:
        pairs = [(number, number) for number in range(suite.replicates)]
    else:
        pairs = list(itertools.product(matrix.seed, matrix.draw))
    folds = matrix.fold or (None,)
    for (seed, draw), fold, dataset, labeled, backbone, augment in itertools.product(
        pairs, folds, matrix.dataset, matrix.labeled, matrix.backbone, matrix.augment
    ):
        first = Combination(
            matrix.method[0], dataset, labeled, draw, "all", backbone, seed, augment, fold
        )
        for unlabeled, method in itertools.product(matrix.unlabeled, matrix.method):
            yield replace(first, method=method, unlabeled=unlabeled)
        if suite.reference is None:
            continue
        supervised = replace(first, method=suite.reference)
        yield supervised
        yield replace(supervised, labeled="all")
        for method in matrix.method:
            if registry.get("method", method_name(method)).cls.semi_supervised:
                yield replace(first, method=method, unlabeled="labeled")


def expand(
    suite: Suite,
    document: Document,
    choice: Combination,
    train_sizes: Any,
    overrides: Sequence[str] = (),
    **looks: Any,
) -> list[Experiment]:
    """Return the experiments of one combination.

    A method that is not joint has one for each data set.

    Args:
        overrides: as given with ``-o``.
        looks: more functions with which ``config.resolve`` looks at prepared data sets.
    """
    name = method_name(choice.method)
    params = suite.params.get(name, {})
    changed = flatten(suite.overrides)
    common = {**changed, **params}
    where = {key: document.where("overrides", *_written_path(suite, key)) for key in changed}
    where |= {key: document.where("params", name, key) for key in params}
    if choice.augment != DEFAULT:
        common = {"augment": choice.augment, **common}
        where.setdefault("augment", document.where("matrix", "augment"))
    entry_place = document.where("matrix", "method")
    own = method_params(choice.method, entry_place)
    where.update(dict.fromkeys(own, entry_place))
    return resolve(
        name,
        dataset=choice.dataset,
        seed=choice.seed,
        draw=choice.draw,
        fold=choice.fold,
        unlabeled=choice.unlabeled,
        labeled=None if choice.labeled == DEFAULT else choice.labeled,
        backbone=None if choice.backbone == DEFAULT else choice.backbone,
        suite={**common, **own},
        protocol=None if suite.protocol == DEFAULT else suite.protocol,
        train_sizes=train_sizes,
        overrides=overrides,
        suite_where=where,
        **looks,
    ).experiments


def _written_path(suite: Suite, key: str) -> list[str]:
    """Return the path of a key of ``overrides``, which may be written nested or dotted."""
    return [key] if key in suite.overrides else key.split(".")


def _fits(rule: Mapping[str, Any], choice: Combination) -> bool:
    values = asdict(choice)
    for key, wanted in rule.items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if values[key] not in allowed:
            return False
    return True
