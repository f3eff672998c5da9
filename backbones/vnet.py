"""V-Net as the left-atrium literature uses it, in two or three dimensions.

Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv:1606.04797; since UA-MT (Yu et al., MICCAI 2019) with convolutions of
edge 3, batch normalization, ReLU, added skips and no residual stages. Several decoders as in MC-Net+ (Wu et al., MedIA
2022), one prediction a scale as in URPC (Luo et al., MICCAI 2021). VerSemi (TMI 2025) has norm=instance, dropout=0,
last_block=false, first_skip=false.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segbench import Backbone, BackboneParams, Field, backbone
from segbench.errors import IntegrityError, UsageError, unknown

# By level, fine to coarse. The names are those of published weights.
ENCODER = ("one", "two", "three", "four", "five")
DECODER = ("nine", "eight", "seven", "six")
UP = ("eight", "seven", "six", "five")
CONVS = (1, 2, 3, 3, 3)
DROPOUT = {
    False: (1, 0, 0, 0),
    True: (0.2, 0.4, 0.6, 1),
}  # parts of ``dropout`` by side outputs; 0.5 gives URPC's
KINDS = ("transposed", "trilinear", "nearest")
EXTRA = re.compile(
    r"(module\.)?(projection_head|prediction_head|contrastive_class_selector_\w+)\."
)  # SS-Net, BCP


@lru_cache(maxsize=256)
def _weights(
    size: int, factor: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Linear interpolation along one axis as a matrix (factor * size, size)."""
    with torch.inference_mode(
        False
    ):  # a cached inference tensor would be useless to later training steps
        steps = torch.arange(size * factor, dtype=torch.float64)
        at = (
            steps * (size - 1) / max(size * factor - 1, 1)
            if align_corners
            else (steps + 0.5) / factor - 0.5
        )
        distance = at.clamp(0, size - 1)[:, None] - torch.arange(size)
        return (1 - distance.abs()).clamp(min=0).to(device, dtype)


def upsample(x: Tensor, factor: int, align_corners: bool) -> Tensor:
    """Bi- or trilinear enlargement of (B, C, *S), as matrix products: CUDA's own has no deterministic gradient."""
    shape = x.shape
    matrices = [_weights(size, factor, align_corners, x.dtype, x.device) for size in shape[2:]]
    x = F.linear(x, matrices.pop())
    for axis, matrix in enumerate(matrices, start=2):
        x = x.reshape(shape[:axis].numel() * factor ** (axis - 2), shape[axis], -1)
        x = matrix.expand(len(x), -1, -1) @ x  # a batch of products, which copies nothing
    return x.reshape(*shape[:2], *(size * factor for size in shape[2:]))


class Linear(nn.Module):
    """MC-Net's enlargement by two."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample(x, 2, align_corners=True)


class Block(nn.Module):
    """Layers in a row; a residual block's last ReLU comes after its input has been added."""

    def __init__(self, layers: list[nn.Module], residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers[:-1] if residual else layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.residual:
            return y
        if x.shape[1] != y.shape[1]:  # the image itself: its channels are repeated in turn
            x = x[:, torch.arange(y.shape[1], device=x.device) % x.shape[1]]
        return F.relu(y + x)


@dataclass(frozen=True)
class Layers:
    """Makes the building blocks for one number of axes and one kind of normalization."""

    dims: int
    norm: str
    residual: bool

    def of(self, kind: str, *args: Any, **kwargs: Any) -> nn.Module:
        return getattr(nn, f"{kind}{self.dims}d")(*args, **kwargs)

    def after(self, width: int) -> list[nn.Module]:
        """What follows every convolution but the heads."""
        if self.norm == "group":
            return [nn.GroupNorm(gcd(16, width), width), nn.ReLU(inplace=True)]
        norm = [] if self.norm == "none" else [self.of(f"{self.norm.title()}Norm", width)]
        return [*norm, nn.ReLU(inplace=True)]

    def stack(self, convs: int, a: int, b: int) -> Block:
        pairs = [
            (self.of("Conv", b if i else a, b, 3, padding=1), self.after(b)) for i in range(convs)
        ]
        return Block([layer for conv, after in pairs for layer in (conv, *after)], self.residual)

    def down(self, a: int) -> Block:
        return Block([self.of("Conv", a, 2 * a, 2, stride=2), *self.after(2 * a)])

    def up(self, a: int, kind: str) -> Block:
        if kind == "transposed":
            return Block([self.of("ConvTranspose", a, a // 2, 2, stride=2), *self.after(a // 2)])
        enlarge = Linear() if kind == "trilinear" else nn.Upsample(scale_factor=2)
        return Block([enlarge, self.of("Conv", a, a // 2, 3, padding=1), *self.after(a // 2)])


@backbone("vnet", paper="Milletari et al., 3DV 2016; as in Yu et al., MICCAI 2019")
class VNet(Backbone):
    """Channel dropout stands at the bottleneck (one draw for all decoders) and before the heads (one a decoder).

    Heads, and what ``forward`` returns, are numbered decoder by decoder; with ``side_outputs`` scale by scale, fine to
    coarse, and then every decoder stage has its dropout. ``heads=()`` makes a network for features only.
    """

    class Params(BackboneParams):
        width: int = Field(
            16, ge=2, le=256, description="channels at full resolution; doubled at each level"
        )
        norm: Literal["batch", "instance", "group", "none"] = Field(
            "batch", description="instance learns nothing"
        )
        dropout: float = Field(
            0.5, ge=0, lt=1, description="part of the channels dropped at bottleneck and end"
        )
        depth: int = Field(5, ge=2, le=5, description="number of levels; 5 in the literature")
        last_block: bool = Field(
            True, description="a convolution at full resolution after the last enlargement"
        )
        first_skip: bool = Field(
            True, description="add the encoder's full-resolution features in the decoder"
        )
        residual: bool = Field(
            False, description="stages add their input; off in all published weights"
        )

    provides = frozenset({"heads", "decoders", "side_outputs", "features", "dropout"})

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
        for kind in set(decoders) - set(KINDS):
            raise unknown("decoder", kind, KINDS)
        if side_outputs and (len(heads), len(decoders)) != (1, 1):
            raise UsageError(
                "side outputs go with one head and one decoder", found=f"{heads}, {decoders}"
            )
        p, self.width, self.side_outputs = self.p, self.p.width, side_outputs
        self.channels = tuple(p.width * 2**i for i in range(p.depth))
        self.strides = tuple((2**i,) * dims for i in range(p.depth))
        self.heads = heads * (p.depth - 1) if side_outputs else heads  # of each decoder
        layers = Layers(dims, p.norm, p.residual)
        self.encoder = self._encoder(layers, channels)
        self.dropout = layers.of("Dropout", p.dropout)
        self.dropouts = nn.ModuleList(
            layers.of("Dropout", p.dropout * part) for part in DROPOUT[side_outputs]
        )
        self.decoders: Any = nn.ModuleList(self._decoder(layers, kind) for kind in decoders)

    def _encoder(self, layers: Layers, channels: int) -> nn.ModuleDict:
        """Blocks, and so parameters, in the order of the layers: parity fixtures number the tensors."""
        blocks = nn.ModuleDict()
        for i, width in enumerate(self.channels):
            blocks[f"block_{ENCODER[i]}"] = layers.stack(CONVS[i], width if i else channels, width)
            if i + 1 < len(self.channels):
                blocks[f"block_{ENCODER[i]}_dw"] = layers.down(width)
        return blocks

    def _decoder(self, layers: Layers, kind: str) -> nn.ModuleDict:
        blocks = nn.ModuleDict()
        for i in reversed(range(self.p.depth - 1)):
            blocks[f"block_{UP[i]}_up"] = layers.up(self.channels[i + 1], kind)
            if i or self.p.last_block:
                blocks[f"block_{DECODER[i]}"] = layers.stack(
                    CONVS[i], self.channels[i], self.channels[i]
                )
        for i, outputs in enumerate(self.heads):
            width = self.channels[i] if self.side_outputs else self.width
            blocks[f"out_conv{i + 1 if i else ''}"] = layers.of("Conv", width, outputs, 1)
        return blocks

    def encode(self, image: Tensor) -> list[Tensor]:
        """Maps, fine to coarse, the bottleneck before its dropout; UsageError where an edge does not fit."""
        shape, unit = tuple(image.shape[2:]), 2 ** (self.p.depth - 1)
        one_voxel = self.p.norm == "instance" and all(s == unit for s in shape)
        if one_voxel or any(s % unit for s in shape):
            fit = tuple(max(-(-s // unit), 1 + one_voxel) * unit for s in shape)
            raise UsageError(
                "the input does not fit the backbone",
                where="backbone 'vnet'",
                found=shape,
                expected=f"multiples of {unit}{', not all one' * one_voxel}",
                fix=f"use a patch of {fit}",
            )
        x, maps = image, []
        for name, block in self.encoder.items():
            x = block(x)
            if not name.endswith("_dw"):
                maps.append(x)
        return maps

    def decode(
        self, pyramid: list[Tensor], decoder: int = 0, dropped: bool = False
    ) -> list[Tensor]:
        """Decoder maps, fine to coarse; with dropout on the bottleneck first, unless the caller has done that."""
        blocks = self.decoders[decoder]
        x = pyramid[-1] if dropped else self.dropout(pyramid[-1])
        maps: list[Tensor] = []
        for i in reversed(range(self.p.depth - 1)):
            x = blocks[f"block_{UP[i]}_up"](x)
            if i or self.p.first_skip:
                x = x + pyramid[i]
            if i or self.p.last_block:
                x = blocks[f"block_{DECODER[i]}"](x)
            x = self.dropouts[i](x)
            maps.insert(0, x)
        return maps

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        decoder, number = divmod(head, len(self.heads))
        logits = self.decoders[decoder][f"out_conv{number + 1 if number else ''}"](features)
        return (
            upsample(logits, 2**number, align_corners=False)
            if self.side_outputs and number
            else logits
        )

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        pyramid, count = self.encode(image), len(self.heads)
        pyramid[-1] = self.dropout(pyramid[-1])
        outputs: list[Tensor] = []
        for d in range(len(self.decoders)):
            maps = self.decode(pyramid, d, dropped=True)
            outputs += [
                self.head(maps[i if self.side_outputs else 0], d * count + i) for i in range(count)
            ]
        return outputs[0] if len(outputs) == 1 and not self.side_outputs else tuple(outputs)

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        return (2 ** (params.depth - 1),) * dims


def published_names(net: VNet) -> dict[str, str]:
    """Our keys to the literature's: flat as UA-MT's with one decoder, ``decoder1.`` etc. as MC-Net's with several."""
    if len(net.decoders) == 1:
        return {key: re.sub(r"^(encoder|decoders\.0)\.", "", key) for key in net.state_dict()}
    return {
        key: re.sub(r"^decoders\.(\d+)", lambda m: f"decoder{int(m[1]) + 1}", key)
        for key in net.state_dict()
    }


def _our_name(key: str) -> str:
    key = re.sub(
        r"^branchs\.0\.0\.", "block_nine.", key.removeprefix("module.")
    )  # BCP for the pancreas, whose head's
    key = re.sub(
        r"^branchs\.0\.[12]\.", "out_conv.", key
    )  # number depends on whether it was built with dropout
    key = re.sub(r"^decoder(\d*)\.", lambda m: f"decoders.{int(m[1] or 1) - 1}.", key)
    if re.match(rf"block_({'|'.join(ENCODER)})(_dw)?\.", key):
        return f"encoder.{key}"
    return f"decoders.0.{key}" if re.match(r"block_|out_conv", key) else key


def load_published(net: VNet, state: Mapping[str, Any]) -> None:
    """Load weights under any published naming: flat, ``encoder.``/``decoder.``, ``decoder1.``, maybe after ``module.``.

    ``heads[0]`` is ``out_conv`` (the distance of dual-task networks), ``heads[1]`` ``out_conv2``. A wrapper with "net"
    is opened, ``EXTRA`` ignored, ``num_batches_tracked`` may be absent; any other difference is an IntegrityError, and
    then nothing is loaded. Names cannot tell a ``residual`` network.
    """
    state, ours = state.get("net", state), net.state_dict()
    source = {_our_name(key): key for key in state if not EXTRA.match(key)}
    shared = {name: state[key] for name, key in source.items() if name in ours}
    wrong = [f"no {k}" for k in ours if k not in shared and not k.endswith("num_batches_tracked")]
    wrong += [f"unexpected {key}" for name, key in source.items() if name not in ours]
    wrong += [
        f"another shape of {source[k]}"
        for k, value in shared.items()
        if value.shape != ours[k].shape
    ]
    if wrong:
        raise IntegrityError(
            f"weights and network differ in {len(wrong)} tensors",
            found="; ".join(wrong[:6]),
            fix="build the variant they were trained with (norm, width, heads, decoders)",
        )
    net.load_state_dict({**ours, **shared})
