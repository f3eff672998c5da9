"""BibTeX: a method that names its paper has an entry; text cannot break out of its field."""

import pytest

from segbench import registry
from segbench.results.cite import _entry, _plugin_entry


@pytest.mark.parametrize(
    "name",
    [
        "ad_mt",
        "bcp",
        "cps",
        "dtc",
        "fixmatch",
        "mc_net",
        "mean_teacher",
        "sassnet",
        "ss_net",
        "ua_mt",
        "uncl",
        "unimatch",
        "urpc",
        "versemi",
    ],
)
def test_methods_have_whole_entries(name):
    text = _plugin_entry("method", name)
    assert text.startswith("@article{") and text.count("{") == text.count("}")
    for field in ("title", "author", "journal", "year", "eprint"):
        assert f"  {field} = {{" in text
    paper = registry.get("method", name).paper
    assert paper.split(" ")[0] in text.split("author = {")[1], (
        "the first author is that of the decorator"
    )
    assert paper.split("20")[1][:2] in text


def test_unknown_plugin_entrys_are_a_comment():
    assert _plugin_entry("method", "no_such\nmethod").startswith("% method no_such\\nmethod")


def test_fields_are_escaped():
    text = _entry("misc", "k}{\n", {"title": r"50 % & \input{x} }", "note": "<b>\n"})
    assert text.splitlines() == [
        "@misc{k,",
        r"  title = {50 \% \& \textbackslash{}input(x) )},",
        r"  note = {<b>\textbackslash{}n},",
        "}",
    ]
    assert (
        _entry("misc", "k", {"title": "{VerSemi} a}{b"}).splitlines()[1]
        == "  title = {(VerSemi) a)(b},"
    )
