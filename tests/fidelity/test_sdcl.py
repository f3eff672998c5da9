"""SDCL against its formulas in NumPy (float64), on networks whose logits are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Table, numpy_cross_entropy, softmax, wave

from segbench import Batch, Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.ops import context_mask
from segbench.registry import get

CLASS = get("method", "sdcl").cls
SIZE = (12, 10)
PAIRS = 2
TRAINING = Clock(30, 60, phase="self_train", seed=3)


def logits(frequency: float, items: int = 2 * PAIRS) -> torch.Tensor:
    return wave((items, 3, *SIZE), frequency, 0.3, 2).double()


def build(first, second, teacher=None, **params):
    """Return SDCL with students of known logits, for both mixtures, and a teacher of known logits.

    The pseudo labels are the teacher's labels, without a choice of components.
    """
    setting = Setting((Source("set", ("one", "two")),), 1, SIZE)
    model = CLASS(CLASS.Params(**params), setting)
    second_name = params.get("second", "resvnet")
    networks = {"vnet": Table(first), second_name: Table(second)}
    model.build(lambda backbone="vnet": networks[backbone])
    if teacher is not None:
        model.teacher.model = Table(teacher).requires_grad_(False)
    model.label = lambda answer: answer.argmax(1)
    return model.train()


def batch() -> Batch:
    x = wave((2 * PAIRS, 1, *SIZE), 0.41, 0.1, 1)
    u = wave((2 * PAIRS, 1, *SIZE), 0.29, 0.7, 1)
    labels = (wave((2 * PAIRS, *SIZE), 0.91, 0.4, 1) > 0.1).long() + (x[:, 0] > 0.8).long()
    return Batch(x, labels, u, torch.zeros(8).long())


def outside(clock: Clock) -> torch.Tensor:
    return context_mask(1, SIZE, 2 / 3, clock.generator("box"), "cpu")[0]


def numpy_half(p, labels, where) -> float:
    """(Dice of all classes per item with linear denominators + cross entropy) / 2 in a region."""
    overlaps = []
    for item, of_item in zip(p, labels, strict=True):
        for value in range(3):
            y = (of_item == value) & where
            q = item[value] * where
            total = q.sum() + y.sum()
            overlaps.append((2 * (q * y).sum() + 1e-5) / (total + 1e-5))
    entropy = numpy_cross_entropy(p, labels)
    return (1 - np.mean(overlaps) + entropy[:, where].mean()) / 2


def formula(own, other, outer, inner, weights, where):
    """Return BCP's loss, MSE and KL of one student for one mixture."""
    p = softmax(own)
    labels = np.where(where, outer, inner)
    weight = np.where(where, *weights)
    mixed = weights[0] * numpy_half(p, outer, where) + weights[1] * numpy_half(p, inner, ~where)
    different = p.argmax(1) != softmax(other).argmax(1)
    target = np.moveaxis(np.eye(3)[labels], -1, 1)
    distance = ((p - target) ** 2).mean(1) * weight
    wrong = different & (p.argmax(1) != labels)
    surprise = -np.log(p).mean(1) * weight
    return np.array(
        [
            mixed,
            distance[different].sum() / different.sum(),
            surprise[wrong].sum() / wrong.sum(),
        ]
    )


def test_terms_of_self_training(parity):
    students = [logits(0.37), logits(0.53)]
    answers = logits(0.71)
    items = batch()
    model = build(*students, teacher=answers, review=0.4, rectify=0.1, weight=0.3)
    found = model.loss(items, TRAINING)

    where = outside(TRAINING).numpy()
    y_a, y_b = items.y[:PAIRS].numpy(), items.y[PAIRS:].numpy()
    pseudo = answers.argmax(1).numpy()
    pseudo_a, pseudo_b = pseudo[:PAIRS], pseudo[PAIRS:]
    expected = {}
    for name, own, other in (("1", *students), ("2", *reversed(students))):
        own, other = own.numpy(), other.numpy()
        in_unlabeled = formula(own[:PAIRS], other[:PAIRS], pseudo_a, y_b, (0.3, 1.0), where)
        in_labeled = formula(own[PAIRS:], other[PAIRS:], y_a, pseudo_b, (1.0, 0.3), where)
        mixed, review, rectify = in_unlabeled + in_labeled
        expected[f"mixed_{name}"] = mixed
        expected[f"review_{name}"] = 0.4 * review
        expected[f"rectify_{name}"] = 0.1 * rectify
    parity("sdcl", found, {name: expected[name] for name in found})
    assert len(expected) == len(found)


def test_terms_of_pretraining(parity):
    clock = Clock(3, 60, phase="pretrain", seed=3)
    students = [logits(0.37, PAIRS), logits(0.53, PAIRS)]
    items = batch()
    found = build(*students).loss(items, clock)
    where = outside(clock).numpy()
    labels = np.where(where, items.y[:PAIRS].numpy(), items.y[PAIRS:].numpy())
    everywhere = np.ones(SIZE, bool)
    formulas = {}
    for name, own in (("supervised_1", students[0]), ("supervised_2", students[1])):
        formulas[name] = numpy_half(softmax(own.numpy()), labels, everywhere)
    parity("sdcl", found, formulas)


def test_students_that_agree_correct_nothing():
    found = build(logits(0.37), logits(0.37), teacher=logits(0.71)).loss(batch(), TRAINING)
    assert found["review_1"] == found["rectify_1"] == found["review_2"] == found["rectify_2"] == 0


def test_the_divergence_pulls_to_equal_probabilities():
    model = build(logits(0.37), logits(0.53), teacher=logits(0.71))
    loss = model.loss(batch(), TRAINING)["rectify_1"]
    loss.backward()
    student = model.student.logits
    before = student.detach().clone()
    moved = softmax((before - 20 * student.grad).numpy())
    touched = student.grad.abs().sum(1) > 0
    spread = moved.std(1)[touched.numpy()]
    assert (spread < softmax(before.numpy()).std(1)[touched.numpy()]).all()
    assert touched.any() and not touched.all()


def test_numbers_of_the_official_code():
    p = CLASS.Params()
    assert (p.review, p.rectify, p.weight, p.decay) == (0.5, 0.05, 0.5, 0.99)
    assert p.pretrain_share == pytest.approx(2 / 17)


def test_both_students_predict_and_the_teacher_follows_the_first():
    model = build(logits(0.37), logits(0.53)).eval()
    expected = (softmax(logits(0.37).numpy()) + softmax(logits(0.53).numpy())) / 2
    shown = model.predict(torch.zeros(4, 1, *SIZE, dtype=torch.float64))
    np.testing.assert_allclose(shown.detach().numpy(), expected, atol=1e-12)
    with torch.no_grad():
        model.student.logits += 1
    model.after_step(TRAINING)
    torch.testing.assert_close(model.teacher.model.logits, logits(0.37) + 0.01)
