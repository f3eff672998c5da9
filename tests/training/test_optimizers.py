"""The optimizers are torch's, without the import of torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from segbench.contracts.optim import Optim
from segbench.training.optimizers import make_optimizer

THEIRS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1e-3),
}


def trained(make):
    """Return weights after five steps, with a stored and restored state after the third."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = make([weight])
    for step in range(5):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        if step == 2:
            state = optimizer.state_dict()
            optimizer = make([weight])
            optimizer.load_state_dict(state)
    assert weight.requires_grad and not weight.grad.requires_grad
    return weight.detach()


@pytest.mark.parametrize("name", THEIRS)
def test_optimizers_are_those_of_torch(name):
    spec = Optim(name=name, lr=0.1, momentum=0.9, weight_decay=1e-3)
    ours = trained(lambda parameters: make_optimizer(spec, parameters))
    assert torch.equal(ours, trained(THEIRS[name]))


def test_nesterov_needs_momentum():
    with pytest.raises(ValidationError, match="needs a momentum above 0"):
        Optim(name="nesterov", momentum=0)


def test_a_step_does_not_import_the_compiler():
    code = (
        "import sys, torch\n"
        "from segbench.contracts.optim import Optim\n"
        "from segbench.training.optimizers import make_optimizer\n"
        "weight = torch.nn.Parameter(torch.ones(3))\n"
        "for name in ('sgd', 'nesterov', 'adam', 'adamw'):\n"
        "    optimizer = make_optimizer(Optim(name=name), [weight])\n"
        "    optimizer.zero_grad()\n"
        "    weight.sum().backward()\n"
        "    optimizer.step()\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", THEIRS)
def test_fused_updates_differ_in_rounding_only(name):
    spec = Optim(name=name, lr=0.1, momentum=0.9, weight_decay=1e-3)
    plain = trained(lambda parameters: make_optimizer(spec, parameters, fused=False))
    fused = trained(lambda parameters: make_optimizer(spec, parameters, fused=True))
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
