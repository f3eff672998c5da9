"""CrossMatch against its formulas in NumPy (float64), on a network whose logits are known."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch
from helpers import Pixelwise, numpy_cross_entropy, numpy_dice, slices, softmax, torch_dice

from segbench import Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.ops import random_boxes, strong_view
from segbench.registry import get

CLASS = get("method", "crossmatch").cls
SLOPES = [0.0, 2.0, -1.5]
BIASES = [0.6, -0.4, -0.7]
CLOCK = Clock(3, 10, seed=1)
SIZE = (12, 10)
KEPT = {0.25: (0.5, 1.3, 1.0), 0.75: (0.0, 2.0, 4.0)}  # factors of each item, by dropout


def build(**params):
    setting = Setting((Source("set", ("one", "two")),), 1, SIZE)
    model = CLASS(CLASS.Params(**params), setting)
    model.build(lambda: Pixelwise(SLOPES, BIASES))
    return model.train()


def probabilities(images: np.ndarray) -> np.ndarray:
    shape = (1, -1, 1, 1)
    return softmax(np.reshape(SLOPES, shape) * images + np.reshape(BIASES, shape))


def factors(share: float) -> np.ndarray:
    return np.reshape(KEPT[share], (3, 1, 1, 1))


@pytest.fixture
def known_dropout(monkeypatch):
    """Dropout that multiplies the items by ``KEPT``."""

    def drop(features, share, training):
        assert training
        return features * torch.from_numpy(factors(share)).to(features)

    monkeypatch.setattr(torch, "feature_dropout", drop)


@pytest.mark.parametrize(
    ("cutmix", "code"), [(0.0, "3d"), (1.0, "3d"), (1.0, "2d")], ids=["no boxes", "boxes", "2-D"]
)
def test_terms(cutmix, code, known_dropout, parity):
    items = slices()
    found = build(cutmix=cutmix, eta=0.4, threshold=0.9, code=code).loss(items, CLOCK)

    threshold = (0.9 + 0.1 * exp(-5 * (1 - 3 / 10) ** 2)) * log(2)
    first_class = 1
    if code == "2d":
        threshold = 0.9
        first_class = 0
    partner = np.roll(np.arange(3), 1)
    generator = CLOCK.generator("views", own=True)
    views = []
    boxes = []
    for _ in range(2):
        view = strong_view(items.u, generator)
        limits = ((0.02, 0.4), (0.3, 1 / 0.3))
        where = random_boxes(3, SIZE, *limits, generator, probability=cutmix).numpy()
        views.append(np.where(where[:, None], view.numpy(), view.numpy()[partner]))
        boxes.append(where)

    def loss(p, teacher, where=None):
        labels = teacher.argmax(1)
        used = teacher.max(1) >= threshold
        if where is not None:
            labels = np.where(where, labels, labels[partner])
            used = np.where(where, used, used[partner])
        return numpy_dice(p, labels, used, first=first_class)

    u = items.u.numpy()
    w = probabilities(u)
    w_weak = probabilities(u * factors(0.25))
    w_strong = probabilities(u * factors(0.75))
    s_1 = probabilities(views[0])
    s_2 = probabilities(views[1])
    s_2_weak = probabilities(views[1] * factors(0.25))
    s_2_strong = probabilities(views[1] * factors(0.75))

    box_1, box_2 = boxes
    distilled = (
        loss(w_weak, w) + loss(w_strong, w) + loss(s_2_weak, w, box_2) + loss(s_2_strong, w, box_2)
    )
    within = loss(s_2_weak, w_weak, box_2) + loss(s_2_strong, w_strong, box_2)
    p = probabilities(items.x.numpy())
    y = items.y.numpy()
    overlap = numpy_dice(p, y, np.ones(y.shape, bool), first=first_class)
    supervised = (numpy_cross_entropy(p, y).mean() + overlap) / 2

    # L = (L_x + s_1 / 4 + s_2 / 4 + (1 - eta) / 4 distilled + eta / 2 within) / 2
    formulas = {
        "supervised": supervised / 2,
        "strong_1": loss(s_1, w, box_1) / 8,
        "strong_2": loss(s_2, w, box_2) / 8,
        "distilled": 0.6 / 8 * distilled,
        "within_decoder": 0.4 / 4 * within,
    }
    parity("crossmatch" if code == "3d" else "crossmatch (2-D)", found, formulas)


def test_numbers_of_the_official_code():
    model = build()
    p = model.p
    assert (p.threshold, p.eta, p.gap, p.cutmix) == (0.75, 0.3, 0.5, 0.5)
    assert model.threshold(Clock(10_000, 10_000)) == pytest.approx(log(2))
    first = (0.75 + 0.25 * exp(-5)) * log(2)
    assert model.threshold(Clock(0, 10_000)) == pytest.approx(first)


def test_no_gradient_flows_through_the_labels(known_dropout):
    """The gradients are those of the logits alone, with labels and confidence as fixed numbers."""
    items = slices()
    model = build(eta=0.4, threshold=0.9, cutmix=0)
    terms = model.loss(items, CLOCK)
    network = build().network
    generator = CLOCK.generator("views", own=True)
    view_1 = strong_view(items.u, generator)
    random_boxes(3, SIZE, (0.02, 0.4), (0.3, 1 / 0.3), generator, probability=0)
    view_2 = strong_view(items.u, generator)
    threshold = model.threshold(CLOCK)

    def loss(image, teacher):
        """The Dice loss for an image; the labels are those of another one, as plain numbers."""
        fixed = torch.from_numpy(probabilities(teacher.numpy()))
        p = network(image).softmax(1)
        return torch_dice(p, fixed.argmax(1), fixed.amax(1) >= threshold, first=1)

    u = items.u
    weak = torch.from_numpy(factors(0.25))
    strong = torch.from_numpy(factors(0.75))
    of_perturbed = loss(u * weak, u) + loss(u * strong, u)
    of_perturbed_views = loss(view_2 * weak, u) + loss(view_2 * strong, u)
    within = loss(view_2 * weak, u * weak) + loss(view_2 * strong, u * strong)
    expected = {
        "strong_1": loss(view_1, u) / 8,
        "strong_2": loss(view_2, u) / 8,
        "distilled": 0.6 / 8 * (of_perturbed + of_perturbed_views),
        "within_decoder": 0.4 / 4 * within,
    }
    for name, value in expected.items():
        (found,) = torch.autograd.grad(terms[name], model.network.slope, retain_graph=True)
        (by_formula,) = torch.autograd.grad(value, network.slope)
        assert by_formula.abs().sum() > 1e-4
        torch.testing.assert_close(found, by_formula, rtol=1e-5, atol=1e-8)


def test_two_passes_per_step():
    model = build()
    items = slices()
    model.loss(items, CLOCK)
    (first, _), (second, _) = model.network.seen
    assert torch.equal(first, torch.cat([items.x, items.u])) and len(second) == 6
