"""Implement the 2D or 3D U-Net of the ACDC literature: batch normalization, leaky ReLU, dropout.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, arXiv:1505.04597, as SSL4MIS trains it on ACDC
slices (github.com/HiLab-git/SSL4MIS, MIT, code/networks/unet.py, from PyMIC). MC-Net, SS-Net, BCP,
UniMatch, AD-MT and CrossMatch use it for ACDC. The code was read; nothing was copied.

Each level has two convolutions of kernel size 3 with normalization and leaky ReLU. Dropout acts
between the two convolutions of each encoder level, 0.05 to 0.5 from fine to coarse. The decoder
reduces the channels by a convolution of kernel size 1, then enlarges the map, or does both by a
transposed convolution; no normalization follows. The heads have kernel size 3. All weights keep
torch's initial values.

With side outputs it is URPC's network for slices (class UNet_URPC): in training, each head but the
finest sees a perturbed map, and logits are enlarged by the nearest neighbor.

Batch normalization mixes labeled and unlabeled images of a pass. Protocols that compare methods
therefore have another network; this one is for the recipes of authors (``--as-published acdc``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from segbench import BackboneParams, Field, backbone
from segbench.nn.blocks import Encoder, EncoderDecoder, Enlarge, Layers, halve
from segbench.nn.published import load_named

# Factors of ``dropout`` by encoder level, fine to coarse; 0.5 gives the rates of SSL4MIS.
SHARES = (0.1, 0.2, 0.4, 0.6, 1.0)


def unit(layers: Layers, inputs: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    """Return two convolutions with normalization and leaky ReLU, and dropout between them."""
    return nn.Sequential(
        layers.of("Conv", inputs, outputs, 3, padding=1),
        *layers.after(outputs)[:-1],  # without ReLU
        nn.LeakyReLU(),
        nn.Dropout(dropout),
        layers.of("Conv", outputs, outputs, 3, padding=1),
        *layers.after(outputs)[:-1],
        nn.LeakyReLU(),
    )


class LevelEncoder(nn.ModuleList):
    """One unit per level, with max pooling between them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels, fine to coarse."""
        maps: list[Tensor] = []
        for level in self:
            if maps:
                x = halve(maps[-1], (2,) * (x.ndim - 2))
            maps.append(level(x))
        return maps


class NoisyMap(nn.Module):
    """Add a random part of its value to each entry of a map, in training."""

    reach = 0.3  # FeatureNoise: uniform in [-0.3, 0.3]

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, *S) with noise that is the same for all items."""
        if not self.training:
            return x
        noise = torch.empty_like(x[:1]).uniform_(-self.reach, self.reach)
        return x + x * noise


class WithoutStrongest(nn.Module):
    """Set the most active voxels of a map to zero, in training."""

    shares = (0.7, 0.9)  # FeatureDropout: of the largest activation, drawn for each batch

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, *S) where its mean over the channels is below a share of its largest."""
        if not self.training:
            return x
        activation = x.mean(1, keepdim=True)
        largest = activation.amax(tuple(range(1, x.ndim)), keepdim=True)
        share = x.new_empty(()).uniform_(*self.shares)
        return x * (activation < share * largest)


def perturbations(scales: int, dropout: float) -> nn.ModuleList:
    """Return what precedes the heads of the coarser scales, fine to coarse; the finest has none."""
    if not dropout:
        return nn.ModuleList(nn.Identity() for _ in range(scales - 1))
    all_of_them = [NoisyMap(), WithoutStrongest(), nn.Dropout(dropout)]
    return nn.ModuleList(all_of_them[: scales - 1])


class UpStage(nn.Module):
    """Decoder stage: fewer channels, upsampling, concatenation of the encoder's map, a unit."""

    def __init__(self, layers: Layers, kind: str, deep: int, width: int) -> None:
        """Build the stage from ``deep`` to ``width`` channels, with upsampling of a ``kind``."""
        super().__init__()
        if kind == "transposed":
            self.up: nn.Module = layers.of("ConvTranspose", deep, width, 2, stride=2)
        else:
            larger: nn.Module = nn.Upsample(scale_factor=2)
            if kind == "trilinear":
                larger = Enlarge((2,) * layers.dims, align_corners=True)
            self.up = nn.Sequential(layers.of("Conv", deep, width, 1), larger)
        self.convs = unit(layers, 2 * width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return a map with the size of ``skip``, computed from the coarser map ``x``."""
        joined = torch.cat([skip, self.up(x)], 1)
        return self.convs(joined)


@backbone("unet_ssl4mis", paper="Ronneberger et al., MICCAI 2015; as in SSL4MIS for ACDC")
class UNetSSL4MIS(EncoderDecoder):
    """U-Net with batch normalization, leaky ReLU, and dropout in the encoder only.

    With ``side_outputs``, the heads of the coarser scales see noisy maps, maps without the most
    active voxels, and maps with dropout; without dropout there are no such perturbations.
    """

    class Params(BackboneParams):
        width: int = Field(
            16, ge=2, le=256, description="channels at full resolution; doubled at each level"
        )
        depth: int = Field(5, ge=2, le=5, description="number of levels; 5 in the literature")
        norm: Literal["batch", "instance"] = Field("batch", description="normalization")
        dropout: float = Field(
            0.5, ge=0, lt=1, description="dropout rate at the coarsest of five levels"
        )

    def __init__(
        self,
        params: BackboneParams,
        channels: int,
        dims: int,
        heads: tuple[int, ...],
        decoders: tuple[str, ...] = ("trilinear",),
        side_outputs: bool = False,
    ) -> None:
        super().__init__(params, channels, dims, heads, decoders, side_outputs)
        self.perturbations = perturbations(self.scales if side_outputs else 1, self.p.dropout)

    def make_encoder(self, channels: int) -> Encoder:
        layers = Layers(self.dims, self.p.norm)
        levels = LevelEncoder()
        widths: list[int] = []
        inputs = channels
        for level in range(self.p.depth):
            width = self.p.width * 2**level
            levels.append(unit(layers, inputs, width, self.p.dropout * SHARES[level]))
            widths.append(width)
            inputs = width
        strides = tuple((2**level,) * self.dims for level in range(self.p.depth))
        return Encoder(levels, tuple(widths), strides)

    def make_decoder(self, kind: str) -> nn.ModuleList:
        layers = Layers(self.dims, self.p.norm)
        stages = nn.ModuleList()
        for level in reversed(range(self.scales)):
            stages.append(UpStage(layers, kind, self.channels[level + 1], self.channels[level]))
        return stages

    def make_heads(self, decoders: int) -> nn.ModuleList:
        layers = Layers(self.dims)
        heads = nn.ModuleList()
        for _ in range(decoders):
            for i, classes in enumerate(self.outputs):
                width = self.widths[i if self.side_outputs else 0]
                heads.append(layers.of("Conv", width, classes, 3, padding=1))
        return heads

    def make_dropouts(self, p: float) -> tuple[nn.Module, nn.ModuleList]:
        """Return no dropout outside the encoder."""
        return nn.Identity(), nn.ModuleList(nn.Identity() for _ in range(self.scales))

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        """Return the logits of one head, of side outputs from a perturbed map and enlarged."""
        if not self.side_outputs or head == 0:
            return super().head(features, head)
        perturbed = self.perturbations[head - 1](features)
        logits = self.head_layer(head)(perturbed)
        return functional.interpolate(logits, scale_factor=self.strides[head])

    def stages(self) -> list[nn.Module]:
        return [*self.encoder.children(), *super().stages()[1:]]

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        return (2 ** (params.depth - 1),) * dims


# -- published weights -------------------------------------------------------------------------

UNUSED = "decoder.out_conv_dp4."  # a head of URPC's network that its forward pass does not call


def published_name(key: str, decoders: int) -> str:
    """Return the published name of a key of the state dict, of a network with so many decoders.

    With one decoder its name is ``decoder``, as in SSL4MIS, SS-Net and BCP; with several they are
    ``decoder1``, ``decoder2`` and so on, as in MC-Net. Side outputs are those of URPC.
    """
    part, number, rest = key.split(".", 2)
    if part == "encoder":
        level = f"down{number}.maxpool_conv.1" if number != "0" else "in_conv"
        return f"encoder.{level}.conv_conv.{rest}"
    decoder = f"decoder{int(number) + 1}" if decoders > 1 else "decoder"
    if part == "heads":
        side = f"_dp{number}" if decoders == 1 and number != "0" else ""
        return f"{decoder}.out_conv{side}.{rest}"
    stage, rest = rest.split(".", 1)
    rest = re.sub(r"^convs\.", "conv.conv_conv.", rest)
    rest = re.sub(r"^up\.0\.", "conv1x1.", rest)
    return f"{decoder}.up{int(stage) + 1}.{rest}"


def load_published(net: UNetSSL4MIS, state: Mapping[str, Tensor]) -> None:
    """Load published weights.

    Raises:
        RuntimeError: tensors are missing, differ in shape, or have no place here.
    """
    state = {name: value for name, value in state.items() if not name.startswith(UNUSED)}
    load_named(net, state, lambda key: published_name(key, len(net.decoders)))
