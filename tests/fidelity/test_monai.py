"""MONAI's networks, split into encoder and decoder, give the results of MONAI's own forward."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet, SegResNet, SwinUNETR
from torch import nn

from segbench.errors import UsageError
from segbench.registry import get

NETWORKS = {
    "segresnet": (lambda dims: SegResNet(dims, 8, 2, 3), {"width": 8}, "conv_final"),
    "basic_unet": (
        lambda dims: BasicUNet(dims, 2, 3, (4, 4, 8, 16, 32, 4)),
        {"width": 4},
        "final_conv",
    ),
    "swin_unetr": (
        lambda dims: SwinUNETR(2, 3, feature_size=12, spatial_dims=dims),
        {"width": 12},
        "out",
    ),
}
# Ours to MONAI's, by the start of the key.
KEYS = {
    "segresnet": {
        "encoder.0.0.": "convInit.",
        "encoder.0.1.": "down_layers.0.",
        "encoder.": "down_layers.",
        "decoders.0.{i}.up.": "up_samples.{i}.",
        "decoders.0.{i}.convs.": "up_layers.{i}.",
        "decoders.0.2.last.": "conv_final.",
        "heads.0.": "conv_final.2.conv.",
    },
    "basic_unet": {
        "encoder.0.": "conv_0.",
        "encoder.{i}.": "down_{i}.",
        "decoders.0.{i}.": "upcat_{j}.",
        "heads.0.": "final_conv.",
    },
    "swin_unetr": {
        "encoder.swinViT.": "swinViT.",
        "encoder.blocks.5.": "encoder10.",
        "encoder.blocks.{i}.": "encoder{k}.",
        "decoders.0.{i}.": "decoder{n}.",
        "heads.0.": "out.conv.conv.",
    },
}


def monais(name: str, key: str) -> str:
    for i in (None, *range(5)):
        for ours, theirs in KEYS[name].items():
            if (
                ("{" in ours) == (i is not None)
                and key.startswith(ours.format(i=i))
                and ours != "encoder."
            ):
                return (
                    theirs.format(i=i, j=4 - (i or 0), k=(i or 0) + 1, n=5 - (i or 0))
                    + key[len(ours.format(i=i)) :]
                )
    return KEYS[name]["encoder."] + key.removeprefix("encoder.")


def pair(name: str, dims: int, **asked):
    make, params, _ = NETWORKS[name]
    torch.manual_seed(0)
    theirs, cls = make(dims).eval(), get("backbone", f"monai:{name}").cls
    ours = cls(cls.Params(**params), 2, dims, (3,), **asked).eval()
    state, wanted = theirs.state_dict(), ours.state_dict()
    found = {key: monais(name, key) for key in wanted if not asked or key.startswith("encoder")}
    if not asked:
        left = set(state) - set(found.values())
        assert all(key.startswith("conv_final.2.conv.conv") for key in left), left
        assert len(set(found.values())) == len(found)
    ours.load_state_dict(
        {**wanted, **{key: state[k].reshape(wanted[key].shape) for key, k in found.items()}}
    )
    return theirs, ours


def image(name: str, dims: int):
    return torch.rand(
        1,
        2,
        *((64, 32, 32) if name == "swin_unetr" else (32, 16, 32))[:dims],
        generator=torch.Generator().manual_seed(1),
    )


def cases():
    return [
        pytest.param(
            name, dims, marks=[pytest.mark.slow] if (name, dims) == ("swin_unetr", 3) else []
        )
        for name in NETWORKS
        for dims in (2, 3)
    ]


@pytest.mark.parametrize("name, dims", cases())
def test_whole_network(name, dims):
    """Encoder, own decoder and head: the logits, and the features before the head, are MONAI's."""
    theirs, ours = pair(name, dims)
    x, seen = image(name, dims), []
    last = [
        m
        for m in getattr(theirs, NETWORKS[name][2]).modules()
        if isinstance(m, (nn.Conv2d, nn.Conv3d))
    ][-1]
    last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        expected, got = theirs(x), ours(x)
        features = ours.decode(ours.encode(x))[0]
    assert got.shape == expected.shape and expected.std() > 1e-3
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(features, seen[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, dims", cases())
def test_maps(name, dims):
    theirs, ours = pair(name, dims, decoders=("trilinear",))
    x = image(name, dims)
    with torch.no_grad():
        maps = ours.encode(x)
        if name == "segresnet":
            expected = theirs.encode(x)[1]
        elif name == "basic_unet":
            expected = [
                x := getattr(theirs, part)(x)
                for part in ("conv_0", "down_1", "down_2", "down_3", "down_4")
            ]
        else:
            hidden = theirs.swinViT(x, theirs.normalize)
            expected = [
                theirs.encoder1(x),
                theirs.encoder2(hidden[0]),
                theirs.encoder3(hidden[1]),
                theirs.encoder4(hidden[2]),
                hidden[3],
                theirs.encoder10(hidden[4]),
            ]
    assert len(maps) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_an_unknown_member():
    with pytest.raises(UsageError, match="Did you mean 'monai:swin_unetr'"):
        get("backbone", "monai:swinunetr")
