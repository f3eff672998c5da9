"""The scripts of benchmarks/gpu and benchmarks/speed can make a step of every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from segbench.benchmarks.gpu.lease import METHODS, SMALL
from segbench.benchmarks.gpu.training import Training, Work
from segbench.benchmarks.speed.plain import PLAIN
from segbench.benchmarks.speed.step import make_plain_stepper, make_stepper

from segbench import registry

SPEED = Path(__file__).resolve().parents[2] / "benchmarks" / "speed"
REGISTERED = registry.names("method")


def test_the_lists_of_the_scripts_are_complete():
    assert sorted(REGISTERED) == sorted(METHODS)


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("protocol", ["la", "versemi"])
def test_the_step_at_the_size_of_a_protocol(name, protocol):
    training = Training(Work(name, protocol, **SMALL))
    stage = training.plan[-1]
    made = training.step(stage)
    terms = made.report().terms  # raises if one is not finite
    assert terms


@pytest.mark.parametrize("name", REGISTERED)
def test_the_step_of_the_comparison(name):
    settings = {
        "patch": [16, 16, 16],
        "labeled": 1,
        "unlabeled": 1,
        "backbone": "vnet",
        "options": {"width": 4, "depth": 3},
    }
    step = make_stepper(name, settings)
    step()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_code_computes_the_same_loss(name, monkeypatch):
    monkeypatch.syspath_prepend(SPEED)
    settings = {
        "patch": [16, 16, 16],
        "labeled": 2,
        "unlabeled": 2,
        "backbone": "vnet",
        "options": {"width": 4, "depth": 3, "dropout": 0.0},
    }
    losses = []
    for make in (make_stepper, make_plain_stepper):
        step = make(name, settings)
        torch.manual_seed(1)
        losses.append([float(step()), float(step())])
    ours, plain = losses
    assert plain == pytest.approx(ours, rel=1e-4)
    assert plain[1] != plain[0]
