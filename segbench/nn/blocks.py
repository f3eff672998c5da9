"""Implement building blocks of backbones: encoders, decoders with upsampling stages, and heads.

A subclass of ``EncoderDecoder`` must define only ``make_encoder`` and ``multiple``. It can override
the other ``make_...`` methods, ``join`` and ``head_layer`` to replace a part. Shapes: N items, C
channels, ``*S`` two or three spatial axes. Strides and factors have one number per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from segbench.contracts.backbone import Backbone, BackboneParams
from segbench.errors import UsageError, unknown
from segbench.nn.layout import is_channels_last

__all__ = [
    "KERNELS",
    "KINDS",
    "POOLING",
    "DecoderStage",
    "Encoder",
    "EncoderDecoder",
    "Enlarge",
    "Layers",
    "PerAxis",
    "bottleneck_stride",
    "check_levels",
    "enlarge",
    "halve",
    "kernels_of",
    "pooling_of",
    "strides_of",
]

KINDS = ("transposed", "trilinear", "nearest")
# Factors of ``dropout`` by decoder scale, fine to coarse; 0.3 gives 0.1 to 0.5, as in URPC.
SCALES = (1 / 3, 2 / 3, 1, 5 / 3)

# -- levels of anisotropic networks ----------------------------------------------------------------

PerAxis = tuple[tuple[int, ...], ...]  # one number per axis, for each level or pair of levels

# Parameters of backbones whose levels may differ along the axes, as those of nnU-Net do for thick
# slices (Isensee et al., Nature Methods 2021).
POOLING: Any = Field(
    (),
    description="pooling factors, 1 or 2 along each axis, one list per pair of levels, such as "
    "2x2x1,2x2x2; empty: 2 along every axis",
)
KERNELS: Any = Field(
    (),
    description="kernel sizes of the convolutions, 1 or 3 along each axis, one list per level, "
    "such as 3x3x1,3x3x3,3x3x3; empty: 3 along every axis",
)


def check_levels(params: Any) -> Any:
    """Check ``pooling`` and ``kernels`` of a backbone's parameters, a validator of pydantic.

    Raises:
        ValueError: a wrong number of lists, or a number other than the two that are allowed.
    """
    for key, count, allowed in (
        ("pooling", params.depth - 1, (1, 2)),
        ("kernels", params.depth, (1, 3)),
    ):
        lists = getattr(params, key)
        numbers = {number for per_axis in lists for number in per_axis}
        if lists and (len(lists) != count or not numbers <= set(allowed)):
            shown = ",".join("x".join(map(str, per_axis)) for per_axis in lists)
            raise ValueError(
                f"{key}: expected {count} lists of {allowed[0]} or {allowed[1]} for "
                f"backbone.depth={params.depth}, got {shown}"
            )
    return params


def pooling_of(params: Any, dims: int) -> list[tuple[int, ...]]:
    """Return the pooling factors along each axis between two levels, fine to coarse.

    Raises:
        UsageError: the parameters are for another number of axes.
    """
    return _per_level(params, "pooling", params.depth - 1, 2, dims)


def kernels_of(params: Any, dims: int) -> list[tuple[int, ...]]:
    """Return the kernel sizes along each axis of all levels, fine to coarse.

    Raises:
        UsageError: the parameters are for another number of axes.
    """
    return _per_level(params, "kernels", params.depth, 3, dims)


def _per_level(params: Any, key: str, count: int, default: int, dims: int) -> list[tuple[int, ...]]:
    # A copy of the parameters with a smaller depth, in the search for one that fits, has lists that
    # are too long.
    lists = list(getattr(params, key))[:count]
    if not lists:
        return [(default,) * dims] * count
    for per_axis in lists:
        if len(per_axis) != dims:
            raise UsageError(
                f"backbone.{key} does not fit the number of axes",
                found="x".join(map(str, per_axis)),
                expected=f"{dims} numbers per list",
                fix=f"leave out -o backbone.{key}, or name another protocol",
            )
    return lists


def strides_of(pooling: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the strides of all levels relative to the image, fine to coarse."""
    stride = (1,) * len(pooling[0])
    strides = [stride]
    for factors in pooling:
        stride = tuple(whole * factor for whole, factor in zip(stride, factors, strict=True))
        strides.append(stride)
    return tuple(strides)


def bottleneck_stride(params: Any, dims: int) -> tuple[int, ...]:
    """Return the number that a patch must be a multiple of along each axis."""
    return strides_of(pooling_of(params, dims))[-1]


# -- enlarging and reducing feature maps -----------------------------------------------------------


@lru_cache(maxsize=256)
def _interpolation(
    size: int, factor: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the matrix (factor * size, size) of linear interpolation along one axis."""
    # A cached inference tensor could not be used in later training steps.
    with torch.inference_mode(False):
        steps = torch.arange(size * factor, dtype=torch.float64)
        if align_corners:
            place = steps * (size - 1) / max(size * factor - 1, 1)
        else:
            place = (steps + 0.5) / factor - 0.5
        place = place.clamp(0, size - 1)
        distance = (place[:, None] - torch.arange(size)).abs()
        weights = (1 - distance).clamp(min=0)
        return weights.to(device, dtype, non_blocking=True)


def enlarge(x: Tensor, factors: Sequence[int], align_corners: bool = False) -> Tensor:
    """Enlarge (N, C, *S) by bi- or trilinear interpolation.

    The function uses matrix products, because the gradient of torch's interpolation is not
    deterministic on CUDA. The result is in the layout of ``x``.
    """
    if is_channels_last(x):
        rows = x.movedim(1, -1)
        return _enlarge_axes(rows, factors, 1, align_corners).movedim(-1, 1)
    last = x.ndim - 1
    *others, last_factor = factors
    if last_factor > 1:
        matrix = _interpolation(x.shape[last], last_factor, align_corners, x.dtype, x.device)
        x = F.linear(x, matrix)
    return _enlarge_axes(x, others, 2, align_corners)


def _enlarge_axes(x: Tensor, factors: Sequence[int], first: int, align_corners: bool) -> Tensor:
    """Enlarge the axes of a contiguous tensor that begin at ``first``, one after the other."""
    for axis, factor in enumerate(factors, start=first):
        if factor == 1:
            continue
        before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        matrix = _interpolation(size, factor, align_corners, x.dtype, x.device)
        rows = x.reshape(before.numel(), size, -1)
        enlarged = matrix.expand(len(rows), -1, -1) @ rows  # batched, to avoid copies
        x = enlarged.reshape(*before, size * factor, *after)
    return x


def halve(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Return (N, C, *S) after max pooling over pairs along each axis whose factor is 2.

    The gradient is deterministic.
    """
    for axis, factor in enumerate(factors, start=2):
        if factor == 2:
            first, second = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            x = torch.maximum(first, second)
    return x


def logits_of(head: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (N, K, *S) of a head from a map (N, C, *S).

    In channels-last layout on the CPU, a convolution of kernel size 1 is computed as a matrix
    product. With one thread, torch's convolution would copy the map to the other layout.
    """
    product_is_faster = x.device.type == "cpu" and is_channels_last(x)
    if (
        product_is_faster
        and isinstance(head, nn.Conv2d | nn.Conv3d)
        and set(head.kernel_size) == {1}
    ):
        rows = x.movedim(1, -1)
        return F.linear(rows, head.weight.flatten(1), head.bias).movedim(-1, 1)
    logits: Tensor = head(x)
    return logits


class Enlarge(nn.Module):
    """Linear interpolation as a layer."""

    def __init__(self, factors: Sequence[int], align_corners: bool = False) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, *(S * factors)) for an input (N, C, *S)."""
        return enlarge(x, self.factors, self.align_corners)


# -- layers ----------------------------------------------------------------------------------------


def _instance_norm(x: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    """Normalize each channel of each item of (N, C, *S)."""
    if x.shape[2:].numel() == 1:
        raise ValueError("instance normalization needs more than one voxel per channel")
    if x.device.type == "cpu":
        # Group normalization with one channel per group gives the same result and is faster.
        return F.group_norm(x, x.shape[1], norm.weight, norm.bias, norm.eps)
    return F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalization without running statistics, fast on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return _instance_norm(x, self)


class InstanceNorm3d(nn.InstanceNorm3d):
    """Instance normalization without running statistics, fast on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return _instance_norm(x, self)


@dataclass(frozen=True)
class Layers:
    """Build layers for a given number of spatial axes and a given normalization.

    ``norm`` is batch, instance (without trainable parameters), affine (instance normalization with
    trainable parameters), group or none.
    """

    dims: int
    norm: str = "batch"

    def of(self, kind: str, *args: Any, **kwargs: Any) -> nn.Module:
        """Return a layer of the given kind.

        For example, ``of("Conv", 1, 2, 3)`` returns ``nn.Conv2d(1, 2, 3)`` or
        ``nn.Conv3d(1, 2, 3)``.
        """
        layer: nn.Module = getattr(nn, f"{kind}{self.dims}d")(*args, **kwargs)
        return layer

    def after(self, width: int) -> list[nn.Module]:
        """Return the layers that follow a convolution: normalization and ReLU."""
        layers: list[nn.Module] = []
        if self.norm == "batch":
            layers.append(self.of("BatchNorm", width))
        elif self.norm == "group":
            layers.append(nn.GroupNorm(gcd(16, width), width))
        elif self.norm in ("instance", "affine"):
            kind = InstanceNorm3d if self.dims == 3 else InstanceNorm2d
            layers.append(kind(width, affine=self.norm == "affine"))
        return [*layers, nn.ReLU(inplace=True)]

    def convolutions(
        self, inputs: int, outputs: int, count: int, kernel: Sequence[int] = ()
    ) -> list[nn.Module]:
        """Return convolutions, each followed by normalization and ReLU.

        ``kernel`` has one odd size per axis; empty stands for 3 along every axis.
        """
        sizes = tuple(kernel) or (3,) * self.dims
        padding = tuple(size // 2 for size in sizes)
        layers: list[nn.Module] = []
        for i in range(count):
            channels = inputs if i == 0 else outputs
            layers.append(self.of("Conv", channels, outputs, sizes, padding=padding))
            layers += self.after(outputs)
        return layers

    def unit(
        self, inputs: int, outputs: int, count: int = 2, kernel: Sequence[int] = ()
    ) -> nn.Sequential:
        """Return the layers of ``convolutions`` as one module."""
        return nn.Sequential(*self.convolutions(inputs, outputs, count, kernel))

    def up(
        self, kind: str, inputs: int, outputs: int, factors: Sequence[int]
    ) -> tuple[nn.Module, int]:
        """Return an upsampling layer for ``inputs`` channels, and its number of output channels.

        Only transposed convolutions change the number of channels, to ``outputs``.
        """
        if kind == "trilinear":
            return Enlarge(factors), inputs
        if kind == "nearest":
            return nn.Upsample(scale_factor=tuple(float(factor) for factor in factors)), inputs

        # Factors larger than 2 need several convolutions.
        layers: list[nn.Module] = []
        rest = tuple(factors)
        channels = inputs
        while not layers or max(rest) > 1:
            step = tuple(2 if factor % 2 == 0 else factor for factor in rest)
            layers.append(self.of("ConvTranspose", channels, outputs, step, step))
            layers += self.after(outputs)
            rest = tuple(factor // done for factor, done in zip(rest, step, strict=True))
            channels = outputs
        return nn.Sequential(*layers), outputs


class DecoderStage(nn.Module):
    """Decoder stage of a U-Net: upsampling, concatenation of the encoder's map, convolutions."""

    def __init__(
        self,
        layers: Layers,
        kind: str,
        channels: tuple[int, int, int],
        factors: Sequence[int],
        kernel: Sequence[int] = (),
    ) -> None:
        """Build the stage.

        Args:
            layers: builder of the layers.
            kind: upsampling method.
            channels: of the coarser map, of the encoder's map, and of the output.
            factors: upsampling factor of each axis.
            kernel: sizes of the convolutions; empty stands for 3 along every axis.
        """
        super().__init__()
        deep, skip, out = channels
        self.up, width = layers.up(kind, deep, out, factors)
        self.convs = layers.unit(skip + width, out, kernel=kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return a map with the size of ``skip``, computed from the coarser map ``x``."""
        joined = torch.cat([skip, self.up(x)], 1)
        return self.convs(joined)


# -- network ---------------------------------------------------------------------------------------


class Encoder(NamedTuple):
    """An encoder with the channels and strides of its maps.

    ``module`` takes (N, C, *S) and returns maps from fine (full size) to coarse.
    """

    module: nn.Module
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


class EncoderDecoder(Backbone):
    """Base class of backbones with an encoder and one or more decoders.

    Element-wise dropout is applied at the bottleneck (one draw for all decoders) and before the
    heads (one draw per decoder). With ``side_outputs``, channel-wise dropout is applied after each
    decoder stage instead, with a higher rate at coarser scales. The heads and the outputs of
    ``forward`` are ordered by decoder; with ``side_outputs`` by scale, fine to coarse.
    """

    provides = frozenset({"heads", "decoders", "side_outputs", "features", "dropout"})
    kinds: ClassVar[tuple[str, ...]] = KINDS  # supported upsampling methods
    decoder_norm: ClassVar[str] = "batch"  # normalization in the decoders of this module

    def __init__(
        self,
        params: BackboneParams,
        channels: int,
        dims: int,
        heads: tuple[int, ...],
        decoders: tuple[str, ...] = ("transposed",),
        side_outputs: bool = False,
    ) -> None:
        super().__init__(params, channels, dims, heads, decoders, side_outputs)
        for kind in set(decoders) - set(self.kinds):
            raise unknown("decoder", kind, self.kinds)
        if side_outputs and (len(heads), len(decoders)) != (1, 1):
            raise UsageError(
                "side outputs require exactly one head and one decoder",
                found=f"{heads}, {decoders}",
            )
        self.dims = dims
        self.side_outputs = side_outputs
        self.encoder, self.channels, self.strides = self.make_encoder(channels)
        self.width = self.widths[0]
        self.scales = len(self.channels) - 1  # number of maps of a decoder
        # Output channels of the heads of each decoder.
        self.outputs = heads * self.scales if side_outputs else heads
        self.decoders: Any = nn.ModuleList(self.make_decoder(kind) for kind in decoders)
        self.heads = self.make_heads(len(decoders))
        self.bottom, self.dropouts = self.make_dropouts(self.p.dropout)
        self.initialize()

    # Methods that a subclass defines or may override.

    def initialize(self) -> None:
        """Set the initial weights. By default they remain torch's."""

    def make_encoder(self, channels: int) -> Encoder:
        """Return the encoder for images with ``channels`` channels."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the numbers of channels of the decoder's maps, fine to coarse."""
        return self.channels[:-1]

    def make_decoder(self, kind: str) -> nn.Module:
        """Return the stages of a decoder, coarse to fine.

        Each stage takes the coarser map and the encoder's map.
        """
        layers = Layers(self.dims, self.decoder_norm)
        deep = self.channels[-1]
        stages = nn.ModuleList()
        for i in reversed(range(self.scales)):
            steps = zip(self.strides[i], self.strides[i + 1], strict=True)
            factors = [coarse // fine for fine, coarse in steps]
            channels = (deep, self.channels[i], self.widths[i])
            stages.append(DecoderStage(layers, kind, channels, factors, self.kernel(i)))
            deep = self.widths[i]
        return stages

    def kernel(self, level: int) -> tuple[int, ...]:
        """Return the kernel sizes of a level's convolutions; empty: 3 along every axis."""
        return ()

    def make_heads(self, decoders: int) -> nn.ModuleList:
        """Return the heads of all decoders, in the order of ``head_layer``."""
        layers = Layers(self.dims)
        heads = nn.ModuleList()
        for _ in range(decoders):
            for i, classes in enumerate(self.outputs):
                width = self.widths[i if self.side_outputs else 0]
                heads.append(layers.of("Conv", width, classes, 1))
        return heads

    def make_dropouts(self, p: float) -> tuple[nn.Module, nn.ModuleList]:
        """Return the dropout of the bottleneck and of the decoder's maps, fine to coarse."""
        if not self.side_outputs:
            inner = [nn.Identity() for _ in range(self.scales - 1)]
            return nn.Dropout(p), nn.ModuleList([nn.Dropout(p), *inner])
        layers = Layers(self.dims)
        after_stages = []
        for scale in range(self.scales):
            factor = SCALES[min(scale, len(SCALES) - 1)]
            after_stages.append(layers.of("Dropout", p * factor))
        return nn.Dropout(0), nn.ModuleList(after_stages)

    def join(self, decoder: int, scale: int, x: Tensor, skip: Tensor) -> Tensor:
        """Return a decoder's map at ``scale``.

        ``x`` is the coarser map of the decoder and ``skip`` the encoder's map at ``scale``.
        """
        stages = self.decoders[decoder]
        stage = stages[self.scales - 1 - scale]
        return stage(x, skip)

    def head_layer(self, head: int) -> nn.Module:
        """Return the convolution of one head."""
        return self.heads[head]

    # The interface of ``Backbone``.

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the encoder's maps, fine to coarse, before dropout of the bottleneck.

        Raises:
            UsageError: the size of the image does not fit.
        """
        self.check_patch(self.p, tuple(image.shape[2:]))
        return self.encoder(image)

    def decode(
        self, pyramid: list[Tensor], decoder: int = 0, dropped: bool = False
    ) -> list[Tensor]:
        """Return a decoder's maps, fine to coarse.

        Args:
            dropped: whether dropout has already been applied to the bottleneck.
        """
        x = pyramid[-1] if dropped else self.bottom(pyramid[-1])
        maps: list[Tensor] = []
        for scale in reversed(range(self.scales)):
            x = self.join(decoder, scale, x, pyramid[scale])
            x = self.dropouts[scale](x)
            maps.insert(0, x)
        return maps

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        """Return the logits of one head; logits of a coarse scale are enlarged to full size."""
        logits = logits_of(self.head_layer(head), features)
        if self.side_outputs and head > 0:
            return enlarge(logits, self.strides[head])
        return logits

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        pyramid = self.encode(image)
        pyramid[-1] = self.bottom(pyramid[-1])  # one draw for all decoders
        heads = len(self.outputs)  # per decoder
        outputs: list[Tensor] = []
        for decoder in range(len(self.decoders)):
            maps = self.decode(pyramid, decoder, dropped=True)
            for i in range(heads):
                features = maps[i if self.side_outputs else 0]
                logits = self.head(features, decoder * heads + i)
                outputs.append(logits)
        if len(outputs) == 1 and not self.side_outputs:
            return outputs[0]
        return tuple(outputs)

    def stages(self) -> list[nn.Module]:
        """Return the encoder and every stage of the decoders."""
        stages = [self.encoder]
        for decoder in self.decoders:
            stages += decoder.children()
        return stages
