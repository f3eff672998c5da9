"""Results of older code are recognized."""

from pathlib import Path

from segbench.identity.engine import ENGINE
from segbench.identity.outdated import outdated_parts
from segbench.identity.sources import source_digest

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"


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


def test_a_second_backbone_is_named():
    sources = {
        "method": source_digest("method", "mcf"),
        "backbone": source_digest("backbone", "vnet"),
        "backbone resvnet": source_digest("backbone", "resvnet"),
    }
    assert outdated_parts(science(method="mcf", sources=sources)) == []
    old = sources | {"backbone resvnet": "0"}
    assert outdated_parts(science(method="mcf", sources=old)) == ["backbone resvnet"]


def test_the_identity_covers_every_backbone_that_is_built(lab):
    assert set(lab.prepared("mcf").science["sources"]) == {"method", "backbone", "backbone resvnet"}
    assert set(lab.prepared("supervised").science["sources"]) == {"method", "backbone"}


def test_a_plugin_that_is_gone_is_not_compared():
    assert outdated_parts(science(method="no_such_method")) == []


def test_the_leaderboard_names_outdated_results_and_how_to_train_again(lab, monkeypatch):
    plugin = PLUGINS / "tiny.py"
    protocol = PLUGINS / "tiny.yaml"
    words = ["supervised", "--dataset", "tiny", "--protocol", protocol, "--steps", "2"]
    trained = lab.call("--plugin", plugin, "run", *words)
    assert trained.returncode == 0, trained.stderr
    assert "outdated" not in lab.call("leaderboard").stderr
    monkeypatch.setattr("segbench.identity.outdated.ENGINE", ENGINE + 1)
    shown = lab.call("leaderboard").stderr
    assert f"engine {ENGINE}, now {ENGINE + 1}" in shown
    assert "segbench run supervised --dataset tiny --labeled 2" in shown
