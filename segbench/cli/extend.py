"""``segbench new``, ``test`` and ``ablate``: for those who write methods."""

from __future__ import annotations

import keyword
import re
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Command, Group, Settings, safe, table
from segbench.cli.run import _execute, experiments, machine_of, machine_options, science_options
from segbench.errors import PluginError, SegbenchError, SuiteError, TrainingError, UsageError

if TYPE_CHECKING:
    from segbench.config import Experiment


@click.group("new", cls=Group)
def new() -> None:
    """Write a scaffold to start from."""


@new.command("method")
@click.argument("name", metavar="NAME")
@click.option(
    "--to",
    "folder",
    metavar="DIR",
    default=".",
    type=click.Path(file_okay=False),
    help="Where [here].",
)
@click.pass_obj
def new_method(settings: Settings, name: str, folder: str) -> None:
    """Write NAME.py, a method that runs as it is, and test_NAME.py.

    \b
    segbench new method mine
    segbench test mine.py
    segbench run mine --plugin mine.py --dataset phantom
    """
    from segbench import registry
    from segbench.storage import atomic_write, make_folder

    title = "".join(part.capitalize() for part in name.split("_"))
    if (
        not re.fullmatch(r"[a-z][a-z0-9_]{1,39}", name)
        or keyword.iskeyword(name)
        or keyword.iskeyword(title)
    ):
        raise UsageError(
            f"'{name}' cannot be the name of a method",
            expected="lower_snake_case, a letter first, no word of Python's own",
        )
    if name in registry.names("method"):
        raise UsageError(
            f"there is a method '{name}' already",
            where=registry.catalog()["method", name].file,
            fix="choose another name",
        )
    files = {
        Path(folder) / f"{name}.py": "method.py.txt",
        Path(folder) / f"test_{name}.py": "test_method.py.txt",
    }
    for file in files:
        if file.exists():
            raise UsageError("the file exists", where=file, fix="choose another name or --to DIR")
    for file, template in files.items():
        text = (resources.files("segbench.cli") / "templates" / template).read_text(
            encoding="utf-8"
        )
        make_folder(file.parent)
        atomic_write(file, text.replace("NAME", name).replace("CLASS", title).encode())
    settings.document = {"status": "done", "files": [str(f) for f in files]}
    settings.say(
        f"wrote {', '.join(map(str, files))}\nnext: segbench test {Path(folder) / name}.py"
    )


@click.command("test", cls=Command)
@click.argument("what", metavar="NAME|FILE")
@click.option(
    "--backbone", metavar="NAME", default="vnet", show_default=True, help="Network to test with."
)
@click.pass_obj
def test_command(settings: Settings, what: str, backbone: str) -> None:
    """Check that a method keeps to the contract.

    Finite terms, exact resume, determinism, gradients, no hidden state; 2-D and 3-D, two and four classes.

    \b
    segbench test ua_mt
    segbench test mine.py
    """
    import torch

    from segbench import registry
    from segbench.config.experiment import find_backbone
    from segbench.conformance import trials

    torch.set_num_threads(1)
    names = _in_file(Path(what)) if what.endswith(".py") else [registry.get("method", what).name]
    backbone, _ = find_backbone(backbone)
    results = [
        {"method": name, **_check(settings, f"{f'{name}: ' * (len(names) > 1)}{text}", check)}
        for name in names
        for text, check in trials(name, backbone)
    ]
    failed, told = [r for r in results if not r["passed"]], ", ".join(names)
    settings.document = {
        "status": "failed" if failed else "passed",
        "method": told,
        "checks": results,
    }
    if failed:
        raise PluginError(
            f"{len(failed)} of {len(results)} checks failed: {told}",
            found="\n".join(f"{r['check']}: {r['found']}" for r in failed),
            fix="segbench.contracts.method documents what a method may do",
        )
    if not settings.json:
        click.echo(f"{len(results)} checks passed: {told}")


def _in_file(file: Path) -> list[str]:
    """The methods a file registers."""
    from segbench import registry

    registry.add_file(file)
    names = [
        found.name
        for (kind, _), found in registry.catalog().items()
        if kind == "method" and found.file.resolve() == file.resolve()
    ]
    if not names:
        raise UsageError(
            "the file registers no method",
            where=file,
            expected='a class with @segbench.method("NAME")',
        )
    return names


def _check(settings: Settings, what: str, check: Any) -> dict[str, Any]:
    began, found = time.monotonic(), ""
    try:
        check()
    except Exception as error:  # whatever a plug-in raises is its result
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, AssertionError):
            found = f"{type(error).__name__}: {found}"
    seconds = time.monotonic() - began
    settings.say(
        f"{'FAIL' if found else 'ok':<5} {what}{f': {safe(found)}' if found else ''}  ({seconds:.1f} s)"
    )
    return {"check": what, "passed": not found, "found": found, "seconds": round(seconds, 2)}


@click.command(cls=Command)
@click.argument("method", metavar="METHOD")
@science_options
@machine_options
@click.pass_obj
def ablate(
    settings: Settings,
    method: str,
    save_every: str | None,
    device: str | None,
    workers: int | None,
    **science: Any,
) -> None:
    """Re-run METHOD without each of its loss terms in turn and tabulate the difference in Dice.

    What does not train without a term is told, and the rest goes on (exit 5).

    \b
    segbench ablate mean_teacher --dataset phantom_ct_organ
    """
    from segbench.training.setup import prepare

    machine = machine_of(settings, save_every, device, workers)
    base = experiments(settings, method, **science)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for dropped in [None, *_terms(base[0])]:
        for experiment in base:
            chosen = experiment.model_copy(update={"without": (dropped,) if dropped else ()})
            try:
                result = _execute(settings, prepare(chosen, machine), machine)
            except TrainingError as error:
                if not dropped:
                    raise
                failed.append(f"without {dropped}, seed {experiment.seed}: {error.what}")
                continue
            rows += [
                {"without": dropped, "dataset": dataset, "class": c, "dice": 100 * m["dice"]}
                for dataset, classes in result["metrics"].items()
                for c, m in classes.items()
                if m["dice"] is not None
            ]
    settings.document = {"status": "done", "method": method, "rows": _differences(rows)}
    if not settings.json:
        columns = [
            ("without", "<"),
            ("data set", "<"),
            ("class", "<"),
            ("seeds", ">"),
            ("Dice %", ">"),
            ("change", ">"),
        ]
        click.echo(
            table(
                columns,
                [
                    (
                        r["without"] or "(nothing)",
                        r["dataset"],
                        r["class"],
                        r["seeds"],
                        f"{r['dice']:.1f}",
                        "–" if r["change"] is None else f"{r['change']:+.1f}",
                    )
                    for r in settings.document["rows"]
                ],
            )
        )
    if failed:
        raise SuiteError(f"{len(failed)} of the runs failed", found="\n".join(failed))


def _terms(experiment: Experiment) -> list[str]:
    """The loss terms of an experiment's method, in order, found by a few steps on noise."""
    from segbench.conformance import Drill, Trial

    method = experiment.method
    trial = Trial(
        method, experiment.backbone, dims=len(experiment.protocol.patch), settings=experiment.params
    )
    try:
        drill = Drill(trial).run()
        return list(dict.fromkeys(term for update in drill.updates for term in update.terms))
    except SegbenchError:
        raise
    except Exception as error:  # a plug-in may fail in any way
        raise TrainingError(
            f"{method} failed: {type(error).__name__}: {error}",
            where="a trial of its loss terms",
            fix=f"segbench test {method} may say why",
        ) from error


def _differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds, and their difference from the whole method's, where that has one."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault((row["without"], row["dataset"], row["class"]), []).append(row["dice"])
    mean = {key: sum(values) / len(values) for key, values in groups.items()}
    return [
        {
            "without": dropped,
            "dataset": dataset,
            "class": c,
            "seeds": len(groups[dropped, dataset, c]),
            "dice": value,
            "change": None if (whole := mean.get((None, dataset, c))) is None else value - whole,
        }
        for (dropped, dataset, c), value in mean.items()
    ]
