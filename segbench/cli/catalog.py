"""``segbench list`` and ``segbench describe``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from segbench.api.catalog import is_family, plugins, protocols, summary_of, title_of
from segbench.api.plugin_titles import paper_address
from segbench.cli.options import Command
from segbench.cli.settings import Settings
from segbench.cli.terminal import table, wrapped
from segbench.errors import SegbenchError, UsageError, unknown
from segbench.text import safe

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from segbench.registry import Entry

DATASET_FACTS = (
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
HEADINGS = {  # of the lists: what it is, and where it comes from
    "methods": ("name", "what it does", "paper", "origin"),
    "datasets": ("name", "what", "origin"),
    "backbones": ("name", "what", "origin"),
    "protocols": ("name", "what", "version"),
}
KINDS = tuple(HEADINGS)
TYPES: dict[type, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


# -- list ------------------------------------------------------------------------------------------


@click.command("list", cls=Command)
@click.argument("kind", metavar="methods|datasets|backbones|protocols", required=False)
@click.option(
    "--matrix", is_flag=True, help="Show which methods run on which backbones, and why not."
)
@click.pass_obj
def list_command(settings: Settings, kind: str | None, matrix: bool) -> None:
    """List what is available.

    A plug-in of yours that cannot be imported is listed with its error, and a built-in one with
    the library that is missing. Built-in plug-ins are not imported for the list.

    \b
    segbench list methods
    segbench list datasets --json
    segbench list --matrix
    """
    if matrix:
        _show_matrix(settings)
        return
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    found = {}
    for wanted in [kind] if kind else KINDS:
        found[wanted] = protocols() if wanted == "protocols" else plugins(wanted[:-1])
    settings.show({"status": "ok", **found}, _list_lines(found))


def _list_lines(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for kind, rows in found.items():
        columns = [(heading, "<") for heading in HEADINGS[kind]]
        is_methods = kind == "methods"
        cells = []
        for row in rows:
            texts = [row["summary"], row["title"]] if is_methods else [row["title"]]
            if row["error"]:
                texts = [row["error"], ""][: len(texts)]
            cells.append([row["name"], *texts, row["origin"].removeprefix("version ")])
        yield kind
        # Papers need a terminal that shows them beside a sentence.
        yield table(columns, cells, drop=("paper",), wrap=HEADINGS[kind][1:2]) + "\n"


def _show_matrix(settings: Settings) -> None:
    """Show which features each backbone is missing for each method."""
    backbones = _usable("backbone")
    missing = {}
    for method in _usable("method"):
        row = {}
        for backbone in backbones:
            row[backbone.name] = sorted(method.cls.needs - backbone.cls.provides)
        missing[method.name] = row
    columns = [("method", "<"), *((backbone.name, "<") for backbone in backbones)]
    cells = []
    for name, row in missing.items():
        texts = [f"no {', '.join(features)}" if features else "yes" for features in row.values()]
        cells.append([name, *texts])
    settings.show({"status": "ok", "missing": missing}, [table(columns, cells)])


def _usable(kind: str) -> list[Entry]:
    """Return the plug-ins of a kind that can be imported."""
    from segbench import registry

    names = [row["name"] for row in plugins(kind) if not row["error"]]
    return [registry.get(kind, name) for name in names]


# -- describe --------------------------------------------------------------------------------------


@click.command(cls=Command)
@click.argument("kind", metavar="method|dataset|backbone|protocol")
@click.argument("name", metavar="NAME")
@click.option(
    "--protocol",
    metavar="NAME|FILE",
    default="default",
    show_default=True,
    help="Protocol whose patch the cost of a backbone is given for.",
)
@click.pass_obj
def describe(settings: Settings, kind: str, name: str, protocol: str) -> None:
    """Show the parameters, the source and other facts of a plug-in, and the cost of a backbone.

    \b
    segbench describe method versemi
    segbench describe dataset la
    segbench describe backbone timm:resnet18 --protocol acdc
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
    elif kind == "method":
        _describe_method(settings, entry)
    else:
        _describe_backbone(settings, entry, protocol)


def _describe_protocol(settings: Settings, name: str) -> None:
    from segbench.config import dump_yaml, load_protocol

    try:
        protocol = load_protocol(name)
    except UsageError:
        raise
    except SegbenchError as error:
        raise UsageError(error.what, **error.details) from error  # type: ignore[arg-type]
    content = protocol.model_dump(mode="json")
    summary = protocol.expected.summary()
    document = {"status": "ok", "kind": "protocol", "summary": summary, **content}
    lines = [f"# {line}" for line in wrapped(summary, indent="")]
    settings.show(document, [*lines, dump_yaml(content).removesuffix("\n")])


def _describe_dataset(settings: Settings, entry: Entry) -> None:
    dataset = entry.cls
    facts: dict[str, Any] = {name: getattr(dataset, name) for name in DATASET_FACTS}
    if not dataset.members and not dataset.family:
        split = dataset().split()
        facts["train"] = len(split.train)
        facts["test"] = len(split.test)
        facts["split"] = split.source
    facts["files"] = dataset.files
    facts["file"] = str(entry.file)
    lines = []
    for name, value in facts.items():
        if value in ("", ()):
            continue
        texts = [safe(part) for part in value] if isinstance(value, tuple) else [safe(value)]
        label = name
        for text in texts:
            lines += wrapped(f"{label:<11} {text}", 12 * " ")
            label = ""
    document = {"status": "ok", "kind": "dataset", "name": entry.name, **facts}
    settings.show(document, lines)


def _describe_method(settings: Settings, entry: Entry) -> None:
    document = _plugin_document(entry, "needs", sorted(entry.cls.needs))
    lines = _plugin_lines(entry, "needs of the backbone", document["needs"])
    example = f"\nexample: segbench run {entry.name} --dataset phantom"
    parameters = document["parameters"]
    if parameters:
        example += f" -o {parameters[0]['name']}={parameters[0]['default']}"
    settings.show(document, [*lines, example])


def _describe_backbone(settings: Settings, entry: Entry, protocol: str) -> None:
    document = _plugin_document(entry, "provides", sorted(entry.cls.provides))
    lines = _plugin_lines(entry, "provides", document["provides"])
    if is_family(entry):
        document["variants"] = list(entry.cls.variants)
        names = [f"{entry.name}:{variant}" for variant in entry.cls.variants]
        lines.append(f"\na family: {', '.join(names)}, ...")
    else:
        document |= _costs(entry, protocol)
        lines += _cost_lines(document)
    settings.show(document, lines)


def _plugin_document(entry: Entry, features_key: str, features: list[str]) -> dict[str, Any]:
    return {
        "status": "ok",
        "kind": entry.kind,
        "name": entry.name,
        "paper": entry.paper,
        "address": paper_address(documented(entry)),
        "summary": summary_of(entry),
        "file": str(entry.file),
        features_key: features,
        "parameters": parameters(entry.cls.Params),
    }


def _plugin_lines(entry: Entry, features_title: str, features: list[str]) -> list[str]:
    columns = [("parameter", "<"), ("default", "<"), ("values", "<"), ("meaning", "<")]
    rows = []
    for row in parameters(entry.cls.Params):
        values = ", ".join(part for part in (row["type"], row["range"]) if part)
        rows.append((row["name"], row["default"], values, row["meaning"]))
    lines = []
    address = paper_address(documented(entry))
    for fact in (f"{entry.name}: {title_of(entry)}", summary_of(entry), address):
        lines += wrapped(fact) if fact else []
    return [
        *lines,
        safe(entry.file),
        f"{features_title}: {', '.join(features) or 'nothing special'}\n",
        table(columns, rows, wrap=("meaning", "values")),
    ]


def documented(entry: Entry) -> str:
    """Return the documentation of the file in which a plug-in is defined."""
    return sys.modules[entry.cls.__module__].__doc__ or ""


def parameters(model: type[BaseModel]) -> list[dict[str, str]]:
    """Return name, type, default, range and meaning of each parameter of a pydantic model."""
    rows = []
    for name, field in model.model_fields.items():
        rows.append(
            {
                "name": name,
                "type": _type_name(field.annotation),
                "default": _value_text(field.default),
                "range": ", ".join(_bounds(field)),
                "meaning": field.description or "",
            }
        )
    return rows


def _type_name(annotation: Any) -> str:
    """Return a type as one writes its values behind ``-o``."""
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "list"
    if isinstance(annotation, type):
        return TYPES.get(annotation, annotation.__name__)
    return str(annotation).replace("typing.", "")


def _value_text(value: Any) -> str:
    """Return a default as one writes it behind ``-o``."""
    if value == ():
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _bounds(field: FieldInfo) -> list[str]:
    bounds = []
    for limit in field.metadata:
        for attribute, sign in BOUNDS.items():
            if hasattr(limit, attribute):
                bounds.append(f"{sign} {getattr(limit, attribute)}")
    return bounds


# -- the cost of a backbone ------------------------------------------------------------------------


def _costs(entry: Entry, protocol_name: str) -> dict[str, Any]:
    """Return the cost of a network for one channel and two classes at a protocol's patch.

    If the patch does not fit, the document says why under ``unfit``.
    """
    from segbench.config import load_protocol
    from segbench.nn.inspect import cost, dry_run, receptive_field

    protocol = load_protocol(protocol_name)
    backbone = entry.cls
    is_default = protocol.backbone.name == entry.name
    params = backbone.Params(**(protocol.backbone.params if is_default else {}))
    dims = len(protocol.patch)
    try:
        backbone.check_patch(params, protocol.patch)
        network = backbone(params, 1, dims, (2,))
        dry_run(network, 1, protocol.patch)
    except UsageError as error:
        why = f"{error.what}: {error.details['found']}; {error.details['fix']}"
        return {"costs": None, "unfit": why}
    found = cost(network, 1, protocol.patch)
    narrow = backbone(_narrowest(params), 1, dims, (2,))  # with the same receptive field
    field = receptive_field(narrow, 1, dims)
    return {
        "costs": {
            "protocol": protocol.name,
            "patch": list(protocol.patch),
            "multiple": list(backbone.multiple(params, dims)),
            "parameters": found.parameters,
            "flops": found.flops,
            "activation_bytes": found.activation_bytes,
            "receptive_field": list(field) if field else None,
        }
    }


def _narrowest(params: BaseModel) -> BaseModel:
    """Return backbone parameters with the smallest width that is allowed."""
    width = type(params).model_fields.get("width")
    for limit in width.metadata if width else ():
        if hasattr(limit, "ge"):
            return params.model_copy(update={"width": limit.ge})
    return params


def _cost_lines(document: dict[str, Any]) -> Iterator[str]:
    costs = document["costs"]
    if costs is None:
        yield f"\n{safe(document['unfit'])}"
        return
    field = "up to the whole patch: attention, or a very large field"
    if costs["receptive_field"]:
        field = f"{_by(costs['receptive_field'])} voxels from one voxel of the bottleneck"
    activations = f"{costs['activation_bytes'] / 2**20:.0f} MiB"
    yield (
        f"\nat patch {_by(costs['patch'])} (protocol {costs['protocol']}), "
        "one image of one channel, two classes"
    )
    facts = {
        "parameters": f"{costs['parameters'] / 1e6:.2f} M",
        "FLOPs forward": f"{costs['flops'] / 1e9:.1f} G",
        "activations": f"{activations} kept for the backward pass (less with --recompute)",
        "sees": field,
        "patches": f"multiples of {_by(costs['multiple'])}",
    }
    for name, text in facts.items():
        yield f"  {name:<14}{text}"


def _by(edges: list[int]) -> str:
    """Return the edges of a box, such as 16x16x8."""
    return "x".join(map(str, edges))
