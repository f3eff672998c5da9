"""MC-Net and MC-Net+ against numbers of the reference formulas in float64.

Elsewhere: the network, its size and its enlargements (test_vnet.py), steps of an epoch
(data/test_batches.py).
"""

import importlib

import pytest
import torch
from helpers import Tables, balls, grid, near, ripples, wave_fill
from torch import Tensor, nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.data.sampling.crops import pads
from segbench.evaluation.sliding_window import windows
from segbench.nn.losses import squared_error
from segbench.registry import get

SHAPE = (3, 3, 3)


def module():
    return importlib.import_module("segbench.methods.mc_net")


def waves(t: int) -> Tensor:
    b, i, j, q = grid(2, *SHAPE)
    return torch.stack(
        [
            torch.sin(b + 0.7 * i + 0.4 * j + 0.9 * q + 0.8 * t),
            torch.cos(0.6 * b + 0.5 * i + 0.3 * j + 0.2 * q - 0.6 * t),
        ],
        1,
    )


def build(decoders: int = 3, **params) -> nn.Module:
    cls = get("method", "mc_net").cls
    model = cls(
        cls.Params(decoders=decoders, **params), Setting((Source("la", ("atrium",)),), 1, SHAPE)
    )
    asked = []
    model.build(
        lambda decoders: asked.append(decoders) or Tables(*map(waves, range(len(decoders))))
    )
    assert asked == [("transposed", "trilinear", "nearest")[:decoders]]
    return model


def labels() -> Tensor:
    b, i, j, q = grid(2, *SHAPE)
    return ((b + i + 2 * j + 3 * q) % 5 < 2).long()


def batch(labeled: int) -> Batch:
    image = torch.zeros(2, 1, *SHAPE).double()
    return Batch(image[:labeled], labels()[:labeled], image[labeled:], torch.zeros(2).long())


END = Clock(5999, 6000)


# P3: sharpening


def sharp(p: float, temperature: float) -> tuple[float, float]:
    """The sharpened probability and its slope."""
    p = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    s = module().sharpened(torch.stack([1 - p, p]).log()[None], temperature)[0, 1]
    (slope,) = torch.autograd.grad(s, p)
    return s.item(), slope.item()


def test_sharpening():
    expected = {
        0.3: 2.089976e-4,
        0.45: 0.118501,
        0.5: 0.5,
        0.55: 0.881499,
        0.6: 0.982954,
        0.7: 0.999791,
    }
    assert {p: sharp(p, 0.1)[0] for p in expected} == {p: near(v) for p, v in expected.items()}
    assert sharp(0.05, 0.1)[0] == pytest.approx(1.631038e-13, rel=3e-7)
    assert sharp(0.3, 0.1)[0] == pytest.approx(2.089976e-4, rel=3e-7)
    assert (sharp(0.3, 0.5)[0], sharp(0.6, 0.5)[0]) == (near(0.155172), near(0.692308))
    assert (sharp(0.5, 0.1)[1], sharp(0.6, 0.1)[1]) == (near(10), near(0.698140))


def test_sharpening_of_several_classes():
    z = torch.randn(2, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    powers = z.softmax(1) ** 10
    torch.testing.assert_close(module().sharpened(z, 0.1), powers / powers.sum(1, keepdim=True))


# P4: losses


@pytest.mark.parametrize(
    ("decoders", "value", "norms"),
    [(3, 1.180545, (0.358463, 0.123092, 0.100092)), (2, 0.437552, (0.160411, 0.108150))],
)
def test_consistency(decoders, value, norms):
    model = build(decoders)
    terms = model.loss(batch(1), END)
    assert list(terms) == ["supervised", "consistency"]
    assert terms["consistency"].item() == near(value)
    terms["consistency"].backward()
    assert [z.grad.norm().item() for z in model.network.outputs] == [near(v) for v in norms]


def test_a_detached_pseudo_label_would_be_another_method():
    logits = [waves(t).requires_grad_() for t in range(3)]
    value = module().mutual_consistency(
        [z.softmax(1) for z in logits], [module().sharpened(z, 0.1).detach() for z in logits]
    )
    value.backward()
    assert value.item() == near(1.180545)
    assert [z.grad.norm().item() for z in logits] == [
        near(v) for v in (0.091563, 0.024182, 0.033519)
    ]


@pytest.mark.parametrize(
    ("labeled", "each"), [(1, (0.552603, 0.503809, 0.481356)), (2, (0.558537, 0.497236, 0.473255))]
)
def test_dice_is_summed_over_decoders_and_halved(labeled, each, monkeypatch):
    assert labels().sum() == 22
    seen, dice = [], module().dice
    monkeypatch.setattr(module(), "dice", lambda *a, **k: seen.append(dice(*a, **k)) or seen[-1])
    supervised = build().loss(batch(labeled), END)["supervised"].item()
    assert [d.item() for d in seen] == [near(v) for v in each]
    assert 2 * supervised == pytest.approx(sum(each), abs=2e-6)
    if labeled == 1:
        assert 2 * supervised == near(1.537768)


def test_total():
    assert sum(build().loss(batch(1), Clock(2999, 6000)).values()).item() == near(1.107116)


# P5: full step


@pytest.mark.parametrize(
    ("decoders", "dices", "consistency", "totals", "norm"),
    [
        (3, (0.920612, 0.920294, 0.921032), 0.044386, (1.381268, 1.425355), 0.759934),
        (2, (0.920612, 0.920294), 0.012858, (0.920540, 0.933311), 0.438932),
    ],
)
def test_a_full_step(decoders, dices, consistency, totals, norm, monkeypatch):
    cls, backbone = get("method", "mc_net").cls, get("backbone", "vnet").cls
    model = cls(
        cls.Params(decoders=decoders), Setting((Source("la", ("atrium",)),), 1, (32, 32, 32))
    )
    model.build(
        lambda **asked: backbone(backbone.Params(dropout=0.0), 1, 3, (2,), **asked).double()
    )
    wave_fill(model)
    y, x, seen = balls(4), torch.cat([ripples(2, 0), ripples(2, 1.9)]), []
    assert y.flatten(1).sum(1).tolist() == [1419] * 4
    dice = module().dice
    monkeypatch.setattr(module(), "dice", lambda *a, **k: seen.append(dice(*a, **k)) or seen[-1])
    terms = model.train().loss(Batch(x[:2], y[:2], x[2:], torch.zeros(4).long()), END)
    assert [d.item() for d in seen] == [near(v) for v in dices]
    assert terms["consistency"].item() == near(consistency)
    first = Clock(0, 6000).ramp()
    assert (terms["supervised"] + first * terms["consistency"]).item() == near(totals[0])
    total = sum(terms.values())
    assert total.item() == near(totals[1])
    total.backward()
    assert model.network.decoders[0]["out_conv"].weight.grad.norm().item() == near(norm)


# P6: schedules and geometry


@pytest.mark.parametrize(("total", "share"), [(6000, 1.0), (15000, 0.4)])
def test_weight_counts_from_one(total, share):
    model = build(ramp_share=share)
    full = model.loss(batch(1), Clock(total - 1, total))["consistency"].item()
    for it, value in (
        (1, 0.006738),
        (149, 0.006738),
        (150, 0.008625),
        (1500, 0.060055),
        (3000, 0.286505),
        (4500, 0.731616),
        (6000, 1),
        (total, 1),
    ):
        assert model.loss(batch(1), Clock(it - 1, total))["consistency"].item() / full == near(
            value
        )


def test_geometry():
    la = (112, 112, 80)
    for shape, expected in (
        ((112, 112, 88), (3, 3, 0)),
        ((120, 130, 80), (0, 0, 3)),
        ((115, 116, 80), (1, 1, 3)),
        ((113, 117, 70), (2, 0, 8)),
    ):
        assert pads(shape, la, 3) == expected
    for shape, patch, stride, counts in (
        ((150, 140, 88), la, (18, 18, 4), (4, 3, 3)),
        ((150, 140, 120), (96, 96, 96), (16, 16, 16), (5, 4, 3)),
    ):
        starts = windows(shape, patch, stride)
        assert tuple(len(set(axis)) for axis in zip(*starts, strict=True)) == counts
        assert len(starts) == counts[0] * counts[1] * counts[2]


def test_constant_learning_rate():
    assert {Optim(lr=0.01).lr_at(step, 15000) for step in (0, 2500, 14999)} == {0.01}


# What is not in the numbers


def small(dims: int = 3, classes: int = 2) -> nn.Module:
    cls, backbone = get("method", "mc_net").cls, get("backbone", "vnet").cls
    kinds = tuple(f"class{i}" for i in range(1, classes))
    model = cls(cls.Params(), Setting((Source("d", kinds),), 1, (16,) * dims))
    torch.manual_seed(0)
    model.build(
        lambda **asked: backbone(backbone.Params(width=2, depth=3), 1, dims, (classes,), **asked)
    )
    return model


@pytest.mark.parametrize("dims", [2, 3])
def test_prediction_is_the_first_decoder_s_alone(dims):
    model, image = small(dims, 3).eval(), torch.randn(2, 1, *(16,) * dims)
    with torch.no_grad():
        expected = model.network(image)[0].softmax(1)
        for others in list(model.network.decoders)[1:]:
            for block in others.values():
                block.register_forward_pre_hook(lambda *_: pytest.fail("another decoder ran"))
        assert torch.equal(model.predict(image), expected)


def test_consistency_of_labeled_images_and_dice_of_labeled_ones_only():
    model = build()
    model.loss(batch(1), END)["consistency"].backward()
    assert all(z.grad[0].any() and z.grad[1].any() for z in model.network.outputs)
    model.zero_grad()
    model.loss(batch(1), END)["supervised"].backward()
    assert all(z.grad[0].any() and not z.grad[1].any() for z in model.network.outputs)


def test_sharpening_in_float32_under_lower_precision():
    model = build()
    for z in model.network.outputs:
        z.data = (
            z.data * 30
        ).bfloat16()  # probabilities down to 1e-26, whose tenth power no float32 holds
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch(1), END)
    p = [z.detach().double().softmax(1) for z in model.network.outputs]
    s = [q**10 / (q**10 + (1 - q) ** 10) for q in p]
    expected = sum(squared_error(p[i], s[j]) for i in range(3) for j in range(3) if i != j)
    assert terms["consistency"].item() == pytest.approx(expected.item(), rel=1e-5)
    sum(terms.values()).backward()
    assert all(z.grad.isfinite().all() for z in model.network.outputs)
