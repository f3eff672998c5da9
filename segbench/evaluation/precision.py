"""Arithmetic precision: what torch computes with in training and prediction.

``fp32`` is float32 everywhere. ``tf32`` keeps float32 in memory, but lets the tensor cores of a GPU
round the inputs of convolutions and matrix products to 10 bits of mantissa; on a CPU it is fp32.
``bf16`` and ``fp16`` are torch's automatic mixed precision.
"""

from __future__ import annotations

import torch

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return the context in which a method computes; it changes nothing for fp32 and tf32."""
    half_type = HALF_TYPES.get(precision)
    device_type = torch.device(device).type
    return torch.autocast(device_type, half_type, enabled=half_type is not None)


def use_precision(precision: str) -> None:
    """Allow TF32 in this process for ``tf32``, and only then: cuDNN uses it by default."""
    allowed = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
