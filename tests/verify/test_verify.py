"""verify-method on small repositories of the authors' layout: equal ones pass, others do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import standins

from segbench import registry
from segbench.cli.main import run
from segbench.config import load_protocol
from segbench.errors import PluginError, UsageError
from segbench.verify import load_description, ours, verify_method

# Narrower networks with instance normalization amplify rounding errors to the limit.
WIDTHS = {"sdcl": 4}
CHECKS = ["terms", "gradients", "weights", "schedule", "sampling", "window"]


@pytest.fixture
def narrow(monkeypatch):
    """Give ours the width of the stand-ins' networks."""
    usual = ours.published_experiment

    def narrowed(name, description):
        experiment = usual(name, description)
        params = {**experiment.backbone_params, "width": WIDTHS.get(name, 2)}
        return experiment.model_copy(update={"backbone_params": params})

    monkeypatch.setattr(ours, "published_experiment", narrowed)


def failed(found):
    return [(row.check, row.what) for row in found.failed]


@pytest.mark.parametrize(
    "method",
    [
        "ua_mt",
        pytest.param("sassnet", marks=pytest.mark.slow),  # two players
        pytest.param("bcp", marks=pytest.mark.slow),  # two training loops
    ],
)
def test_an_equal_repository_passes_and_stays_as_it_is(tmp_path, narrow, method):
    folder = standins.write(tmp_path, method, {})
    before = sorted(folder.rglob("*"))
    found = verify_method(method, folder)
    assert failed(found) == []
    assert list(dict.fromkeys(row.check for row in found.rows if row.check != "sampling")) == [
        check for check in CHECKS if check != "sampling"
    ]
    assert sum(row.check == "sampling" for row in found.rows) == 2, "batches and patches"
    assert {row.limit for row in found.rows if row.check in CHECKS[:3]} == {1e-10}
    assert sorted(folder.rglob("*")) == before, "nothing is written into the repository"


def test_a_script_for_slices(tmp_path, narrow):
    folder = standins.write(tmp_path, "mc_net_acdc", {})
    found = verify_method("mc_net", folder, dataset="acdc")
    assert failed(found) == []
    assert {row.check for row in found.rows} == {"terms", "gradients", "weights", "schedule"}


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (("p**10 / (p**10 + (1 - p) ** 10)", "p**9 / (p**9 + (1 - p) ** 9)"), {"terms"}),
        pytest.param(
            ("for k in range(4):", "for k in (0, 1, 3, 3):"), {"terms"}, marks=pytest.mark.slow
        ),
        pytest.param(
            ("iter_num // 150, 200.0", "iter_num // 150, 190.0"),
            {"schedule"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_changed_script_for_slices_is_found(tmp_path, narrow, change, checks):
    folder = standins.write(tmp_path, "mc_net_acdc", {"change": change})
    found = verify_method("mc_net", folder, dataset="acdc")
    assert checks <= {row.check for row in found.failed}


def test_a_script_with_another_network_and_window(tmp_path, narrow):
    folder = standins.write(tmp_path, "urpc", {})
    found = verify_method("urpc", folder)
    assert failed(found) == []
    assert {row.check for row in found.rows} == set(CHECKS)
    windows = [row.what for row in found.rows if row.check == "window"]
    assert [what.split(" ")[0] for what in windows] == ["strides", "labels"]


def test_a_script_with_two_losses_and_two_networks(tmp_path, narrow):
    folder = standins.write(tmp_path, "mcf", {})
    found = verify_method("mcf", folder)
    assert failed(found) == []
    terms = [row.what for row in found.rows if row.check == "terms"]
    assert terms[:2] == ["network, total", "network, supervised_1 + review_1 + pseudo_1"]


@pytest.mark.slow
def test_a_script_whose_second_loop_continues_the_first(tmp_path, narrow):
    """It has loaders of half batches, and goes on with both networks and both optimizers."""
    folder = standins.write(tmp_path, "sdcl", {})
    found = verify_method("sdcl", folder)
    assert failed(found) == []
    assert {row.check for row in found.rows} == {
        "terms",
        "gradients",
        "weights",
        "schedule",
        "window",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "change", "expected"),
    [
        ("urpc", ("torch.exp(-variance)", "torch.exp(-2 * variance)"), "network, consistency"),
        ("urpc", ("1.0 - iter_num / max", "1.0 - (iter_num + 1) / max"), "rate of network"),
        ("urpc", ("net(window)[0], 1", "net(window)[1], 1"), "labels that differ"),
        ("sdcl", ("(1, 0.5), different_u", "(1, 0.4), different_u"), "self_train: network, review"),
        ("sdcl", ('load(model2, optimizer2, "best_model_resnet.pth")', "pass"), "self_train: "),
        ("mcf", ("better[2:].detach() ** 10", "better[2:].detach() ** 9"), "network, total"),
        ("mcf", ("r_dice + 0.5 * r_mse", "r_dice + 0.4 * r_mse"), "network, supervised_2 + "),
        ("mcf", ("iter_num % 2500 == 0 and iter_num != 0", "iter_num % 2400 == 1"), "rate of"),
        ("mcf", ("torch.softmax(other(window), 1)", "torch.sigmoid(other(window))"), "labels that"),
    ],
)
def test_a_change_in_them_is_found(tmp_path, narrow, method, change, expected):
    folder = standins.write(tmp_path, method, {"change": change})
    found = verify_method(method, folder)
    assert any(row.what.startswith(expected) for row in found.failed)


def test_what_three_steps_do_not_show_is_found_too(tmp_path, narrow, capsys):
    changes = {
        "ramp": ("get_weight(iter_num // 150)", "get_weight(iter_num // 100)"),
        "stride": ("stride_xy=18", "stride_xy=16"),
        "pad": ("(edge - n) // 2 + 3", "(edge - n) // 2 + 1"),
    }
    folder = standins.write(tmp_path, "ua_mt", changes)
    code = run(["verify-method", "ua_mt", "--official", str(folder), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 7 and document["status"] == "error"
    different = [(row["check"], row["what"]) for row in document["rows"] if not row["passed"]]
    assert different == [
        ("schedule", "weight consistency_weight at 6,000 steps"),
        ("sampling", "patches that differ, of 12 with equal draws"),
        ("window", "strides 16, 16, 4"),
    ]


def test_another_weight_and_rate_are_found(tmp_path, narrow, capsys):
    changes = {
        "weight": ('"--consistency", type=float, default=0.1', '"--consistency", default=0.2'),
        "rate": ('"--base_lr", type=float, default=0.01', '"--base_lr", default=0.02'),
    }
    folder = standins.write(tmp_path, "ua_mt", changes)
    code = run(["verify-method", "ua_mt", "--official", str(folder), "--precision", "fp32"])
    printed = capsys.readouterr()
    assert code == 7 and "ua_mt and its authors' code differ" in printed.err
    lines = [line.split() for line in printed.out.splitlines() if line.endswith(("ok", "DIFFERS"))]
    different = {(line[0], line[1]) for line in lines if line[-1] == "DIFFERS"}
    assert {("terms", "network,"), ("weights", "all"), ("schedule", "rate")} <= different
    assert ("schedule", "threshold") not in different
    supervised = [line for line in lines if line[:3] == ["terms", "network,", "supervised"]]
    assert supervised, "terms have their names"


def test_a_script_that_fails_is_shown_with_its_line(tmp_path, narrow):
    changes = {"fault": ("optimizer.zero_grad()", "optimizer.no_such_name()")}
    folder = standins.write(tmp_path, "ua_mt", changes)
    with pytest.raises(PluginError, match="the authors' script failed") as error:
        verify_method("ua_mt", folder)
    text = (folder / "code/train_LA_meanteacher_certainty_unlabel.py").read_text()
    line = text[: text.index("no_such_name")].count("\n") + 1
    assert error.value.details["where"].endswith(f"certainty_unlabel.py:{line}")
    assert "no_such_name" in error.value.details["found"]


def test_a_missing_repository_and_an_undescribed_method_are_refused(tmp_path):
    with pytest.raises(UsageError, match="another layout") as error:
        verify_method("ua_mt", tmp_path)
    assert "git clone https://github.com/yulequan/UA-MT" in error.value.details["fix"]
    with pytest.raises(UsageError, match="is described for 'fixmatch'") as error:
        verify_method("fixmatch", tmp_path)
    assert "benchmarks/official/fixmatch.yaml" in error.value.details["fix"]
    with pytest.raises(UsageError, match="described for 'ua_mt' on 'acdc'") as error:
        verify_method("ua_mt", tmp_path, dataset="acdc")
    assert "mc_net_acdc" in error.value.details["expected"]


OFFICIAL = Path(__file__).resolve().parents[2] / "benchmarks" / "official"


@pytest.mark.parametrize("name", sorted(file.stem for file in OFFICIAL.glob("*.yaml")))
def test_descriptions_fit_the_methods(name):
    method = name.removesuffix("_acdc")
    description = load_description(method, "acdc" if method != name else "")
    side = ours.Ours(method, description)
    assert method in str(load_protocol(description.protocol).published.values())
    parameters = registry.get("method", method).cls.Params.model_fields
    assert len(side.plan) == len(description.parts)
    for part in description.parts:
        assert set(part.players) == set(side.method.players)
        assert set(part.weights.values()) <= set(parameters)
        for function in part.functions.values():
            assert callable(getattr(side.method, function))
        for layers in part.networks.values():
            for path in layers:
                side.method.get_submodule(path)
