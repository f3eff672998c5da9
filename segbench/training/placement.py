"""Move a method to its device and its loss terms back, without waiting where that is possible.

A network gets the memory format that is fastest on its device. On the CPU, convolutions run faster
when the channels of a voxel lie side by side in memory (``benchmarks/speed/step.py``). A layer that
normalizes every item for itself needs the channels one after the other and is slower then, so
networks with such layers stay as they are. The last digits depend on the format: runs record it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segbench.contracts.backbone import Backbone
from segbench.contracts.method import Method
from segbench.nn.layout import FORMATS

CHANNELS_LAST = "channels_last"
CONTIGUOUS = "contiguous"

SHARE_FOR_IMAGES = 0.4  # of the free memory of a device
IN_BACKGROUND = ("cuda",)  # devices with events that say when a copy has arrived
ONEDNN_BLOCK = 8  # channels that oneDNN computes at once with AVX2
NORMALIZES_ITEMS = (
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
)


class HostCopy:
    """A copy of a few numbers in main memory that is made while the device goes on working."""

    def __init__(self, values: Tensor) -> None:
        in_background = values.device.type in IN_BACKGROUND
        self.values = values.to("cpu", non_blocking=in_background)
        self.arrived = torch.cuda.Event() if in_background else None
        if self.arrived is not None:
            self.arrived.record()

    def tolist(self) -> list[float]:
        """Wait for the copy, not for work that was queued after it, and return the numbers."""
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers: list[float] = self.values.tolist()
        return numbers


def steps_read_late(device: torch.device) -> int:
    """Return by how many steps the loss terms are read late, so that the device need not wait."""
    return 1 if device.type in IN_BACKGROUND else 0


def to_device(method: Method, device: torch.device | str) -> Method:
    """Move a method to a device, choose its networks' memory format, and return it."""
    method.to(device)
    for module in method.modules():
        if isinstance(module, Backbone) and _is_faster_channels_last(module, torch.device(device)):
            _order_channels_last(module)
    return method


def fits_on_device(count_bytes: Callable[[], int], device: torch.device | str) -> bool:
    """Return whether a CUDA device has room for that many bytes beside a training."""
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(chosen)
    return count_bytes() <= SHARE_FOR_IMAGES * free


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
    modules = list(network.modules())
    if any(isinstance(module, NORMALIZES_ITEMS) for module in modules):
        return False
    return not any(_is_wrong_channels_last(module) for module in modules)


def _is_wrong_channels_last(module: nn.Module) -> bool:
    """Whether torch computes wrong weight gradients of a layer if channels lie side by side.

    On CPUs with AVX2 and without AVX-512, oneDNN reads and writes beyond the memory of a strided
    convolution in 2-D of kernel size 1 with fewer than 8 input channels (seen with torch 2.14.1).
    """
    if not isinstance(module, nn.Conv2d):
        return False
    pointwise = set(module.kernel_size) == {1} and set(module.stride) != {1}
    return pointwise and module.in_channels < ONEDNN_BLOCK


def _order_channels_last(network: Backbone) -> None:
    # Convolutions follow the format of their weights, and what comes after follows its input. A
    # weight with one input channel is in both formats: its strides decide, so it is copied, too.
    for weight in network.parameters():
        chosen = FORMATS.get(weight.ndim)
        if chosen is not None:
            ordered = torch.empty_like(weight.data, memory_format=chosen)
            weight.data = ordered.copy_(weight.data)
