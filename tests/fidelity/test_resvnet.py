"""The ResNet-V-Net against numbers of MCF's class ``Resnet34`` in float64.

Its parameters, in its own order, had the values of ``wave_fill``: one by one, they have the shapes
and the order of ours.
"""

from __future__ import annotations

import pytest
import torch
from helpers import wave, wave_fill

from segbench.registry import get

ResVNet = get("backbone", "resvnet").cls


def network(**params):
    torch.manual_seed(0)
    return ResVNet(ResVNet.Params(**params), 1, 3, (2,))


def test_logits_and_size_of_the_published_class():
    net = network().double().eval()
    assert sum(p.numel() for p in net.parameters()) == 17_930_354
    wave_fill(net)
    with torch.no_grad():
        logits = net(wave((1, 1, 32, 32, 16), 0.37, 0.2, 1.0).double()).flatten()
    expected = [0.077285331825, 0.090923157328, 0.081951238527, 0.091622259596, 0.089020389942]
    expected += [-0.003358664496, -0.007754792966, 0.01130166979, -0.002934798922]
    assert logits[::4000].tolist() == pytest.approx(expected, abs=1e-10)


def test_levels():
    net = network(width=2)
    maps = net.encode(torch.zeros(2, 1, 32, 16, 16))
    assert [tuple(m.shape[1:3]) for m in maps] == [(2, 32), (4, 16), (8, 8), (16, 4), (32, 2)]
    assert [len(level) for level in list(net.encoder)[1:]] == [3, 4, 6, 3]


def test_dropout_takes_channels_before_the_heads_only():
    net = network(width=4, depth=2, dropout=0.5, norm="none").train()
    pyramid = net.encode(torch.rand(2, 1, 8, 8, 8))
    features = net.decode(pyramid)[0]
    kept = features.flatten(2).abs().amax(2) > 0  # (N, C)
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(net.bottom(pyramid[-1]), pyramid[-1])


def test_convolutions_have_kaiming_normal_weights():
    net = network(width=16, depth=3)
    weight = net.encoder[2][0].first[0].weight  # (64, 32, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.02)
