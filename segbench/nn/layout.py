"""In which order the numbers of a feature map lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor

# Channels last: the channels of a voxel lie side by side. By the axes of a map or a weight.
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: Tensor) -> bool:
    """Return whether x (N, C, *S) is in channels-last layout, and not in the usual one as well."""
    chosen = FORMATS.get(x.ndim)
    if chosen is None or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=chosen)
