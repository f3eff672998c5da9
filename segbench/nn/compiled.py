"""Networks compiled by torch, and replayed as CUDA graphs.

A CUDA graph is a recorded list of kernels that the device starts without the CPU, which pays where
kernels are small. It writes its results to the same memory each time: ``begin_pass`` says that the
results before it are no longer read.
"""

from __future__ import annotations

from weakref import WeakSet

import torch

from segbench.contracts.backbone import Backbone
from segbench.contracts.method import Method

GRAPHS = "reduce-overhead"  # torch's name of the mode that records CUDA graphs

_replayed: WeakSet[Method] = WeakSet()


def compile_networks(method: Method, *, cuda_graphs: bool = False) -> None:
    """Let torch compile the stages of all networks when they are used first.

    The results differ from those of the plain stages in rounding.

    Args:
        cuda_graphs: record what runs on CUDA as graphs, and replay them. On other devices it
            changes nothing.
    """
    mode = GRAPHS if cuda_graphs else None
    for module in method.modules():
        if isinstance(module, Backbone):
            for stage in module.stages():
                stage.compile(dynamic=False, mode=mode)  # patches and windows have few shapes
    if cuda_graphs:
        _replayed.add(method)


def begin_pass(method: Method) -> None:
    """Begin a training step, or the prediction of a batch of windows.

    Without CUDA graphs nothing happens.
    """
    if method in _replayed:
        torch.compiler.cudagraph_mark_step_begin()
