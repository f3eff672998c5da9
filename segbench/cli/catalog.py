"""``segbench list`` and ``segbench describe``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from segbench.cli.common import Command, Settings, safe, table
from segbench.errors import SegbenchError, UsageError, unknown

if TYPE_CHECKING:
    from segbench.registry import Entry

KINDS = ("methods", "datasets", "backbones", "protocols")


@click.command("list", cls=Command)
@click.argument("kind", metavar="methods|datasets|backbones|protocols", required=False)
@click.pass_obj
def list_command(settings: Settings, kind: str | None) -> None:
    """List what there is. A plug-in that cannot be imported is listed with its error.

    \b
    segbench list methods
    segbench list datasets --json
    """
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    wanted = [kind] if kind else list(KINDS)
    found = {k: _protocols() if k == "protocols" else _plugins(k[:-1]) for k in wanted}
    settings.document = {"status": "ok", **found}
    if not settings.json:
        for k, rows in found.items():
            click.echo(k)
            click.echo(table([("name", "<"), ("what", "<"), ("origin", "<")],
                             [(r["name"], r["error"] or r["title"], r["origin"]) for r in rows]) + "\n")


def _plugins(kind: str) -> list[dict[str, Any]]:
    from segbench import registry
    rows = []
    for name in registry.names(kind):
        place = registry.place(kind, name)
        row = {"name": name, "title": "", "origin": place.origin, "file": str(place.file), "error": None}
        try:
            entry = registry.get(kind, name)
            row["title"] = title(entry)
        except SegbenchError as error:
            row["error"] = f"unavailable: {error.what}"
        rows.append(row)
    return rows


def title(entry: Entry) -> str:
    """One line about a plug-in: a data set's title, a method's paper, or the first line of its documentation."""
    first = (inspect.getdoc(entry.cls) or inspect.getdoc(inspect.getmodule(entry.cls)) or "").partition("\n")[0]
    return entry.cls.title if entry.kind == "dataset" else entry.paper or first


def _protocols() -> list[dict[str, Any]]:
    from segbench.config import load_protocol, protocol_names
    loaded = [load_protocol(name) for name in protocol_names()]
    return [{"name": p.name, "title": p.title, "origin": f"version {p.version}", "error": None} for p in loaded]


@click.command(cls=Command)
@click.argument("kind", metavar="method|dataset|backbone|protocol")
@click.argument("name", metavar="NAME")
@click.pass_obj
def describe(settings: Settings, kind: str, name: str) -> None:
    """Show a plug-in's parameters, source and facts.

    \b
    segbench describe method versemi
    segbench describe dataset la
    """
    from segbench import registry
    if kind == "protocol":
        _describe_protocol(settings, name)
        return
    if kind not in registry.KINDS:
        raise unknown("kind", kind, (*registry.KINDS, "protocol"))
    entry = registry.get(kind, name)
    if kind == "dataset":
        _describe_dataset(settings, entry)
        return
    rows = parameters(entry.cls.Params)
    needs = sorted(entry.cls.needs) if kind == "method" else sorted(entry.cls.provides)
    settings.document = {"status": "ok", "kind": kind, "name": entry.name, "paper": entry.paper, "file": str(entry.file),
                         "needs" if kind == "method" else "provides": needs, "parameters": rows}
    if settings.json:
        return
    click.echo(f"{entry.name}: {safe(title(entry))}\n{safe(entry.file)}")
    click.echo(f"{'needs of the backbone' if kind == 'method' else 'provides'}: {', '.join(needs) or 'nothing special'}\n")
    click.echo(table([("parameter", "<"), ("type", "<"), ("default", "<"), ("range", "<"), ("meaning", "<")],
                     [tuple(r.values()) for r in rows]))
    if kind == "method":
        click.echo(f"\nexample: segbench run {entry.name} --dataset phantom"
                   + (f" -o {rows[0]['name']}={rows[0]['default']}" if rows else ""))


def parameters(model: Any) -> list[dict[str, str]]:
    """Name, type, default, range and meaning of each parameter of a pydantic model."""
    rows = []
    for name, info in model.model_fields.items():
        bounds = [f"{sign} {getattr(m, attr)}" for m in info.metadata
                  for attr, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")) if hasattr(m, attr)]
        kind = info.annotation.__name__ if isinstance(info.annotation, type) else str(info.annotation).replace("typing.", "")
        rows.append({"name": name, "type": kind, "default": str(info.default), "range": ", ".join(bounds),
                     "meaning": info.description or ""})
    return rows


def _describe_dataset(settings: Settings, entry: Entry) -> None:
    cls = entry.cls
    facts: dict[str, Any] = {k: getattr(cls, k) for k in ("title", "modality", "classes", "channels", "dims", "licence",
                                                          "citation", "homepage", "protocol", "labeled", "members")}
    if not cls.members and not cls.family:
        split = cls().split()
        facts |= {"train": len(split.train), "test": len(split.test), "split": split.source}
    facts |= {"files": cls.files, "file": str(entry.file)}
    settings.document = {"status": "ok", "kind": "dataset", "name": entry.name, **facts}
    if not settings.json:
        for key, value in facts.items():
            if value not in ("", ()):
                text = "\n            ".join(map(safe, value)) if isinstance(value, tuple) else safe(value)
                click.echo(f"{key:<11} {text}")


def _describe_protocol(settings: Settings, name: str) -> None:
    from segbench.config import dump_yaml, load_protocol
    try:
        content = load_protocol(name).model_dump(mode="json")
    except SegbenchError as error:
        raise error if isinstance(error, UsageError) else UsageError(error.what) from error
    settings.document = {"status": "ok", "kind": "protocol", **content}
    if not settings.json:
        click.echo(dump_yaml(content), nl=False)
