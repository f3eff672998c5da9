"""``segbench new``, ``test`` and ``ablate``, for authors of methods."""

from __future__ import annotations

import keyword
import re
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import (
    Command,
    Group,
    MachineOptions,
    ScienceOptions,
    machine_options,
    science_options,
)
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import PluginError, SegbenchError, SuiteError, TrainingError, UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.config import Experiment

Row = dict[str, Any]


# -- new -------------------------------------------------------------------------------------------


@click.group("new", cls=Group)
def new() -> None:
    """Write a template to start from."""


@new.command("method")
@click.argument("name", metavar="NAME")
@click.option(
    "--to",
    "folder",
    metavar="DIR",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the two files [here].",
)
@click.pass_obj
def new_method(settings: Settings, name: str, folder: Path) -> None:
    """Write NAME.py, a method that can be trained as it is, and test_NAME.py.

    \b
    segbench new method mine
    segbench test mine.py
    segbench run mine --plugin mine.py --dataset phantom
    """
    from segbench.storage import atomic_write, make_folder

    class_name = "".join(part.capitalize() for part in name.split("_"))
    _check_new_name(name, class_name)
    templates = {
        folder / f"{name}.py": "method.py.txt",
        folder / f"test_{name}.py": "test_method.py.txt",
    }
    for file in templates:
        if file.exists():
            raise UsageError(
                "the file exists already", where=file, fix="choose another name or --to DIR"
            )
    for file, template in templates.items():
        source = resources.files("segbench.cli") / "templates" / template
        text = source.read_text(encoding="utf-8")
        make_folder(file.parent)
        atomic_write(file, text.replace("NAME", name).replace("CLASS", class_name).encode())
    files = [str(file) for file in templates]
    settings.show({"status": "done", "files": files})
    settings.say(f"wrote {', '.join(files)}\nnext: segbench test {files[0]}")


def _check_new_name(name: str, class_name: str) -> None:
    """Refuse names that cannot be those of a new method and its class."""
    from segbench import registry

    is_lower_snake_case = re.fullmatch(r"[a-z][a-z0-9_]{1,39}", name)
    if not is_lower_snake_case or keyword.iskeyword(name) or keyword.iskeyword(class_name):
        raise UsageError(
            f"'{name}' cannot be the name of a method",
            expected="lower_snake_case that starts with a letter and is not a Python keyword",
            fix="choose another name",
        )
    if name in registry.names("method"):
        raise UsageError(
            f"a method '{name}' exists already",
            where=registry.place("method", name).file,
            fix="choose another name",
        )


# -- test ------------------------------------------------------------------------------------------


@click.command("test", cls=Command)
@click.argument("what", metavar="NAME|FILE")
@click.option(
    "--backbone", metavar="NAME", default="vnet", show_default=True, help="Network to test with."
)
@click.pass_obj
def test_command(settings: Settings, what: str, backbone: str) -> None:
    """Check that a method satisfies the contract.

    Among the checks are finite terms, exact resume, determinism, gradients and hidden state, in 2-D
    and 3-D, with two and four classes.

    \b
    segbench test ua_mt
    segbench test mine.py
    """
    import torch

    from segbench import registry
    from segbench.config.experiment import find_backbone
    from segbench.conformance import trials

    torch.set_num_threads(1)
    if what.endswith(".py"):
        methods = _methods_in(Path(what))
    else:
        methods = [registry.get("method", what).name]
    backbone, _ = find_backbone(backbone)
    results = []
    for method in methods:
        prefix = f"{method}: " if len(methods) > 1 else ""
        for description, check in trials(method, backbone):
            result = _run_check(settings, prefix + description, check)
            results.append({"method": method, **result})
    failed = [result for result in results if not result["passed"]]
    names = ", ".join(methods)
    document = {
        "status": "failed" if failed else "passed",
        "method": names,
        "checks": results,
    }
    if failed:
        settings.document = document
        raise PluginError(
            f"{len(failed)} of {len(results)} checks failed: {names}",
            found="\n".join(f"{result['check']}: {result['found']}" for result in failed),
            expected="a method that satisfies the contract",
            fix="see the documentation of segbench.contracts.method",
        )
    settings.show(document, [f"{len(results)} checks passed: {names}"])


def _methods_in(file: Path) -> list[str]:
    """Register a plug-in file and return the names of its methods."""
    from segbench import registry

    registry.add_file(file)
    names = []
    for (kind, _), found in registry.catalog().items():
        if kind == "method" and found.file.resolve() == file.resolve():
            names.append(found.name)
    if not names:
        raise UsageError(
            "the file registers no method",
            where=file,
            expected='a class with @segbench.method("NAME")',
        )
    return names


def _run_check(settings: Settings, description: str, check: Callable[[], None]) -> Row:
    """Run one check, report it and return its outcome."""
    started = time.monotonic()
    failure = ""
    try:
        check()
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, AssertionError):
            failure = f"{type(error).__name__}: {failure}"
    seconds = time.monotonic() - started
    outcome = f"FAIL  {description}: {safe(failure)}" if failure else f"ok    {description}"
    settings.say(f"{outcome}  ({seconds:.1f} s)")
    return {
        "check": description,
        "passed": not failure,
        "found": failure,
        "seconds": round(seconds, 2),
    }


# -- ablate ----------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("method", metavar="METHOD")
@science_options
@machine_options
@click.pass_obj
def ablate(
    settings: Settings, method: str, science: ScienceOptions, machine_options: MachineOptions
) -> None:
    """Train METHOD without each of its loss terms in turn and tabulate the change in Dice.

    A variant that fails to train is reported and skipped (exit code 5).

    \b
    segbench ablate mean_teacher --dataset phantom_ct_organ
    """
    from segbench.cli.training import execute_run, experiments, machine_of
    from segbench.training.setup import prepare

    machine = machine_of(settings, machine_options)
    base = experiments(settings, method, science)
    rows: list[Row] = []
    failed: list[str] = []
    for dropped in [None, *loss_terms(base[0])]:
        for experiment in base:
            variant = experiment.model_copy(update={"without": (dropped,) if dropped else ()})
            try:
                document = execute_run(settings, prepare(variant, machine), machine)
            except TrainingError as error:
                if not dropped:
                    raise
                failed.append(f"without {dropped}, seed {experiment.seed}: {error.what}")
                continue
            rows += _dice_rows(document, dropped)
    changes = changes_in_dice(rows)
    settings.show({"status": "done", "method": method, "rows": changes}, _ablation_lines(changes))
    if failed:
        raise SuiteError(f"{len(failed)} of the runs failed", found="\n".join(failed))


def loss_terms(experiment: Experiment) -> list[str]:
    """Return the loss terms of an experiment's method, in order, from a few steps on noise.

    Raises:
        TrainingError: the method fails.
    """
    from segbench.conformance import Drill, Trial

    method = experiment.method
    dims = len(experiment.protocol.patch)
    terms: dict[str, None] = {}
    try:
        trial = Trial(method, experiment.backbone, dims=dims, settings=experiment.params)
        for update in Drill(trial).run().updates:
            terms.update(dict.fromkeys(update.terms))
    except SegbenchError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        raise TrainingError(
            f"{method} failed: {type(error).__name__}: {error}",
            where="a trial of its loss terms",
            fix=f"segbench test {method} may say why",
        ) from error
    return list(terms)


def _dice_rows(document: Row, dropped: str | None) -> list[Row]:
    """Return the Dice, in percent, of each data set and class of one run."""
    rows = []
    for dataset, classes in document["metrics"].items():
        for name, metrics in classes.items():
            if metrics["dice"] is not None:
                row = {"without": dropped, "dataset": dataset, "class": name}
                rows.append({**row, "dice": 100 * metrics["dice"]})
    return rows


def changes_in_dice(rows: list[Row]) -> list[Row]:
    """Return means over seeds, and their change from the complete method where that has a value."""
    groups: dict[tuple[str | None, str, str], list[float]] = {}
    for row in rows:
        key = (row["without"], row["dataset"], row["class"])
        groups.setdefault(key, []).append(row["dice"])
    means = {key: sum(values) / len(values) for key, values in groups.items()}
    changes = []
    for (dropped, dataset, name), mean in means.items():
        complete = means.get((None, dataset, name))
        changes.append(
            {
                "without": dropped,
                "dataset": dataset,
                "class": name,
                "seeds": len(groups[dropped, dataset, name]),
                "dice": mean,
                "change": None if complete is None else mean - complete,
            }
        )
    return changes


def _ablation_lines(changes: list[Row]) -> Iterator[str]:
    columns = [
        ("without", "<"),
        ("data set", "<"),
        ("class", "<"),
        ("seeds", ">"),
        ("Dice %", ">"),
        ("change", ">"),
    ]
    rows = []
    for row in changes:
        change = "–" if row["change"] is None else f"{row['change']:+.1f}"
        what = [row["without"] or "(nothing)", row["dataset"], row["class"], row["seeds"]]
        rows.append([*what, f"{row['dice']:.1f}", change])
    yield table(columns, rows)
