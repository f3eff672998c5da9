"""MCF against its formulas in NumPy (float64), on networks whose logits are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Table, numpy_cross_entropy, numpy_dice, softmax, wave

from segbench import Batch, Clock
from segbench.contracts.method import Setting, Source
from segbench.registry import get

CLASS = get("method", "mcf").cls
SIZE = (12, 10)
CLOCK = Clock(30, 60)  # stair 20 of 40
LABELED = 2


def logits(frequency: float) -> torch.Tensor:
    """Return logits (L + U, K, *S) of two labeled and three unlabeled items."""
    return wave((5, 3, *SIZE), frequency, 0.3, 2).double()


def build(first: torch.Tensor, second: torch.Tensor, **params):
    model = CLASS(CLASS.Params(**params), Setting((Source("set", ("one", "two")),), 1, SIZE))
    networks = {"vnet": Table(first), "resvnet": Table(second)}
    model.build(lambda backbone="vnet": networks[backbone])
    return model.train()


def batch() -> Batch:
    x = wave((LABELED, 1, *SIZE), 0.41, 0.1, 1)
    u = wave((3, 1, *SIZE), 0.29, 0.7, 1)
    labels = (wave((LABELED, *SIZE), 0.91, 0.4, 1) > 0.1).long() + (x[:, 0] > 0.8).long()
    return Batch(x, labels, u, torch.zeros(5).long())


def found(model, clock: Clock = CLOCK) -> dict[str, float]:
    return {name: value.item() for name, value in model.loss(batch(), clock).items()}


def formula(own: np.ndarray, other: np.ndarray, **params: float) -> dict[str, float]:
    """Return the terms of one network, with the pseudo labels as if it were the worse one."""
    p = softmax(own)
    q = softmax(other)
    y = batch().y.numpy()
    everywhere = np.ones(y.shape, bool)
    overlap = numpy_dice(p[:LABELED], y, everywhere, first=1)
    entropy = numpy_cross_entropy(p[:LABELED], y).mean()

    different = p[:LABELED].argmax(1) != q[:LABELED].argmax(1)
    target = np.moveaxis(np.eye(3)[y], -1, 1)
    gap = ((p[:LABELED] - target) ** 2)[:, 1:].mean(1)
    review = gap[different].sum() / different.sum()

    power = q[LABELED:] ** (1 / params.get("temperature", 0.1))
    sharp = power / power.sum(1, keepdims=True)
    pseudo = ((p[LABELED:] - sharp) ** 2).mean()
    ramp = np.exp(-5 * (1 - 20 / 40) ** 2)
    return {
        "dice": overlap,
        "supervised": entropy + overlap,
        "review": params.get("review", 0.5) * review,
        "pseudo": params.get("weight", 0.1) * ramp * pseudo,
    }


@pytest.mark.parametrize("better", [1, 2])
@pytest.mark.parametrize("params", [{}, {"weight": 0.7, "review": 0.2, "temperature": 0.5}])
def test_terms(better, params, parity):
    pair = [logits(0.37), logits(0.53)]
    one = formula(pair[0].numpy(), pair[1].numpy(), **params)
    two = formula(pair[1].numpy(), pair[0].numpy(), **params)
    first_is_better = one["dice"] < two["dice"]
    if first_is_better != (better == 1):
        pair.reverse()
        one, two = two, one
    formulas = {
        "supervised_1": one["supervised"],
        "supervised_2": two["supervised"],
        "review_1": one["review"],
        "review_2": two["review"],
        "pseudo_1": one["pseudo"] if better == 2 else 0.0,
        "pseudo_2": two["pseudo"] if better == 1 else 0.0,
    }
    parity("mcf", found(build(*pair, **params)), formulas)


def test_the_better_network_learns_nothing_from_the_worse_one():
    model = build(logits(0.37), logits(0.53))
    terms = model.loss(batch(), CLOCK)
    worse = 1 if terms["pseudo_1"] > 0 else 2
    terms[f"pseudo_{worse}"].backward()
    learner, teacher = (model.first, model.second) if worse == 1 else (model.second, model.first)
    assert learner.logits.grad[LABELED:].abs().sum() > 0
    assert not learner.logits.grad[:LABELED].any() and teacher.logits.grad is None


def test_equal_networks_review_nothing():
    terms = found(build(logits(0.37), logits(0.37)))
    assert terms["review_1"] == terms["review_2"] == 0.0
    assert terms["pseudo_1"] > 0.0 and terms["pseudo_2"] == 0.0  # equal: the second one teaches


def test_numbers_of_the_official_code():
    p = CLASS.Params()
    assert (p.weight, p.review, p.temperature) == (0.1, 0.5, 0.1)


def test_both_networks_predict():
    model = build(logits(0.37), logits(0.53)).eval()
    expected = (softmax(logits(0.37).numpy()) + softmax(logits(0.53).numpy())) / 2
    shown = model.predict(torch.zeros(5, 1, *SIZE, dtype=torch.float64))
    np.testing.assert_allclose(shown.detach().numpy(), expected, atol=1e-12)
