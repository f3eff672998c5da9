"""Self-training: two trainings, labels that stay the same, and the loss in NumPy (float64)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import Pixelwise, numpy_cross_entropy, numpy_dice, slices, softmax

from segbench import Clock
from segbench.conformance import SETTINGS, Trial
from segbench.contracts.method import Setting, Source
from segbench.registry import get
from segbench.training.plan import stages
from segbench.training.step import TrainingStep

CLASS = get("method", "self_training").cls
SLOPES = [0.0, 2.0, -1.5]
BIASES = [0.6, -0.4, -0.7]
TEACHER = [0.3, -1.0, 1.7]


def build(**params):
    setting = Setting((Source("set", ("one", "two")),), 1, (12, 10))
    model = CLASS(CLASS.Params(**params), setting)
    model.build(lambda: Pixelwise(SLOPES, BIASES))
    model.teacher.model.slope.data = torch.tensor(TEACHER).double().view(1, -1, 1, 1)
    return model.train()


def probabilities(images: torch.Tensor, slopes: list[float]) -> np.ndarray:
    shape = (1, -1, 1, 1)
    return softmax(np.reshape(slopes, shape) * images.numpy() + np.reshape(BIASES, shape))


@pytest.mark.parametrize("threshold", [0.0, 0.8])
def test_terms_of_the_second_training(threshold, parity):
    items = slices()
    found = build(weight=0.7, threshold=threshold).loss(items, Clock(7, 10, "all"))

    def loss(p, y, used):
        each = numpy_cross_entropy(p, y)
        return (each[used].mean() + numpy_dice(p, y, used, first=1)) / 2

    y = items.y.numpy()
    teacher = probabilities(items.u, TEACHER)
    used = teacher.max(1) >= threshold
    assert (used.mean() == 1) == (threshold == 0)
    supervised = loss(probabilities(items.x, SLOPES), y, np.ones(y.shape, bool))
    pseudo = loss(probabilities(items.u, SLOPES), teacher.argmax(1), used)
    parity("self_training", found, {"supervised": supervised, "pseudo": 0.7 * pseudo})


def test_the_teacher_predicts_in_eval_mode_and_learns_nothing():
    model = build()
    terms = model.loss(slices(), Clock(7, 10, "all"))
    sum(terms.values()).backward()
    teacher = model.teacher.model
    assert [training for _, training in teacher.seen] == [False] and teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_phases():
    plan = stages(build(share=0.3).phases(), 200, 4, 4)
    assert [(s.phase.name, s.steps, s.labeled, s.unlabeled, s.span) for s in plan] == [
        ("labeled", 60, 8, 0, 60),
        ("all", 140, 4, 4, 140),
    ]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_second_training_starts_again_and_labels_stay_the_same(dims):
    """The teacher holds the last weights of the first phase; the student has the initial ones."""
    trial = Trial("self_training", dims=dims)
    method = trial.make()
    initial = {key: value.clone() for key, value in method.student.state_dict().items()}
    plan = stages(method.phases(), 6, 2, 2)
    step = TrainingStep(method, plan, SETTINGS)
    for number in range(3):
        step(number, trial.batch(4, 0, number))
    trained = {key: value.clone() for key, value in method.student.state_dict().items()}
    assert any(not torch.equal(trained[key], initial[key]) for key in trained)

    copied = copy.deepcopy(method)
    copied.start_phase(plan[1].phase)
    started = copied.student.state_dict()
    assert all(torch.equal(started[key], initial[key]) for key in initial)
    for number in range(3, 6):
        step(number, trial.batch(2, 2, number))
        parameters = dict(method.teacher.model.named_parameters())
        assert all(torch.equal(value, trained[key]) for key, value in parameters.items())
