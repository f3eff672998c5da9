"""Parts that backbones are built from: encoders, decoders that enlarge feature maps step by step, and heads.

A backbone that derives from ``EncoderDecoder`` writes ``make_encoder`` and so fulfills the whole contract; the other
``make_...`` methods, ``join`` and ``head_layer`` are there to replace a part. Shapes: N items, C channels, ``*S`` two or
three spatial axes. Strides and factors have one number per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench.contracts.backbone import Backbone, BackboneParams
from segbench.errors import UsageError, unknown

__all__ = [
    "KINDS",
    "DecoderStage",
    "Encoder",
    "EncoderDecoder",
    "Enlarge",
    "Layers",
    "enlarge",
    "halve",
]

KINDS = ("transposed", "trilinear", "nearest")
# Parts of ``dropout`` by decoder scale, fine to coarse; with dropout 0.3 they are URPC's 0.1 to 0.5.
SCALES = (1 / 3, 2 / 3, 1, 5 / 3)


# -- enlarging and reducing feature maps ------------------------------------------------------------


@lru_cache(maxsize=256)
def _interpolation(
    size: int, factor: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Linear interpolation along one axis as a matrix (factor * size, size)."""
    # Later training steps could not use a cached inference tensor.
    with torch.inference_mode(False):
        steps = torch.arange(size * factor, dtype=torch.float64)
        if align_corners:
            place = steps * (size - 1) / max(size * factor - 1, 1)
        else:
            place = (steps + 0.5) / factor - 0.5
        distance = place.clamp(0, size - 1)[:, None] - torch.arange(size)
        return (1 - distance.abs()).clamp(min=0).to(device, dtype)


def enlarge(x: Tensor, factors: Sequence[int], align_corners: bool = False) -> Tensor:
    """Enlarge (N, C, *S) by bi- or trilinear interpolation.

    Matrix products do the work, because torch's own interpolation has no deterministic gradient on CUDA.
    """
    last = x.ndim - 1
    if factors[-1] > 1:
        x = F.linear(
            x, _interpolation(x.shape[last], factors[-1], align_corners, x.dtype, x.device)
        )
    for axis, factor in enumerate(factors[:-1], start=2):
        if factor == 1:
            continue
        before, size, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        matrix = _interpolation(size, factor, align_corners, x.dtype, x.device)
        rows = x.reshape(before.numel(), size, -1)
        enlarged = matrix.expand(len(rows), -1, -1) @ rows  # a batch of products copies nothing
        x = enlarged.reshape(*before, size * factor, *after)
    return x


def halve(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Max pooling of (N, C, *S) with a deterministic gradient: maxima of pairs along axes whose factor is 2."""
    for axis, factor in enumerate(factors, start=2):
        if factor == 2:
            first, second = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            x = torch.maximum(first, second)
    return x


class Enlarge(nn.Module):
    """Linear interpolation as a layer."""

    def __init__(self, factors: Sequence[int], align_corners: bool = False) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) to (N, C, *(S * factors))."""
        return enlarge(x, self.factors, self.align_corners)


# -- layers -----------------------------------------------------------------------------------------


def _instance_norm(x: Tensor, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> Tensor:
    """Normalize each channel of each item of (N, C, *S)."""
    if x.shape[2:].numel() == 1:
        raise ValueError("instance normalization needs more than one voxel per channel")
    if x.device.type == "cpu":
        # Groups of one channel are the same and 1.1 to 1.2 times as fast (benchmarks/speed/step.py).
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
    """Makes layers for one number of spatial axes and one kind of normalization.

    ``norm`` is batch, instance (which learns nothing), affine (instance normalization that learns), group or none.
    """

    dims: int
    norm: str = "batch"

    def of(self, kind: str, *args: Any, **kwargs: Any) -> nn.Module:
        """Return a layer: ``of("Conv", 1, 2, 3)`` is ``nn.Conv2d(1, 2, 3)`` or ``nn.Conv3d(1, 2, 3)``."""
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

    def convolutions(self, inputs: int, outputs: int, count: int) -> list[nn.Module]:
        """Return convolutions of edge 3, each with the layers that follow it."""
        layers: list[nn.Module] = []
        for i in range(count):
            channels = inputs if i == 0 else outputs
            layers.append(self.of("Conv", channels, outputs, 3, padding=1))
            layers += self.after(outputs)
        return layers

    def unit(self, inputs: int, outputs: int, count: int = 2) -> nn.Sequential:
        """Return ``convolutions`` as one module."""
        return nn.Sequential(*self.convolutions(inputs, outputs, count))

    def up(
        self, kind: str, inputs: int, outputs: int, factors: Sequence[int]
    ) -> tuple[nn.Module, int]:
        """Return an enlargement of maps with ``inputs`` channels, and the channels of its result.

        Only transposed convolutions change the number of channels, to ``outputs``.
        """
        if kind == "trilinear":
            return Enlarge(factors), inputs
        if kind == "nearest":
            return nn.Upsample(scale_factor=tuple(float(factor) for factor in factors)), inputs

        # Larger factors than 2 take several convolutions.
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
    """One step of a U-Net's decoder: enlarge, concatenate with the encoder's map, convolve."""

    def __init__(
        self, layers: Layers, kind: str, deep: int, skip: int, out: int, factors: Sequence[int]
    ) -> None:
        """``deep``, ``skip`` and ``out``: channels of the coarser map, of the encoder's map and of the result."""
        super().__init__()
        self.up, width = layers.up(kind, deep, out, factors)
        self.convs = layers.unit(skip + width, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return a map of the size of ``skip`` from the coarser map ``x``."""
        return self.convs(torch.cat([skip, self.up(x)], 1))


# -- the whole network ------------------------------------------------------------------------------


class Encoder(NamedTuple):
    """An encoder from (N, C, *S) to maps, fine (full size) to coarse, with their channels and strides."""

    module: nn.Module
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


class EncoderDecoder(Backbone):
    """Base of backbones with an encoder and one or more decoders.

    Dropout: single values at the bottleneck (one draw for all decoders) and before the heads (one per decoder); with
    ``side_outputs`` whole channels after each decoder stage instead, more of them at coarse scales. Heads, and what
    ``forward`` returns, are numbered decoder by decoder; with ``side_outputs`` scale by scale, fine to coarse.
    """

    provides = frozenset({"heads", "decoders", "side_outputs", "features", "dropout"})
    kinds: ClassVar[tuple[str, ...]] = KINDS  # of decoders
    norm: ClassVar[str] = "batch"  # in the decoders of this module

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
                "side outputs go with one head and one decoder", found=f"{heads}, {decoders}"
            )
        self.dims = dims
        self.side_outputs = side_outputs
        self.encoder, self.channels, self.strides = self.make_encoder(channels)
        self.width = self.widths[0]
        self.scales = len(self.channels) - 1  # of a decoder's maps
        self.outputs = heads * self.scales if side_outputs else heads  # of each decoder's heads
        self.decoders: Any = nn.ModuleList(self.make_decoder(kind) for kind in decoders)
        self.heads = self.make_heads(len(decoders))
        self.bottom, self.dropouts = self.make_dropouts(self.p.dropout)

    # What a backbone writes or may replace.

    def make_encoder(self, channels: int) -> Encoder:
        """Return the encoder for images of ``channels``."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the decoder's maps, fine to coarse."""
        return self.channels[:-1]

    def make_decoder(self, kind: str) -> nn.Module:
        """Return a decoder: its stages coarse to fine, each called with the coarser map and the encoder's."""
        layers = Layers(self.dims, self.norm)
        deep = self.channels[-1]
        stages = nn.ModuleList()
        for i in reversed(range(self.scales)):
            steps = zip(self.strides[i], self.strides[i + 1], strict=True)
            factors = [coarse // fine for fine, coarse in steps]
            stages.append(
                DecoderStage(layers, kind, deep, self.channels[i], self.widths[i], factors)
            )
            deep = self.widths[i]
        return stages

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
        """Return the dropout of the bottleneck and that of the decoder's maps, fine to coarse."""
        if not self.side_outputs:
            inner = [nn.Identity() for _ in range(self.scales - 1)]
            return nn.Dropout(p), nn.ModuleList([nn.Dropout(p), *inner])
        layers = Layers(self.dims)
        parts = [SCALES[min(i, len(SCALES) - 1)] for i in range(self.scales)]
        return nn.Dropout(0), nn.ModuleList(layers.of("Dropout", p * part) for part in parts)

    def join(self, decoder: int, scale: int, x: Tensor, skip: Tensor) -> Tensor:
        """Return a decoder's map at ``scale`` from its coarser map ``x`` and the encoder's map ``skip``."""
        return self.decoders[decoder][self.scales - 1 - scale](x, skip)

    def head_layer(self, head: int) -> nn.Module:
        """Return the convolution of one head."""
        return self.heads[head]

    # The contract of backbones.

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return maps, fine to coarse, the bottleneck before its dropout.

        Raises:
            UsageError: an edge of the image does not fit.
        """
        self.check_patch(self.p, tuple(image.shape[2:]))
        return self.encoder(image)

    def decode(
        self, pyramid: list[Tensor], decoder: int = 0, dropped: bool = False
    ) -> list[Tensor]:
        """Return a decoder's maps, fine to coarse.

        Args:
            dropped: the bottleneck has had its dropout.
        """
        x = pyramid[-1] if dropped else self.bottom(pyramid[-1])
        maps: list[Tensor] = []
        for scale in reversed(range(self.scales)):
            x = self.dropouts[scale](self.join(decoder, scale, x, pyramid[scale]))
            maps.insert(0, x)
        return maps

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        """Return the logits of one head; those of a coarse scale are enlarged to full size."""
        logits = self.head_layer(head)(features)
        if self.side_outputs and head > 0:
            return enlarge(logits, self.strides[head])
        return logits

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        pyramid = self.encode(image)
        pyramid[-1] = self.bottom(pyramid[-1])  # one draw for all decoders
        outputs: list[Tensor] = []
        for decoder in range(len(self.decoders)):
            maps = self.decode(pyramid, decoder, dropped=True)
            for i in range(len(self.outputs)):
                features = maps[i if self.side_outputs else 0]
                outputs.append(self.head(features, decoder * len(self.outputs) + i))
        if len(outputs) == 1 and not self.side_outputs:
            return outputs[0]
        return tuple(outputs)

    def stages(self) -> list[nn.Module]:
        """Return the encoder and every stage of the decoders."""
        stages = [self.encoder]
        for decoder in self.decoders:
            stages += decoder.children()
        return stages
