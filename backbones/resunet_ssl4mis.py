"""Implement the 2D or 3D ResNet-U-Net of SDCL: the decoder of SSL4MIS's U-Net on a ResNet-34.

Song, Wang: SDCL, MICCAI 2024, the second student for ACDC slices (github.com/pascalcpp/SDCL, no
license, code/networks/ResNet2d.py and resnet.py, class ResUNet_2d). The code was read; nothing was
copied.

The encoder is that of ``resvnet``, with 16 to 256 channels and without dropout. Decoder and heads
are those of ``unet_ssl4mis``. All convolutions are initialized with Kaiming-normal values.
"""

from __future__ import annotations

from typing import Literal

from segbench.backbones.resvnet import ResNetEncoder
from segbench.backbones.unet_ssl4mis import UNetSSL4MIS
from torch import nn

from segbench import BackboneParams, Field, backbone
from segbench.nn.blocks import Encoder, Layers


@backbone("resunet_ssl4mis", paper="Song & Wang, MICCAI 2024; He et al., CVPR 2016")
class ResUNetSSL4MIS(UNetSSL4MIS):
    """ResNet-34 encoder with the decoder of SSL4MIS's U-Net; no dropout without side outputs."""

    provides = frozenset({"heads", "decoders", "side_outputs", "features"})

    class Params(BackboneParams):
        width: int = Field(
            16, ge=2, le=256, description="channels at full resolution; doubled at each level"
        )
        depth: int = Field(5, ge=2, le=5, description="number of levels; 5 in the literature")
        norm: Literal["batch", "instance", "group", "none"] = Field(
            "batch", description="normalization; instance has no trained parameters"
        )
        dropout: float = Field(
            0.5, ge=0, lt=1, description="dropout before the coarsest head, with side outputs only"
        )

    def initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight)

    def make_encoder(self, channels: int) -> Encoder:
        layers = Layers(self.dims, self.p.norm)
        widths = tuple(self.p.width * 2**level for level in range(self.p.depth))
        pooling = [(2,) * self.dims] * (self.p.depth - 1)
        kernels = [(3,) * self.dims] * self.p.depth
        strides = tuple((2**level,) * self.dims for level in range(self.p.depth))
        levels = ResNetEncoder(layers, channels, widths, pooling, kernels)
        return Encoder(levels, widths, strides)
