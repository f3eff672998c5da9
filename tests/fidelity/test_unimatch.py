"""UniMatch against its formulas in NumPy (float64), on a network whose logits are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Pixelwise, numpy_cross_entropy, numpy_dice, slices, softmax, torch_dice

from segbench import Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.ops import random_boxes, strong_view
from segbench.registry import get

CLASS = get("method", "unimatch").cls
SLOPES = [0.0, 2.0, -1.5]
BIASES = [0.6, -0.4, -0.7]
CLOCK = Clock(3, 10, seed=1)
SIZE = (12, 10)
KEPT = (0.0, 2.0, 2.0)  # what dropout multiplies the channel of each unlabeled item by


def build(**params):
    setting = Setting((Source("set", ("one", "two")),), 1, SIZE)
    model = CLASS(CLASS.Params(**params), setting)
    model.build(lambda: Pixelwise(SLOPES, BIASES))
    return model.train()


def probabilities(images: np.ndarray) -> np.ndarray:
    shape = (1, -1, 1, 1)
    return softmax(np.reshape(SLOPES, shape) * images + np.reshape(BIASES, shape))


@pytest.fixture
def known_dropout(monkeypatch):
    """Dropout that keeps the channels of ``KEPT``; the shares asked for are returned."""
    asked = []

    def drop(features, share, training):
        asked.append((share, training, len(features)))
        return features * torch.tensor(KEPT).view(-1, 1, 1, 1).to(features)

    monkeypatch.setattr(torch, "feature_dropout", drop)
    return asked


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_terms(cutmix, known_dropout, parity):
    items = slices()
    model = build(threshold=0.8, cutmix=cutmix, image_weight=0.6, feature_weight=0.3)
    found = model.loss(items, CLOCK)

    u = items.u.numpy()
    weak = probabilities(u)
    labels = weak.argmax(1)
    confident = weak.max(1) >= 0.8
    partner = np.roll(np.arange(3), 1)
    generator = CLOCK.generator("views", own=True)
    strong = []
    for _ in range(2):
        view = strong_view(items.u, generator)
        limits = ((0.02, 0.4), (0.3, 1 / 0.3))
        outside = random_boxes(3, SIZE, *limits, generator, probability=cutmix).numpy()
        mixed = np.where(outside[:, None], view.numpy(), view.numpy()[partner])
        used = np.where(outside, confident, confident[partner])
        target = np.where(outside, labels, labels[partner])
        strong.append(numpy_dice(probabilities(mixed), target, used))
    perturbed = probabilities(u * np.reshape(KEPT, (3, 1, 1, 1)))
    features = numpy_dice(perturbed, labels, confident)

    p = probabilities(items.x.numpy())
    y = items.y.numpy()
    everywhere = np.ones(y.shape, bool)
    supervised = (numpy_cross_entropy(p, y).mean() + numpy_dice(p, y, everywhere)) / 2

    # L = (L_x + lambda L_fp + mu / 2 (L_s1 + L_s2)) / 2
    formulas = {
        "supervised": supervised / 2,
        "strong_1": 0.6 / 4 * strong[0],
        "strong_2": 0.6 / 4 * strong[1],
        "features": 0.3 / 2 * features,
    }
    parity("unimatch", found, formulas)
    assert strong[0] != pytest.approx(strong[1], abs=1e-4)  # two different views
    assert known_dropout == [(0.5, True, 3)] * 2  # at both scales, of unlabeled items only


def test_weights_of_the_official_code():
    """loss = (x + 0.25 s1 + 0.25 s2 + 0.5 fp) / 2."""
    p = CLASS.Params()
    assert (p.image_weight / 2, p.feature_weight, p.threshold) == (0.25, 0.5, 0.95)


def test_no_gradient_flows_through_the_labels(known_dropout):
    """The gradient of the feature term is that of its logits with fixed labels.

    The Dice loss of all classes is computed here from its formula.
    """
    items = slices()
    model = build(threshold=0.8)
    term = model.loss(items, CLOCK)["features"]
    term.backward()

    other = build()
    weak = torch.from_numpy(probabilities(items.u.numpy()))
    labels = weak.argmax(1)
    used = weak.amax(1) >= 0.8
    kept = torch.tensor(KEPT).view(-1, 1, 1, 1)
    p = other.network.head(items.u * kept).softmax(1)
    expected = 0.25 * torch_dice(p, labels, used)
    expected.backward()
    assert term.item() == pytest.approx(expected.item(), rel=1e-6)
    assert other.network.slope.grad.abs().sum() > 1e-4
    torch.testing.assert_close(model.network.slope.grad, other.network.slope.grad)


def test_modes_and_inputs_of_the_passes():
    items = slices()
    model = build()
    model.loss(items, CLOCK)
    (pasted, first), (weak, second), (strong, third) = model.network.seen
    assert (first, second, third) == (False, True, True) and model.network.training
    assert torch.equal(pasted, items.u.roll(1, 0))
    assert torch.equal(weak, torch.cat([items.x, items.u])) and len(strong) == 6


def test_dropout_takes_whole_channels():
    torch.manual_seed(0)
    dropped = torch.feature_dropout(torch.ones(50, 8, 4, 4, 4), 0.5, True)
    values = dropped.flatten(2)
    assert torch.equal(values.amin(2), values.amax(2))
    assert set(values.unique().tolist()) == {0, 2}
    assert (values[..., 0] == 0).double().mean().item() == pytest.approx(0.5, abs=0.08)


def test_supervised_dice_of_the_foreground():
    items = slices()
    found = build(dice="foreground").loss(items, CLOCK)["supervised"].item()
    p = probabilities(items.x.numpy())
    y = items.y.numpy()
    overlap = numpy_dice(p, y, np.ones(y.shape, bool), first=1)
    expected = (numpy_cross_entropy(p, y).mean() + overlap) / 2
    assert found == pytest.approx(expected / 2, abs=1e-6)
