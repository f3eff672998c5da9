"""FixMatch against its formulas in NumPy (float64), on a network whose logits are known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from helpers import Pixelwise, numpy_cross_entropy, numpy_dice, slices, softmax

from segbench import Batch, Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.ops import random_boxes, strong_view
from segbench.registry import get

CLASS = get("method", "fixmatch").cls
MODULE = sys.modules[CLASS.__module__]
SLOPES = [0.0, 2.0, -1.5]
BIASES = [0.6, -0.4, -0.7]
CLOCK = Clock(3, 10, seed=1)


def build(**params):
    setting = Setting((Source("set", ("one", "two")),), 1, (12, 10))
    model = CLASS(CLASS.Params(**params), setting)
    model.build(lambda: Pixelwise(SLOPES, BIASES))
    return model.train()


def probabilities(images: torch.Tensor) -> np.ndarray:
    shape = (1, -1, 1, 1)
    return softmax(np.reshape(SLOPES, shape) * images.numpy() + np.reshape(BIASES, shape))


def expected(items: Batch, threshold: float, cutmix: float) -> tuple[dict[str, float], float]:
    """The terms by the formulas, and the share of confident voxels."""
    generator = CLOCK.generator("views", own=True)
    view = strong_view(items.u, generator)
    limits = ((0.02, 0.4), (0.3, 1 / 0.3))
    outside = random_boxes(len(view), (12, 10), *limits, generator, probability=cutmix).numpy()
    partner = np.roll(np.arange(len(view)), 1)  # the item before, as torch.roll

    weak = probabilities(items.u)
    labels = np.where(outside, weak.argmax(1), weak.argmax(1)[partner])
    confident = np.where(outside, weak.max(1), weak.max(1)[partner]) >= threshold
    mixed = np.where(outside[:, None], view.numpy(), view.numpy()[partner])
    strong = probabilities(torch.from_numpy(mixed))

    p = probabilities(items.x)
    y = items.y.numpy()
    everywhere = np.ones(y.shape, bool)
    supervised = (numpy_cross_entropy(p, y).mean() + numpy_dice(p, y, everywhere)) / 2
    terms = {
        "supervised": supervised,
        "ce": (numpy_cross_entropy(strong, labels) * confident).mean(),
        "dice": numpy_dice(strong, labels, confident),
    }
    return terms, confident.mean()


@pytest.mark.parametrize("loss", ["ce", "dice"])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_terms(loss, cutmix, parity):
    items = slices()
    found = build(threshold=0.8, cutmix=cutmix, loss=loss, weight=0.7).loss(items, CLOCK)
    terms, share = expected(items, 0.8, cutmix)
    assert 0.2 < share < 0.9
    formulas = {"supervised": terms["supervised"], "strong": 0.7 * terms[loss]}
    parity("fixmatch", found, formulas)


def test_a_box_changes_the_term():
    items = slices()
    values = [build(threshold=0.8, cutmix=p).loss(items, CLOCK)["strong"].item() for p in (0, 1)]
    assert values[0] != pytest.approx(values[1], abs=1e-4)


def test_without_a_confident_voxel_the_term_and_its_gradient_are_zero():
    model = build(threshold=1.0)
    terms = model.loss(slices(), CLOCK)
    assert terms["strong"].item() == 0
    terms["strong"].backward()
    assert model.network.slope.grad.abs().sum() == 0


def test_no_gradient_flows_through_the_labels():
    """The gradient is that of the strong view with fixed labels."""
    items = slices()
    model = build(threshold=0.8, cutmix=0)
    model.loss(items, CLOCK)["strong"].backward()
    other = build(threshold=0.8, cutmix=0)
    view = strong_view(items.u, CLOCK.generator("views", own=True))
    weak = torch.from_numpy(probabilities(items.u))
    each = torch.nn.functional.cross_entropy(other.network(view), weak.argmax(1), reduction="none")
    (each * (weak.amax(1) >= 0.8)).mean().backward()
    torch.testing.assert_close(model.network.slope.grad, other.network.slope.grad)


def test_modes_and_inputs_of_the_three_passes():
    items = slices()
    model = build()
    model.loss(items, CLOCK)
    (pasted, first), (weak, second), (strong, third) = model.network.seen
    assert (first, second, third) == (False, True, True) and model.network.training
    assert torch.equal(pasted, items.u.roll(1, 0))
    assert torch.equal(weak, torch.cat([items.x, items.u])) and len(strong) == 3


def test_a_single_item_is_its_own_partner():
    items = slices(unlabeled=1)
    found = build(threshold=0.8, cutmix=1).loss(items, CLOCK)["strong"].item()
    assert found == pytest.approx(expected(items, 0.8, 0)[0]["ce"], abs=1e-6)


def test_supervised_dice_of_the_foreground():
    items = slices()
    found = build(dice="foreground").loss(items, CLOCK)["supervised"].item()
    p = probabilities(items.x)
    y = items.y.numpy()
    overlap = numpy_dice(p, y, np.ones(y.shape, bool), first=1)
    expected = (numpy_cross_entropy(p, y).mean() + overlap) / 2
    assert found == pytest.approx(expected, abs=1e-6)
