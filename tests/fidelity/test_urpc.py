"""URPC against numbers made with the reference formulas (float64, sine waves as inputs).

Its 3-D U-Net is tested with the backbone.
"""

import importlib

import pytest
import torch
from helpers import Tables, near, wave
from torch import nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.nn.losses import cross_entropy, dice
from segbench.registry import get

urpc = importlib.import_module(get("method", "urpc").cls.__module__)


Z = [
    wave((4, 2, 4, 4, 4), a, b, 2) for a, b in ((0.37, 0.2), (0.41, 0.9), (0.43, 1.6), (0.47, 2.3))
]
Y = (wave((4, 4, 4, 4), 0.91, 0.4, 1) > 0.25).long()
BATCH = Batch(torch.zeros(2, 1, 4, 4, 4), Y[:2], torch.zeros(2, 1, 4, 4, 4), torch.zeros(4).long())


def build(network=None, **params) -> nn.Module:
    cls = get("method", "urpc").cls
    model = cls(cls.Params(**params), Setting((Source("la", ("atrium",)),), 1, (4, 4, 4)))
    asked = []
    model.build(lambda **wanted: asked.append(wanted) or network or Tables(*Z))
    assert asked == [{"side_outputs": True}]
    return model


# P1: losses


def test_losses_of_each_scale():
    assert [cross_entropy(z[:2], Y[:2]).item() for z in Z] == [
        near(v) for v in (1.106053, 0.941489, 1.351008, 1.025577)
    ]
    assert [dice(z[:2].softmax(1), Y[:2], background=True).item() for z in Z] == [
        near(v) for v in (0.440422, 0.409857, 0.456321, 0.420327)
    ]
    log_p = torch.stack([z[2:].log_softmax(1) for z in Z])
    mean, divergence = urpc.divergences(log_p)
    torch.testing.assert_close(mean, sum(z[2:].softmax(1) for z in Z) / 4)
    assert divergence.shape == (4, 2, 4, 4, 4)
    assert divergence.flatten(1).mean(1).tolist() == [
        near(v) for v in (0.312051, 0.323798, 0.286619, 0.192796)
    ]
    exchanged = (log_p.exp() * (log_p - mean.log())).sum(2).flatten(1).mean(1)
    assert exchanged.tolist() == [near(v) for v in (0.235517, 0.274550, 0.171102, 0.150041)]
    each = urpc.pyramid_consistency([z[2:] for z in Z])
    assert each.tolist() == [near(v) for v in (0.384389, 0.418924, 0.336914, 0.242605)]
    assert each.mean().item() == near(0.345708)


def test_a_step():
    terms = build().loss(BATCH, Clock(15000, 60000))
    assert list(terms) == ["supervised", "consistency"]
    assert terms["supervised"].item() == near(0.768882)
    assert terms["consistency"].item() == near(0.006005 * 0.345708)
    assert sum(terms.values()).item() == near(0.770958)


# P2: gradients


def gradients() -> list[float]:
    model = build()
    sum(model.loss(BATCH, Clock(15000, 60000)).values()).backward()
    return [z.grad[2:].norm().item() for z in model.network.outputs]


def test_gradients():
    assert gradients() == [near(v, 8) for v in (6.906e-5, 8.391e-5, 4.734e-5, 5.484e-5)]


def test_gradients_would_differ_with_a_detached_mean(monkeypatch):
    def detached(log_p):
        mean = log_p.exp().mean(0).detach()
        return mean, (mean * (mean.log() - log_p)).sum(2)

    monkeypatch.setattr(urpc, "divergences", detached)
    assert gradients() == [near(v, 8) for v in (6.606e-5, 7.676e-5, 5.027e-5, 5.398e-5)]


# P3 and P4: schedules


def test_weight():
    assert build().p.stairs == 400
    for step, value in (
        (0, 6.737947e-4),
        (15000, 6.005467e-3),
        (29999, 2.829369e-2),
        (30000, 2.865048e-2),
        (59999, 9.999688e-2),
    ):
        assert f"{0.1 * Clock(step, 60000).ramp(400):.6e}" == f"{value:.6e}"


def test_polynomial_learning_rate_without_the_lag_of_the_official_script():
    optim, steps = Optim(lr=0.1, schedule="poly", power=0.9), (0, 1, 2, 15000, 29999)
    assert [optim.lr_at(max(t - 1, 0), 30000) for t in steps] == [
        near(v, 8) for v in (0.1, 0.1, 0.09999700, 0.05359189, 0.00001744)
    ]
    assert [optim.lr_at(t, 30000) for t in steps[:3]] == [
        near(v, 8) for v in (0.1, 0.09999700, 0.09999400)
    ]


# P6: equal scales


def test_equal_scales_agree():
    same = [wave((2, 3, 4, 4), 0.37, 0.2, 2).requires_grad_() for _ in range(4)]
    mean, divergence = urpc.divergences(torch.stack([z.log_softmax(1) for z in same]))
    torch.testing.assert_close(mean, same[0].softmax(1))
    assert divergence.abs().max() < 1e-14
    loss = urpc.pyramid_consistency(same).mean()
    loss.backward()
    assert abs(loss.item()) < 1e-7
    assert all(z.grad.abs().max() < 1e-8 for z in same)


# Beyond: extreme logits, lower precision, the V-Net's scales


def test_extreme_logits_stay_finite():
    """Where the softmax underflows the official code's logarithm is minus infinity."""
    scales = [
        torch.tensor([[200.0, -200.0, 0.0]]).T[None].requires_grad_(),
        torch.tensor([[-200.0, 200.0, 0.0]]).T[None].requires_grad_(),
        torch.tensor([[200.0, -200.0, -300.0]]).T[None].requires_grad_(),
    ]
    each = urpc.pyramid_consistency(scales)
    each.sum().backward()
    assert each.isfinite().all() and all(z.grad.isfinite().all() for z in scales)
    # KL of (2/3, 1/3, 0) against (1, e^-400, .): the first two classes only
    mean = torch.tensor([2 / 3, 1 / 3])
    expected = (mean * (mean.log() - torch.tensor([0.0, -400.0]))).sum()
    assert urpc.divergences(torch.stack([z.log_softmax(1) for z in scales]))[1][
        0
    ].item() == pytest.approx(expected.item(), rel=1e-5)


def test_half_precision():
    model = build(Tables(*[z.bfloat16() for z in Z]))
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(BATCH, Clock(15000, 60000))
    assert all(v.dtype == torch.float32 for v in terms.values())
    assert sum(terms.values()).item() == pytest.approx(0.770958, abs=0.01)


@pytest.mark.parametrize("dims", [2, 3])
def test_every_scale_of_the_v_net_learns_and_the_finest_predicts(dims):
    backbone = get("backbone", "vnet").cls
    torch.manual_seed(0)
    network = backbone(backbone.Params(width=2), 1, dims, (4,), side_outputs=True)
    cls = get("method", "urpc").cls
    model = cls(cls.Params(), Setting((Source("a", ("b", "c", "d")),), 1, (32,) * dims))
    model.build(lambda side_outputs: network)
    shape = (32,) * dims
    batch = Batch(
        torch.rand(1, 1, *shape),
        torch.randint(0, 4, (1, *shape)),
        torch.rand(3, 1, *shape),
        torch.zeros(4).long(),
    )
    scales = network(batch.u)
    assert [tuple(z.shape) for z in scales] == [(3, 4, *shape)] * 4
    model.loss(batch, Clock(50, 100))["consistency"].backward()
    heads = [p for n, p in network.named_parameters() if "out_conv" in n and n.endswith("weight")]
    assert len(heads) == 4 and all(h.grad.norm() > 0 for h in heads)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.predict(batch.u), network(batch.u)[0].softmax(1))
