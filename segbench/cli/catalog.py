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
@click.option(
    "--matrix", is_flag=True, help="Which method runs on which backbone, and what is lacking."
)
@click.pass_obj
def list_command(settings: Settings, kind: str | None, matrix: bool) -> None:
    """List what there is. A plug-in that cannot be imported is listed with its error.

    \b
    segbench list methods
    segbench list datasets --json
    segbench list --matrix
    """
    if matrix:
        _matrix(settings)
        return
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    wanted = [kind] if kind else list(KINDS)
    found = {k: _protocols() if k == "protocols" else _plugins(k[:-1]) for k in wanted}
    settings.document = {"status": "ok", **found}
    if not settings.json:
        for k, rows in found.items():
            click.echo(k)
            click.echo(
                table(
                    [("name", "<"), ("what", "<"), ("origin", "<")],
                    [(r["name"], r["error"] or r["title"], r["origin"]) for r in rows],
                )
                + "\n"
            )


def _matrix(settings: Settings) -> None:
    from segbench import registry

    def usable(kind: str) -> list[Entry]:
        good = {row["name"] for row in _plugins(kind) if not row["error"]}
        return [registry.get(kind, name) for name in registry.names(kind) if name in good]

    networks = usable("backbone")
    lacking = {
        m.name: {b.name: sorted(m.cls.needs - b.cls.provides) for b in networks}
        for m in usable("method")
    }
    settings.document = {"status": "ok", "lacking": lacking}
    if not settings.json:
        click.echo(
            table(
                [("method", "<"), *((b.name, "<") for b in networks)],
                [
                    (
                        m,
                        *(
                            "no " + ", ".join(row[b.name]) if row[b.name] else "yes"
                            for b in networks
                        ),
                    )
                    for m, row in lacking.items()
                ],
            )
        )


def _plugins(kind: str) -> list[dict[str, Any]]:
    from segbench import registry

    rows = []
    for name in registry.names(kind):
        place = registry.place(kind, name)
        row = {
            "name": name,
            "title": "",
            "origin": place.origin,
            "file": str(place.file),
            "error": None,
        }
        try:
            entry = registry.get(kind, name)
            row["title"] = title(entry)
        except SegbenchError as error:
            row["error"] = f"unavailable: {error.what}"
        rows.append(row)
    return rows


def title(entry: Entry) -> str:
    """One line about a plug-in: a data set's title, a method's paper, or the first line of its documentation."""
    first = (
        inspect.getdoc(entry.cls) or inspect.getdoc(inspect.getmodule(entry.cls)) or ""
    ).partition("\n")[0]
    if _is_family(entry):
        return f"{first.rstrip('.')} ({', '.join(entry.cls.variants)})"
    return entry.cls.title if entry.kind == "dataset" else entry.paper or first


def _protocols() -> list[dict[str, Any]]:
    from segbench.config import load_protocol, protocol_names

    loaded = [load_protocol(name) for name in protocol_names()]
    return [
        {"name": p.name, "title": p.title, "origin": f"version {p.version}", "error": None}
        for p in loaded
    ]


@click.command(cls=Command)
@click.argument("kind", metavar="method|dataset|backbone|protocol")
@click.argument("name", metavar="NAME")
@click.option(
    "--protocol",
    metavar="NAME|FILE",
    default="default",
    show_default=True,
    help="Whose patch a backbone gets.",
)
@click.pass_obj
def describe(settings: Settings, kind: str, name: str, protocol: str) -> None:
    """Show a plug-in's parameters, source and facts; of a backbone also what it costs.

    \b
    segbench describe method versemi
    segbench describe dataset la
    segbench describe backbone timm:resnet18 --protocol phantom
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
    settings.document = {
        "status": "ok",
        "kind": kind,
        "name": entry.name,
        "paper": entry.paper,
        "file": str(entry.file),
        "needs" if kind == "method" else "provides": needs,
        "parameters": rows,
    }
    if kind == "backbone":
        settings.document |= (
            {"variants": list(entry.cls.variants)} if _is_family(entry) else _costs(entry, protocol)
        )
    if settings.json:
        return
    click.echo(f"{entry.name}: {safe(title(entry))}\n{safe(entry.file)}")
    click.echo(
        f"{'needs of the backbone' if kind == 'method' else 'provides'}: {', '.join(needs) or 'nothing special'}\n"
    )
    click.echo(
        table(
            [("parameter", "<"), ("type", "<"), ("default", "<"), ("range", "<"), ("meaning", "<")],
            [tuple(r.values()) for r in rows],
        )
    )
    if kind == "backbone":
        _show_costs(settings.document)
    if kind == "method":
        click.echo(
            f"\nexample: segbench run {entry.name} --dataset phantom"
            + (f" -o {rows[0]['name']}={rows[0]['default']}" if rows else "")
        )


def _is_family(entry: Entry) -> bool:
    return entry.kind == "backbone" and bool(entry.cls.variants) and ":" not in entry.name


def _costs(entry: Entry, protocol: str) -> dict[str, Any]:
    """Of a network for one channel and two classes at the protocol's patch, where that fits."""
    from segbench.config import load_protocol
    from segbench.nn.inspect import cost, dry_run, receptive_field

    chosen, cls = load_protocol(protocol), entry.cls
    p = cls.Params(**(chosen.backbone.params if chosen.backbone.name == entry.name else {}))
    dims = len(chosen.patch)
    try:
        cls.check_patch(p, chosen.patch)
        net = cls(p, 1, dims, (2,))
        dry_run(net, 1, chosen.patch)
    except UsageError as error:
        return {
            "costs": None,
            "unfit": f"{error.what}: {error.details['found']}; {error.details['fix']}",
        }
    found = cost(net, 1, chosen.patch)
    narrow = {
        k: m.ge
        for k, f in cls.Params.model_fields.items()
        if k == "width"
        for m in f.metadata
        if hasattr(m, "ge")
    }
    field = receptive_field(cls(p.model_copy(update=narrow), 1, dims, (2,)), 1, dims)
    return {
        "costs": {
            "protocol": chosen.name,
            "patch": list(chosen.patch),
            "multiple": list(cls.multiple(p, dims)),
            "parameters": found.parameters,
            "flops": found.flops,
            "activation_bytes": found.activation_bytes,
            "receptive_field": list(field) if field else None,
        }
    }


def _show_costs(document: dict[str, Any]) -> None:
    if document.get("variants"):
        click.echo(
            f"\na family: {', '.join(document['name'] + ':' + v for v in document['variants'])}, ..."
        )
    elif (costs := document["costs"]) is None:
        click.echo(f"\n{safe(document['unfit'])}")
    else:

        def by(edges: list[int]) -> str:
            return "x".join(map(str, edges))

        click.echo(
            f"\nat patch {by(costs['patch'])} (protocol {costs['protocol']}), one image of one channel, two classes"
        )
        for what, text in (
            ("parameters", f"{costs['parameters'] / 1e6:.2f} M"),
            ("FLOPs forward", f"{costs['flops'] / 1e9:.1f} G"),
            (
                "activations",
                f"{costs['activation_bytes'] / 2**20:.0f} MiB kept for going backward (--recompute: fewer)",
            ),
            (
                "sees",
                by(costs["receptive_field"]) + " voxels from one of the bottleneck"
                if costs["receptive_field"]
                else "up to all of the patch: attention, or a very large field",
            ),
            ("patches", f"multiples of {by(costs['multiple'])}"),
        ):
            click.echo(f"  {what:<14}{text}")


def parameters(model: Any) -> list[dict[str, str]]:
    """Name, type, default, range and meaning of each parameter of a pydantic model."""
    rows = []
    for name, info in model.model_fields.items():
        bounds = [
            f"{sign} {getattr(m, attr)}"
            for m in info.metadata
            for attr, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
            if hasattr(m, attr)
        ]
        kind = (
            info.annotation.__name__
            if isinstance(info.annotation, type)
            else str(info.annotation).replace("typing.", "")
        )
        rows.append(
            {
                "name": name,
                "type": kind,
                "default": str(info.default),
                "range": ", ".join(bounds),
                "meaning": info.description or "",
            }
        )
    return rows


def _describe_dataset(settings: Settings, entry: Entry) -> None:
    cls = entry.cls
    facts: dict[str, Any] = {
        k: getattr(cls, k)
        for k in (
            "title",
            "modality",
            "classes",
            "channels",
            "dims",
            "license",
            "citation",
            "homepage",
            "protocol",
            "labeled",
            "members",
        )
    }
    if not cls.members and not cls.family:
        split = cls().split()
        facts |= {"train": len(split.train), "test": len(split.test), "split": split.source}
    facts |= {"files": cls.files, "file": str(entry.file)}
    settings.document = {"status": "ok", "kind": "dataset", "name": entry.name, **facts}
    if not settings.json:
        for key, value in facts.items():
            if value not in ("", ()):
                text = (
                    "\n            ".join(map(safe, value))
                    if isinstance(value, tuple)
                    else safe(value)
                )
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
