"""``segbench test`` and ``ablate``, for authors of plug-ins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import (
    Command,
    MachineOptions,
    ScienceOptions,
    machine_options,
    science_options,
)
from segbench.cli.settings import Settings
from segbench.cli.terminal import table
from segbench.errors import (
    PLUGIN_FAILURES,
    PluginError,
    SegbenchError,
    SuiteError,
    TrainingError,
    UsageError,
    unknown,
)
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.config import Experiment

Row = dict[str, Any]


# -- test ------------------------------------------------------------------------------------------


@click.command("test", cls=Command)
@click.argument("what", metavar="NAME|FILE")
@click.option("--kind", metavar="method|dataset|backbone", help="Kind of NAME [found by itself].")
@click.option(
    "--backbone",
    metavar="NAME",
    default="vnet",
    show_default=True,
    help="Network to test a method with.",
)
@click.option(
    "--from",
    "source",
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Files of a data set, to read some of its cases.",
)
@click.pass_obj
def test_command(
    settings: Settings, what: str, kind: str | None, backbone: str, source: Path | None
) -> None:
    """Check that a method, a data set or a backbone satisfies the contract.

    Among the checks of a method are finite terms, exact resume, determinism, gradients and hidden
    state, in 2-D and 3-D, with two and four classes. Of a data set the facts and the split are
    checked, and some cases if there are files. Of a backbone shapes, gradients, state and options
    are checked.

    \b
    segbench test ua_mt
    segbench test mine.py
    segbench test timm:resnet18 --kind backbone
    """
    import torch

    torch.set_num_threads(1)
    results: list[Row] = []
    plugins = _plugins_to_test(what, kind)
    for plugin_kind, name in plugins:
        prefix = f"{name}: " if len(plugins) > 1 else ""
        for description, check in _checks(plugin_kind, name, backbone, source):
            result = _run_check(settings, prefix + description, check)
            results.append({plugin_kind: name, **result})
    _report_checks(settings, plugins, results)


def _report_checks(settings: Settings, plugins: list[tuple[str, str]], results: list[Row]) -> None:
    failed = [result for result in results if not result["passed"]]
    names = ", ".join(name for _, name in plugins)
    document = {"status": "failed" if failed else "passed", "name": names, "checks": results}
    if failed:
        settings.document = document
        kinds = dict.fromkeys(kind for kind, _ in plugins)
        modules = ", ".join(f"segbench.contracts.{kind}" for kind in kinds)
        raise PluginError(
            f"{len(failed)} of {len(results)} checks failed: {names}",
            found="\n".join(f"{result['check']}: {result['found']}" for result in failed),
            expected=f"a {' or '.join(kinds)} that satisfies the contract",
            fix=f"see the documentation of {modules}",
        )
    settings.show(document, [f"{len(results)} checks passed: {names}"])


def _checks(
    kind: str, name: str, backbone: str, source: Path | None
) -> list[tuple[str, Callable[[], None]]]:
    """Return the checks of a plug-in."""
    from segbench import conformance
    from segbench.config.experiment import find_backbone

    if kind == "method":
        return conformance.trials(name, find_backbone(backbone)[0])
    if kind == "backbone":
        return conformance.backbone_trials(find_backbone(name)[0])
    _require_single(name)
    return conformance.dataset_trials(name, source)


def _require_single(name: str) -> None:
    """Refuse groups and families of data sets, which have no cases of their own."""
    from segbench import registry

    dataset_class = registry.get("dataset", name).cls
    if dataset_class.members:
        first = dataset_class.members[0]
        raise UsageError(f"'{name}' is a group of data sets", fix=f"segbench test {first}")
    if dataset_class.family:
        fix = f"segbench test {name}:PATH --kind dataset"
        raise UsageError(f"'{name}' stands for data sets of your own", fix=fix)


def _plugins_to_test(what: str, kind: str | None) -> list[tuple[str, str]]:
    """Return the kinds and names of what a file registers, or of a name.

    Raises:
        UsageError: there is no such plug-in, or there are several of different kinds.
    """
    from segbench import registry

    if kind is not None and kind not in registry.KINDS:
        raise unknown("kind", kind, registry.KINDS)
    if what.endswith(".py"):
        return _registered_in(Path(what), kind)
    if kind is not None:
        return [(kind, registry.get(kind, what).name)]
    family = what.partition(":")[0].replace("-", "_")
    kinds = [known for known in registry.KINDS if family in registry.names(known)]
    if len(kinds) > 1:
        raise UsageError(
            f"'{what}' is the name of a {' and of a '.join(kinds)}",
            fix=f"segbench test {what} --kind {kinds[0]}",
        )
    found_kind = kinds[0] if kinds else "method"
    return [(found_kind, registry.get(found_kind, what).name)]


def _registered_in(file: Path, kind: str | None) -> list[tuple[str, str]]:
    """Register a plug-in file and return the kinds and names of its plug-ins."""
    from segbench import registry

    registry.add_file(file)
    found = []
    for (plugin_kind, _), place in registry.catalog().items():
        if place.file.resolve() == file.resolve() and kind in (None, plugin_kind):
            found.append((plugin_kind, place.name))
    if not found:
        raise UsageError(
            f"the file registers no {kind or 'plug-in'}",
            where=file,
            expected=f'a class with @segbench.{kind or "method"}("NAME")',
        )
    return found


def _run_check(settings: Settings, description: str, check: Callable[[], None]) -> Row:
    """Run one check, report it and return its outcome."""
    started = time.monotonic()
    failure = ""
    try:
        check()
    except PLUGIN_FAILURES as error:
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

    if len(science.chosen_folds()) > 1:
        raise UsageError(
            "an ablation has one list of test cases",
            found=f"--fold {science.fold}",
            fix=f"segbench ablate {method} --fold 0",
        )
    machine = machine_of(settings, machine_options)
    base = experiments(settings, method, science)
    rows: list[Row] = []
    failed: list[str] = []
    terms = [None, *loss_terms(base[0])]
    count = len(terms) * len(base)
    number = 0
    for dropped in terms:
        for experiment in base:
            number += 1
            variant = experiment.model_copy(update={"without": (dropped,) if dropped else ()})
            try:
                run = prepare(variant, machine)
                place = f"run {number} of {count}: "
                document = execute_run(settings, run, machine, place=place)
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
    except PLUGIN_FAILURES as error:
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
