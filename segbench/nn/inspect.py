"""Inspect a network: check shapes, measure its cost, and save memory in training."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from segbench.contracts.backbone import Backbone
from segbench.errors import PluginError, UsageError

__all__ = ["NetworkCost", "cost", "dry_run", "receptive_field", "recompute"]


# Computing a patch of this size takes less time than the first use of the meta device, for which
# torch imports its compiler.
FEW_VOXELS = 40_000


def _ghost(net: Backbone, device: str = "meta") -> Backbone:
    """Return a copy, by default on the meta device, which computes only shapes."""
    return copy.deepcopy(net).to(device)


@torch.random.fork_rng(devices=())
def dry_run(net: Backbone, channels: int, patch: tuple[int, ...]) -> None:
    """Check the shapes of a network; no random number is drawn from the caller's generator.

    Raises:
        UsageError: the patch is too small for the network, or the network cannot process its size.
        PluginError: the shapes of the feature maps differ from those that the network declares.
    """
    device = "cpu" if prod(patch) <= FEW_VOXELS else "meta"
    ghost = _ghost(net, device).eval()
    image = torch.zeros(1, channels, *patch, device=device)
    edges = (max(n, 2 * m) for n, m in zip(patch, net.multiple(net.p, len(patch)), strict=True))
    larger = f"-o patch={'x'.join(map(str, edges))}"
    try:
        with torch.no_grad():
            pyramid = ghost.encode(image)
            maps = ghost.decode(pyramid)
    except ValueError as error:  # torch cannot normalize a single voxel
        raise UsageError(
            f"the patch is too small for backbone '{net.name}'",
            found=f"{'x'.join(map(str, patch))}: {error}",
            fix=larger,
        ) from error
    except UsageError as error:  # the network does not know the command-line options
        if "-o " in str(error.details["fix"]):
            raise
        raise UsageError(error.what, **{**error.details, "fix": larger}) from error  # type: ignore[arg-type]
    except Exception as error:  # for example, attention windows that do not divide a map
        raise UsageError(
            f"backbone '{net.name}' cannot process patches of size {'x'.join(map(str, patch))}",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="choose another patch (-o patch=) or backbone (segbench list backbones)",
        ) from error
    found = [tuple(m.shape[1:]) for m in (*pyramid, maps[0])]
    declared = [
        (c, *(-(-n // s) for n, s in zip(patch, stride, strict=True)))
        for c, stride in zip(
            (*net.channels, net.width), (*net.strides, (1,) * len(patch)), strict=True
        )
    ]
    if found != declared:
        raise PluginError(
            f"the feature maps of backbone '{net.name}' differ from the declared shapes",
            found=found,
            expected=declared,
        )


# -- saving memory ---------------------------------------------------------------------------------


def recompute(module: nn.Module) -> None:
    """Recompute the activations of all backbones in ``module`` in the backward pass to save memory.

    Activations inside the stages of a backbone are not stored. Outputs, gradients, running
    statistics and random draws do not change.
    """
    for net in [m for m in module.modules() if isinstance(m, Backbone)]:
        for stage in net.stages():
            # A new class survives a copy of the module; a replaced forward method does not.
            stage.__class__ = _recomputed(type(stage))  # type: ignore[arg-type]


@cache
def _recomputed(cls: type) -> type:
    def forward(self: nn.Module, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return cls.forward(self, *args)  # type: ignore[attr-defined]
        modes = {m: m.training for m in self.modules()}
        return checkpoint(
            partial(cls.forward, self),  # type: ignore[attr-defined]
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _again(modes)),
        )

    return type(cls.__name__, (cls,), {"forward": forward})


@contextmanager
def _again(modes: dict[nn.Module, bool]) -> Iterator[None]:
    """Restore the training modes of the first forward pass while activations are recomputed.

    Running statistics are kept unchanged, because the first pass has already updated them.
    """
    now = {m: m.training for m in modes}
    statistics = [(b, b.clone()) for m in modes if isinstance(m, _NormBase) for b in m.buffers()]
    for m, mode in modes.items():
        m.training = mode
    try:
        yield
    finally:
        for buffer, value in statistics:
            buffer.data.copy_(value)  # bypass autograd, which has saved the buffers
        for m, mode in now.items():
            m.training = mode


# -- cost ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkCost:
    """Cost of a network.

    ``parameters`` is the number of parameters. For one image of the patch size, ``flops`` is the
    number of FLOPs of the forward pass, and ``activation_bytes`` is the memory in bytes of the
    activations that are stored for the backward pass.
    """

    parameters: int
    flops: int
    activation_bytes: int


def cost(net: Backbone, channels: int, patch: tuple[int, ...]) -> NetworkCost:
    """Return the cost of a network for one patch, measured without computing values.

    A multiply-add counts as two FLOPs. Activations are float32.
    """
    ghost = _ghost(net).train()
    # Comparing storages also excludes transposed parameters.
    own = {x.untyped_storage()._cdata for x in (*ghost.parameters(), *ghost.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in own:
            kept[x.untyped_storage()._cdata] = x
        return x

    # Two images, because torch cannot compute batch statistics of a single voxel.
    image = torch.zeros(2, channels, *patch, device="meta")
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        outputs = ghost(image)
    del outputs
    size = sum(x.untyped_storage().nbytes() for x in kept.values())
    return NetworkCost(
        sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2, size // 2
    )


def receptive_field(net: Backbone, channels: int, dims: int) -> tuple[int, ...] | None:
    """Return the size in voxels of the receptive field of a bottleneck voxel along each axis.

    Returns None if the size cannot be determined: if the network uses attention, or if the field is
    larger than 512 voxels (2048 pixels in 2D).

    The field is measured by gradients. Weights are random and positive, activation functions are
    removed and maxima are replaced by means, so that every dependence has a nonzero gradient.
    Global statistics (normalization, squeeze and excitation) are ignored.
    """
    if any(hasattr(m, "num_heads") for m in net.modules()):
        return None
    plain, generator = copy.deepcopy(net).double().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(
                (torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.5) / prod(p.shape[1:])
            )
    unit = net.multiple(net.p, dims)
    field: list[int] = []
    for axis in range(dims):
        if axis == 1 and unit[1] == unit[0]:  # only the last axis may differ
            field.append(field[0])
            continue
        length = unit[axis] * max(4, 2048 // unit[axis] // (4 if dims == 3 else 1))
        shape = [length if i == axis else unit[i] for i in range(dims)]
        image = torch.rand(
            1, channels, *shape, generator=generator, dtype=torch.float64
        ).requires_grad_()
        with _Linear():
            # Clone the image, because some layers modify their input in place.
            bottleneck = plain.encode(image.clone())[-1]
        middle: Any = (0, slice(None), *(n // 2 for n in bottleneck.shape[2:]))
        (gradient,) = torch.autograd.grad(bottleneck[middle].sum(), image)
        seen = gradient[0].abs().sum(0).movedim(axis, 0).flatten(1).sum(1).nonzero().flatten()
        if not len(seen) or seen[0] == 0 or seen[-1] == length - 1:
            return None
        field.append(int(seen[-1] - seen[0] + 1))
    return tuple(field)


THRESHOLDS = {
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "rrelu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "threshold",
    "dropout",
    "dropout2d",
    "dropout3d",
    "clamp",
    "clamp_min",
    "clip",
}
SPATIAL = {"instance_norm", "group_norm"}


class _Linear(TorchFunctionMode):
    """Make layers depend linearly on their inputs within this context.

    Activation functions are skipped, maxima become means, and spatial statistics are constants.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", "").rstrip("_"), kwargs or {}
        if name in THRESHOLDS or name in SPATIAL:
            return args[0]
        if name in ("max_pool2d", "max_pool3d"):
            pool: Any = functional.avg_pool3d if name == "max_pool3d" else functional.avg_pool2d
            return pool(
                *args[:4],
                ceil_mode=kwargs.get("ceil_mode", False),
                **{k: kwargs[k] for k in ("kernel_size", "stride", "padding") if k in kwargs},
            )
        if name in ("maximum", "fmax"):
            return (args[0] + args[1]) / 2
        found = torch.mean(*args, **kwargs) if name == "amax" else func(*args, **kwargs)
        if name in ("mean", "amax", "var", "std", "adaptive_avg_pool2d", "adaptive_avg_pool3d"):
            whole = isinstance(found, Tensor) and prod(found.shape[2:]) == 1 < prod(
                args[0].shape[2:]
            )
            return found.detach() if whole else found
        return found
