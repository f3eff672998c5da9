"""Methods and backbones keep to the device they are on, and a training step never waits for it.

The device is pretended (tests/pretended.py), so that no GPU is needed.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pretended import DEVICE, MixedDevicesError, OnDevice, pretended_device

from segbench import registry
from segbench.conformance import SETTINGS, STEPS, Trial
from segbench.errors import PluginError, UsageError
from segbench.evaluation.sliding_window import labels_from, predict_probabilities
from segbench.training.plan import stages
from segbench.training.step import TrainingStep

METHODS = registry.names("method")
MEMBERS = {"timm": ("test_resnet", "mobilenetv3_small_050"), "monai": ("segresnet", "basic_unet")}

MASKS = "the number of voxels of a class decides shapes; weights of 0 and 1 would change numbers"
# Functions that make the CPU wait inside a training step, and why the method cannot do without.
COMPONENTS = {
    "mask_on_host": "connected components are found by scipy, on the CPU",
    "largest_components": "the components go back to the device",
}
ALLOWED_WAITS = {
    "bcp": COMPONENTS,
    "sdcl": COMPONENTS,  # BCP's pseudo labels
    "ss_net": {
        "remember": MASKS,
        "attraction": MASKS,
        "update": "gradient of the boolean masks",
    },
}


def variants(name):
    yield Trial(name)
    yield Trial(name, dims=2, classes=3)
    if registry.get("method", name).cls.joint:
        yield Trial(name, classes=3, sources=2)


def backbones():
    found = []
    for name in registry.names("backbone"):
        members = MEMBERS.get(name)
        found += [f"{name}:{member}" for member in members] if members else [name]
    return found


def training_step(method, device):
    plan = stages(method.phases(), STEPS, 2, 2)
    return TrainingStep(method, plan, replace(SETTINGS, device=device))


def make_steps(train, trial):
    """Make the first and the last step of every phase and return what was made."""
    made = []
    for stage in train.plan:
        for step in sorted({stage.start, stage.start + stage.steps - 1}):
            made.append(train(step, trial.batch(stage.labeled, stage.unlabeled, step)))
    return made


def predict(method, trial, device):
    """Return the labels of an image that is larger than the patch."""
    shape = [edge + 3 for edge in trial.patch]
    image = torch.randn(trial.channels, *shape, generator=torch.Generator().manual_seed(1))
    method.eval()

    def windows(batch):
        return method.predict(batch, 0)

    found = predict_probabilities(windows, image, trial.patch, trial.patch, device=device)
    assert found.device.type == device
    return labels_from(found)


def losses(made):
    return [step.report().terms for step in made]


@pytest.mark.parametrize("name", METHODS)
def test_method_keeps_to_its_device_and_does_not_wait(name, monkeypatch):
    allowed = ALLOWED_WAITS.get(name, {})
    functions = set()
    for trial in variants(name):
        plain = make_steps(training_step(trial.make(), "cpu"), trial)
        method = trial.make()
        with pretended_device(monkeypatch) as record:
            train = training_step(method, DEVICE)
            record.waits.clear()  # of moving the weights
            made = make_steps(train, trial)
            waits = set(record.waits)
            copies = record.events
            found = losses(made)
            predict(method, trial, DEVICE)
            assert all(isinstance(value, OnDevice) for value in method.parameters())
        assert {wait for wait in waits if wait.function not in allowed} == set()
        functions |= {wait.function for wait in waits}
        assert copies == len(made) * len(train.method.players)
        assert record.events == 0
        # The device computes what the CPU computes, up to its memory format.
        assert found[0] == pytest.approx(losses(plain)[0], rel=1e-3, abs=1e-5)
    assert functions == set(allowed), "an entry of ALLOWED_WAITS is out of date"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", backbones())
def test_backbone_keeps_to_its_device_and_does_not_wait(name, dims, monkeypatch):
    trial = Trial("", name, dims=dims)
    try:
        cls = registry.get("backbone", name).cls
        network = cls(cls.Params(**trial.params), 1, dims, (2, 3))
    except (PluginError, UsageError) as error:
        pytest.skip(error.what)
    with pretended_device(monkeypatch) as record:
        network.to(DEVICE)
        image = torch.rand(2, 1, *trial.patch).to(DEVICE)
        record.waits.clear()
        outputs = network(image)
        sum(output.square().mean() for output in outputs).backward()
        assert record.waits == []
        assert all(isinstance(output, OnDevice) for output in outputs)


SLOPPY = """
import torch
from segbench import Method, method

@method("{name}")
class Sloppy(Method):
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        loss = self.network(batch.x).square().mean()
        {line}
        return {{"supervised": loss}}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
"""


@pytest.fixture
def sloppy(tmp_path):
    """Return a function that adds a method with one line in its loss and returns its trial."""

    def add(line):
        name = f"sloppy_{len(list(tmp_path.iterdir()))}"
        file = tmp_path / f"{name}.py"
        file.write_text(SLOPPY.format(name=name, line=line))
        registry.add_file(file)
        return Trial(name)

    return add


@pytest.mark.parametrize(
    "line",
    [
        "loss = loss + torch.zeros(1)",
        "loss = loss + batch.x.new_tensor([1.0]).sum()",  # a copy that waits
        "loss = loss + torch.arange(3)[batch.source[:1]].sum()",
        "loss = loss * torch.ones(2, 2)[0, 0].expand(1).sum(0, keepdim=True)",
        "loss = loss + torch.randn((), device=batch.x.device, generator=t.generator('draw'))",
        "loss = loss + torch.where(batch.y == 1, torch.ones(batch.y.shape), 0).mean()",
    ],
)
def test_mixed_devices_are_found(line, sloppy, monkeypatch):
    trial = sloppy(line)
    method = trial.make()
    with pretended_device(monkeypatch):
        train = training_step(method, DEVICE)
        with pytest.raises(MixedDevicesError):
            make_steps(train, trial)


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        ("pass", False),
        ("loss = loss * torch.tensor(1.0)", False),  # a single number of the CPU
        ("loss = loss + loss.item()", True),
        ("loss = loss if loss > 0 else -loss", True),
        ("loss = loss + sum(batch.source.tolist())", True),
        ("loss = loss + float(batch.x.mean().cpu())", True),
        ("loss = loss + torch.from_numpy(batch.y.cpu().numpy()).sum()", True),
        ("loss = loss + batch.x[batch.x > 0].mean()", True),
        ("loss = loss + len(batch.y.nonzero())", True),
        ("loss = loss + len(batch.y.unique())", True),
        ("loss = loss + torch.arange(3).to(batch.x.device).sum()", True),
        ("loss = loss + torch.arange(3).to(batch.x.device, non_blocking=True).sum()", False),
    ],
)
def test_waits_are_found(line, waits, sloppy, monkeypatch):
    trial = sloppy(line)
    method = trial.make()
    with pretended_device(monkeypatch) as record:
        train = training_step(method, DEVICE)
        record.waits.clear()
        make_steps(train, trial)
        assert bool(record.waits) == waits
