"""AD-MT against its formulas in NumPy (float64), and its schedule against a loop with counters."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Pixelwise, numpy_cross_entropy, numpy_dice, slices, softmax
from torch import nn

from segbench import Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.ops import strong_view
from segbench.registry import get

CLASS = get("method", "ad_mt").cls
MODULE = sys.modules[CLASS.__module__]
SIZE = (12, 10)
BIASES = [0.6, -0.4, -0.7]
STUDENT = [0.0, 2.0, -1.5]
FIRST = [-2.5, 2.0, 1.7]
SECOND = [-1.6, 2.3, -2.6]


def build(**params):
    setting = Setting((Source("set", ("one", "two")),), 1, SIZE)
    model = CLASS(CLASS.Params(**params), setting)
    model.build(lambda: Pixelwise(STUDENT, BIASES))
    for teacher, slopes in ((model.first, FIRST), (model.second, SECOND)):
        teacher.model.slope.data = torch.tensor(slopes).double().view(1, -1, 1, 1)
    return model.train()


def probabilities(images: np.ndarray, slopes: list[float]) -> np.ndarray:
    shape = (1, -1, 1, 1)
    return softmax(np.reshape(slopes, shape) * images + np.reshape(BIASES, shape))


def clock_where(model, first_moves: bool) -> Clock:
    """A step of the run's second half in which the first, or the second, teacher moves."""
    steps = [Clock(step, 1000, seed=1) for step in range(500, 600)]
    return next(t for t in steps if model.first_moves(t) == first_moves)


@pytest.mark.parametrize("loss", ["ce", "dice"])
@pytest.mark.parametrize("first_moves", [True, False])
def test_terms(loss, first_moves, monkeypatch, parity):
    items = slices()
    model = build(loss=loss, threshold=0.75, weight=1.5)
    t = clock_where(model, first_moves)
    outside = torch.ones(3, *SIZE, dtype=torch.bool)
    outside[:, 2:9, 1:6] = False
    monkeypatch.setattr(MODULE, "centered_boxes", lambda images, generator: outside)
    found = model.loss(items, t)

    u = items.u.numpy()
    teachers = [probabilities(u, slopes) for slopes in (FIRST, SECOND)]
    bits = [-(p * np.log2(p + 1e-10)).sum(1) for p in teachers]
    share = np.exp(-bits[0]) / (np.exp(-bits[0]) + np.exp(-bits[1]))
    mean = share[:, None] * teachers[0] + (1 - share[:, None]) * teachers[1]
    labels, confidence = mean.argmax(1), mean.max(1)
    conflict = teachers[0].argmax(1) != teachers[1].argmax(1)
    student = probabilities(u, STUDENT)
    better = conflict & (student.argmax(1) != labels) & (student.max(1) > confidence)
    assert 0 < better.sum() < conflict.sum() < 150
    labels = np.where(better, student.argmax(1), labels)
    confidence = np.where(better, student.max(1), confidence)

    if first_moves:
        view = strong_view(items.u, t.generator("views", own=True), blur=0, noise=0.2).numpy()
    else:
        partner, mask = np.roll(np.arange(3), 1), outside.numpy()
        view = np.where(mask[:, None], u, u[partner])
        labels = np.where(mask, labels, labels[partner])
        confidence = np.where(mask, confidence, confidence[partner])
    used = confidence >= 0.75
    p = probabilities(view, STUDENT)
    unlabeled = numpy_cross_entropy(p, labels)[used].mean()
    if loss == "dice":
        unlabeled = numpy_dice(p, labels, used)

    y = items.y.numpy()
    labeled = probabilities(items.x.numpy(), STUDENT)
    supervised = numpy_cross_entropy(labeled, y).mean()
    supervised = (supervised + numpy_dice(labeled, y, np.ones(y.shape, bool))) / 2
    assert 0.2 < used.mean() < 0.95 and (better & (confidence >= 0.75)).any()
    assert found["supervised"].item() == pytest.approx(supervised, abs=1e-6)
    formulas = {"supervised": supervised, "unlabeled": 1.5 * unlabeled}
    parity("ad_mt", found, formulas, within=2e-5)


@pytest.mark.parametrize("first_moves", [True, False])
def test_the_teacher_in_turn_is_in_train_mode(first_moves):
    model = build()
    terms = model.loss(slices(), clock_where(model, first_moves))
    sum(terms.values()).backward()
    modes = [teacher.model.seen[0][1] for teacher in (model.first, model.second)]
    assert modes == [first_moves, not first_moves]
    assert model.first.model.training and model.second.model.training
    assert all(p.grad is None for p in [*model.first.parameters(), *model.second.parameters()])
    assert [len(image) for image, _ in model.student.seen] == [8]  # one pass for all


@pytest.mark.parametrize("period", [1, 7, 19])
def test_periods_are_those_of_a_counter(period):
    model = build(period=period)
    t = Clock(0, 400, seed=5)
    lengths = torch.randint(1, period + 1, (400,), generator=t.generator("periods")).tolist()
    assert set(lengths) == set(range(1, period + 1))
    expected = []
    turn = True
    for length in lengths:
        expected += [turn] * length
        turn = not turn
    found = [model.first_moves(replace(t, step=step)) for step in range(400)]
    assert found == expected[:400]
    assert period == 1 or found != [
        model.first_moves(Clock(step, 400, seed=6)) for step in range(400)
    ]


class Constant(nn.Module):
    """One number as a parameter, and one as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1).double())
        self.register_buffer("mean", torch.zeros(1).double())
        self.register_buffer("count", torch.zeros(1).long())


def test_averages_are_those_of_the_official_rule():
    setting = Setting((Source("set", ("one",)),), 1, SIZE)
    model = CLASS(CLASS.Params(period=3, decay=0.9), setting)
    model.build(Constant)
    expected = {True: 0.0, False: 0.0}
    for step in range(200):
        t = Clock(step, 200, seed=2)
        model.student.weight.data[:] = step + 1
        model.student.mean[:] = step + 1
        model.student.count += 1
        model.after_step(t)
        half = step // 2
        decay = 0.0 if half < 40 else min(1 - 1 / (half - 40 + 1), 0.9)
        turn = model.first_moves(t)
        expected[turn] = decay * expected[turn] + (1 - decay) * (step + 1)
        for moves, teacher in ((True, model.first), (False, model.second)):
            assert teacher.model.weight.item() == pytest.approx(expected[moves])
            assert teacher.model.mean.item() == pytest.approx(expected[moves])
            assert teacher.model.count.item() == 0


@pytest.mark.parametrize("step", [0, 149, 150, 3000, 5999, 6000, 14999])
def test_weight_of_the_official_run(step, monkeypatch):
    """2, after 40 stairs of 150 steps in 15,000."""
    monkeypatch.setattr(CLASS, "unlabeled_loss", lambda *_: torch.ones((), dtype=torch.float64))
    found = build().loss(slices(), Clock(step, 15000))["unlabeled"].item()
    expected = float(2 * np.exp(-5 * (1 - min(step // 150, 40) / 40) ** 2))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [(64, 48), (32, 40, 24)])
def test_boxes_have_one_size_and_other_places(size):
    images = torch.zeros(40, 1, *size)
    shares = []
    for seed in range(60):
        outside = MODULE.centered_boxes(images, torch.Generator().manual_seed(seed))
        assert outside.shape == (40, *size)
        extents = []
        for inside in ~outside:
            places = inside.nonzero()
            extents.append(places.amax(0) - places.amin(0) + 1)
            assert inside.sum() == extents[-1].prod()
        largest = torch.stack(extents).amax(0)  # of the boxes that no border cuts
        assert (largest % 2 == 0).all()
        relative = largest / torch.tensor(size)
        assert relative.max() - relative.min() < 4 / min(size) + 1e-6
        shares.append(1 - (relative.mean() + 1 / min(size)).item() ** 2)
    # Beta(4, 4): mean 0.5, standard deviation 1/6.
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)
    assert np.std(shares) == pytest.approx(1 / 6, abs=0.05)


@pytest.mark.parametrize("size", [(64, 48), (32, 40, 24)])
def test_centers_of_boxes_lie_in_the_last_seven_eighths(size):
    """The box covers center - half up to center + half, without the last; both ends are cut."""
    images = torch.zeros(400, 1, *size)
    for seed in (0, 1):
        outside = MODULE.centered_boxes(images, torch.Generator().manual_seed(seed))
        for axis, extent in enumerate(size):
            others = [other + 1 for other in range(len(size)) if other != axis]
            covered = (~outside).to(torch.uint8).amax(others).bool()  # (400, extent)
            places = torch.arange(extent)
            first = torch.where(covered, places, extent).amin(1)
            end = torch.where(covered, places + 1, 0).amax(1)
            half = int((end - first).max()) // 2
            centers = torch.cat([first[first > 0] + half, end[end < extent] - half])
            assert int(centers.min()) == extent // 8
            assert int(centers.max()) == extent - 1


def test_supervised_dice_of_the_foreground():
    items = slices()
    found = build(dice="foreground").loss(items, Clock(9, 10))["supervised"].item()
    p = probabilities(items.x.numpy(), STUDENT)
    y = items.y.numpy()
    overlap = numpy_dice(p, y, np.ones(y.shape, bool), first=1)
    expected = (numpy_cross_entropy(p, y).mean() + overlap) / 2
    assert found == pytest.approx(expected, abs=1e-6)
