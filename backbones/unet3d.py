"""Implement the plain 2D or 3D U-Net of the semi-supervised literature.

Çiçek, Abdulkadir, Lienkamp, Brox, Ronneberger: 3D U-Net, MICCAI 2016, arXiv:1606.06650, as used in
SSL4MIS (github.com/HiLab-git/SSL4MIS, MIT; reimplemented from a written specification, no code
copied). The network has 16 to 256 channels, two convolutions of kernel size 3 per stage, instance
normalization without trainable parameters, max pooling, linear upsampling without convolution,
concatenated skip connections and element-wise dropout. With side outputs it is the network of URPC
(Luo et al., MICCAI 2021). Extra decoders upsample by transposed convolutions or nearest neighbors.
The weights of all convolutions are initialized with Kaiming-normal values. Pooling and kernels may
differ along the axes (``pooling``, ``kernels``), as nnU-Net's do for thick slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from segbench import BackboneParams, Field, backbone
from segbench.errors import UsageError
from segbench.nn.blocks import (
    KERNELS,
    POOLING,
    Encoder,
    EncoderDecoder,
    Layers,
    PerAxis,
    check_levels,
    halve,
    kernels_of,
    pooling_of,
    strides_of,
)
from segbench.nn.published import load_named


class UNetEncoder(nn.ModuleList):
    """The encoder of the U-Net: units of two convolutions with max pooling between them."""

    def __init__(
        self,
        layers: Layers,
        channels: int,
        widths: tuple[int, ...],
        halvings: list[tuple[int, ...]],
        kernels: list[tuple[int, ...]],
    ) -> None:
        """Build the encoder.

        ``halvings`` has one factor per axis for each pair of levels, ``kernels`` one size per axis
        for each level.
        """
        super().__init__()
        inputs = channels
        for width, kernel in zip(widths, kernels, strict=True):
            self.append(layers.unit(inputs, width, kernel=kernel))
            inputs = width
        self.halvings = halvings

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels."""
        maps = [self[0](x)]
        for unit, factors in zip(list(self)[1:], self.halvings, strict=True):
            maps.append(unit(halve(maps[-1], factors)))
        return maps


@backbone("unet3d", paper="Çiçek et al., MICCAI 2016; as in SSL4MIS and URPC")
class UNet3D(EncoderDecoder):
    """Plain U-Net with concatenated skip connections, instance normalization, linear upsampling."""

    class Params(BackboneParams):
        width: int = Field(
            16, ge=2, le=256, description="channels at full resolution; doubled at each level"
        )
        depth: int = Field(5, ge=2, le=6, description="number of levels; 5 in the literature")
        dropout: float = Field(
            0.3,
            ge=0,
            le=0.5,
            description=(
                "dropout rate at the bottleneck and before the heads; with side outputs, "
                "channel dropout of 1/3 to 5/3 of this rate after each stage"
            ),
        )
        flat: int = Field(
            0,
            ge=0,
            le=5,
            description="number of first poolings that skip the last axis (thick slices)",
        )
        pooling: PerAxis = POOLING
        kernels: PerAxis = KERNELS
        # No choice here, but a second network (mcf, sdcl) takes the parameters of the first.
        norm: Literal["instance"] = Field(
            "instance", description="normalization; this network has no other"
        )

        _levels = model_validator(mode="after")(check_levels)

    decoder_norm = "instance"

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

    def initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)

    def make_encoder(self, channels: int) -> Encoder:
        widths = tuple(self.p.width * 2**level for level in range(self.p.depth))
        halvings = self._halvings(self.p, self.dims)
        layers = Layers(self.dims, self.p.norm)
        encoder = UNetEncoder(layers, channels, widths, halvings, kernels_of(self.p, self.dims))
        return Encoder(encoder, widths, strides_of(halvings))

    def kernel(self, level: int) -> tuple[int, ...]:
        return kernels_of(self.p, self.dims)[level]

    def stages(self) -> list[nn.Module]:
        return [*self.encoder.children(), *super().stages()[1:]]

    @staticmethod
    def _halvings(params: Any, dims: int) -> list[tuple[int, ...]]:
        if params.flat and dims == 2:
            raise UsageError(
                "backbone.flat requires a 3D patch", found="a 2D patch", fix="-o backbone.flat=0"
            )
        if params.flat and params.pooling:
            raise UsageError(
                "backbone.flat and backbone.pooling exclude each other",
                found=f"flat={params.flat}",
                fix="-o backbone.flat=0",
            )
        halvings = pooling_of(params, dims)
        for number in range(min(params.flat, len(halvings))):
            halvings[number] = (*halvings[number][:-1], 1)
        return halvings

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        return strides_of(cls._halvings(params, dims))[-1]


# -- published weights -------------------------------------------------------------------------


def published_name(key: str, net: UNet3D) -> str:
    """Return the name in SSL4MIS of a key of the state dict of a network with one decoder.

    Its class is ``unet_3D_dv_semi`` with side outputs and ``unet_3D`` without.
    """
    part, number, *rest = key.split(".")
    levels = len(net.channels)
    if part == "heads":
        scale = int(number) + 1
        first = "dsv1" if net.side_outputs else "final"
        return ".".join([first if scale == 1 else f"dsv{scale}.dsv.0", *rest])
    if part == "encoder":
        level = int(number) + 1
        unit = f"conv{level}" if level < levels else "center"
    else:
        stage, _, *rest = rest  # decoders.0.STAGE.convs.LAYER.weight
        unit = f"up_concat{levels - 1 - int(stage)}.conv"
    layer, *rest = rest
    return ".".join([unit, "conv1" if layer == "0" else "conv2", "0", *rest])


def load_published(net: UNet3D, state: Mapping[str, Tensor]) -> None:
    """Load published weights into a network with one decoder.

    Raises:
        RuntimeError: tensors are missing, differ in shape, or have no place here.
    """
    load_named(net, state, lambda key: published_name(key, net))
