"""The U-Nets of the literature and of URPC against numbers of the published classes in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import hash_fill

from segbench.errors import UsageError
from segbench.nn.blocks import enlarge, halve
from segbench.registry import get

UNet3D = get("backbone", "unet3d").cls


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def published(key: str, side_outputs: bool) -> str:
    """The published key, whose length decides the filling."""
    stage, layer, rest = re.fullmatch(
        r"(?:encoder|decoders\.0|heads)\.(\d)\.(?:convs\.)?(?:(\d)\.)?(\w+)", key
    ).groups()
    conv = f"conv{1 if layer == '0' else 2}.0.{rest}"
    if key.startswith("encoder"):
        return f"center.{conv}" if stage == "4" else f"conv{int(stage) + 1}.{conv}"
    if key.startswith("decoders"):
        return f"up_concat{4 - int(stage)}.conv.{conv}"
    if not side_outputs:
        return f"final.{rest}"
    return f"dsv1.{rest}" if stage == "0" else f"dsv{int(stage) + 1}.dsv.0.{rest}"


def filled(side_outputs: bool):
    net = UNet3D(UNet3D.Params(), 1, 3, (2,), side_outputs=side_outputs).eval()
    hash_fill(net, lambda key: published(key, side_outputs))
    with torch.no_grad():
        return net, net(torch.sin(0.013 * torch.arange(32_768.0)).reshape(2, 1, 32, 32, 16))


def summary(x) -> tuple[float, ...]:
    flat = x.flatten()
    return tuple(
        v.item() for v in (x.mean(), x.abs().mean(), x.std(correction=0), flat[0], flat[-1])
    )


def test_plain_network():
    net, out = filled(side_outputs=False)
    assert sum(p.numel() for p in net.parameters()) == 5_884_050
    assert summary(out) == pytest.approx(
        (-0.096406, 0.729986, 0.933625, -0.383306, -0.245016), abs=1e-6
    )
    assert out.flatten()[out.numel() // 2].item() == pytest.approx(-0.318151, abs=1e-6)


def test_urpc_network():
    net, outputs = filled(side_outputs=True)
    assert sum(p.numel() for p in net.parameters()) == 5_884_504
    expected = (
        (0.608440, 1.053192, 1.247598, 1.632690, -1.479016),
        (0.660185, 0.771696, 0.736633, -0.282398, 1.281281),
        (0.450949, 0.704102, 0.758485, 1.501927, -0.168507),
        (1.026086, 1.059969, 0.658390, 0.615894, 1.370671),
    )
    for out, numbers in zip(outputs, expected, strict=True):
        assert summary(out) == pytest.approx(numbers, abs=1e-6)


def test_initial_weights():
    net = UNet3D(UNet3D.Params(), 1, 3, (2,))
    conv = net.decoders[0][0].convs[0]
    assert conv.in_channels == 384 and conv.weight.std().item() == pytest.approx(0.013889, rel=0.01)


def test_dropout_is_of_values_and_with_side_outputs_of_channels():
    net = UNet3D(UNet3D.Params(width=4), 1, 3, (2,)).train()
    before = torch.ones(2, 4, 16, 16, 16)
    dropped = net.dropouts[0](before) == 0
    assert 0.27 < dropped.double().mean() < 0.33 and not dropped.flatten(2).all(2).any()
    assert net.bottom.p == pytest.approx(0.3)
    net = UNet3D(UNet3D.Params(width=4), 1, 3, (2,), side_outputs=True).train()
    assert [layer.p for layer in net.dropouts] == pytest.approx(
        [0.1, 0.2, 0.3, 0.5]
    ) and net.bottom.p == 0
    kept = net.dropouts[3](torch.ones(8, 32, 4, 4, 4)).flatten(2)
    assert bool(((kept == 0).all(2) | (kept == 2).all(2)).all())


def test_pooling_and_enlargement_are_torchs():
    x = torch.rand(2, 3, 4, 6, 8, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for ours, theirs in (
        (halve(x, (2, 2, 1)), F.max_pool3d(y, (2, 2, 1))),
        (
            enlarge(x, (2, 1, 4)),
            F.interpolate(y, scale_factor=(2, 1, 4), mode="trilinear", align_corners=False),
        ),
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)
        weight = torch.rand_like(ours)
        (a,) = torch.autograd.grad((ours * weight).sum(), x)
        (b,) = torch.autograd.grad((theirs * weight).sum(), y)
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("kind", ["transposed", "trilinear", "nearest"])
def test_thick_slices(kind):
    net = UNet3D(UNet3D.Params(width=2, depth=4, flat=2), 1, 3, (2,), (kind,))
    assert net.strides == ((1, 1, 1), (2, 2, 1), (4, 4, 1), (8, 8, 2)) and net.multiple(
        net.p, 3
    ) == (8, 8, 2)
    assert net(torch.rand(1, 1, 16, 24, 6)).shape == (1, 2, 16, 24, 6)
    with pytest.raises(UsageError, match="requires a 3D patch"):
        UNet3D(UNet3D.Params(flat=1), 1, 2, (2,))
