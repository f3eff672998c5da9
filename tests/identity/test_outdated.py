"""Results of older code are recognized."""

from segbench.identity.engine import ENGINE
from segbench.identity.outdated import outdated_parts
from segbench.identity.sources import source_digest


def science(**changes):
    content = {
        "engine": ENGINE,
        "method": "bcp",
        "backbone": "vnet",
        "sources": {
            "method": source_digest("method", "bcp"),
            "backbone": source_digest("backbone", "vnet"),
        },
    }
    content.update(changes)
    return content


def test_a_result_of_the_present_code_is_not_outdated():
    assert outdated_parts(science()) == []


def test_an_older_engine_and_older_plugins_are_named():
    old = science(engine=1, sources={"method": "0", "backbone": source_digest("backbone", "vnet")})
    assert outdated_parts(old) == [f"engine 1, now {ENGINE}", "method bcp"]


def test_a_plugin_that_is_gone_is_not_compared():
    assert outdated_parts(science(method="no_such_method")) == []
