"""What the engine does with a built network: a dry run of its shapes, its costs, and saving memory going backward."""

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


def _ghost(net: Backbone) -> Backbone:
    """A copy without numbers, in which only shapes are computed."""
    return copy.deepcopy(net).to("meta")


def dry_run(net: Backbone, channels: int, patch: tuple[int, ...]) -> None:
    """Run shapes through a network; no random number is drawn and no value computed.

    Raises:
        UsageError: the patch is too small for it, or of edges that it cannot take.
        PluginError: its maps are not those it declares.
    """
    ghost = _ghost(net).eval()
    image = torch.zeros(1, channels, *patch, device="meta")
    edges = (max(n, 2 * m) for n, m in zip(patch, net.multiple(net.p, len(patch)), strict=True))
    larger = f"-o patch={'x'.join(map(str, edges))}"
    try:
        with torch.no_grad():
            pyramid = ghost.encode(image)
            maps = ghost.decode(pyramid)
    except ValueError as error:  # torch refuses to normalize a single voxel
        raise UsageError(
            f"the patch is too small for backbone '{net.name}'",
            found=f"{'x'.join(map(str, patch))}: {error}",
            fix=larger,
        ) from error
    except UsageError as error:  # a network knows what fits it, and nothing of the command line
        if "-o " in str(error.details["fix"]):
            raise
        raise UsageError(error.what, **{**error.details, "fix": larger}) from error  # type: ignore[arg-type]
    except Exception as error:  # such as windows of attention that do not divide a map
        raise UsageError(
            f"backbone '{net.name}' cannot take patches of {'x'.join(map(str, patch))}",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            fix="another patch (-o patch=) or backbone (segbench list backbones)",
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
            f"the maps of backbone '{net.name}' are not those it declares",
            found=found,
            expected=declared,
        )


# -- saving memory -----------------------------------------------------------------------------------------------------


def recompute(module: nn.Module) -> None:
    """Keep no activations inside the stages of all backbones in ``module``; they are computed again going backward.

    Outputs, gradients, running statistics and random draws stay what they were.
    """
    for net in [m for m in module.modules() if isinstance(m, Backbone)]:
        for stage in net.stages():
            stage.__class__ = _recomputed(type(stage))  # type: ignore[arg-type]  # unlike a replaced forward, it survives being copied


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
    """Modules in the modes of their first pass; running statistics stay what they are, for that pass has moved them."""
    now = {m: m.training for m in modes}
    statistics = [(b, b.clone()) for m in modes if isinstance(m, _NormBase) for b in m.buffers()]
    for m, mode in modes.items():
        m.training = mode
    try:
        yield
    finally:
        for buffer, value in statistics:
            buffer.data.copy_(value)  # past autograd, which has saved them without need
        for m, mode in now.items():
            m.training = mode


# -- costs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkCost:
    """Of a network: parameters, and for one image of the patch's size FLOPs forward and bytes kept for going backward."""

    parameters: int
    flops: int
    activation_bytes: int


def cost(net: Backbone, channels: int, patch: tuple[int, ...]) -> NetworkCost:
    """Counted in a run of shapes alone; a multiplication with an addition is two FLOPs, activations are float32."""
    ghost = _ghost(net).train()
    own = {
        x.untyped_storage()._cdata for x in (*ghost.parameters(), *ghost.buffers())
    }  # their transposes too
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in own:
            kept[x.untyped_storage()._cdata] = x
        return x

    image = torch.zeros(
        2, channels, *patch, device="meta"
    )  # two: batch statistics of one voxel are refused
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda x: x):
        outputs = ghost(image)
    del outputs
    size = sum(x.untyped_storage().nbytes() for x in kept.values())
    return NetworkCost(
        sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2, size // 2
    )


def receptive_field(net: Backbone, channels: int, dims: int) -> tuple[int, ...] | None:
    """Voxels per axis of the image that one voxel of the bottleneck sees; None where it cannot be determined: attention,
    or more than 512 voxels (2048 of an image).

    Counted by gradients at random positive weights, with thresholds taken out and maxima made means, so that every
    dependence has one. Global statistics (normalization, squeeze and excitation) do not count.
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
        if axis == 1 and unit[1] == unit[0]:  # the last axis of volumes may be treated otherwise
            field.append(field[0])
            continue
        length = unit[axis] * max(4, 2048 // unit[axis] // (4 if dims == 3 else 1))
        shape = [length if i == axis else unit[i] for i in range(dims)]
        image = torch.rand(
            1, channels, *shape, generator=generator, dtype=torch.float64
        ).requires_grad_()
        with _Linear():
            bottleneck = plain.encode(image.clone())[
                -1
            ]  # a copy: some layers write into what they are given
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
    """Within it layers pass on every input: no thresholds, means for maxima, statistics over space as constants."""

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
