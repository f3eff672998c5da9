"""The U-Net of SSL4MIS against numbers of MC-Net's published 2-D class in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from helpers import hash_fill
from torch import nn

from segbench.registry import get

UNet = get("backbone", "unet_ssl4mis").cls
DECODERS = ("trilinear", "transposed", "nearest")  # in the order of MCNet2d_v2


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def published(key: str) -> str:
    """The published key, whose length decides the filling."""
    part, number, rest = re.fullmatch(r"(encoder|decoders|heads)\.(\d)\.(.*)", key).groups()
    if part == "encoder":
        level = f"down{number}.maxpool_conv.1" if number != "0" else "in_conv"
        return f"encoder.{level}.conv_conv.{rest}"
    decoder = f"decoder{int(number) + 1}"
    if part == "heads":
        return f"{decoder}.out_conv.{rest}"
    stage, rest = rest.split(".", 1)
    rest = re.sub(r"^convs\.", "conv.conv_conv.", rest)
    rest = re.sub(r"^up\.0\.", "conv1x1.", rest)
    return f"{decoder}.up{int(stage) + 1}.{rest}"


def test_three_decoders():
    net = UNet(UNet.Params(), 1, 2, (4,), decoders=DECODERS).eval()
    assert sum(p.numel() for p in net.parameters()) == 3_210_924
    hash_fill(net, published)
    image = torch.sin(0.013 * torch.arange(2 * 32 * 48.0)).reshape(2, 1, 32, 48)
    with torch.no_grad():
        outputs = net(image)
    expected = (
        (-0.438465, 2.280331, 2.829659, -0.142880, -0.107155),
        (-0.286729, 1.011306, 1.218488, -0.370376, -0.505453),
        (-0.436783, 2.212484, 2.751847, -0.415639, -0.122742),
    )
    for out, numbers in zip(outputs, expected, strict=True):
        flat = out.flatten()
        found = (out.mean(), out.abs().mean(), out.std(correction=0), flat[0], flat[-1])
        assert [value.item() for value in found] == pytest.approx(numbers, abs=1e-6)


def test_dropout_acts_in_the_encoder_only():
    net = UNet(UNet.Params(), 1, 2, (4,))
    rates = [module.p for module in net.encoder.modules() if isinstance(module, nn.Dropout)]
    assert rates == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.5])
    decoder = [module.p for module in net.decoders.modules() if isinstance(module, nn.Dropout)]
    assert set(decoder) == {0.0}


def test_slopes_of_the_activations():
    net = UNet(UNet.Params(), 1, 2, (4,))
    slopes = [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    assert len(slopes) == 18 and set(slopes) == {0.01}
    assert not any(isinstance(module, nn.ReLU) for module in net.modules())
