"""What backbones are built from: an encoder's feature pyramid, decoders with a chosen enlargement over it, heads on top.

A backbone that derives from ``EncoderDecoder`` writes ``make_encoder`` and has all of the contract; ``make_decoder`` may
replace the decoder. Shapes: N items, C channels, ``*S`` two or three spatial axes; strides and factors have one number
an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from segbench.contracts.backbone import Backbone, BackboneParams
from segbench.errors import UsageError, unknown

__all__ = ["KINDS", "Encoder", "EncoderDecoder", "Layers", "Linear", "Stage", "enlarge", "halve"]

KINDS = ("transposed", "trilinear", "nearest")
SCALES = (
    1 / 3,
    2 / 3,
    1,
    5 / 3,
)  # parts of ``dropout`` by decoder scale, fine to coarse: of 0.3 URPC's 0.1 to 0.5


@lru_cache(maxsize=256)
def _weights(size: int, factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Linear interpolation along one axis as a matrix (factor * size, size)."""
    with torch.inference_mode(
        False
    ):  # a cached inference tensor would be useless to later training steps
        at = (torch.arange(size * factor, dtype=torch.float64, device=device) + 0.5) / factor - 0.5
        distance = at.clamp(0, size - 1)[:, None] - torch.arange(size, device=device)
        return (1 - distance.abs()).clamp(min=0).to(dtype)


def enlarge(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Bi- or trilinear enlargement of (N, C, *S), corners not aligned; matrix products have a deterministic gradient."""
    for axis, factor in enumerate(factors, start=2):
        if factor > 1:
            matrix = _weights(x.shape[axis], factor, x.dtype, x.device)
            rows = x.reshape(x.shape[:axis].numel(), x.shape[axis], -1)
            x = (matrix.expand(len(rows), -1, -1) @ rows).reshape(
                *x.shape[:axis], len(matrix), *x.shape[axis + 1 :]
            )
    return x


def halve(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Maxima of pairs along the axes of (N, C, *S) whose factor is 2: max pooling with a deterministic gradient."""
    for axis, factor in enumerate(factors, start=2):
        if factor == 2:
            x = torch.maximum(*x.unflatten(axis, (-1, 2)).unbind(axis + 1))
    return x


class Linear(nn.Module):
    """Linear enlargement as a layer."""

    def __init__(self, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *S) to (N, C, *(S * factors))."""
        return enlarge(x, self.factors)


@dataclass(frozen=True)
class Layers:
    """Makes layers for one number of axes; ``norm`` is batch, instance (which learns nothing) or affine (instance, too)."""

    dims: int
    norm: str = "batch"

    def of(self, kind: str, *args: Any, **kwargs: Any) -> nn.Module:
        """``of("Conv", 1, 2, 3)`` is ``nn.Conv2d(1, 2, 3)`` or ``nn.Conv3d(1, 2, 3)``."""
        return getattr(nn, f"{kind}{self.dims}d")(*args, **kwargs)

    def after(self, width: int) -> list[nn.Module]:
        """What follows a convolution."""
        norm = (
            self.of("BatchNorm", width)
            if self.norm == "batch"
            else self.of("InstanceNorm", width, affine=self.norm == "affine")
        )
        return [norm, nn.ReLU(inplace=True)]

    def unit(self, a: int, b: int, convs: int = 2) -> nn.Sequential:
        """Convolutions of edge 3 from ``a`` to ``b`` channels."""
        return nn.Sequential(
            *(
                layer
                for i in range(convs)
                for layer in (self.of("Conv", b if i else a, b, 3, padding=1), *self.after(b))
            )
        )

    def up(self, kind: str, a: int, b: int, factors: Sequence[int]) -> tuple[nn.Module, int]:
        """An enlargement of maps of ``a`` channels, and the channels it leaves; one that learns goes to ``b``."""
        if kind == "transposed":
            layers: list[nn.Module] = []
            rest = tuple(factors)
            while not layers or max(rest) > 1:
                step = tuple(2 if f % 2 == 0 else f for f in rest)
                layers += [
                    self.of("ConvTranspose", b if layers else a, b, step, step),
                    *self.after(b),
                ]
                rest = tuple(f // s for f, s in zip(rest, step, strict=True))
            return nn.Sequential(*layers), b
        return Linear(factors) if kind == "trilinear" else nn.Upsample(
            scale_factor=tuple(map(float, factors))
        ), a


class Stage(nn.Module):
    """One step of a U-Net's decoder: enlarge, put behind the encoder's maps, convolve."""

    def __init__(
        self, layers: Layers, kind: str, deep: int, skip: int, out: int, factors: Sequence[int]
    ) -> None:
        """``deep``, ``skip`` and ``out`` channels of the coarser map, the encoder's and the result."""
        super().__init__()
        self.up, width = layers.up(kind, deep, out, factors)
        self.convs = layers.unit(skip + width, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """The coarser map and the encoder's to a map of the encoder's size."""
        return self.convs(torch.cat([skip, self.up(x)], 1))


class Encoder(NamedTuple):
    """An encoder from (N, C, *S) to maps, fine (of full size) to coarse, with their channels and strides."""

    module: nn.Module
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


class EncoderDecoder(Backbone):
    """Base of backbones of an encoder and decoders of the engine.

    Dropout: single values at the bottleneck (one draw for all decoders) and before the heads (one a decoder); with
    ``side_outputs`` whole channels after each decoder stage instead, more at coarse scales. Heads, and what ``forward``
    returns, are numbered decoder by decoder; with ``side_outputs`` scale by scale, fine to coarse.
    """

    provides = frozenset({"heads", "decoders", "side_outputs", "features", "dropout"})
    kinds: ClassVar[tuple[str, ...]] = KINDS  # of decoders
    norm: ClassVar[str] = "batch"  # of our decoders

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
        self.dims, self.side_outputs, p = dims, side_outputs, self.p.dropout
        self.encoder, self.channels, self.strides = self.make_encoder(channels)
        self.width = self.widths[0]
        self.outputs = (
            heads * (len(self.channels) - 1) if side_outputs else heads
        )  # of each decoder
        self.decoders: Any = nn.ModuleList(
            nn.ModuleList(self.make_decoder(kind)) for kind in decoders
        )
        layers = Layers(dims)
        self.heads = nn.ModuleList(
            layers.of("Conv", self.widths[i if side_outputs else 0], k, 1)
            for _ in decoders
            for i, k in enumerate(self.outputs)
        )
        self.bottom = nn.Dropout(0 if side_outputs else p)
        scales: list[nn.Module] = [
            layers.of("Dropout", p * SCALES[min(i, 3)]) for i in range(len(self.channels) - 1)
        ]
        self.dropouts = nn.ModuleList(
            scales if side_outputs else [nn.Dropout(p), *[nn.Identity()] * (len(scales) - 1)]
        )

    def make_encoder(self, channels: int) -> Encoder:
        """The encoder for images of ``channels``."""
        raise NotImplementedError

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the decoder's maps, fine to coarse."""
        return self.channels[:-1]

    def make_decoder(self, kind: str) -> list[nn.Module]:
        """Stages coarse to fine, each called with the coarser map and the encoder's."""
        layers, deep = Layers(self.dims, self.norm), self.channels[-1]
        stages: list[nn.Module] = []
        for i in reversed(range(len(self.channels) - 1)):
            factors = [b // a for a, b in zip(self.strides[i], self.strides[i + 1], strict=True)]
            stages.append(Stage(layers, kind, deep, self.channels[i], self.widths[i], factors))
            deep = self.widths[i]
        return stages

    def encode(self, image: Tensor) -> list[Tensor]:
        """Maps, fine to coarse, the bottleneck before its dropout; UsageError where an edge does not fit."""
        self.check_patch(self.p, tuple(image.shape[2:]))
        return self.encoder(image)

    def decode(
        self, pyramid: list[Tensor], decoder: int = 0, dropped: bool = False
    ) -> list[Tensor]:
        """Decoder maps, fine to coarse; with dropout on the bottleneck first, unless the caller has done that."""
        x = pyramid[-1] if dropped else self.bottom(pyramid[-1])
        maps: list[Tensor] = []
        for stage, i in zip(
            self.decoders[decoder], reversed(range(len(self.channels) - 1)), strict=True
        ):
            x = self.dropouts[i](stage(x, pyramid[i]))
            maps.insert(0, x)
        return maps

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        """Logits of one head; those of a coarse scale are enlarged to full size."""
        logits = self.heads[head](features)
        return enlarge(logits, self.strides[head]) if self.side_outputs and head else logits

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        pyramid, count = self.encode(image), len(self.outputs)
        pyramid[-1] = self.bottom(pyramid[-1])
        outputs: list[Tensor] = []
        for d in range(len(self.decoders)):
            maps = self.decode(pyramid, d, dropped=True)
            outputs += [
                self.head(maps[i if self.side_outputs else 0], d * count + i) for i in range(count)
            ]
        return outputs[0] if len(outputs) == 1 and not self.side_outputs else tuple(outputs)

    def stages(self) -> list[nn.Module]:
        """The encoder and every stage of the decoders."""
        return [self.encoder, *(stage for decoder in self.decoders for stage in decoder)]
