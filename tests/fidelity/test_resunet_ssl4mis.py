"""The ResNet-U-Net against numbers of SDCL's class ``ResUNet_2d`` in float64.

Its parameters, in its own order, had the values of ``wave_fill``: one by one, they have the shapes
and the order of ours. Its heads for contrastive learning, which nothing calls, were left out.
"""

from __future__ import annotations

import pytest
import torch
from helpers import wave, wave_fill
from torch import nn

from segbench.registry import get

ResUNet = get("backbone", "resunet_ssl4mis").cls


def network(**params) -> nn.Module:
    torch.manual_seed(0)
    return ResUNet(ResUNet.Params(**params), 1, 2, (4,))


def test_logits_and_size_of_the_published_class():
    net = network().double().eval()
    assert sum(p.numel() for p in net.parameters()) == 5_953_092
    wave_fill(net)
    with torch.no_grad():
        logits = net(wave((2, 1, 32, 48), 0.37, 0.2, 1.0).double()).flatten()
    expected = [-0.001434868622, -0.032894150073, -0.04392432203, -0.043542060798, -0.040877874459]
    expected += [-0.11285927651, -0.120037947649, -0.071669870674, -0.070760256824, -0.038527911283]
    expected += [-0.045664993778, -0.055271160917, -0.060847217157, -0.018981000939]
    assert logits[:9800:700].tolist() == pytest.approx(expected, abs=1e-11)


def test_no_dropout_without_side_outputs():
    net = network(width=4, depth=3).train()
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(net(image), net(image))


def test_all_convolutions_have_kaiming_normal_weights():
    net = network(depth=3)
    for weight in (net.encoder[2][0].first[0].weight, net.decoders[0][0].convs[0].weight):
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.03)
