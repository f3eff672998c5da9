"""UA-MT against numbers made with the reference formulas (float64, sine waves as inputs)."""

from math import log

import numpy as np
import pytest
import torch
from helpers import AnswersInTurn, near, wave
from torch import Tensor, nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.data.sampling.crops import draw, pads, random_corner, take
from segbench.evaluation.sliding_window import windows
from segbench.metrics.pair import evaluate_pair
from segbench.nn.losses import cross_entropy, dice, dice_ce, squared_error
from segbench.nn.ops import Ema, entropy
from segbench.registry import get
from segbench.training.optimizers import make_optimizer

Z = wave((4, 2, 4, 4, 4), 0.37, 0.2, 2)
TARGET = wave((2, 2, 4, 4, 4), 0.53, 1.1, 2)
PASSES = [wave((2, 2, 4, 4, 4), 0.35, 0.15 * i, 2) for i in range(8)]
Y = (wave((4, 4, 4, 4), 0.91, 0.4, 1) > 0.25).long()
BATCH = Batch(torch.zeros(2, 1, 4, 4, 4), Y[:2], torch.zeros(2, 1, 4, 4, 4), torch.zeros(4).long())


def build(network=None, classes: int = 2, **params) -> nn.Module:
    cls = get("method", "ua_mt").cls
    kinds = tuple(f"class{i}" for i in range(1, classes))
    model = cls(cls.Params(**params), Setting((Source("la", kinds),), 1, (4, 4, 4)))
    model.build(network or (lambda: AnswersInTurn(Z)))
    return model


def teach(model: nn.Module, *answers: Tensor) -> AnswersInTurn:
    model.teacher.model = AnswersInTurn(*answers)
    return model.teacher.model


def pairs(passes: list[Tensor]) -> list[Tensor]:
    return [torch.cat(passes[i : i + 2]) for i in range(0, len(passes), 2)]


# P1: losses


def test_supervised_losses():
    assert Y.flatten(1).sum(1).tolist() == [28, 28, 26, 26]
    assert cross_entropy(Z[:2], Y[:2]).item() == near(1.106053)
    assert dice(Z[:2].softmax(1), Y[:2]).item() == near(0.473816)
    assert dice_ce(Z[:2], Y[:2]).item() == near(0.789934)
    assert squared_error(Z[2:].softmax(1), TARGET.softmax(1)).item() == near(0.281862)


def test_uncertainty_of_eight_predictions():
    model = build()
    table = teach(model, *pairs(PASSES))
    u = model.uncertainty(BATCH.u)
    assert u.shape == (2, 4, 4, 4) and len(table.shown) == 4
    assert (u.mean().item(), u.min().item(), u.max().item()) == (
        near(0.357638),
        near(0.116293),
        near(0.691860),
    )
    kept = {t: (u < model.threshold(Clock(t, 6000))).sum().item() for t in (0, 1000, 3000)}
    assert kept == {0: 93, 1000: 93, 3000: 100}


@pytest.mark.parametrize(
    ("t", "limit", "consistency", "weight", "total"),
    [
        (0, 0.521028, 0.260654, 0.000674, 0.790110),
        (1000, 0.525241, 0.260654, 0.002698, 0.790638),
        (3000, 0.569508, 0.268324, 0.028650, 0.797622),
    ],
)
def test_a_step(t, limit, consistency, weight, total):
    clock = Clock(t, 6000)
    terms = []
    for factor in (0.1, 1 / clock.ramp()):  # the second: the consistency without its weight
        model = build(weight=factor)
        teach(model, TARGET, *pairs(PASSES))
        terms.append(model.loss(BATCH, clock))
    assert model.threshold(clock) == near(limit)
    assert 0.1 * clock.ramp() == near(weight)
    assert list(terms[0]) == ["supervised", "consistency"]
    assert terms[0]["supervised"].item() == near(0.789934)
    assert terms[1]["consistency"].item() == near(consistency)
    assert sum(terms[0].values()).item() == near(total)


def test_gradient():
    model = build()
    teacher = teach(model, TARGET, *pairs(PASSES))
    sum(model.loss(BATCH, Clock(3000, 6000)).values()).backward()
    gradient = model.student.answers[0].grad
    assert (gradient[:2].norm().item(), gradient[2:].norm().item()) == (
        near(0.049080),
        near(0.000591),
    )
    assert all(p.grad is None for p in teacher.parameters())


def test_without_any_certain_voxel_the_consistency_is_nought():
    model = build()
    teach(model, TARGET, *[torch.zeros(4, 2, 4, 4, 4)] * 4)
    assert model.loss(BATCH, Clock(3000, 6000))["consistency"].item() == 0


# P2: schedules


def test_weight_and_limit():
    steps = (0, 149, 150, 1500, 3000, 4500, 5999)
    assert [0.1 * Clock(t, 6000).ramp() for t in steps] == [
        near(v) for v in (0.000674, 0.000674, 0.000862, 0.006005, 0.028650, 0.073162, 0.099688)
    ]
    model = build()
    assert model.threshold(Clock(6000, 6000)) == pytest.approx(log(2))
    even = entropy(torch.full((1, 2, 1), 0.5))  # the 1e-6 lets it pass in the end
    assert even.item() == near(0.693145)
    assert [
        bool(even < model.threshold(Clock(t, 6000))) for t in (5900, 5990, 5991, 5992, 5999)
    ] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert build(classes=4).threshold(Clock(0, 100)) == pytest.approx(
        2 * model.threshold(Clock(0, 100))
    )  # ln 4 = 2 ln 2


# P3: moving average


def test_moving_average():
    model, seen = build(lambda: AnswersInTurn(torch.zeros(1).double())), {}
    model.teacher.model.answers[0].data = torch.tensor([100.0]).double()
    for t in range(300):
        model.student.answers[0].data = torch.tensor([t + 1.0]).double()
        model.after_step(Clock(t, 6000))
        seen[t + 1] = model.teacher.model.answers[0].item()
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


# P4: optimizer


def test_stochastic_gradient_descent():
    theta, seen = nn.Parameter(torch.ones(1).double()), []
    optimizer = make_optimizer(Optim(lr=0.01, momentum=0.9, weight_decay=1e-4), [theta])
    for _ in range(3):
        theta.grad = torch.full_like(theta, 0.5)
        optimizer.step()
        seen.append(theta.item())
    assert seen == [near(v) for v in (0.994999, 0.985497, 0.971944)]


# P5 and P6: orientation, crops, windows


def test_the_four_reflections():
    image, seen = np.arange(9).reshape(3, 3), {}
    for seed in range(400):
        cut = draw(np.random.default_rng(seed), (3, 3), (3, 3), pad=0, augment="mirror")
        rows = tuple(map(tuple, take(image, cut, (3, 3)).tolist()))
        seen[rows] = seen.get(rows, 0) + 1
    assert set(seen) == {
        ((6, 7, 8), (3, 4, 5), (0, 1, 2)),
        ((2, 1, 0), (5, 4, 3), (8, 7, 6)),
        ((0, 3, 6), (1, 4, 7), (2, 5, 8)),
        ((8, 5, 2), (7, 4, 1), (6, 3, 0)),
    }
    assert all(65 <= count <= 135 for count in seen.values())  # 100 +- 4 standard deviations


class Largest:
    """A generator that draws the largest number there is."""

    def integers(self, end: int) -> int:
        return end - 1


def test_crops_and_windows():
    patch = (112, 112, 80)
    margin = pads((130, 110, 88), patch, 3)
    padded = [n + 2 * q for n, q in zip((130, 110, 88), margin, strict=True)]
    assert (margin, padded) == ((0, 4, 0), [130, 118, 88])
    assert random_corner(Largest(), padded, patch) == (17, 5, 7)
    assert pads((114, 100, 60), patch, 3) == (2, 9, 13)
    places = windows((183, 140, 88), patch, (18, 18, 4))
    assert len(places) == 5 * 3 * 3
    assert [sorted({place[axis] for place in places}) for axis in range(3)] == [
        [0, 18, 36, 54, 71],
        [0, 18, 28],
        [0, 4, 8],
    ]


# Beyond: which images, how many predictions, several classes, two dimensions


@pytest.mark.parametrize("images", ["unlabeled", "all"])
def test_what_student_and_teacher_see(images):
    batch = Batch(
        torch.rand(1, 1, 4, 4, 4), Y[:1], torch.rand(3, 1, 4, 4, 4), torch.zeros(4).long()
    )
    expected = batch.u if images == "unlabeled" else torch.cat([batch.x, batch.u])
    n = len(expected)
    model = build(images=images)
    passes = [wave((n, 2, 4, 4, 4), 0.35, 0.15 * i, 2) for i in range(8)]
    teacher = teach(model, wave((n, 2, 4, 4, 4), 0.53, 1.1, 2), *pairs(passes))
    model.loss(batch, Clock(3000, 6000))["consistency"].backward()
    reached = model.student.answers[0].grad.flatten(1).norm(dim=1) > 0
    assert reached.tolist() == [images == "all", True, True, True]
    assert torch.equal(model.student.shown[0], torch.cat([batch.x, batch.u]))  # clean
    noises = [
        teacher.shown[0] - expected,
        *(x - torch.cat([expected, expected]) for x in teacher.shown[1:]),
    ]
    assert len(noises) == 5
    for noise in noises:
        assert 0.06 < noise.std() < 0.12 and noise.abs().max() <= 0.2 + 1e-6
    fresh = torch.cat(noises).flatten(1)
    assert len({tuple(row) for row in fresh.tolist()}) == len(fresh) == 9 * n


@pytest.mark.parametrize(
    ("passes", "batches"), [(1, [2]), (2, [4]), (3, [4, 2]), (8, [4, 4, 4, 4])]
)
def test_any_number_of_predictions(passes, batches):
    model = build(passes=passes)
    table = teach(model, *pairs(PASSES[:passes]))
    u = model.uncertainty(BATCH.u)
    assert [len(x) for x in table.shown] == batches
    mean = sum(p.softmax(1) for p in PASSES[:passes]) / passes
    torch.testing.assert_close(
        u, -(mean * (mean + 1e-6).log()).sum(1).float(), rtol=1e-5, atol=1e-6
    )


def test_running_statistics_move_with_the_teacher_s_own_five_passes():
    batch = Batch(
        torch.rand(2, 1, 4, 4, 4), Y[:2], torch.rand(2, 1, 4, 4, 4), torch.zeros(4).long()
    )
    model = build(lambda: nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))).train()
    model.loss(batch, Clock(0, 10))
    model.after_step(Clock(0, 10))
    (_, mine), (_, theirs) = model.student, model.teacher.model
    assert (mine.num_batches_tracked, theirs.num_batches_tracked) == (1, 5)
    assert not torch.equal(mine.running_mean, theirs.running_mean)
    assert torch.equal(mine.weight, theirs.weight)
    assert isinstance(model.teacher, Ema) and model.teacher.model.training


def test_half_precision_keeps_the_uncertainty_in_float32():
    model = build(lambda: nn.Conv3d(1, 4, 1), classes=4)
    with torch.autocast("cpu", torch.bfloat16):
        u = model.uncertainty(torch.rand(2, 1, 4, 4, 4))
        terms = model.loss(BATCH, Clock(5, 10))
    assert u.dtype == torch.float32 and u.min() > 0 and u.max() < log(4)
    assert all(v.dtype == torch.float32 for v in terms.values())


def test_the_student_predicts():
    model = build(lambda: nn.Conv2d(1, 3, 1), classes=3)
    nn.init.zeros_(model.teacher.model.weight)
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(model.predict(x), model.student(x).softmax(1))
    assert len(model.trainable("network")) == 2


# P7: metrics


def test_metrics():
    a, b = np.zeros((2, 20, 20, 20), bool)
    a[5:12, 5:12, 5:12] = b[6:14, 5:12, 4:12] = True
    there, back = (evaluate_pair(*pair) for pair in ((a, b), (b, a)))
    assert (there.dice, there.jaccard, there.hd95) == (near(0.743363), near(0.591549), near(2))
    assert (there.asd, back.asd) == (near(0.509174), near(0.781910))
