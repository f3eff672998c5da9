"""Every registered method passes the conformance suite, and wrong methods fail it."""

import sys

import pytest
import torch

from segbench import conformance, registry
from segbench.config.overrides import protocol_keys
from segbench.conformance import CHECKS, Trial, trials

METHODS = registry.names("method")


@pytest.mark.parametrize(
    "name, what", [(name, what) for name in METHODS for what, _ in trials(name)]
)
def test_conformance(name, what):
    dict(trials(name))[what]()


@pytest.mark.parametrize("name", METHODS)
def test_parameter_names_are_free(name):
    taken = {key.partition(".")[0] for key in protocol_keys()}
    assert not taken & set(registry.get("method", name).cls.Params.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_docstring_tells_source_and_divergences(name):
    text = sys.modules[registry.get("method", name).cls.__module__].__doc__
    assert "Paper" in text and "Official code" in text and "Here" in text


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_has_one_player(name):
    method = Trial(name).make()
    owned = [id(p) for player in method.players for p in method.trainable(player)]
    assert len(owned) == len(set(owned)) == sum(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("name", [m for m in METHODS if registry.get("method", m).cls.joint])
def test_joint_methods_answer_for_each_data_set(name):
    method = Trial(name, classes=3, sources=3).make().eval()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        answers = [method.predict(image, source) for source in range(3)]
    assert all(a.shape == (1, 3, 16, 16, 16) for a in answers) and not torch.equal(
        answers[0], answers[1]
    )


BAD = """
import torch
from segbench import Field, Method, MethodParams, method
from segbench.nn.losses import dice_ce
from segbench.nn.ops import Ema

@method("{name}")
class Bad(Method):
    skips_ignored = True
    class Params(MethodParams):
        {params}
    def build(self, network):
        self.network = network()
        self.teacher = Ema(self.network)
        {build}
    def loss(self, batch, t):
        loss = dice_ce(self.network(batch.x), batch.y)
        {loss}
        return {{"supervised": loss}}
    def after_step(self, t):
        self.teacher.follow(self.network, 0.9)
    def predict(self, image, source=0):
        p = self.network(image).softmax(1)
        {predict}
        return p
"""
# What is wrong with it, and the check that must say so.
FAULTS = {
    "good": ({}, None),
    "counter": (
        {"build": "self.count = 0", "loss": "self.count += 1; loss = loss * self.count"},
        "resume",
    ),
    "appears": ({"loss": "self.last = float(loss)"}, "hidden state"),
    "unseeded": ({"loss": "import random; loss = loss * (1 + random.random())"}, "determinism"),
    "nan": ({"loss": "loss = loss + (float('nan') if t.step == 3 else 0)"}, "finite terms"),
    "vector": ({"loss": "loss = loss.expand(2)"}, "finite terms"),
    "changes": ({"loss": "batch.x.add_(1)"}, "batch untouched"),
    "unused": ({"build": "self.head = torch.nn.Linear(2, 2)"}, "gradients"),
    "zero": (
        {
            "build": "self.head = torch.nn.Linear(2, 2)",
            "loss": "loss = loss + 0 * self.head(loss.expand(2)).sum()",
        },
        "gradients",
    ),
    "taught": (
        {
            "build": "self.teacher.requires_grad_(True)",
            "loss": "loss = loss + self.teacher.model(batch.x).square().mean()",
        },
        "gradients",
    ),
    "logits": ({"predict": "p = self.network(image)"}, "probabilities"),
    "noisy": ({"predict": "p = (p + torch.rand_like(p)) / 3"}, "probabilities"),
    "no_range": ({"params": "weight: float = Field(1.0, description='of it')"}, "documented"),
    "no_text": ({"params": "weight: float = Field(1.0, ge=0)"}, "documented"),
    "as_background": (
        {"loss": "loss = dice_ce(self.network(batch.x), batch.y.where(batch.y != 255, 0))"},
        "voxels left out",
    ),
    "no_such_class": (
        {
            "loss": "loss = torch.nn.functional.cross_entropy(self.network(batch.x), batch.y)",
        },
        "voxels left out",
    ),
    "two_only": ({"loss": "assert len(batch.x) == 2 and len(batch.u) == 2"}, "batch splits"),
}


@pytest.fixture
def plugin(tmp_path):
    def add(name, **parts):
        file = tmp_path / f"bad_{name}.py"
        fill = {key: parts.get(key, "pass") for key in ("params", "build", "loss", "predict")}
        file.write_text(BAD.format(name=f"bad_{name}", **fill))
        registry.add_file(file)
        return f"bad_{name}"

    return add


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(plugin, fault):
    parts, culprit = FAULTS[fault]
    name = plugin(fault, **parts)
    failed = []
    for what, check in CHECKS.items():
        try:
            check(Trial(name))
        except (AssertionError, RuntimeError):  # torch itself refuses some
            failed.append(what)
    assert (failed == []) if culprit is None else (culprit in failed)


def test_registered_checks_are_the_documented_ones():
    assert set(CHECKS) == {
        "finite terms",
        "batch splits",
        "probabilities",
        "gradients",
        "determinism",
        "resume",
        "training on disk",
        "hidden state",
        "batch untouched",
        "documented",
        "voxels left out",
    }
    assert all(check.__doc__ for check in CHECKS.values()) and conformance.STEPS >= 2
