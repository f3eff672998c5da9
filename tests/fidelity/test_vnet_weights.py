"""Published V-Net weights: their key names, and loading them under every naming in use."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from segbench.errors import IntegrityError

vnet = importlib.import_module("segbench.backbones.vnet")
VNet, load_published, published_names = vnet.VNet, vnet.load_published, vnet.published_names
MC_NET = ("transposed", "trilinear", "nearest")


def build(
    heads: tuple[int, ...] = (2,), decoders: tuple[str, ...] = ("transposed",), **params: object
):
    torch.manual_seed(0)
    return VNet(VNet.Params(**params), 1, 3, heads, decoders)


@pytest.mark.parametrize("decoders, entries", [(MC_NET[:1], 205), (MC_NET[:2], 298), (MC_NET, 391)])
def test_state_entries(decoders, entries):
    assert len(build((2,), decoders).state_dict()) == entries


def test_published_names():
    names = published_names(build((1, 1)))
    assert len(names) == 207
    assert set(names.values()) > {
        "block_one.conv.0.weight",
        "block_one.conv.1.num_batches_tracked",
        "block_five.conv.6.bias",
        "out_conv.bias",
        "block_four_dw.conv.1.running_var",
        "block_eight_up.conv.0.weight",
        "block_nine.conv.1.weight",
        "out_conv2.weight",
    }
    names = set(published_names(build((2,), MC_NET)).values())
    assert names > {
        "encoder.block_five.conv.7.bias",
        "decoder1.block_five_up.conv.0.weight",
        "decoder1.block_five_up.conv.1.weight",
        "decoder2.block_five_up.conv.1.weight",
        "decoder3.block_eight_up.conv.2.running_mean",
        "decoder3.out_conv.weight",
    }
    net = build()
    shapes = {name: net.state_dict()[key].shape for key, name in published_names(net).items()}
    assert shapes["block_one_dw.conv.0.weight"] == (32, 16, 2, 2, 2)
    assert shapes["block_five_up.conv.0.weight"] == (256, 128, 2, 2, 2)
    assert shapes["out_conv.weight"] == (2, 16, 1, 1, 1)


def flat(net) -> dict[str, Tensor]:
    return {name: net.state_dict()[key] for key, name in published_names(net).items()}


def prefixed(net) -> dict[str, Tensor]:
    return {
        key.replace("decoders.0.", "decoder."): value for key, value in net.state_dict().items()
    }


EXTRA = {
    "projection_head.0.weight": torch.zeros(32, 16),
    "prediction_head.3.bias": torch.zeros(32),
    "contrastive_class_selector_0.1.running_mean": torch.zeros(32),
    "contrastive_class_selector_memory1.3.weight": torch.zeros(1, 32),
}
NAMINGS = {
    "flat": flat,
    "module": lambda net: {f"module.{k}": v for k, v in flat(net).items()},
    "prefixed": lambda net: {**prefixed(net), **EXTRA},
    "module and prefixed": lambda net: {
        f"module.{k}": v for k, v in {**prefixed(net), **EXTRA}.items()
    },
    "numbered": lambda net: {
        k.replace("decoder.", "decoder1."): v for k, v in prefixed(net).items()
    },
    "old": lambda net: {
        k: v for k, v in flat(net).items() if not k.endswith("num_batches_tracked")
    },
    "wrapped": lambda net: {"net": flat(net), "opt": {}, "epoch": 1},
}


def random_net(**variant):
    net = build(width=2, **variant).eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.copy_(
                torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else torch.tensor(7)
            )
    return net


@pytest.mark.parametrize("heads", [(2,), (1, 1)])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_published_naming_loads(naming, heads):
    source, net = random_net(heads=heads), build(heads, width=2).eval()
    load_published(net, NAMINGS[naming](source))
    for key, value in net.state_dict().items():
        expected = (
            0
            if naming == "old" and key.endswith("num_batches_tracked")
            else source.state_dict()[key]
        )
        assert torch.equal(value, torch.as_tensor(expected)), key


@pytest.mark.parametrize("decoders", [MC_NET[:2], MC_NET])
def test_several_decoders_load(decoders):
    source, net = random_net(decoders=decoders), build((2,), decoders, width=2)
    load_published(net, flat(source))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("head", ["branchs.0.1.", "branchs.0.2."])
def test_pancreas_branch_loads(head):
    source, net = random_net(norm="instance"), build(width=2, norm="instance")
    state = {
        "module." + k.replace("block_nine.", "branchs.0.0.").replace("out_conv.", head): v
        for k, v in flat(source).items()
    }
    assert "module.branchs.0.0.conv.0.weight" in state
    load_published(net, state)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda s: s.pop("block_six.conv.3.weight"), "no decoders.0.block_six.conv.3.weight"),
        (
            lambda s: s.pop("block_one.conv.1.running_var"),
            "no encoder.block_one.conv.1.running_var",
        ),
        (
            lambda s: s.update({"block_ten.conv.0.weight": s["out_conv.bias"]}),
            "unexpected block_ten.conv.0.weight",
        ),
        (lambda s: s.update({"out_conv2.bias": s["out_conv.bias"]}), "unexpected out_conv2.bias"),
        (
            lambda s: s.update({"decoder2.out_conv.bias": s["out_conv.bias"]}),
            "unexpected decoder2.out_conv.bias",
        ),
        (lambda s: s.update({"out_conv.bias": torch.zeros(3)}), "another shape of out_conv.bias"),
    ],
)
def test_other_differences_are_named_and_nothing_is_loaded(change, named):
    net = build(width=2)
    state, before = flat(random_net()), {k: v.clone() for k, v in net.state_dict().items()}
    change(state)
    with pytest.raises(IntegrityError) as error:
        load_published(net, state)
    assert named in error.value.details["found"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
