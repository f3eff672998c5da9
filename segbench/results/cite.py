"""BibTeX of what runs used.

A plug-in's citation is read from its module's docstring, whose second paragraph begins
``Authors: Title, Venue 2020, arXiv:...``. Without such a paragraph, the paper named in its
decorator or its attributes is cited as it stands.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any

from segbench import __version__, registry
from segbench.errors import IntegrityError, SegbenchError
from segbench.results.rundir import RunDir
from segbench.text import safe

ARTICLE = re.compile(
    r"(?P<authors>[^:.]+): (?P<title>.+?), (?P<venue>[^,]*\b(?P<year>(?:19|20)\d\d)\b[^,]*?)"
    r"(?P<rest>(?:, [^.]*.*)?)$"
)
KINDS = ("method", "backbone", "dataset")  # in the order of the entries
SELF = {
    "title": "{segbench}: honest benchmarks for semi-supervised medical image segmentation",
    "author": "{The segbench developers}",
    "version": __version__,
}


def plugins(run: RunDir) -> list[tuple[str, str]]:
    """Return kind and name of the plug-ins that a run used.

    Raises:
        IntegrityError: its stored configuration does not name them.
    """
    science = run.config()["science"]
    try:
        found = [
            ("method", science["method"]),
            ("backbone", science["backbone"]),
            *(("dataset", d["name"]) for d in science["datasets"]),
        ]
        if all(isinstance(name, str) for _, name in found):
            return found
    except (KeyError, TypeError):
        pass
    raise IntegrityError(
        "the stored configuration is incomplete",
        where=run.path / "config.yaml",
        found="science",
        expected="names of method, backbone and data sets",
    )


def bibtex(runs: Iterable[RunDir]) -> str:
    """Return entries for segbench and for the plug-ins of the runs."""
    used = {plugin for run in runs for plugin in plugins(run)}
    entries = [_entry("software", "segbench", SELF)]
    for kind in KINDS:
        names = sorted(name for used_kind, name in used if used_kind == kind)
        entries += [_plugin_entry(kind, name) for name in names]
    return "\n\n".join(dict.fromkeys(entries)) + "\n"


def _plugin_entry(kind: str, name: str) -> str:
    try:
        entry = registry.get(kind, name)
    except SegbenchError:
        return f"% {safe(kind)} {safe(name)} is not installed here"
    cls = entry.cls
    if kind == "dataset":
        fields = {"title": cls.title, "note": cls.citation, "url": cls.homepage}
        return _entry("misc", entry.name, fields)
    module = sys.modules.get(cls.__module__)
    text = inspect.cleandoc(getattr(module, "__doc__", None) or "")
    title, _, rest = text.partition("\n\n")
    paragraph = " ".join(rest.partition("\n\n")[0].split())
    first_sentence = re.split(r"\. (?=[A-Z])", paragraph)[0]
    citation = ARTICLE.fullmatch(first_sentence.rstrip(".;"))
    if citation is None:
        first_line = title.splitlines()[0].rstrip(".") if title else entry.name
        return _entry("misc", entry.name, {"title": first_line, "note": entry.paper})
    return _article(entry.name, citation)


def _article(name: str, citation: re.Match[str]) -> str:
    text = citation.string
    arxiv = re.search(r"arXiv:(\S+?)(?=[,;]|$)", text)
    doi = re.search(r"doi (\S+?)(?=[,;]|$)", text)
    authors = [author.strip() for author in citation["authors"].split(",")]
    fields = {
        "title": "{" + citation["title"] + "}",
        "author": " and ".join(authors),
        "journal": citation["venue"],
        "year": citation["year"],
        "eprint": arxiv[1] if arxiv else "",
        "archiveprefix": "arXiv" if arxiv else "",
        "doi": doi[1] if doi else "",
    }
    return _entry("article", f"{name}{citation['year']}", fields)


def _entry(kind: str, key: str, fields: dict[str, Any]) -> str:
    lines = [f"@{kind}{{{re.sub('[^A-Za-z0-9_:.-]', '', key)},"]
    for name, value in fields.items():
        if value:
            lines.append(f"  {name} = {{{_tex(str(value))}}},")
    return "\n".join([*lines, "}"])


def _tex(text: str) -> str:
    """Return text for a field, with TeX's special characters escaped.

    Braces that do not balance become parentheses.
    """
    depth = 0
    lowest = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        lowest = min(lowest, depth)
    if depth or lowest:
        text = text.translate({ord("{"): "(", ord("}"): ")"})
    return "".join(map(_tex_character, safe(text)))


def _tex_character(character: str) -> str:
    if character == "\\":
        return r"\textbackslash{}"
    return f"\\{character}" if character in "&%$#_" else character
