"""``segbench new``: files to start from, each of which works as it is."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import click

from segbench.cli.options import Group
from segbench.cli.settings import Settings
from segbench.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """What is written for a kind, by the pattern of the file's name, and what to type then."""

    templates: dict[str, str]
    next_steps: tuple[str, ...]


KINDS = {
    "method": Kind(
        {"NAME.py": "method.py.txt", "test_NAME.py": "test_method.py.txt"},
        (
            "segbench test FILE",
            "segbench run NAME --plugin FILE --dataset phantom",
        ),
    ),
    "dataset": Kind(
        {"NAME.py": "dataset.py.txt"},
        (
            "segbench test FILE",
            "segbench run supervised --plugin FILE --dataset NAME --steps 20",
        ),
    ),
    "backbone": Kind(
        {"NAME.py": "backbone.py.txt"},
        (
            "segbench test FILE",
            "segbench run supervised --plugin FILE --backbone NAME "
            "--dataset phantom2d_a --steps 20",
        ),
    ),
    "protocol": Kind(
        {"NAME.yaml": "protocol.yaml.txt"},
        ("segbench run supervised --dataset phantom --protocol FILE --dry-run",),
    ),
    "suite": Kind(
        {"NAME.yaml": "suite.yaml.txt"},
        ("segbench bench plan FILE", "segbench bench run FILE -j 2"),
    ),
}


@click.group("new", cls=Group)
def new() -> None:
    """Write a template to start from."""


def _arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments that all kinds share."""
    folder = click.option(
        "--to",
        "folder",
        metavar="DIR",
        default=".",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the files [here].",
    )
    return click.argument("name", metavar="NAME")(folder(click.pass_obj(command)))


@new.command("method")
@_arguments
def new_method(settings: Settings, name: str, folder: Path) -> None:
    """Write NAME.py, a method that can be trained as it is, and test_NAME.py.

    \b
    segbench new method mine
    segbench test mine.py
    segbench run mine --plugin mine.py --dataset phantom
    """
    _write(settings, "method", name, folder)


@new.command("dataset")
@_arguments
def new_dataset(settings: Settings, name: str, folder: Path) -> None:
    """Write NAME.py, a data set of synthetic cases with a place to read your files.

    A folder of images and labels in a usual layout needs no code: segbench data link.

    \b
    segbench new dataset mine
    segbench test mine.py
    segbench run supervised --plugin mine.py --dataset mine --steps 20
    """
    _write(settings, "dataset", name, folder)


@new.command("backbone")
@_arguments
def new_backbone(settings: Settings, name: str, folder: Path) -> None:
    """Write NAME.py, a small network of two scales that every method runs on.

    \b
    segbench new backbone mine
    segbench test mine.py
    segbench run supervised --plugin mine.py --backbone mine --dataset phantom2d_a --steps 20
    """
    _write(settings, "backbone", name, folder)


@new.command("protocol")
@_arguments
def new_protocol(settings: Settings, name: str, folder: Path) -> None:
    """Write NAME.yaml, a protocol with comments on its keys.

    \b
    segbench new protocol mine
    segbench run supervised --dataset phantom --protocol ./mine.yaml --dry-run
    """
    _write(settings, "protocol", name, folder)


@new.command("suite")
@_arguments
def new_suite(settings: Settings, name: str, folder: Path) -> None:
    """Write NAME.yaml, a suite of a few runs with comments on its keys.

    \b
    segbench new suite mine
    segbench bench plan ./mine.yaml
    segbench bench run ./mine.yaml -j 2
    """
    _write(settings, "suite", name, folder)


def _write(settings: Settings, kind: str, name: str, folder: Path) -> None:
    """Write the files of a kind and print what to type next."""
    from segbench.storage import atomic_write, make_folder

    class_name = "".join(part.capitalize() for part in name.split("_"))
    _check_name(kind, name, class_name)
    files = {}
    for pattern, template in KINDS[kind].templates.items():
        file = folder / pattern.replace("NAME", name)
        if file.exists():
            raise UsageError(
                "the file exists already", where=file, fix="choose another name or --to DIR"
            )
        files[file] = template
    make_folder(folder)
    for file, template in files.items():
        source = resources.files("segbench.cli") / "templates" / template
        text = source.read_text(encoding="utf-8")
        atomic_write(file, text.replace("NAME", name).replace("CLASS", class_name).encode())
    steps = _next_steps(kind, name, next(iter(files)))
    names = [str(file) for file in files]
    settings.show({"status": "done", "files": names, "next": steps})
    settings.say("\n".join([f"wrote {', '.join(names)}", *(f"next: {step}" for step in steps)]))


def _next_steps(kind: str, name: str, file: Path) -> list[str]:
    typed = str(file)
    if file.suffix == ".yaml" and not file.is_absolute() and len(file.parts) == 1:
        typed = f"./{file}"  # a bare word would be taken as a name
    typed = shlex.quote(typed)
    steps = KINDS[kind].next_steps
    return [step.replace("FILE", typed).replace("NAME", name) for step in steps]


def _check_name(kind: str, name: str, class_name: str) -> None:
    """Refuse names that cannot be those of a new plug-in or file."""
    is_lower_snake_case = re.fullmatch(r"[a-z][a-z0-9_]{1,39}", name)
    if not is_lower_snake_case or keyword.iskeyword(name) or keyword.iskeyword(class_name):
        raise UsageError(
            f"'{name}' cannot be the name of a {kind}",
            expected="lower_snake_case that starts with a letter and is not a Python keyword",
            fix="choose another name",
        )
    if name in _taken(kind):
        raise UsageError(f"a {kind} '{name}' exists already", fix="choose another name")


def _taken(kind: str) -> list[str]:
    """Return the names of a kind that are in use; suites are given as files, so none is."""
    if kind == "protocol":
        from segbench.config import protocol_names

        return list(protocol_names())
    if kind == "suite":
        return []
    from segbench import registry

    return registry.names(kind)
