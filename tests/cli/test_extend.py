"""From scaffold to leaderboard, as a user outside the repository does it; ablation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
ON_TINY = ("--dataset", "tiny", "--protocol", PLUGINS / "tiny.yaml")


def test_scaffold_to_leaderboard(lab):
    assert lab.call("new", "method", "my_method").returncode == 0
    again = lab.call("new", "method", "my_method")
    assert again.returncode == 2 and "exists" in again.stderr
    tested = lab.cli("test", "my_method.py", "--json")
    document = json.loads(tested.stdout)
    assert (
        tested.returncode == 0 and document["status"] == "passed" and len(document["checks"]) > 10
    ), tested.stderr
    assert (
        lab.cli(
            "run", "my_method", "--plugin", "my_method.py", *ON_TINY, "-o", "threshold=0.8"
        ).returncode
        == 0
    )
    assert "my_method[threshold=0.8]" in lab.cli("leaderboard").stdout
    own = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "test_my_method.py",
            "-k",
            "documented or untouched",
        ],
        cwd=lab.folder,
        capture_output=True,
        text=True,
        check=False,
        env={**__import__("os").environ, "PYTHONPATH": str(PLUGINS.parents[1])},
    )
    assert own.returncode == 0 and "2 passed" in own.stdout, own.stdout


def test_failing_checks_are_reported(lab):
    (lab.folder / "bad.py").write_text('''
from segbench import Method, method

@method("bad")
class Bad(Method):
    """Predicts nothing."""
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        return {"nothing": self.network(batch.x).mean()}
    def predict(self, image, source=0):
        return self.network(image)
''')
    result = lab.cli("test", "bad.py", "--json")
    document = json.loads(result.stdout)
    assert result.returncode == 7 and "probabilities" in document["found"]
    assert "FAIL" in result.stderr and "Traceback" not in result.stderr


def test_names_that_cannot_be(lab):
    for name, says in (("Mine", "lower_snake_case"), ("supervised", "already")):
        result = lab.call("new", "method", name)
        assert result.returncode == 2 and says in result.stderr


def test_wrong_words_are_usage_errors_and_not_broken_checks(lab):
    wrong = lab.call("test", "ua_mt", "--backbone", "vnett")
    assert wrong.returncode == 2 and wrong.stderr.count("vnett") == 1 and "'vnet'" in wrong.stderr
    no_method = lab.call("test", str(PLUGINS / "tiny.py"), "--kind", "method")
    assert no_method.returncode == 2 and "registers no method" in no_method.stderr
    assert lab.call("test", "ua_mt", "--kind", "methd").returncode == 2
    (lab.folder / "file").write_text("")
    nowhere = lab.call("new", "method", "zz", "--to", str(lab.folder / "file" / "x"))
    assert nowhere.returncode == 9 and "cannot write" in nowhere.stderr


@pytest.mark.parametrize("name", ["none", "class", "Mine", "m", "ua_mt"])
def test_a_name_that_no_method_can_have_is_refused(lab, name):
    assert lab.call("new", "method", name).returncode == 2 and not list(lab.folder.glob("*.py"))


def test_every_method_of_a_file_is_tested(lab, monkeypatch):
    from segbench import conformance

    monkeypatch.setattr(
        conformance, "trials", lambda name, backbone: [("it is there", lambda: None)]
    )
    text = """
from segbench import Method, method

@method("pair_{0}")
class Of{0}(Method):
    pass
"""
    (lab.folder / "pair.py").write_text(text.format("one") + text.format("two"))
    checks = json.loads(lab.call("test", str(lab.folder / "pair.py"), "--json").stdout)["checks"]
    assert [check["method"] for check in checks] == ["pair_one", "pair_two"]


def test_ablation_takes_the_terms_of_the_parameters(lab):
    from segbench.cli.extend import loss_terms

    both, first = (
        lab.prepared("versemi", overrides=change).experiment for change in ([], ["stages=1"])
    )
    assert "consistency" in loss_terms(both) and "consistency" not in loss_terms(first)


def test_ablation_reports_a_variant_that_fails_and_continues(lab):
    (lab.folder / "half.py").write_text("""
import torch
from segbench import Method, method

@method("half")
class Half(Method):
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        return {"learned": self.network(batch.x).square().mean(), "fixed": torch.zeros(())}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
""")
    result = lab.call("--plugin", str(lab.folder / "half.py"), "ablate", "half", *ON_TINY, "--json")
    document = json.loads(result.stdout)
    assert result.returncode == 5 and "without learned, seed 0" in result.stderr
    assert document["code"] == 5 and [r["without"] for r in document["rows"]] == [None, "fixed"]


def test_a_class_that_the_whole_method_has_no_dice_of_has_no_change():
    from segbench.cli.extend import changes_in_dice

    rows = [
        {"without": w, "dataset": "d", "class": c, "dice": 1.0}
        for w, c in ((None, "a"), ("term", "a"), ("term", "b"))
    ]
    assert [r["change"] for r in changes_in_dice(rows)] == [0, 0, None]


def test_ablation_tabulates_each_term(lab):
    result = lab.call("ablate", "mean_teacher", *ON_TINY, "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [r["without"] for r in rows] == [None, "supervised", "consistency"], result.stderr
    assert rows[0]["change"] == 0 and rows[1]["dice"] != rows[0]["dice"]
    board = lab.call("leaderboard").stdout
    assert "mean_teacher without consistency" in board
