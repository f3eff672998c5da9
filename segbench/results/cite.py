"""BibTeX of what runs used.

A plug-in's citation is read from its module's docstring, whose second paragraph begins ``Authors: Title, Venue 2020,
arXiv:...``; where there is none, what its decorator or its attributes name is cited as it stands.
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
SELF = {
    "title": "{segbench}: honest benchmarks for semi-supervised medical image segmentation",
    "author": "{The segbench developers}",
    "version": __version__,
}


def plugins(run: RunDir) -> list[tuple[str, str]]:
    """Kind and name of the plug-ins that a run used.

    Raises:
        IntegrityError: its configuration does not tell.
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
    """Entries of the methods, backbones and data sets of the runs, and of segbench."""
    used = {plugin for run in runs for plugin in plugins(run)}
    entries = [_entry("software", "segbench", SELF)]
    for kind, name in sorted(
        used, key=lambda u: (("method", "backbone", "dataset").index(u[0]), u[1])
    ):
        entries.append(_plugin(kind, name))
    return "\n\n".join(dict.fromkeys(entries)) + "\n"


def _plugin(kind: str, name: str) -> str:
    try:
        entry = registry.get(kind, name)
    except SegbenchError:
        return f"% {safe(kind)} {safe(name)} is not installed here"
    cls = entry.cls
    if kind == "dataset":
        return _entry(
            "misc", entry.name, {"title": cls.title, "note": cls.citation, "url": cls.homepage}
        )
    text = inspect.cleandoc(getattr(sys.modules.get(cls.__module__), "__doc__", None) or "")
    title, _, rest = text.partition("\n\n")
    cited = re.split(r"\. (?=[A-Z])", " ".join(rest.partition("\n\n")[0].split()))[0].rstrip(".;")
    found = ARTICLE.fullmatch(cited)
    if found is None:
        return _entry(
            "misc",
            entry.name,
            {
                "title": title.splitlines()[0].rstrip(".") if title else entry.name,
                "note": entry.paper,
            },
        )
    arxiv, doi = (
        re.search(r"arXiv:(\S+?)(?=[,;]|$)", cited),
        re.search(r"doi (\S+?)(?=[,;]|$)", cited),
    )
    return _entry(
        "article",
        f"{entry.name}{found['year']}",
        {
            "title": "{" + found["title"] + "}",
            "author": " and ".join(a.strip() for a in found["authors"].split(",")),
            "journal": found["venue"],
            "year": found["year"],
            "eprint": arxiv[1] if arxiv else "",
            "archiveprefix": "arXiv" if arxiv else "",
            "doi": doi[1] if doi else "",
        },
    )


def _entry(kind: str, key: str, fields: dict[str, Any]) -> str:
    lines = [f"  {name} = {{{_tex(str(value))}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{re.sub('[^A-Za-z0-9_:.-]', '', key)},", *lines, "}"])


def _tex(text: str) -> str:
    """Text for a field, where TeX's special characters do nothing; braces that do not balance become parentheses."""
    depth, lowest = 0, 0
    for c in text:
        depth += (c == "{") - (c == "}")
        lowest = min(lowest, depth)
    if depth or lowest:
        text = text.translate({ord("{"): "(", ord("}"): ")"})
    return "".join(
        f"\\{c}" if c in "&%$#_" else r"\textbackslash{}" if c == "\\" else c for c in safe(text)
    )
