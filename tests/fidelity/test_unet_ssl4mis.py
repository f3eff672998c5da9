"""The U-Net of SSL4MIS against numbers of published 2-D classes in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from helpers import hash_fill
from torch import nn

from segbench.registry import get

UNet = get("backbone", "unet_ssl4mis").cls
unet = sys.modules[UNet.__module__]
DECODERS = ("trilinear", "transposed", "nearest")  # in the order of MCNet2d_v2


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_three_decoders():
    net = UNet(UNet.Params(), 1, 2, (4,), decoders=DECODERS).eval()
    assert sum(p.numel() for p in net.parameters()) == 3_210_924
    hash_fill(net, lambda key: unet.published_name(key, 3))  # its length decides the filling
    expected = (
        (-0.438465, 2.280331, 2.829659, -0.142880, -0.107155),
        (-0.286729, 1.011306, 1.218488, -0.370376, -0.505453),
        (-0.436783, 2.212484, 2.751847, -0.415639, -0.122742),
    )
    require_outputs(net, expected)


def require_outputs(net, expected):
    """Compare mean, mean size, standard deviation, first and last value of each output."""
    image = torch.sin(0.013 * torch.arange(2 * 32 * 48.0)).reshape(2, 1, 32, 48)
    with torch.no_grad():
        outputs = net(image)
    for out, numbers in zip(outputs, expected, strict=True):
        flat = out.flatten()
        found = (out.mean(), out.abs().mean(), out.std(correction=0), flat[0], flat[-1])
        assert [value.item() for value in found] == pytest.approx(numbers, abs=1e-6)


def test_side_outputs_of_urpc():
    """The class UNet_URPC without ``out_conv_dp4``, which its forward pass does not call."""
    net = UNet(UNet.Params(), 1, 2, (4,), side_outputs=True).eval()
    assert sum(p.numel() for p in net.parameters()) == 1_831_060 - (256 * 9 + 1) * 4
    hash_fill(net, lambda key: unet.published_name(key, 1))
    expected = (
        (-1.444042, 5.507397, 7.667712, -3.299682, -0.296158),
        (2.112520, 2.316318, 2.458561, 1.076008, 1.711889),
        (1.070779, 2.167885, 2.683247, -0.270237, -0.877318),
        (-0.080073, 1.245624, 1.453894, 1.478593, -0.663910),
    )
    require_outputs(net, expected)


def test_perturbations_before_the_heads_of_urpc():
    image = torch.sin(0.37 * torch.arange(1.0, 2 * 5 * 4 * 6 + 1)).reshape(2, 5, 4, 6)
    noisy = unet.NoisyMap()(image)
    factors = noisy / image
    torch.testing.assert_close(factors[0], factors[1])  # one noise for all items
    assert 0.7 <= factors.min() < 0.75 and 1.25 < factors.max() <= 1.3
    kept = unet.WithoutStrongest()(image) != 0
    assert torch.equal(kept, kept[:, :1].expand_as(kept))  # all channels of a voxel
    for item, mask in zip(image.mean(1), kept[:, 0], strict=True):
        dropped = item[~mask]
        assert 0.7 * item.max() <= dropped.min() <= item.max()
        assert item[mask].max() < min(dropped.min(), 0.9 * item.max())


@pytest.mark.parametrize(("dropout", "perturbed"), [(0.5, [1, 2, 3]), (0.0, [])])
def test_heads_of_coarser_scales_are_perturbed_in_training(dropout, perturbed):
    torch.manual_seed(0)
    net = UNet(UNet.Params(width=4, dropout=dropout), 1, 2, (4,), side_outputs=True).train()
    net.encoder.eval()  # its dropout is not the subject
    image = torch.rand(2, 1, 32, 32)
    assert varying(net, image) == perturbed
    assert varying(net.eval(), image) == []


def varying(net, image):
    """Return which outputs are not the same in each of several passes."""
    first = net(image)
    found = set()
    for _ in range(5):
        found |= {i for i, logits in enumerate(net(image)) if not torch.equal(logits, first[i])}
    return sorted(found)


def test_dropout_acts_in_the_encoder_only():
    net = UNet(UNet.Params(), 1, 2, (4,))
    rates = [module.p for module in net.encoder.modules() if isinstance(module, nn.Dropout)]
    assert rates == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.5])
    decoder = [module.p for module in net.decoders.modules() if isinstance(module, nn.Dropout)]
    assert set(decoder) == {0.0}


def test_published_weights_with_side_outputs():
    source = UNet(UNet.Params(width=2, depth=3), 1, 2, (4,), side_outputs=True)
    state = {unet.published_name(key, 1): v for key, v in source.state_dict().items()}
    assert "decoder.out_conv_dp1.weight" in state
    net = UNet(UNet.Params(width=2, depth=3), 1, 2, (4,), side_outputs=True)
    unet.load_published(net, {**state, "decoder.out_conv_dp4.bias": torch.zeros(4)})
    for key, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("decoders", [1, 3])
def test_published_weights(decoders):
    source = UNet(UNet.Params(width=2, depth=3), 1, 2, (4,), decoders=DECODERS[:decoders])
    state = {unet.published_name(key, decoders): v for key, v in source.state_dict().items()}
    first = "decoder1" if decoders > 1 else "decoder"
    assert f"{first}.up2.conv1x1.weight" in state and f"{first}.out_conv.bias" in state
    net = UNet(UNet.Params(width=2, depth=3), 1, 2, (4,), decoders=DECODERS[:decoders])
    unet.load_published(net, state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    with pytest.raises(RuntimeError, match=r"another\.weight"):
        unet.load_published(net, {**state, "another.weight": state[f"{first}.out_conv.bias"]})
    del state[f"{first}.out_conv.bias"]
    with pytest.raises(RuntimeError, match=r"heads\.0\.bias"):
        unet.load_published(net, state)


def test_slopes_of_the_activations():
    net = UNet(UNet.Params(), 1, 2, (4,))
    slopes = [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    assert len(slopes) == 18 and set(slopes) == {0.01}
    assert not any(isinstance(module, nn.ReLU) for module in net.modules())
