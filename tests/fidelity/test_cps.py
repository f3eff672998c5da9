"""CPS against numbers made with the reference formulas (float64, sine waves as inputs).

The 3-D U-Net is tested with the backbone.
"""

import copy
import importlib
from math import sqrt

import pytest
import torch
from helpers import Table, near, wave
from torch import nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.registry import get

cps = importlib.import_module(get("method", "cps").cls.__module__)
RULES = (nn.init.kaiming_normal_, nn.init.xavier_normal_)


Z1, Z2 = wave((4, 2, 4, 4, 4), 0.37, 0.2, 2), wave((4, 2, 4, 4, 4), 0.41, 0.9, 2)
Y = (wave((4, 4, 4, 4), 0.91, 0.4, 1) > 0.25).long()
BATCH = Batch(torch.zeros(2, 1, 4, 4, 4), Y[:2], torch.zeros(2, 1, 4, 4, 4), torch.zeros(4).long())


def build(network=None, setting=None, **params) -> nn.Module:
    cls = get("method", "cps").cls
    model = cls(
        cls.Params(**params), setting or Setting((Source("la", ("atrium",)),), 1, (4, 4, 4))
    )
    tables = iter([Table(Z1), Table(Z2)])
    model.build(network or (lambda: next(tables)))
    return model


def vnet(dims: int = 3, classes: int = 2, **params) -> nn.Module:
    backbone = get("backbone", "vnet").cls
    return backbone(backbone.Params(**params), 1, dims, (classes,))


# P1: losses


def test_a_step_of_ssl4mis():
    model, clock = build(stairs=200), Clock(15000, 30000)
    terms = model.loss(BATCH, clock)
    assert list(terms) == ["supervised_1", "supervised_2", "cross_1", "cross_2"]
    assert (terms["supervised_1"].item(), terms["supervised_2"].item()) == (
        near(0.773237),
        near(0.675673),
    )
    weight = 0.1 * clock.ramp(200)
    assert (terms["cross_1"].item(), terms["cross_2"].item()) == (
        near(weight * 1.565280),
        near(weight * 1.329647),
    )
    total = sum(terms.values())
    assert total.item() == near(1.531851)
    total.backward()
    norms = [
        g.norm().item() for table in (model.first, model.second) for g in table.logits.grad.split(2)
    ]
    assert norms == [near(v) for v in (0.048349, 0.002645, 0.049118, 0.002517)]


def test_cross_terms():
    labels = Z1[2:].argmax(1), Z2[2:].argmax(1)
    assert [h.sum().item() for h in labels] == [60, 63] and (labels[0] == labels[1]).sum() == 33
    assert cps.pseudo_supervision(Z1[2:], Z2[2:]).item() == near(1.565280)
    assert cps.pseudo_supervision(Z2[2:], Z1[2:]).item() == near(1.329647)
    tie = torch.zeros(1, 3, 1)
    assert (
        cps.pseudo_supervision(torch.tensor([[[9.0], [0.0], [0.0]]]), tie).item() < 0.001
    )  # the lower class


# P2: no gradient to the one who teaches


def test_no_cross_gradient():
    for learner, teacher in (("first", "second"), ("second", "first")):
        model = build()
        model.loss(BATCH, Clock(3000, 6000))[f"cross_{1 if learner == 'first' else 2}"].backward()
        assert getattr(model, teacher).logits.grad is None
        gradient = getattr(model, learner).logits.grad
        assert gradient[:2].norm() == 0 and gradient[2:].norm() > 0


# P3 and P4: schedules


def test_weight():
    for step, value in ((0, 6.737947e-4), (15000, 2.865048e-2), (29999, 9.998750e-2)):
        assert 0.1 * Clock(step, 30000).ramp(200) == pytest.approx(value, rel=3e-7)
    assert build().p.stairs == 40 and 0.1 * Clock(3000, 6000).ramp(40) == pytest.approx(
        2.865048e-2, rel=3e-7
    )


def test_polynomial_learning_rate():
    optim = Optim(lr=0.1, schedule="poly", power=0.9)
    assert [optim.lr_at(t, 30000) for t in (0, 1, 2, 15000, 29999)] == [
        near(v, 8) for v in (0.1, 0.09999700, 0.09999400, 0.05358867, 0.00000935)
    ]


def test_one_optimizer_over_both_networks_equals_two():
    model = build()
    assert model.players == ("network",)
    assert {id(p) for p in model.trainable("network")} == {
        id(model.first.logits),
        id(model.second.logits),
    }
    optimizer = torch.optim.SGD(model.trainable("network"), lr=0.1, momentum=0.9, weight_decay=1e-4)
    apart = [copy.deepcopy(t) for t in (model.first, model.second)]
    optimizers = [
        torch.optim.SGD(t.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4) for t in apart
    ]
    for step in range(3):
        gradients = [wave((4, 2, 4, 4, 4), 0.1, i + step, 1) for i in range(2)]
        for table, mine, gradient in zip(
            apart, (model.first, model.second), gradients, strict=True
        ):
            table.logits.grad, mine.logits.grad = gradient.clone(), gradient.clone()
        for each in (optimizer, *optimizers):
            each.step()
    assert torch.equal(apart[0].logits, model.first.logits) and torch.equal(
        apart[1].logits, model.second.logits
    )


# P5: initialization


@pytest.mark.parametrize(
    ("inputs", "outputs", "kaiming", "xavier"),
    [(1, 16, 0.272166, 0.066010), (16, 16, 0.068041, 0.048113), (384, 128, 0.013889, 0.012028)],
)
def test_standard_deviation_of_weights(inputs, outputs, kaiming, xavier):
    """The samples agree within four standard errors of their size, or 1 % if that is more."""
    for rule, expected in zip(RULES, (kaiming, xavier), strict=True):
        gain = sqrt(2 / (inputs * 27)) if rule is RULES[0] else sqrt(2 / ((inputs + outputs) * 27))
        assert gain == near(expected)
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(inputs, outputs, 3, padding=1))
        bias = network[0].bias.clone()
        weight = cps.initialize(network, rule)[0].weight
        error = max(4 / sqrt(2 * weight.numel()), 0.01)
        assert weight.std().item() == pytest.approx(expected, rel=error)
        assert abs(weight.mean().item()) < 4 * expected / sqrt(weight.numel())
        assert torch.equal(network[0].bias, bias)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_only_weights_of_convolutions_change(rule, dims):
    torch.manual_seed(0)
    network = vnet(dims, width=2)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.constant_(module.weight, 0.3)
            nn.init.constant_(module.bias, 0.4)
    before = copy.deepcopy(network.state_dict())
    assert cps.initialize(network, rule) is network
    after, seen = network.state_dict(), set()
    for name, module in network.named_modules():
        kind = type(module).__name__.rstrip("23d")
        seen.add(kind)
        if kind == "Conv":
            assert not torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
            assert torch.equal(before[f"{name}.bias"], after[f"{name}.bias"])
        elif kind == "ConvTranspose":
            assert all(
                torch.equal(before[f"{name}.{key}"], after[f"{name}.{key}"])
                for key in ("weight", "bias")
            )
        elif kind == "BatchNorm":
            assert (after[f"{name}.weight"] == 1).all() and (after[f"{name}.bias"] == 0).all()
    assert {"Conv", "ConvTranspose", "BatchNorm"} <= seen


def test_the_two_networks_begin_differently():
    torch.manual_seed(0)
    model = build(lambda: vnet(width=16))
    pairs = {
        n: (p, q)
        for (n, p), (_, q) in zip(
            model.first.named_parameters(), model.second.named_parameters(), strict=True
        )
    }
    kernels = {n: pq for n, pq in pairs.items() if pq[0].ndim == 5}
    assert not any(torch.equal(p, q) for p, q in kernels.values())
    p, q = max(
        (pq for n, pq in kernels.items() if "block_five.conv" in n), key=lambda pq: pq[0].numel()
    )
    assert p.shape == (256, 256, 3, 3, 3)
    assert p.std().item() == pytest.approx(sqrt(2 / (256 * 27)), rel=0.01)
    assert q.std().item() == pytest.approx(sqrt(2 / (512 * 27)), rel=0.01)


# Beyond: both see the same images, the first predicts, several classes, two dimensions


def test_both_networks_see_the_same_images_and_the_first_predicts():
    setting = Setting((Source("a", ("b", "c")),), 1, (8, 8))
    model, seen = build(lambda: nn.Conv2d(1, 3, 3, padding=1), setting), []
    for network in (model.first, model.second):
        network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = Batch(
        torch.rand(3, 1, 8, 8),
        torch.randint(0, 3, (3, 8, 8)),
        torch.rand(1, 1, 8, 8),
        torch.zeros(4).long(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(batch, Clock(5, 10))
    assert all(v.dtype == torch.float32 and v.isfinite() for v in terms.values())
    assert all(torch.equal(x, torch.cat([batch.x, batch.u])) for x in seen) and len(seen) == 2
    torch.testing.assert_close(model.predict(batch.u), model.first(batch.u).softmax(1))
