"""Implement the 2D or 3D V-Net that the left-atrium literature uses.

Milletari, Navab, Ahmadi: V-Net, 3DV 2016, arXiv:1606.04797. Since UA-MT (Yu et al., MICCAI
2019), the literature uses convolutions of kernel size 3, batch normalization, ReLU, additive skip
connections and no residual stages. Several decoders are supported as in MC-Net+ (Wu et al., MedIA
2022), and one prediction per scale as in URPC (Luo et al., MICCAI 2021). VerSemi (TMI 2025) uses
norm=instance, dropout=0, last_block=false, first_skip=false.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from segbench import BackboneParams, Field, backbone
from segbench.errors import IntegrityError, UsageError
from segbench.nn.blocks import (
    KERNELS,
    POOLING,
    Encoder,
    EncoderDecoder,
    Enlarge,
    Layers,
    PerAxis,
    bottleneck_stride,
    check_levels,
    kernels_of,
    pooling_of,
    strides_of,
)

# Names and numbers by level, fine to coarse. The names match the published weights.
ENCODER = ("one", "two", "three", "four", "five")
DECODER = ("nine", "eight", "seven", "six")
UP = ("eight", "seven", "six", "five")
CONVS = (1, 2, 3, 3, 3)
# Factors of ``dropout`` after each decoder stage, fine to coarse. With side outputs, 0.5 gives the
# rates of URPC.
DROPOUT = (1.0, 0.0, 0.0, 0.0)
SIDE_DROPOUT = (0.2, 0.4, 0.6, 1.0)
# Weights of SS-Net and BCP that are not used for prediction.
EXTRA = re.compile(r"(module\.)?(projection_head|prediction_head|contrastive_class_selector_\w+)\.")


class Block(nn.Module):
    """Sequential layers. A residual block adds its input before the last ReLU."""

    def __init__(self, layers: list[nn.Module], residual: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(*layers[:-1] if residual else layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if not self.residual:
            return y
        channels = x.shape[1]
        wanted = y.shape[1]
        if channels != wanted:  # input image: repeat its channels cyclically
            source = torch.arange(wanted, device=x.device) % channels
            x = x[:, source]
        return F.relu(y + x)


class VNetEncoder(nn.ModuleDict):
    """The encoder: one block per level, and a strided convolution between levels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels."""
        maps = []
        for name, block in self.items():
            x = block(x)
            if not name.endswith("_dw"):
                maps.append(x)
        return maps


@backbone("vnet", paper="Milletari et al., 3DV 2016; as in Yu et al., MICCAI 2019")
class VNet(EncoderDecoder):
    """V-Net with channel-wise dropout.

    Dropout is applied at the bottleneck (one draw for all decoders) and before the heads (one draw
    per decoder). With ``side_outputs`` it is applied after every decoder stage. With ``heads=()``
    the network returns features only.
    """

    class Params(BackboneParams):
        width: int = Field(
            16, ge=2, le=256, description="channels at full resolution; doubled at each level"
        )
        norm: Literal["batch", "instance", "group", "none"] = Field(
            "batch", description="normalization; instance has no trained parameters"
        )
        dropout: float = Field(
            0.5, ge=0, lt=1, description="channel dropout at the bottleneck and before the heads"
        )
        depth: int = Field(5, ge=2, le=5, description="number of levels; 5 in the literature")
        last_block: bool = Field(
            True, description="apply a convolution at full resolution after the last upsampling"
        )
        first_skip: bool = Field(
            True, description="add the encoder's full-resolution features in the decoder"
        )
        residual: bool = Field(
            False, description="add the input of each stage; off in all published weights"
        )
        pooling: PerAxis = POOLING
        kernels: PerAxis = KERNELS

        _levels = model_validator(mode="after")(check_levels)

    # The literature's trilinear decoder interpolates with aligned corners.
    align_corners: ClassVar[bool] = True

    def make_encoder(self, channels: int) -> Encoder:
        # The order of the blocks determines the order of the parameters. Keep it: test fixtures
        # identify tensors by number.
        blocks = VNetEncoder()
        pooling = pooling_of(self.p, self.dims)
        widths: list[int] = []
        inputs = channels
        for level in range(self.p.depth):
            width = self.p.width * 2**level
            name = f"block_{ENCODER[level]}"
            blocks[name] = self._block(level, inputs, width)
            if level + 1 < self.p.depth:
                blocks[f"{name}_dw"] = self._down(width, pooling[level])
            inputs = 2 * width
            widths.append(width)
        return Encoder(blocks, tuple(widths), strides_of(pooling))

    def make_decoder(self, kind: str) -> nn.ModuleDict:
        """Return the blocks of a decoder, coarse to fine, and its heads."""
        pooling = pooling_of(self.p, self.dims)
        blocks = nn.ModuleDict()
        for level in reversed(range(self.scales)):
            width = self.channels[level]
            blocks[f"block_{UP[level]}_up"] = self._up(kind, level, pooling[level])
            if level > 0 or self.p.last_block:
                block = self._block(level, width, width)
                blocks[f"block_{DECODER[level]}"] = block
        layers = self._layers()
        for i, classes in enumerate(self.outputs):
            level = i if self.side_outputs else 0
            head = layers.of("Conv", self.channels[level], classes, 1)
            blocks[_head_name(i)] = head
        return blocks

    def make_heads(self, decoders: int) -> nn.ModuleList:
        """Return an empty list; the decoders contain the heads, as in the published weights."""
        return nn.ModuleList()

    def make_dropouts(self, p: float) -> tuple[nn.Module, nn.ModuleList]:
        layers = self._layers()
        parts = SIDE_DROPOUT if self.side_outputs else DROPOUT
        bottom = layers.of("Dropout", p)
        after_stages = [layers.of("Dropout", p * part) for part in parts]
        return bottom, nn.ModuleList(after_stages)

    def join(self, decoder: int, scale: int, x: Tensor, skip: Tensor) -> Tensor:
        blocks = self.decoders[decoder]
        up = blocks[f"block_{UP[scale]}_up"]
        x = up(x)
        if scale > 0 or self.p.first_skip:
            x = x + skip
        if scale > 0 or self.p.last_block:
            block = blocks[f"block_{DECODER[scale]}"]
            x = block(x)
        return x

    def head_layer(self, head: int) -> nn.Module:
        decoder, number = divmod(head, len(self.outputs))
        layer: nn.Module = self.decoders[decoder][_head_name(number)]
        return layer

    def stages(self) -> list[nn.Module]:
        stages = list(self.encoder.children())
        for decoder in self.decoders:
            stages += decoder.children()
        return stages

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        return bottleneck_stride(params, dims)

    @classmethod
    def check_patch(cls, params: Any, patch: tuple[int, ...]) -> None:
        super().check_patch(params, patch)
        unit = cls.multiple(params, len(patch))
        if params.norm == "instance" and tuple(patch) == unit:
            larger = "x".join(str(2 * edge) for edge in unit)
            raise UsageError(
                f"the patch does not fit backbone '{cls.name}'",
                found="x".join(str(edge) for edge in patch),
                expected="more than one voxel at the bottleneck, for instance normalization",
                fix=f"-o patch={larger}",
            )

    # Blocks.

    def _layers(self) -> Layers:
        return Layers(self.dims, self.p.norm)

    def _block(self, level: int, inputs: int, outputs: int) -> Block:
        """Return the convolutions of a level."""
        kernel = kernels_of(self.p, self.dims)[level]
        layers = self._layers().convolutions(inputs, outputs, CONVS[level], kernel)
        return Block(layers, self.p.residual)

    def _down(self, width: int, factors: tuple[int, ...]) -> Block:
        layers = self._layers()
        conv = layers.of("Conv", width, 2 * width, factors, stride=factors)
        return Block([conv, *layers.after(2 * width)])

    def _up(self, kind: str, level: int, factors: tuple[int, ...]) -> Block:
        """Return the upsampling from the next coarser level to ``level``."""
        layers = self._layers()
        coarser = self.channels[level + 1]
        width = coarser // 2
        if kind == "transposed":
            up = layers.of("ConvTranspose", coarser, width, factors, stride=factors)
            return Block([up, *layers.after(width)])
        larger: nn.Module = nn.Upsample(scale_factor=tuple(map(float, factors)))
        if kind == "trilinear":
            larger = Enlarge(factors, self.align_corners)
        kernel = kernels_of(self.p, self.dims)[level]
        return Block([larger, *layers.convolutions(coarser, width, 1, kernel)])


def _head_name(number: int) -> str:
    return f"out_conv{number + 1}" if number > 0 else "out_conv"


# -- published weights -------------------------------------------------------------------------


def published_names(net: VNet) -> dict[str, str]:
    """Return the published name of each key of the state dict.

    With one decoder, the names are flat, as in UA-MT. With several decoders they start with
    ``decoder1.``, ``decoder2.`` and so on, as in MC-Net.
    """
    names = {}
    for key in net.state_dict():
        if len(net.decoders) == 1:
            names[key] = re.sub(r"^(encoder|decoders\.0)\.", "", key)
        else:
            names[key] = re.sub(r"^decoders\.(\d+)", lambda m: f"decoder{int(m[1]) + 1}", key)
    return names


def _our_name(key: str) -> str:
    """Return the key in our state dict for a published key."""
    key = key.removeprefix("module.")
    # BCP for the pancreas; the index of its head depends on whether it was built with dropout.
    key = re.sub(r"^branchs\.0\.0\.", "block_nine.", key)
    key = re.sub(r"^branchs\.0\.[12]\.", "out_conv.", key)
    key = re.sub(r"^decoder(\d*)\.", lambda m: f"decoders.{int(m[1] or 1) - 1}.", key)
    if re.match(rf"block_({'|'.join(ENCODER)})(_dw)?\.", key):
        return f"encoder.{key}"
    if re.match(r"block_|out_conv", key):
        return f"decoders.0.{key}"
    return key


def load_published(net: VNet, state: Mapping[str, Any]) -> None:
    """Load published weights into a network.

    Keys can be flat or start with ``encoder.``, ``decoder.`` or ``decoder1.``, optionally after
    ``module.``. ``heads[0]`` is ``out_conv`` (the distance map of dual-task networks) and
    ``heads[1]`` is ``out_conv2``. If the state has a key "net", its value is loaded. Keys that
    match ``EXTRA`` are ignored, and ``num_batches_tracked`` may be missing. The keys do not show
    whether a network is ``residual``.

    Raises:
        IntegrityError: the weights differ from the network in any other way; nothing is loaded.
    """
    state = state.get("net", state)
    ours = net.state_dict()
    shared: dict[str, Tensor] = {}  # by our name
    wrong = []
    for key, value in state.items():
        if EXTRA.match(key):
            continue
        name = _our_name(key)
        if name not in ours:
            wrong.append(f"unexpected {key}")
            continue
        shared[name] = value
        if value.shape != ours[name].shape:
            wrong.append(f"another shape of {key}")
    for name in ours:
        if name not in shared and not name.endswith("num_batches_tracked"):
            wrong.append(f"no {name}")
    if wrong:
        raise IntegrityError(
            f"weights and network differ in {len(wrong)} tensors",
            found="; ".join(wrong[:6]),
            fix="build the variant they were trained with (norm, width, heads, decoders)",
        )
    net.load_state_dict({**ours, **shared})
