"""Every method on every backbone has finite loss terms, predicts, and trains all parameters."""

from __future__ import annotations

import importlib

import pytest
import torch

from segbench import registry
from segbench.conformance import Trial, methods
from segbench.contracts.method import Setting, Source
from segbench.errors import UsageError
from segbench.training.build import network_factory

METHODS = registry.names("method")
FAST = ("unet3d", "timm:test_resnet", "monai:segresnet")  # vnet: tests/contract/test_methods.py
ALL = (
    "vnet",
    *FAST,
    "timm:test_convnext",
    "timm:test_vit",
    "timm:swin_s3_tiny_224",
    "monai:basic_unet",
    "monai:swin_unetr",
)


def check(method: str, backbone: str, dims: int) -> None:
    trial = Trial(method, backbone, dims=dims)
    methods.gradients(trial)  # every phase, every player
    methods.probabilities(trial)


@pytest.mark.parametrize("backbone", FAST)
@pytest.mark.parametrize("method", METHODS)
def test_flat(method, backbone):
    check(method, backbone, 2)


@pytest.mark.parametrize("backbone", FAST)
@pytest.mark.parametrize("method", ["urpc"])
def test_three_axes(method, backbone):
    check(method, backbone, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("backbone", ALL)
@pytest.mark.parametrize("method", METHODS)
def test_all(method, backbone, dims):
    trial = Trial(method, backbone, dims=dims)
    methods.finite_terms(trial)
    check(method, backbone, dims)


@pytest.mark.parametrize("backbone", FAST)
def test_a_run_can_be_stopped_and_repeated(backbone):
    trial = Trial("supervised", backbone, dims=2)
    methods.resume(trial)
    methods.hidden_state(trial)


def test_what_a_backbone_lacks_is_refused_with_its_name(monkeypatch):
    unet = registry.get("backbone", "unet3d").cls
    monkeypatch.setattr(unet, "provides", unet.provides - {"side_outputs"})
    setting = Setting((Source("set", ("organ",)),), 1, (16, 16))
    with pytest.raises(UsageError, match="side_outputs"):
        network_factory("unet3d", {}, setting, registry.get("method", "urpc").cls.needs)
    with pytest.raises(UsageError, match="'urpc' needs a backbone with side_outputs"):
        importlib.import_module("segbench.config").resolve(
            "urpc", dataset="phantom_ct_organ", backbone="unet3d"
        )


def test_a_second_architecture_is_built_by_its_name():
    setting = Setting((Source("set", ("organ",)),), 1, (16, 16))
    params = {"width": 4, "depth": 3, "norm": "instance", "dropout": 0.1, "residual": True}
    network = network_factory("vnet", params, setting, frozenset(), ("resvnet",))
    first = network()
    second = network(backbone="resvnet", heads=(3,))
    assert (type(first).name, type(second).name) == ("vnet", "resvnet")
    chosen = second.p.model_dump(exclude_defaults=True)
    assert chosen == {"width": 4, "depth": 3, "norm": "instance", "dropout": 0.1}
    assert second(torch.zeros(1, 1, 16, 16)).shape == (1, 3, 16, 16)
    with pytest.raises(UsageError, match="does not declare: 'unet3d'"):
        network(backbone="unet3d")
    same = network_factory("resvnet", {"width": 4}, setting, frozenset())
    with pytest.raises(UsageError, match="does not declare: 'vnet'"):
        same(backbone="vnet")


def test_a_second_architecture_must_offer_what_the_method_needs_and_fit_the_patch(monkeypatch):
    setting = Setting((Source("set", ("organ",)),), 1, (32, 32, 6))
    resvnet = registry.get("backbone", "resvnet").cls
    with pytest.raises(UsageError, match="the patch does not fit backbone 'resvnet'"):
        network_factory("unet3d", {"depth": 3, "flat": 2}, setting, frozenset(), ("resvnet",))
    with pytest.raises(
        UsageError, match=r"backbone.depth: expected int in .2, 5., got 6 .backbone resvnet"
    ):
        network_factory("unet3d", {"depth": 6, "flat": 5}, setting, frozenset(), ("resvnet",))
    setting = Setting((Source("set", ("organ",)),), 1, (16, 16))
    monkeypatch.setattr(resvnet, "provides", frozenset({"heads"}))
    with pytest.raises(UsageError, match="'resvnet' does not offer what the method needs"):
        network_factory("vnet", {}, setting, frozenset({"decoders"}), ("resvnet",))


def test_side_outputs_of_one_scale_are_refused():
    setting = Setting((Source("set", ("organ",)),), 1, (16, 16))
    network = network_factory("unet3d", {"width": 4, "depth": 2}, setting, frozenset())
    network()
    with pytest.raises(UsageError, match="at least two scales"):
        network(side_outputs=True)


@pytest.mark.parametrize(
    "backbone, patch, fix",
    [
        ("timm:test_resnet", (112, 112, 80), "patch=96x96x64, or -o backbone.depth=5"),
        ("timm:test_vit", (40, 48, 7), "patch=32x48x7"),
        ("unet3d", (32, 40), "patch=32x32, or -o backbone.depth=4"),
        ("monai:swin_unetr", (32, 32, 32), "patch=64x64x64"),
        ("monai:basic_unet", (16, 16), "patch=32x32"),
        ("monai:basic_unet", (20, 20), "patch=32x32"),
        ("monai:swin_unetr", (40, 40, 40), "patch=64x64x64"),
        ("unet3d", (20, 20, 20), "patch=32x32x32, or -o backbone.depth=3"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_with_one_that_does(backbone, patch, fix):
    cls, setting = (
        registry.get("backbone", backbone).cls,
        Setting((Source("set", ("organ",)),), 1, patch),
    )
    with pytest.raises(UsageError) as error:
        network_factory(backbone, {}, setting, frozenset())()
    assert error.value.details["fix"] == f"-o {fix}"
    fitting = tuple(map(int, fix.partition("=")[2].partition(",")[0].split("x")))
    small = {"width": 12} if "swin" in backbone else {"width": 4}
    network_factory(backbone, small, Setting(setting.sources, 1, fitting), frozenset())()
    if "depth" in fix:
        shallow = cls.Params(**small, depth=int(fix[-1]))
        cls.check_patch(shallow, patch)
        with torch.no_grad():
            assert (
                cls(shallow, 1, 2, (2,)).eval()(torch.zeros(1, 1, *patch[:2])).shape[2:]
                == patch[:2]
            )
