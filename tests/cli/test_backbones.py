"""Backbones from the command line: the matrix, costs, families, computing activations again."""

import json
from pathlib import Path

import pytest

from segbench.registry import get, names

TINY = Path(__file__).resolve().parents[1] / "plugins" / "tiny.yaml"


def test_matrix(lab, monkeypatch):
    missing = json.loads(lab.call("list", "--matrix", "--json").stdout)["missing"]
    assert set(missing) == set(names("method")) and {"vnet", "unet3d", "timm", "monai"} <= set(
        missing["urpc"]
    )
    assert not any(
        missing[method][b] for method in missing for b in ("vnet", "unet3d", "timm", "monai")
    )
    monkeypatch.setattr(get("backbone", "unet3d").cls, "provides", frozenset({"features"}))
    shown = {line.split()[0]: line for line in lab.call("list", "--matrix").stdout.splitlines()}
    assert (
        "no heads" in shown["sassnet"]
        and "yes" in shown["sassnet"]
        and "no" not in shown["ss_net"].split()
    )


def test_costs_are_described(lab):
    costs = json.loads(
        lab.call("describe", "backbone", "vnet", "--protocol", "la", "--json").stdout
    )["costs"]
    assert (
        costs["parameters"] == 9_448_866
        and costs["multiple"] == [16, 16, 16]
        and costs["receptive_field"] == [194] * 3
    )
    assert (
        costs["patch"] == [112, 112, 80]
        and costs["flops"] > 1e9
        and costs["activation_bytes"] > 112 * 112 * 80 * 16 * 4
    )
    assert "MiB kept" in lab.call("describe", "backbone", "unet3d", "--protocol", "la-mini").stdout
    unfit = lab.call("describe", "backbone", "timm:test_resnet", "--protocol", "la").stdout
    assert "-o patch=96x96x64, or -o backbone.depth=5" in unfit
    unfit = lab.call("describe", "backbone", "monai:swin_unetr", "--protocol", "phantom").stdout
    assert "-o patch=64x64x64" in unfit
    assert "timm:resnet18" in lab.call("describe", "backbone", "timm").stdout


@pytest.mark.parametrize("name", ["regnety_002", "cspdarknet53", "fastvit_t8"])
def test_costs_of_any_family(lab, name):
    found = lab.call("describe", "backbone", f"timm:{name}", "--protocol", "acdc", "--json")
    assert found.returncode == 0 and json.loads(found.stdout)["costs"]["flops"] > 1e8, found.stderr


@pytest.mark.parametrize(
    "more, says",
    [
        (("urpc", "--backbone", "unet3d", "-o", "backbone.depth=2"), "-o backbone.depth=3"),
        (
            ("supervised", "--backbone", "monai:swin_unetr", "-o", "patch=32x32x32"),
            "too small",
        ),
        (
            (
                "supervised",
                "--backbone",
                "vnet",
                "-o",
                "backbone.norm=instance",
                "-o",
                "patch=8x8x8",
                "-o",
                "inference.stride=8x8x8",
            ),
            "-o patch=16x16x16",
        ),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(lab, more, says):
    for dry in (("--dry-run",), ()):
        refused = lab.call("run", more[0], "--dataset", "phantom_ct_organ", *more[1:], *dry)
        assert refused.returncode == 2 and says in refused.stderr, refused.stderr
        assert not (lab.folder / "segbench-out").exists()


@pytest.mark.parametrize(
    "backbone, says",
    [
        ("timm", "--backbone timm:resnet18"),
        ("timm:resnt34", "Did you mean 'resnet34'?"),
        ("vnet:large", "has no variants"),
        ("monai:dynunet", "monai:basic_unet"),
        ("timm:resnet18", "-o backbone.depth=5"),
    ],
)
def test_refusals_come_before_anything_is_done(lab, backbone, says):
    patch = ("-o", "patch=48x48x48", "-o", "inference.stride=16x16x16")
    refused = lab.call(
        "run", "supervised", "--dataset", "phantom_ct_organ", "--backbone", backbone, *patch
    )
    assert (
        refused.returncode == 2
        and says in refused.stderr
        and not (lab.folder / "segbench-out").exists()
    )


def test_recomputing_changes_no_number(lab):
    weights = []
    for extra in ((), ("--recompute",)):
        run = json.loads(
            lab.call(
                "run",
                "mean_teacher",
                "--dataset",
                "tiny",
                "--protocol",
                TINY,
                "--backbone",
                "timm:test_resnet",
                "-o",
                "backbone.width=4",
                "-o",
                "backbone.depth=3",
                "--restart",
                *extra,
                "--json",
            ).stdout
        )
        result = json.loads((lab.folder / run["dir"] / "result.json").read_text())
        weights.append((run["run_id"], result["weights_sha256"], result["backbone"]))
    assert weights[0] == weights[1] and weights[0][2] == "timm:test_resnet"
