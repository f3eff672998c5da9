"""Implement the 2D or 3D ResNet-V-Net: the decoder of V-Net on the encoder of a ResNet-34.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385, for
the encoder; the decoder is that of ``vnet``. The network is the second architecture of MCF (Wang et
al., CVPR 2023; code/networks/ResNet34.py and resnet.py of github.com/WYC-321/MCF, MIT) and, with
norm=instance, of SDCL (Song and Wang, MICCAI 2024). The code was read; nothing was copied.

The first convolution has kernel size 7 and stride 1, so that the finest map has full resolution;
there is no pooling, and each later level has residual blocks, the first with stride 2. Channels
double from level to level, from 16 to 256 where ResNet-34 has 64 to 512. Dropout of channels is
applied before the heads only. All convolutions are initialized with Kaiming-normal values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from segbench import BackboneParams, Field, backbone
from segbench.nn.blocks import (
    KERNELS,
    POOLING,
    Encoder,
    EncoderDecoder,
    Layers,
    PerAxis,
    bottleneck_stride,
    check_levels,
    kernels_of,
    pooling_of,
    strides_of,
)
from segbench.nn.published import load_named

BLOCKS = (3, 4, 6, 3)  # residual blocks of the levels below full resolution, as in ResNet-34
CONVS = (1, 2, 3, 3)  # convolutions of the decoder's stages, fine to coarse, as in V-Net


class ResidualBlock(nn.Module):
    """Two convolutions whose input is added before the last ReLU."""

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        outputs: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] = (),
    ) -> None:
        """Build the block; with ``stride`` it is the first of its level."""
        super().__init__()
        steps = stride or (1,) * layers.dims
        shape = {"padding": tuple(size // 2 for size in kernel), "bias": False}
        norm = layers.after(outputs)[:-1]
        first = layers.of("Conv", inputs, outputs, kernel, stride=steps, **shape)
        second = layers.of("Conv", outputs, outputs, kernel, **shape)
        self.first = nn.Sequential(first, *layers.after(outputs))
        self.second = nn.Sequential(second, *norm)
        self.shortcut = nn.Sequential()
        if stride:
            conv = layers.of("Conv", inputs, outputs, 1, stride=steps, bias=False)
            self.shortcut = nn.Sequential(conv, *layers.after(outputs)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNetEncoder(nn.ModuleList):
    """The encoder: one convolution at full resolution, then levels of residual blocks."""

    def __init__(
        self,
        layers: Layers,
        channels: int,
        widths: tuple[int, ...],
        pooling: list[tuple[int, ...]],
        kernels: list[tuple[int, ...]],
    ) -> None:
        super().__init__()
        # The first kernel spans 7 voxels, or a single one where the others do.
        large = tuple(7 if size == 3 else 1 for size in kernels[0])
        padding = tuple(size // 2 for size in large)
        first = layers.of("Conv", channels, widths[0], large, padding=padding, bias=False)
        self.append(nn.Sequential(first, *layers.after(widths[0])))
        inputs = widths[0]
        deeper = zip(widths[1:], BLOCKS, pooling, kernels[1:], strict=False)
        for width, count, factors, kernel in deeper:
            blocks = [ResidualBlock(layers, inputs, width, kernel, factors)]
            for _ in range(count - 1):
                blocks.append(ResidualBlock(layers, width, width, kernel))
            self.append(nn.Sequential(*blocks))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels."""
        maps = []
        for level in self:
            x = level(x)
            maps.append(x)
        return maps


class AddStage(nn.Module):
    """Decoder stage of a V-Net: upsampling, addition of the encoder's map, convolutions."""

    def __init__(
        self,
        layers: Layers,
        kind: str,
        channels: tuple[int, int],
        count: int,
        shape: tuple[tuple[int, ...], tuple[int, ...]],
    ) -> None:
        """Build the stage.

        Args:
            layers: builder of the layers.
            kind: upsampling method.
            channels: of the coarser map and of the output.
            count: number of convolutions.
            shape: upsampling factors and kernel sizes along each axis.
        """
        super().__init__()
        deep, width = channels
        factors, kernel = shape
        up, wide = layers.up(kind, deep, width, factors)
        if wide != width:
            up = nn.Sequential(up, *layers.convolutions(wide, width, 1, kernel))
        self.up = up
        self.convs = layers.unit(width, width, count, kernel)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return a map with the size of ``skip``, computed from the coarser map ``x``."""
        return self.convs(self.up(x) + skip)


@backbone("resvnet", paper="Wang et al., CVPR 2023; He et al., CVPR 2016")
class ResVNet(EncoderDecoder):
    """ResNet-34 encoder with the decoder of V-Net."""

    class Params(BackboneParams):
        width: int = Field(
            16, ge=2, le=256, description="channels at full resolution; doubled at each level"
        )
        norm: Literal["batch", "instance", "group", "none"] = Field(
            "batch", description="normalization; instance has no trained parameters"
        )
        dropout: float = Field(0.5, ge=0, lt=1, description="channel dropout before the heads")
        depth: int = Field(5, ge=2, le=5, description="number of levels; 5 in the literature")
        pooling: PerAxis = POOLING
        kernels: PerAxis = KERNELS

        _levels = model_validator(mode="after")(check_levels)

    def initialize(self) -> None:
        convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        for module in self.modules():
            if isinstance(module, convolutions):
                nn.init.kaiming_normal_(module.weight)

    def make_encoder(self, channels: int) -> Encoder:
        widths = tuple(self.p.width * 2**level for level in range(self.p.depth))
        pooling = pooling_of(self.p, self.dims)
        kernels = kernels_of(self.p, self.dims)
        encoder = ResNetEncoder(Layers(self.dims, self.p.norm), channels, widths, pooling, kernels)
        return Encoder(encoder, widths, strides_of(pooling))

    def make_decoder(self, kind: str) -> nn.Module:
        layers = Layers(self.dims, self.p.norm)
        pooling = pooling_of(self.p, self.dims)
        kernels = kernels_of(self.p, self.dims)
        stages = nn.ModuleList()
        for level in reversed(range(self.scales)):
            channels = (self.channels[level + 1], self.channels[level])
            shape = (pooling[level], kernels[level])
            stages.append(AddStage(layers, kind, channels, CONVS[level], shape))
        return stages

    def make_dropouts(self, p: float) -> tuple[nn.Module, nn.ModuleList]:
        if self.side_outputs:
            return super().make_dropouts(p)
        inner = [nn.Identity() for _ in range(self.scales - 1)]
        last = Layers(self.dims).of("Dropout", p)
        return nn.Identity(), nn.ModuleList([last, *inner])

    def stages(self) -> list[nn.Module]:
        return [*self.encoder.children(), *super().stages()[1:]]

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        return bottleneck_stride(params, dims)


# -- published weights -------------------------------------------------------------------------

UP = ("five", "six", "seven", "eight")  # the decoder's stages, coarse to fine
CONV = ("six", "seven", "eight", "nine")
LAYERS = ("conv", "bn")
UNUSED = r"block_((one|two|three|four)(_dw)?|five)\."  # in the names of SDCL's class


def published_name(key: str) -> str:
    """Return the name in MCF of a key of the state dict of a network with one decoder."""
    part, number, *rest = key.split(".")
    if part == "heads":
        return ".".join(["out_conv", *rest])
    if part == "decoders":
        stage, kind, *rest = rest
        block = f"{UP[int(stage)]}_up" if kind == "up" else CONV[int(stage)]
        return ".".join([f"block_{block}.conv", *rest])
    if number == "0":
        layer, *rest = rest
        return ".".join([f"resnet_encoder.{LAYERS[int(layer)]}1", *rest])
    block, place, layer, *rest = rest
    if place == "shortcut":
        name = f"downsample.{layer}"
    else:
        name = f"{LAYERS[int(layer)]}{1 if place == 'first' else 2}"
    return ".".join([f"resnet_encoder.layer{number}", block, name, *rest])


def load_published(net: ResVNet, state: Mapping[str, Tensor]) -> None:
    """Load published weights, named as in MCF or in SDCL, into a network with one decoder.

    The encoder of V-Net, which SDCL's class contains and does not use, is left out.

    Raises:
        RuntimeError: tensors are missing, differ in shape, or have no place here.
    """
    named = {}
    for key, value in state.items():
        if re.match(UNUSED, key):
            continue
        key = key.replace("resencoder.", "resnet_encoder.")
        key = key.replace("branchs.0.0.", "block_nine.")
        named[re.sub(r"^branchs\.0\.[12]\.", "out_conv.", key)] = value
    load_named(net, named, published_name)
