"""Mean teacher against numbers made with the reference formulas (float64, sine waves as inputs).

The 3-D U-Net and the sliding window are tested with the backbone and with inference.
"""

import pytest
import torch
from helpers import Table, near, wave
from torch import nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.nn.losses import cross_entropy, dice, dice_ce, squared_error
from segbench.registry import get


def build(**params) -> nn.Module:
    """Mean teacher whose student answers with the fixture's z and whose teacher with z~."""
    cls = get("method", "mean_teacher").cls
    model = cls(cls.Params(**params), Setting((Source("la", ("atrium",)),), 1, (4, 4, 4)))
    model.build(lambda: Table(wave((4, 2, 4, 4, 4), 0.37, 0.2, 2)))
    model.teacher.model.logits.data = wave((2, 2, 4, 4, 4), 0.53, 1.1, 2)
    return model


Y = (wave((4, 4, 4, 4), 0.91, 0.4, 1) > 0.25).long()
BATCH = Batch(
    torch.zeros(2, 1, 4, 4, 4).double(),
    Y[:2],
    torch.zeros(2, 1, 4, 4, 4).double(),
    torch.zeros(4).long(),
)
SSL4MIS = {"dice": "all", "stairs": 200}


def test_losses():
    z, target = wave((4, 2, 4, 4, 4), 0.37, 0.2, 2), wave((2, 2, 4, 4, 4), 0.53, 1.1, 2)
    assert Y.flatten(1).sum(1).tolist() == [28, 28, 26, 26]
    assert cross_entropy(z[:2], Y[:2]).item() == near(1.106053)
    assert dice(z[:2].softmax(1), Y[:2], background=True).item() == near(0.440422)
    assert dice(z[:2].softmax(1), Y[:2]).item() == near(0.473816)
    assert dice_ce(z[:2], Y[:2], background=True).item() == near(0.773237)
    assert dice_ce(z[:2], Y[:2]).item() == near(0.789934)
    assert squared_error(z[2:].softmax(1), target.softmax(1)).item() == near(0.281862)


def test_a_step_of_ssl4mis():
    model = build(**SSL4MIS)
    terms = model.loss(BATCH, Clock(15000, 30000))
    assert list(terms) == ["supervised", "consistency"]
    assert terms["supervised"].item() == near(0.773237)
    assert terms["consistency"].item() == near(0.028650 * 0.281862)
    total = sum(terms.values())
    assert total.item() == near(0.781313)
    total.backward()
    gradient = model.student.logits.grad
    assert (gradient[:2].norm().item(), gradient[2:].norm().item()) == (
        near(0.048349),
        near(0.000499),
    )
    assert model.teacher.model.logits.grad is None


def test_a_step_on_the_left_atrium():
    assert sum(build().loss(BATCH, Clock(3000, 6000)).values()).item() == near(0.798010)


def test_weight():
    for step, value in ((0, 6.737947e-4), (15000, 2.865048e-2), (29999, 9.998750e-2)):
        assert 0.1 * Clock(step, 30000).ramp(200) == pytest.approx(value, rel=3e-7)
    steps = (0, 149, 150, 1500, 3000, 4500, 5999)
    assert [0.1 * Clock(t, 6000).ramp() for t in steps] == [
        near(v) for v in (0.000674, 0.000674, 0.000862, 0.006005, 0.028650, 0.073162, 0.099688)
    ]


def test_polynomial_learning_rate_without_the_lag_of_the_official_script():
    optim, steps = Optim(lr=0.1, schedule="poly", power=0.9), (0, 1, 2, 15000, 29999)
    rates = [optim.lr_at(t, 30000) for t in steps]
    assert rates == [near(v, 8) for v in (0.1, 0.09999700, 0.09999400, 0.05358867, 0.00000935)]
    lagging = [
        optim.lr_at(max(t - 1, 0), 30000) for t in steps
    ]  # what SSL4MIS's mean teacher and URPC use
    assert lagging == [near(v, 8) for v in (0.1, 0.1, 0.09999700, 0.05359189, 0.00001744)]


def test_moving_average():
    model, seen = build(), {}
    model.teacher.model.logits = nn.Parameter(torch.tensor([100.0]).double(), requires_grad=False)
    for t in range(300):
        model.student.logits = nn.Parameter(torch.tensor([t + 1.0]).double())
        model.after_step(Clock(t, 6000))
        seen[t + 1] = model.teacher.model.logits.item()
    expected = {
        1: 1.0,
        2: 1.5,
        5: 3.0,
        99: 50.0,
        100: 50.5,
        101: 51.005,
        200: 119.118601,
        300: 207.631994,
    }
    assert {t: seen[t] for t in expected} == {t: near(v) for t, v in expected.items()}


def test_decay_rises_from_zero(monkeypatch):
    model, decays = build(), {}
    for t in (0, 1, 9, 26, 99, 500):
        monkeypatch.setattr(
            model.teacher, "follow", lambda student, decay, t=t: decays.update({t: decay})
        )
        model.after_step(Clock(t, 6000))
    assert decays == {0: 0, 1: 0.5, 9: near(0.9), 26: near(0.962963), 99: near(0.99), 500: 0.99}


def test_the_teacher_sees_noisy_unlabeled_images_only_and_the_student_clean_ones():
    cls = get("method", "mean_teacher").cls
    model = cls(cls.Params(), Setting((Source("a", ("b", "c", "d")),), 1, (8, 8)))
    model.build(lambda: nn.Conv2d(1, 4, 1))
    seen = {}
    model.student.register_forward_pre_hook(lambda _, args: seen.update(student=args[0]))
    model.teacher.register_forward_pre_hook(lambda _, args: seen.update(teacher=args[0]))
    batch = Batch(
        torch.rand(2, 1, 8, 8),
        torch.randint(0, 4, (2, 8, 8)),
        torch.rand(3, 1, 8, 8),
        torch.zeros(5).long(),
    )
    terms = model.loss(batch, Clock(10, 100))
    assert torch.equal(seen["student"], torch.cat([batch.x, batch.u]))
    noise = seen["teacher"] - batch.u
    assert 0.05 < noise.std() < 0.1 and noise.abs().max() <= 0.2 + 1e-6
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert len(model.trainable("network")) == 2
    torch.testing.assert_close(model.predict(batch.u).sum(1), torch.ones(3, 8, 8))
