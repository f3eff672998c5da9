"""``segbench protocol``: plan a protocol for a data set, and write it as a file to change."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.options import Command, Group, device_option
from segbench.cli.settings import Settings
from segbench.errors import UsageError
from segbench.text import safe

if TYPE_CHECKING:
    from segbench.data.store.store import Store

GIB = 2**30


@click.group("protocol", cls=Group)
def protocol() -> None:
    """Plan a protocol for a data set."""


@protocol.command("new", cls=Command)
@click.option("--dataset", metavar="NAME", required=True, help="A prepared data set.")
@click.option(
    "-o",
    "--out",
    "file",
    metavar="FILE.yaml",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; without it, the protocol is printed.",
)
@device_option
@click.option(
    "--memory",
    metavar="GIB",
    type=click.FloatRange(min=1),
    help="Plan for a GPU with this memory, which need not be in this machine.",
)
@click.option(
    "--store",
    "keep",
    is_flag=True,
    help="Make it the protocol of all runs of the data set that name none.",
)
@click.pass_obj
def new_protocol(
    settings: Settings,
    dataset: str,
    file: Path | None,
    device: str | None,
    memory: float | None,
    keep: bool,
) -> None:
    """Write a protocol that is planned from a data set and a device.

    Every value is written with its reason. `segbench run METHOD --dataset NAME` plans in the same
    way if neither it nor the data set names a protocol, and keeps the plan beside the prepared
    data. Where such a plan exists, this command writes a copy of it, unless a device or a memory is
    given. A file of yours is a protocol of its own: name it with --protocol.

    \b
    segbench protocol new --dataset mine
    segbench protocol new --dataset mine -o mine.yaml
    segbench protocol new --dataset mine --device cuda --memory 24 -o mine.yaml
    segbench run mean_teacher --dataset mine --protocol mine.yaml
    """
    from segbench.data.open import open_store
    from segbench.training.planned import keep_plan

    if file is not None:
        _require_new_name(file)
    store = open_store(dataset, settings.data_root)
    stored = None if device or memory or keep else _stored_text(store)
    if stored is None:
        plan = _plan(settings, store, device, memory)
        text = plan.text(file.stem if file else "")
        title = plan.title
        if keep:
            kept = keep_plan(store, plan).file
            settings.say(f"stored as the protocol of {safe(store.name)}: {safe(kept)}")
    else:
        text = _renamed(stored, file.stem) if file else stored
        title = "a copy of the plan of the data set"
    _report(settings, store, file, text, title)


def _plan(settings: Settings, store: Store, device: str | None, memory: float | None) -> Any:
    from segbench.training.planned import device_to_plan_for, plan_of
    from segbench.training.setup import device_of

    size = None if memory is None else int(memory * GIB)
    if size is not None:
        return plan_of(store, device_to_plan_for("cuda", size))
    chosen = device or settings.machine.device
    # A GPU that is not here is missed by its memory, not by its driver.
    if not chosen.startswith("cuda"):
        chosen = device_of(chosen)
    target = device_to_plan_for(chosen)
    return plan_of(store, target, chosen if target.kind == "gpu" else "")


def _stored_text(store: Store) -> str | None:
    """Return the text of the plan that runs of the data set use, None if there is none yet."""
    from segbench.training.planned import find_plan

    found = find_plan(store)
    return None if found is None else found.file.read_text(encoding="utf-8")


def _renamed(text: str, name: str) -> str:
    return re.sub(r"(?m)^name: .*$", f"name: {name}", text, count=1)


def _require_new_name(file: Path) -> None:
    """Refuse a file that exists, or whose name no protocol can have.

    Raises:
        UsageError: it is one of these.
    """
    from segbench.config.protocol import protocol_names

    fix = "choose another name, such as -o mine_2.yaml"
    if file.suffix not in (".yaml", ".yml") or not re.fullmatch(r"[\w-]+", file.stem):
        raise UsageError(
            "-o: a protocol is a .yaml file whose name is the protocol's",
            found=str(file),
            expected="letters, digits, - and _, then .yaml",
            fix="-o mine.yaml",
        )
    if file.exists():
        raise UsageError("the file exists already", where=file, fix=fix)
    if file.stem in protocol_names():
        raise UsageError(f"'{file.stem}' is the name of another protocol", where=file, fix=fix)


def _report(settings: Settings, store: Store, file: Path | None, text: str, title: str) -> None:
    from segbench.storage import atomic_write

    document = {
        "schema": "segbench.protocol.new/1",
        "status": "ok",
        "dataset": store.name,
        "title": title,
        "file": None if file is None else str(file),
        "text": text,
    }
    if file is None:
        settings.show(document, [text.rstrip("\n")])
        return
    atomic_write(file, text.encode())
    settings.show(
        document,
        [
            safe(f"wrote {file}: {title}"),
            safe(f"next: segbench run METHOD --dataset {store.name} --protocol {file}"),
        ],
    )
