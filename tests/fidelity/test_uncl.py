"""UnCL against its formulas in NumPy (float64), on a network whose logits are known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from helpers import Pixelwise, numpy_cross_entropy, numpy_dice, slices, softmax, wave

from segbench import Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.ops import clipped_noise
from segbench.registry import get

CLASS = get("method", "uncl").cls
MODULE = sys.modules[CLASS.__module__]
STUDENT = [0.0, 2.0, -1.5]
TEACHER = [0.5, 1.2, -2.5]
BIASES = [0.6, -0.4, -0.7]
SIZE = (12, 10)


def build(**params):
    setting = Setting((Source("set", ("one", "two")),), 1, SIZE)
    model = CLASS(CLASS.Params(**params), setting)
    model.build(lambda: Pixelwise(STUDENT, BIASES))
    model.teacher.model.slope.data = torch.tensor(TEACHER).double().view(1, -1, 1, 1)
    return model.train()


def probabilities(images: np.ndarray, slopes: list[float]) -> np.ndarray:
    shape = (1, -1, 1, 1)
    return softmax(np.reshape(slopes, shape) * images + np.reshape(BIASES, shape))


def numpy_uncl(p: np.ndarray, q: np.ndarray, beta: float) -> float:
    own = -(p * np.log(p + 1e-6)).sum(1)
    other = -(q * np.log(q + 1e-6)).sum(1)
    distance = ((p - q) ** 2).sum(1)
    return (distance / (np.exp(beta * own) + np.exp(beta * other)) + beta * (own + other)).mean()


@pytest.mark.parametrize("dice", ["foreground", "all"])
def test_terms(dice, parity):
    items = slices()
    images = torch.cat([items.x, items.u])
    torch.manual_seed(3)
    found = build(weight=0.7, uncertainty_weight=0.3, dice=dice).loss(items, Clock(400, 1000))
    torch.manual_seed(3)
    noisy = (images + clipped_noise(images, 0.1)).numpy()
    p = probabilities(images.numpy(), STUDENT)
    q = probabilities(noisy, TEACHER)

    beta = 5 * 0.1**0.4
    ramp = np.exp(-5 * (1 - int(400 * 200 / 1500) / 200) ** 2)
    y = items.y.numpy()
    first = 1 if dice == "foreground" else 0
    overlap = numpy_dice(p[:2], y, np.ones(y.shape, bool), first=first)
    formulas = {
        "supervised": numpy_cross_entropy(p[:2], y).mean() + overlap,
        "consistency": 0.7 * ramp * ((p[2:] - q[2:]) ** 2).mean(),
        "uncl": 0.3 * numpy_uncl(p, q, beta),
    }
    parity("uncl", found, formulas)


@pytest.mark.parametrize("beta", [0.5, 2.0, 5.0])
def test_loss_and_gradient(beta):
    """The gradient is compared with finite differences of the formula in NumPy."""
    logits = wave((2, 3, 4, 5), 0.61, 0.3, 2).requires_grad_()
    target = wave((2, 3, 4, 5), 0.83, 1.7, 2).softmax(1)
    loss = MODULE.uncertainty_consistency(logits.softmax(1), target, beta)
    assert loss.item() == pytest.approx(
        numpy_uncl(softmax(logits.detach().numpy()), target.numpy(), beta)
    )
    loss.backward()
    for place in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 2, 2)]:
        values = []
        for change in (1e-5, -1e-5):
            changed = logits.detach().numpy().copy()
            changed[place] += change
            values.append(numpy_uncl(softmax(changed), target.numpy(), beta))
        slope = (values[0] - values[1]) / 2e-5
        assert logits.grad[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_certain_voxels_count_more():
    """A distance weighs less where predictions are uncertain; with a small beta, not much less."""
    certain = torch.tensor([[0.98, 0.02], [0.88, 0.12]]).double().view(2, 2, 1, 1)
    unsure = torch.tensor([[0.55, 0.45], [0.45, 0.55]]).double().view(2, 2, 1, 1)

    def weight(pair, beta):
        value = MODULE.uncertainty_consistency(pair[:1], pair[1:], beta).item()
        entropies = -(pair * (pair + 1e-6).log()).sum(1)
        return (value - beta * entropies.sum().item()) / (pair[0] - pair[1]).square().sum().item()

    assert weight(unsure, 5.0) < weight(certain, 5.0) < 0.5
    early = weight(unsure, 5.0) / weight(certain, 5.0)
    late = weight(unsure, 0.5) / weight(certain, 0.5)
    assert early < late < 1


def test_numbers_of_the_official_code():
    model = build()
    p = model.p
    assert (p.weight, p.uncertainty_weight, p.decay, p.noise) == (0.1, 0.5, 0.99, 0.1)
    assert [model.beta(Clock(step, 1000)) for step in (0, 500, 1000)] == pytest.approx(
        [5.0, 5 * 0.1**0.5, 0.5]
    )
    # 200 stairs of 150 steps, of which the code's 20,000 steps reach 133.
    for step in (0, 149, 150, 10_000, 19_999):
        ramp = Clock(step, 20_000).ramp(p.stairs, share=p.ramp_share)
        assert ramp == pytest.approx(np.exp(-5 * (1 - step // 150 / 200) ** 2), rel=1e-12)


def test_no_gradient_reaches_the_teacher():
    model = build()
    sum(model.loss(slices(), Clock(5, 10)).values()).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert model.student.slope.grad.abs().sum() > 0


def test_one_pass_of_each_network_over_all_images():
    items = slices()
    model = build()
    model.loss(items, Clock(0, 10))
    ((seen, _),) = model.student.seen
    ((noisy, training),) = model.teacher.model.seen
    assert torch.equal(seen, torch.cat([items.x, items.u])) and training
    assert noisy.shape == seen.shape and 0 < (noisy - seen).abs().max() <= 0.2 + 1e-12
