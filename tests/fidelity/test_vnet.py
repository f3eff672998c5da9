"""V-Net against numbers of the published architectures.

The weights are filled by rules rather than drawn, so that the numbers hold whatever a framework's
generator does. They were made with the published classes in float64 and reproduced by an
independent implementation.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import all_near, hash_fill, ripples, wave_fill
from torch import Tensor

from segbench.errors import UsageError
from segbench.nn.blocks import _interpolation, enlarge

vnet = importlib.import_module("segbench.backbones.vnet")
VNet, load_published, published_names = (
    vnet.VNet,
    vnet.load_published,
    vnet.published_names,
)
MC_NET = ("transposed", "trilinear", "nearest")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(
    heads: tuple[int, ...] = (2,),
    decoders: tuple[str, ...] = ("transposed",),
    dims: int = 3,
    channels: int = 1,
    side_outputs: bool = False,
    **params: object,
):
    torch.manual_seed(0)
    params = {"dropout": 0.0, **params}
    return VNet(VNet.Params(**params), channels, dims, heads, decoders, side_outputs)


def count(net: torch.nn.Module) -> tuple[int, int]:
    return sum(p.numel() for p in net.parameters()), len(list(net.parameters()))


def fill(net) -> None:
    names = published_names(net)
    hash_fill(net, lambda key: names[key])


def wave() -> Tensor:
    return torch.sin(0.013 * torch.arange(2 * 32 * 32 * 16)).reshape(2, 1, 32, 32, 16)


def summary(x: Tensor) -> tuple[float, ...]:
    """Mean, population standard deviation, first and last element."""
    return (
        x.mean().item(),
        x.std(correction=0).item(),
        x.flatten()[0].item(),
        x.flatten()[-1].item(),
    )


# Sizes


@pytest.mark.parametrize(
    "heads, decoders, expected",
    [
        ((2,), ("transposed",), (9_448_866, 118)),
        ((1, 1), ("transposed",), (9_448_866, 120)),
        ((2,), MC_NET[:2], (12_347_716, 172)),
        ((2,), MC_NET, (15_246_566, 226)),
    ],
)
def test_parameter_counts(heads, decoders, expected):
    assert count(build(heads, decoders)) == expected


def test_parameters_of_each_block():
    net = build()
    encoder = [count(b)[0] for b in net.encoder.values()]
    decoder = [count(b)[0] for b in net.decoders[0].values()]
    assert encoder == [480, 4_192, 55_488, 16_576, 332_352, 65_920, 1_328_256, 262_912, 5_310_720]
    assert decoder == [262_528, 1_328_256, 65_728, 332_352, 16_480, 55_488, 4_144, 6_960, 34]


def test_instance_variants():
    # VerSemi's trunk: 9 484 144 less the global feature's norm, the controller and the pre-head.
    versemi = build((), norm="instance", last_block=False, first_skip=False)
    assert count(versemi) == (9_484_144 - 512 - 47_160 - 168, 64 - 8)
    order = [
        name.split(".")[-4]
        for name, _ in versemi.named_parameters()
        if name.endswith("conv.0.weight")
    ]
    assert order == [
        "block_" + x
        for x in (
            "one",
            "one_dw",
            "two",
            "two_dw",
            "three",
            "three_dw",
            "four",
            "four_dw",
            "five",
            "five_up",
            "six",
            "six_up",
            "seven",
            "seven_up",
            "eight",
            "eight_up",
        )
    ]
    assert all(name.split(".")[-2] in "036" for name, _ in versemi.named_parameters())
    assert versemi(torch.zeros(1, 1, 32, 16, 16)) == ()
    assert count(build(norm="instance")) == (9_443_266, 60)  # BCP's pancreas network


# Outputs of fixed weights


def test_hash_rule():
    net = build()
    fill(net)
    u = net.encoder["block_one"].conv[0].weight.flatten()[:5] / (24 / 27) ** 0.5
    assert u.tolist() == pytest.approx([0.4756, 0.2557, 0.1148, 0.3937, -0.1011], abs=5e-5)


def test_plain_network_in_eval_mode():
    net = build().eval()
    fill(net)
    with torch.no_grad():
        pyramid, out = net.encode(wave()), net(wave())
    assert out.shape == (2, 2, 32, 32, 16)
    flat = out.flatten()
    assert (*summary(out)[:2], out.abs().mean().item()) == all_near(1.192066, 0.982901, 1.212377)
    assert (flat[0].item(), flat[flat.numel() // 2].item(), flat[-1].item()) == all_near(
        -0.188554, 0.084268, 1.144536
    )
    assert tuple(e.mean().item() for e in pyramid) == all_near(
        0.431553, 0.380861, 0.292805, 0.146053, 0.050350
    )


def test_plain_network_in_train_mode():
    net = build().train()
    fill(net)
    with torch.no_grad():
        out = net(wave())
    flat = out.flatten()
    assert (*summary(out)[:2], out.abs().mean().item()) == all_near(0.607699, 0.726363, 0.759377)
    assert (flat[0].item(), flat[flat.numel() // 2].item(), flat[-1].item()) == all_near(
        -0.411918, 0.020458, -0.281526
    )
    norm = net.encoder["block_one"].conv[1]
    assert norm.running_mean[:3].tolist() == pytest.approx([-0.0076, 0.0064, 0.0094], abs=5e-5)
    assert norm.running_var[:3].tolist() == pytest.approx([1.2088, 1.0363, 0.9230], abs=5e-5)
    assert norm.num_batches_tracked == 1


def test_dual_task_network():
    net = build((1, 1))
    fill(net)
    with torch.no_grad():
        distance, logits = net.eval()(wave())
        assert summary(distance.tanh()) == all_near(0.642809, 0.298463, -0.186350, 0.502065)
        assert summary(logits) == all_near(1.072977, 0.724121, 0.017004, 0.276567)
        distance, logits = net.train()(wave())
        assert summary(distance.tanh())[::2] == all_near(0.395407, -0.390100)
        assert summary(logits)[::2] == all_near(0.274602, -0.694187)


def test_dropout_before_the_head_drops_whole_channels():
    net = build((2,), MC_NET[:2], dropout=0.5, width=4).train()
    seen, undropped, bottlenecks = [], [], []
    for blocks in net.decoders:
        blocks["out_conv"].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        blocks["block_nine"].register_forward_hook(lambda _, __, output: undropped.append(output))
        blocks["block_five_up"].register_forward_hook(
            lambda _, inputs, __: bottlenecks.append(inputs[0])
        )
    draws, x = [], torch.rand(2, 1, 16, 16, 16)
    with torch.no_grad():
        for _ in range(60):
            net(x)
    for after, before in zip(seen, undropped, strict=True):
        kept = after.flatten(2).abs().amax(2) > 0
        assert torch.equal(after, 2 * before * kept[:, :, None, None, None])
        draws.append(kept)
    assert torch.stack(draws).double().mean() == pytest.approx(
        0.5, abs=0.08
    )  # 960 draws, five standard deviations
    assert any(
        not torch.equal(a, b) for a, b in zip(draws[::2], draws[1::2], strict=True)
    )  # a draw of each decoder
    assert all(
        torch.equal(a, b) for a, b in zip(bottlenecks[::2], bottlenecks[1::2], strict=True)
    )  # and one for both


def test_dropout_of_the_bottleneck():
    net = build(dropout=0.5, width=4).train()
    inputs: list[Tensor] = []
    net.decoders[0]["block_five_up"].register_forward_hook(
        lambda _, args, __: inputs.append(args[0])
    )
    x = torch.rand(2, 1, 32, 32, 16)
    with torch.no_grad():
        pyramid = net.encode(x)
        net.decode(pyramid)
        net.decode(pyramid, dropped=True)
    dropped = (inputs[0].flatten(2) == 0).all(2)
    assert torch.equal(inputs[0], 2 * pyramid[-1] * ~dropped[:, :, None, None, None])
    assert 20 < dropped.sum() < 108  # of 2 x 64 channels
    assert inputs[1] is pyramid[-1]


def test_mc_net():
    net = build((2,), MC_NET).eval()
    wave_fill(net)
    with torch.no_grad():
        outputs = net(ripples(2))
    expected = (
        (0.016474, 0.009869, 0.027760, 0.016282),
        (-0.029560, 0.037466, -0.044690, -0.020507),
        (0.165867, 0.018246, 0.158537, 0.172956),
    )
    for z, values in zip(outputs, expected, strict=True):
        assert (*summary(z)[:2], z[0, 1, 3, 5, 7].item(), z[1, 0, 16, 8, 31].item()) == all_near(
            *values
        )

    state = {name: net.state_dict()[key] for key, name in published_names(net).items()}
    first = {k: v for k, v in state.items() if not k.startswith(("decoder2", "decoder3"))}
    assert len(state) - len(first) == 186
    plain = build().eval()
    load_published(plain, first)
    with torch.no_grad():
        assert torch.equal(plain(ripples(2)), outputs[0])


def test_ss_net_embedding():
    net = build().eval()
    wave_fill(net)
    with torch.no_grad():
        h = net.decode(net.encode(ripples(2)))[0]
        z = net.head(h)
    assert (*summary(z)[:2], z[0, 1, 3, 5, 7].item()) == all_near(0.016474, 0.009869, 0.027760)
    assert (*summary(h)[:2], h[1, 4, 2, 9, 30].item()) == all_near(0.147839, 0.220652, 0.075412)


def test_versemi_encoder():
    net = build((), norm="instance", last_block=False, first_skip=False).eval()
    wave_fill(net)
    with torch.no_grad():
        pyramid = net.encode(ripples(2))
        features = net.decode(pyramid)[0]
    assert tuple(e.mean().item() for e in pyramid) == all_near(
        0.437004, 0.357745, 0.391639, 0.381954, 0.447741
    )
    assert features.shape == (2, 16, 32, 32, 32)


def test_enlargement():
    x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    got = enlarge(x, (2,) * (x.ndim - 2), align_corners=True)[0, 0, 1]
    third = 1 / 3
    expected = torch.tensor([[4, 5, 6, 7], [6, 7, 8, 9], [8, 9, 10, 11], [10, 11, 12, 13]]) * third
    assert torch.allclose(got, expected, atol=1e-12)
    rows = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert torch.nn.Upsample(scale_factor=2)(x)[0, 0, 1].tolist() == rows


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 5, 4, 7), (1, 2, 1, 1, 3)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlargement_is_torchs_own(shape, factor, align_corners):
    torch.manual_seed(0)
    x = torch.rand(shape, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    ours = enlarge(x, (factor,) * (x.ndim - 2), align_corners)
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    theirs = F.interpolate(other, scale_factor=factor, mode=mode, align_corners=align_corners)
    assert torch.allclose(ours, theirs, atol=1e-12)
    weight = torch.rand_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-12)


def test_enlargement_first_used_without_gradients_can_train_later():
    _interpolation.cache_clear()
    with torch.inference_mode():
        enlarge(torch.rand(1, 1, 3, 3), (2, 2), True)
    x = torch.rand(1, 1, 3, 3, requires_grad=True)
    enlarge(x, (2, 2), True).sum().backward()
    assert x.grad.sum() == pytest.approx(36)


# One prediction a scale


def test_side_outputs():
    net = build((2,), side_outputs=True, width=4, dropout=0.5).train()
    assert [m.p for m in net.dropouts] == pytest.approx([0.1, 0.2, 0.3, 0.5])
    x, seen = torch.rand(2, 1, 32, 32, 16), {}
    for name in ("block_six", "block_seven_up", "out_conv4"):
        net.decoders[0][name].register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (args[0], out)})
        )
    outputs = net(x)
    assert [tuple(z.shape) for z in outputs] == [(2, 2, 32, 32, 16)] * 4
    # The dropped map feeds both its head and the next stage.
    kept = (seen["out_conv4"][0].flatten(2).abs().amax(2) > 0)[:, :, None, None, None]
    assert torch.equal(seen["out_conv4"][0], 2 * seen["block_six"][1] * kept)
    assert 0 < kept.sum() < kept.numel()
    coarse = F.interpolate(
        seen["out_conv4"][1], scale_factor=8, mode="trilinear", align_corners=False
    )
    assert torch.allclose(outputs[3], coarse, atol=1e-12)
    assert [net.decoders[0][f"out_conv{s}"].in_channels for s in ("", "2", "3", "4")] == [
        4,
        8,
        16,
        32,
    ]

    net.eval()
    maps = net.decode(net.encode(x))
    assert all(
        torch.equal(net.head(m, i), z) for i, (m, z) in enumerate(zip(maps, net(x), strict=True))
    )
    with pytest.raises(UsageError, match="one head and one decoder"):
        build((1, 2), side_outputs=True)


# Variants


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"norm": "instance"},
        {"norm": "group"},
        {"norm": "none"},
        {"residual": True},
        {"last_block": False},
        {"first_skip": False},
        {"width": 3},
        {"norm": "group", "width": 6},
        {"depth": 2},
        {"depth": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [2, 3])
def test_variants(params, dims):
    params = {"width": 2, **params}
    for decoders in (MC_NET, ("nearest",)):
        net = build((1, 3), decoders, dims, channels=3, **params)
        outputs = net(torch.rand(2, 3, *(32, 16, 48)[:dims]))
        assert [z.shape[1] for z in outputs] == [1, 3] * len(decoders)
        assert all(z.shape[2:] == (32, 16, 48)[:dims] for z in outputs)
        sum(z.sum() for z in outputs).backward()
        assert all(p.grad is not None for p in net.parameters())


def test_residual_adds_the_input():
    plain, residual = build(width=2, norm="none"), build(width=2, norm="none", residual=True)
    residual.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, 16, 16, 16)
    convolution = plain.encoder["block_one"].conv[0](x)
    assert torch.equal(residual.encode(x)[0], torch.relu(convolution + x))
    two = residual.encoder["block_two"]
    y = residual.encoder["block_one_dw"](residual.encode(x)[0])
    assert torch.equal(two(y), torch.relu(two.conv[2](torch.relu(two.conv[0](y))) + y))


def test_first_skip_and_last_block():
    net = build(width=2, last_block=False, first_skip=False).eval()
    pyramid = net.encode(torch.rand(1, 1, 16, 16, 16))
    blocks = net.decoders[0]
    assert "block_nine" not in blocks
    maps = net.decode(pyramid)
    assert torch.equal(maps[0], blocks["block_eight_up"](maps[1]))
    net = build(width=2, last_block=False).eval()
    pyramid = net.encode(torch.rand(1, 1, 16, 16, 16))
    maps = net.decode(pyramid)
    assert torch.equal(maps[0], net.decoders[0]["block_eight_up"](maps[1]) + pyramid[0])


def test_unfit_inputs_and_unknown_decoders():
    with pytest.raises(UsageError) as error:
        build(width=2)(torch.zeros(1, 1, 112, 112, 81))
    assert "112x112x80" in error.value.details["fix"]
    with pytest.raises(UsageError, match="does not fit"):
        build(width=2, norm="instance")(torch.zeros(1, 1, 16, 16, 16))
    with pytest.raises(UsageError, match="Did you mean 'trilinear'"):
        build(decoders=("trilinaer",))
    assert VNet.multiple(VNet.Params(), 3) == (16, 16, 16)
    assert VNet.multiple(VNet.Params(depth=3), 2) == (4, 4)
