"""The templates of all pages; a browser fetches nothing for them.

Every name is text of unknown origin: the templates escape all of it, and a page's policy lets a
single script run, which is identified by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import time
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from segbench import __version__
from segbench.results.export import effect_text, number
from segbench.text import safe

TABLES = ("sort.js",)  # the scripts of a page with tables
SEARCH = ("sort.js", "search.js")  # of a page with a field for searching, too


def rendered(template: str, scripts: tuple[str, ...] = TABLES, **values: Any) -> str:
    """Return a page.

    Args:
        template: name of the template, which extends ``base.html``.
        scripts: names of the scripts.
        values: what the template shows.
    """
    script = "".join(_file(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            version=__version__,
            made=time.strftime("%Y-%m-%d %H:%M"),
            policy=policy,
            style=Markup(_file("style.css")),
            script=Markup(script),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.filters["number"] = _signed
    environment.filters["p"] = _p_text
    environment.filters["effect"] = effect_text
    return environment


def _file(name: str) -> str:
    return (resources.files("segbench") / "report" / "templates" / name).read_text(encoding="utf-8")


def _finalize(value: object) -> object:
    """Return text without control characters, its line breaks kept; leave markup as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join(safe(line) for line in value.split("\n"))


def _signed(value: float | None, digits: int, plus: bool = False) -> str:
    """Return a number with a true minus sign.

    Args:
        plus: show the plus sign, too.
    """
    text = number(value, digits)
    if text.startswith("-"):
        return text.replace("-", "−")
    return f"+{text}" if plus and text != "–" else text


def _p_text(p: float) -> str:
    if p != p:
        return ""
    return "p <0.001" if p < 0.001 else f"p {p:.3f}"
