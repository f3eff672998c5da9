"""Move a method to its device, in the memory format that is fastest there.

On the CPU, convolutions run faster when the channels of a voxel lie side by side
in memory (``benchmarks/speed/step.py``). A layer that normalizes every item for itself needs the
channels one after the other and is slower then, so networks with such layers stay as they are. The
last digits depend on the format: runs record it.
"""

from __future__ import annotations

import torch
from torch import nn

from segbench.contracts.backbone import Backbone
from segbench.contracts.method import Method

CHANNELS_LAST = "channels_last"
CONTIGUOUS = "contiguous"

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the axes of a weight
NORMALIZES_ITEMS = (
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
)


def to_device(method: Method, device: torch.device | str) -> Method:
    """Move a method to a device, choose its networks' memory format, and return it."""
    method.to(device)
    for module in method.modules():
        if isinstance(module, Backbone) and _is_faster_channels_last(module, torch.device(device)):
            _order_channels_last(module)
    return method


def memory_format(method: Method) -> str:
    """Return the memory format of a method's networks: "channels_last" or "contiguous"."""
    for weight in method.parameters():
        chosen = FORMATS.get(weight.ndim)
        if chosen is None or weight.is_contiguous():
            continue
        if weight.is_contiguous(memory_format=chosen):
            return CHANNELS_LAST
    return CONTIGUOUS


def _is_faster_channels_last(network: Backbone, device: torch.device) -> bool:
    if device.type != "cpu":
        return False
    return not any(isinstance(module, NORMALIZES_ITEMS) for module in network.modules())


def _order_channels_last(network: Backbone) -> None:
    # Convolutions follow the format of their weights, and what comes after follows its input.
    for weight in network.parameters():
        chosen = FORMATS.get(weight.ndim)
        if chosen is not None:
            weight.data = weight.data.contiguous(memory_format=chosen)
