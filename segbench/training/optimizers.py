"""Make torch's optimizers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from segbench.contracts.method import Optim

Optimizer = torch.optim.Optimizer
FUSED = ("cuda",)  # devices on which the fused kernels are used


class _WithoutCompiler(Optimizer):
    """An optimizer whose first use does not import torch's compiler.

    torch wraps these methods and ``step`` for the sake of compiled code, and imports its compiler
    for that: about a second at the start of every run. Without the wrappers they do the same.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class _SGD(_WithoutCompiler, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _Adam(_WithoutCompiler, torch.optim.Adam):
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class _AdamW(_WithoutCompiler, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def make_optimizer(
    spec: Optim, parameters: list[nn.Parameter], fused: bool | None = None
) -> Optimizer:
    """Return the optimizer that a specification describes.

    Args:
        fused: update all weights in one kernel; None does so on CUDA, where launching one kernel
            per weight takes longer than computing it. The last digits may differ.
    """
    if fused is None:
        fused = all(parameter.device.type in FUSED for parameter in parameters)
    shared: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if fused:
        shared["fused"] = True
    if spec.name in ("sgd", "nesterov"):
        nesterov = spec.name == "nesterov"
        return _SGD(parameters, momentum=spec.momentum, nesterov=nesterov, **shared)
    kind = _Adam if spec.name == "adam" else _AdamW
    return kind(parameters, betas=spec.betas, **shared)
