"""Write the generated parts of the documentation: the reference pages and README's tables.

    python docs/generate.py

The commands come from Click, the keys of protocols and suites from pydantic, the plug-ins from the
registry, the Python interface from its docstrings. A test runs this script and compares the files,
so they cannot go out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from segbench.benchmarks.results import in_short, tables

import segbench
from segbench import registry
from segbench.api.plugin_titles import paper_address
from segbench.cli.main import COMMANDS, cli
from segbench.config import load_protocol, protocol_names
from segbench.config.protocol import Protocol
from segbench.results.published import LEAKS, all_published, published_settings
from segbench.suites.suite import Matrix, Suite

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
MOST_LISTED_CLASSES = 4  # a table gives the number of more classes
NOTE = "<!-- Written by docs/generate.py; do not edit. -->"
TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}
HELPERS = ("dev", "fresh")  # data sets for choosing settings and for confirming results


# -- commands --------------------------------------------------------------------------------------


def command_page() -> str:
    """Return the reference of all commands."""
    lines = [NOTE, "", "# Commands", ""]
    with click.Context(cli, info_name="segbench") as context:
        lines += ["```text", cli.get_help(context), "```", ""]
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            lines += command_sections(command, f"segbench {name}", context)
    return "\n".join(lines)


def command_sections(command: click.Command, name: str, parent: click.Context) -> list[str]:
    """Return the help of a command and of the commands below it."""
    with click.Context(command, info_name=name, terminal_width=80, max_content_width=80) as context:
        lines = [f"## {name}", "", "```text", command.get_help(context), "```", ""]
        if isinstance(command, click.Group):
            for below in command.list_commands(context):
                found = command.get_command(context, below)
                assert found is not None
                lines += command_sections(found, f"{name} {below}", parent)
    return lines


# -- files -----------------------------------------------------------------------------------------


def protocol_page() -> str:
    """Return the keys of a protocol, and the protocols that come with segbench."""
    lines = [
        NOTE,
        "",
        "# Protocols",
        "",
        "A protocol is a YAML file that decides everything about a training but the method: steps, "
        "patches, batches, optimizer, augmentation, network and evaluation. Unknown keys and wrong "
        "values are refused with file, line and column. A changed value (`-o KEY=VALUE`) makes a "
        "*modified protocol*, whose results have a table of their own.",
        "",
        "## Built-in protocols",
        "",
        "| name | version | what | recipe of the authors of |",
        "|---|---:|---|---|",
    ]
    for name in protocol_names():
        protocol = load_protocol(name)
        methods = [f"`{method}`" for names in protocol.published.values() for method in names]
        recipe = ", ".join(methods) or "–"
        lines.append(f"| `{name}` | {protocol.version} | {protocol.title} | {recipe} |")
    lines += ["", "## Keys", "", *key_table(Protocol), ""]
    return "\n".join(lines)


def suite_page() -> str:
    """Return the keys of a suite."""
    lines = [
        NOTE,
        "",
        "# Suites",
        "",
        "A suite is a YAML file with `schema: 1` and a matrix of choices; every combination is a "
        "run. See [Run a suite](../how-to/run-a-suite.md).",
        "",
        "## Keys",
        "",
        *key_table(Suite),
        "",
        "## Keys of `matrix`",
        "",
        *key_table(Matrix),
        "",
    ]
    return "\n".join(lines)


def key_table(model: type[BaseModel]) -> list[str]:
    """Return a table of all keys, with those of inner models as ``outer.inner``."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return lines + [
        f"| `{key}` | {cell(kind)} | {cell(default)} | {cell(meaning)} |"
        for key, kind, default, meaning in keys(model)
    ]


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            yield from keys(annotation, f"{prefix}{name}.")
            continue
        default = "required"
        if not field.is_required():
            default = f"`{plain(field.get_default(call_default_factory=True))}`"
        yield f"{prefix}{name}", type_text(annotation), default, field.description or ""


def type_text(annotation: Any) -> str:
    """Return a type as a reader of YAML knows it."""
    origin = get_origin(annotation)
    parts = get_args(annotation)
    if origin is Annotated:
        return type_text(parts[0])
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " or ".join(type_text(part) for part in parts)
    if origin is tuple:
        return f"list of {type_text(parts[0])}"
    if origin is dict:
        return f"mapping of {type_text(parts[0])} to {type_text(parts[1])}"
    if annotation is NoneType:
        return "none"
    return "any value" if annotation is Any else TYPES[annotation]


def plain(value: Any) -> str:
    """Return a value as it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "":
        return "none"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(plain, value)) + "]"
    return str(value)


def cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


# -- plug-ins --------------------------------------------------------------------------------------


def built_in(kind: str) -> list[registry.Entry]:
    """Return the plug-ins of a kind that come with segbench, by name."""
    entries = [registry.get(kind, name) for name in registry.names(kind)]
    return [entry for entry in entries if entry.file.is_relative_to(ROOT)]


def shown_datasets() -> list[registry.Entry]:
    """Return the built-in data sets but groups and those that serve development."""
    return [
        entry
        for entry in built_in("dataset")
        if not entry.cls.members and not set(entry.name.split("_")) & set(HELPERS)
    ]


def documentation(entry: registry.Entry) -> str:
    """Return the documentation of the file in which a plug-in is defined."""
    return inspect.cleandoc(sys.modules[entry.cls.__module__].__doc__ or "")


def paper_link(entry: registry.Entry) -> str:
    """Return the paper of a plug-in, linked where its file names an arXiv number or a DOI."""
    address = paper_address(documentation(entry))
    return f"[{entry.paper}]({address})" if address else entry.paper


def short_method_table() -> list[str]:
    """Return the table of all methods without a description, for README."""
    lines = ["| method | paper |", "|---|---|"]
    for entry in built_in("method"):
        lines.append(f"| `{entry.name}` | {paper_link(entry)} |")
    return lines


def method_table() -> list[str]:
    """Return the table of all methods."""
    lines = ["| method | what it does | paper |", "|---|---|---|"]
    for entry in built_in("method"):
        lines.append(f"| `{entry.name}` | {summary(entry)} | {paper_link(entry)} |")
    return lines


def summary(entry: registry.Entry) -> str:
    """Return the first sentence of a class's documentation."""
    return inspect.cleandoc(entry.cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def dataset_table(synthetic: bool = True) -> list[str]:
    """Return the table of data sets."""
    lines = ["| data set | what | modality | classes |", "|---|---|---|---|"]
    for entry in shown_datasets():
        cls = entry.cls
        if cls.embedded and not synthetic:
            continue
        title = f"[{cls.title}]({cls.homepage})" if cls.homepage else cls.title
        classes = ", ".join(cls.classes) or "your own"
        if len(cls.classes) > MOST_LISTED_CLASSES:
            classes = f"{len(cls.classes)} classes"
        lines.append(f"| `{entry.name}` | {title} | {cls.modality or 'any'} | {classes} |")
    return lines


def backbone_table() -> list[str]:
    """Return the table of all backbones."""
    lines = ["| backbone | what |", "|---|---|"]
    lines += [f"| `{entry.name}` | {entry.paper} |" for entry in built_in("backbone")]
    return lines


def method_page() -> str:
    """Return the reference of all methods: documentation and parameters."""
    lines = [
        NOTE,
        "",
        "# Methods",
        "",
        "Each table compares the paper, the authors' code and this implementation.",
        "",
        *method_table(),
        "",
    ]
    for entry in built_in("method"):
        lines += [f"## {entry.name}", "", "```text", documentation(entry), "```", ""]
        if entry.cls.Params.model_fields:
            lines += ["Parameters (`-o NAME=VALUE`):", "", *key_table(entry.cls.Params), ""]
    return "\n".join(lines)


def plugin_page() -> str:
    """Return the reference of data sets and backbones."""
    lines = [NOTE, "", "# Data sets and backbones", "", "## Data sets", "", *dataset_table(), ""]
    for entry in shown_datasets():
        cls = entry.cls
        lines += [f"### {entry.name}", "", f"{cls.title}.", ""]
        if len(cls.classes) > MOST_LISTED_CLASSES:
            lines += [f"- Classes: {', '.join(cls.classes)}"]
        lines += [f"- License: {cls.license}" if cls.license else "- License: your own"]
        lines += [f"- To cite: {cls.citation}"] if cls.citation else []
        lines += [f"- Protocol: `{cls.protocol}`"] if cls.protocol else []
        lines += [f"- Files: {file}" for file in cls.files]
        lines += [""]
    lines += ["## Backbones", "", *backbone_table(), ""]
    for entry in built_in("backbone"):
        lines += [f"### {entry.name}", "", "```text", documentation(entry), "```", ""]
        lines += [*key_table(entry.cls.Params), ""] if entry.cls.Params.model_fields else []
    return "\n".join(lines)


def result_table() -> list[str]:
    """Return README's short table of the quick suite, and what the real volumes decide."""
    (study,) = tables.stored_studies("quick")
    real = in_short.better_on_real_volumes()
    return [*tables.short_table(study), *(["", real] if real else [])]


def leak_table() -> list[str]:
    """Return the table of published numbers with a known leak, by data set and source."""
    methods: dict[tuple[str, str, str, str], dict[str, None]] = {}
    for dataset, labeled in published_settings():
        for row in all_published(dataset, labeled):
            if row["leaks"]:
                leaks = "; ".join(LEAKS[leak] for leak in row["leaks"])
                place = (dataset, row["work"], row["url"], leaks)
                methods.setdefault(place, {})[row["method"]] = None
    lines = ["| data set | source | methods | known leak |", "|---|---|---|---|"]
    for (dataset, work, url, leaks), names in sorted(methods.items()):
        lines.append(f"| `{dataset}` | [{work}]({url}) | {', '.join(sorted(names))} | {leaks} |")
    return lines


# -- Python ----------------------------------------------------------------------------------------

FUNCTIONS = (
    "run",
    "load",
    "load_model",
    "evaluate",
    "leaderboard",
    "compare",
    "open_dataset",
    "list_methods",
    "list_datasets",
    "list_backbones",
    "list_protocols",
    "list_runs",
)
CLASSES = ("Run", "Model", "Evaluation", "Table")


def python_page() -> str:
    """Return the reference of the Python interface: signatures and docstrings."""
    lines = [
        NOTE,
        "",
        "# Python",
        "",
        "`import segbench` loads nothing heavy; torch is imported by the functions that need it. "
        "For a tour see [From Python](../how-to/python.md); what a plug-in imports is on the page "
        "on [plug-ins](../how-to/plug-ins.md).",
        "",
        "## Functions",
        "",
    ]
    for name in FUNCTIONS:
        function = getattr(segbench, name)
        lines += [f"### segbench.{name}", "", *docstring_block(name, function)]
    lines += ["## Classes", ""]
    for name in CLASSES:
        cls = getattr(segbench, name)
        lines += [f"### segbench.{name}", "", "```text", inspect.cleandoc(cls.__doc__), "```", ""]
        for member, value in vars(cls).items():
            if not member.startswith("_") and isinstance(value, property):
                lines += [f"#### {name}.{member}", "", "```text", inspect.getdoc(value), "```", ""]
            elif not member.startswith("_") and inspect.isfunction(value):
                lines += [f"#### {name}.{member}()", "", *docstring_block(member, value)]
    return "\n".join(lines)


def docstring_block(name: str, function: Any) -> list[str]:
    """Return the lines of a function's arguments and documentation."""
    arguments = []
    for argument in inspect.signature(function).parameters.values():
        shown = argument.replace(annotation=inspect.Parameter.empty)
        if inspect.isfunction(argument.default):
            shown = shown.replace(default=inspect.Parameter.empty)
        if argument.name != "self":
            arguments.append(str(shown))
    call = textwrap.fill(f"{name}({', '.join(arguments)})", width=96, subsequent_indent="    ")
    text = inspect.getdoc(function)
    return ["```text", call, "", text, "```", ""]


# -- output ----------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Return the text of each generated file."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    tables = {
        "methods": short_method_table(),
        "datasets": dataset_table(synthetic=False),
        "results": result_table(),
    }
    for name, table in tables.items():
        text = replaced(text, name, "\n".join(table))
    published = ROOT / "docs" / "explanation" / "published-numbers.md"
    published_text = published.read_text(encoding="utf-8")
    return {
        REFERENCE / "commands.md": command_page(),
        REFERENCE / "protocols.md": protocol_page(),
        REFERENCE / "suites.md": suite_page(),
        REFERENCE / "methods.md": method_page(),
        REFERENCE / "plug-ins.md": plugin_page(),
        REFERENCE / "python.md": python_page(),
        published: replaced(published_text, "leaks", "\n".join(leak_table())),
        readme: text,
    }


def replaced(text: str, name: str, content: str) -> str:
    """Replace what is between the marks ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no marks <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: found[1] + content + "\n" + found[2], text)


def main() -> None:
    """Write all generated files."""
    for file, text in pages().items():
        file.write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
