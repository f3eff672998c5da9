"""With reduced precision, networks compute in bf16, and losses and state are fp32."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segbench import registry
from segbench.conformance import SETTINGS, Trial
from segbench.training.plan import clock, stages
from segbench.training.step import TrainingStep

ROOT = Path(__file__).resolve().parents[2]
METHODS = registry.names("method")
STEPS = 8
# Operations that lose digits in bf16: sums over a patch, and functions that stretch small
# differences.
DELICATE = {
    "aten::_softmax",
    "aten::_log_softmax",
    "aten::logsumexp",
    "aten::exp",
    "aten::log",
    "aten::mean",
    "aten::pow",
    "aten::sigmoid",
    "aten::sum",
    "aten::tanh",
}
# Parts of networks that lie in the file of a method.
NETWORK_PARTS = {"sassnet.py: forward"}


@dataclass(frozen=True)
class Operation:
    name: str
    dtypes: frozenset[torch.dtype]  # of its floating-point inputs
    place: str  # file and function of the repository that called it


class Recorder(TorchDispatchMode):
    """Records the operations of methods and losses; for those of backbones only the dtypes."""

    def __init__(self, file):
        super().__init__()
        self.file = file  # of the method, which may lie elsewhere
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        dtypes = frozenset(tensor.dtype for tensor in tensors if tensor.is_floating_point())
        frame = sys._getframe(1)
        while not self.is_own(frame.f_code.co_filename):
            frame = frame.f_back
        place = f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"
        self.operations.add(Operation(func._schema.name, dtypes, place))
        return func(*args, **(kwargs or {}))

    def is_own(self, file):
        is_ours = file.startswith(str(ROOT)) and "site-packages" not in file
        return file == self.file or (is_ours and file != __file__)


def terms_and_operations(trial):
    """Return the loss terms of every phase and player in bf16, and the recorded operations."""
    method = trial.make()
    terms = {}
    recorder = Recorder(file_of(method))
    for stage in stages(method.phases(), STEPS, 2, 2):
        with torch.no_grad():
            method.start_phase(stage.phase)
        batch = trial.batch(stage.labeled, stage.unlabeled)
        t = clock(stage, stage.start, STEPS, epoch=0, seed=0)
        for number, player in enumerate(method.players):
            method.train()
            loss = method.loss if number == 0 else getattr(method, f"loss_{player}")
            with recorder, torch.autocast("cpu", torch.bfloat16):
                terms.update(loss(batch, t))
    return terms, recorder.operations


def file_of(method):
    return sys.modules[type(method).__module__].__file__


def rounded(operations, name):
    """Return where a delicate operation of the method's loss was made in bf16."""
    file = Path(file_of(Trial(name).make())).name
    found = set()
    for operation in operations:
        if operation.name not in DELICATE or torch.bfloat16 not in operation.dtypes:
            continue
        in_loss = operation.place.split(":")[0] in (file, "losses.py", "ops.py")
        if in_loss and operation.place not in NETWORK_PARTS:
            found.add(f"{operation.place}: {operation.name}")
    return found


@pytest.mark.parametrize("name", METHODS)
def test_networks_are_in_bf16_and_losses_in_fp32(name):
    terms, operations = terms_and_operations(Trial(name))
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert rounded(operations, name) == set()
    convolutions = [one.dtypes for one in operations if one.name == "aten::convolution"]
    assert set(convolutions) == {frozenset({torch.bfloat16})}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_kept_is_in_fp32(name):
    trial = Trial(name)
    method = trial.make()
    plan = stages(method.phases(), STEPS, 2, 2)
    train = TrainingStep(method, plan, replace(SETTINGS, precision="bf16"))
    for stage in plan:
        train(stage.start, trial.batch(stage.labeled, stage.unlabeled)).report()
    kept = [leaf for leaf in tree_leaves(train.state()) if isinstance(leaf, Tensor)]
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    dtypes = {value.dtype for value in [*kept, *gradients] if value.is_floating_point()}
    assert dtypes == {torch.float32}


CARELESS = """
from segbench import Method, method

@method("careless")
class Careless(Method):
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        return {"supervised": self.network(batch.x).softmax(1)[:, 1].mean()}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
"""


def test_a_loss_in_bf16_is_found(tmp_path):
    (tmp_path / "careless.py").write_text(CARELESS)
    registry.add_file(tmp_path / "careless.py")
    terms, operations = terms_and_operations(Trial("careless"))
    assert terms["supervised"].dtype == torch.bfloat16
    assert rounded(operations, "careless") == {
        "careless.py: loss: aten::_softmax",
        "careless.py: loss: aten::mean",
    }
