"""Provide networks of MONAI, split into encoder and decoder.

Source: Cardoso et al., arXiv:2211.02701, Apache-2.0.

``monai:segresnet``   Myronenko, BrainLes 2018, arXiv:1810.11654
``monai:basic_unet``  Falk et al., Nature Methods 2019
``monai:swin_unetr``  Hatamizadeh et al., BrainLes 2021, arXiv:2201.01266

MONAI provides the encoder and the first decoder (``own``). With one head and no dropout, the
network is identical to the MONAI network in every parameter. If a method requests decoders by
upsampling method (MC-Net), the engine provides them. Linear upsampling and max pooling layers of
MONAI are replaced by equivalent layers with a deterministic gradient.
"""

from __future__ import annotations

from typing import Any, ClassVar

from monai.networks.nets import BasicUNet, SegResNet, SwinUNETR
from torch import Tensor, nn

from segbench import Backbone, BackboneParams, Field, backbone
from segbench.errors import unknown
from segbench.nn.blocks import KINDS, Encoder, EncoderDecoder, Enlarge, halve


class Halve(nn.Module):
    """Max pooling over pairs of voxels along each axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, *(S / 2)) for an input (N, C, *S)."""
        return halve(x, (2,) * (x.ndim - 2))


def deterministic(net: nn.Module, dims: int) -> nn.Module:
    """Replace layers whose gradient is not deterministic on CUDA by equivalent layers."""
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Upsample):
            net.set_submodule(name, Enlarge((2,) * dims))
        elif isinstance(layer, (nn.MaxPool2d, nn.MaxPool3d)):
            net.set_submodule(name, Halve())
    return net


class Chain(nn.ModuleList):
    """An encoder of sequential parts, each of which returns a map."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all levels."""
        maps = []
        for part in self:
            x = part(x)
            maps.append(x)
        return maps


class SwinEncoder(nn.Module):
    """Encoder of Swin UNETR.

    The image and the hidden states of the transformer each pass through a residual block, except
    for the second to last state.
    """

    def __init__(self, net: SwinUNETR) -> None:
        super().__init__()
        self.swinViT = net.swinViT
        self.normalize = net.normalize
        self.blocks = nn.ModuleList(
            [
                net.encoder1,
                net.encoder2,
                net.encoder3,
                net.encoder4,
                nn.Identity(),
                net.encoder10,
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of six levels."""
        states = self.swinViT(x, self.normalize)
        maps = []
        for block, state in zip(self.blocks, [x, *states], strict=True):
            maps.append(block(state))
        return maps


class Added(nn.Module):
    """Decoder stage of SegResNet: upsampling, addition of the encoder's map, residual blocks."""

    def __init__(self, up: nn.Module, convs: nn.Module, last: nn.Module) -> None:
        """Build the stage; ``last`` ends the decoder and is an identity in all other stages."""
        super().__init__()
        self.up = up
        self.convs = convs
        self.last = last

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Return a map with the size of ``skip``, computed from the coarser map ``x``."""
        x = self.up(x) + skip
        x = self.convs(x)
        return self.last(x)


@backbone("monai", paper="Cardoso et al., MONAI, arXiv:2211.02701")
class Monai(EncoderDecoder):
    """Networks of MONAI, selected as monai:NAME and split into encoder and decoder."""

    variants = ("segresnet", "basic_unet", "swin_unetr")
    kinds = ("own", *KINDS)
    decoder_norm = "affine"
    members: ClassVar[dict[str, type[Monai]]] = {}

    def __init__(
        self,
        params: BackboneParams,
        channels: int,
        dims: int,
        heads: tuple[int, ...],
        decoders: tuple[str, ...] = ("own",),
        side_outputs: bool = False,
    ) -> None:
        super().__init__(params, channels, dims, heads, decoders, side_outputs)

    @classmethod
    def variant(cls, name: str) -> type[Backbone]:
        """Return the class of the network with this name."""
        if name not in cls.members:
            known = [f"monai:{member}" for member in cls.members]
            raise unknown("backbone", f"monai:{name}", known)
        return cls.members[name]

    def make_encoder(self, channels: int) -> Encoder:
        """Return the encoder of the MONAI network."""
        net = deterministic(self.whole(channels), self.dims)
        channels_of_levels = self.levels()
        strides = []
        for level in range(len(channels_of_levels)):
            strides.append((2**level,) * self.dims)
        return Encoder(self.encoder_of(net), channels_of_levels, tuple(strides))

    def make_decoder(self, kind: str) -> nn.Module:
        """Return the decoder of the MONAI network, or a decoder of the engine."""
        if kind != "own":
            return super().make_decoder(kind)
        net = deterministic(self.whole(1), self.dims)
        return nn.ModuleList(self.stages_of(net))

    def whole(self, channels: int) -> Any:
        """Return the MONAI network."""
        raise NotImplementedError

    def levels(self) -> tuple[int, ...]:
        """Return the numbers of channels of the encoder's maps, fine to coarse."""
        raise NotImplementedError

    def encoder_of(self, net: Any) -> nn.Module:
        """Return the encoder of the network."""
        raise NotImplementedError

    def stages_of(self, net: Any) -> list[nn.Module]:
        """Return the stages of the decoder, coarse to fine."""
        raise NotImplementedError


DROPOUT: Any = Field(
    0.3,
    ge=0,
    le=0.5,
    description="at the bottleneck and before the heads; with side outputs, after each stage",
)


class SegRes(Monai):
    """SegResNet: residual blocks with group normalization, additive skips, linear upsampling."""

    class Params(BackboneParams):
        width: int = Field(
            16,
            ge=8,
            le=256,
            multiple_of=8,
            description="channels at full resolution; doubled at each level",
        )
        depth: int = Field(4, ge=2, le=4, description="number of levels; 4 in the paper")
        dropout: float = DROPOUT

    def whole(self, channels: int) -> Any:
        """Return the MONAI network."""
        return SegResNet(
            self.dims,
            self.p.width,
            channels,
            1,
            blocks_down=(1, 2, 2, 4)[: self.p.depth],
            blocks_up=(1,) * (self.p.depth - 1),
        )

    def levels(self) -> tuple[int, ...]:
        """Return the numbers of channels of the encoder's maps, fine to coarse."""
        return tuple(self.p.width * 2**i for i in range(self.p.depth))

    def encoder_of(self, net: Any) -> nn.Module:
        """Return the encoder of the network."""
        first, *others = net.down_layers
        full_size = nn.Sequential(net.convInit, first)
        return Chain([full_size, *others])

    def stages_of(self, net: Any) -> list[nn.Module]:
        """Return the stages of the decoder, coarse to fine."""
        count = len(net.up_samples)
        stages: list[nn.Module] = []
        for i, (up, convs) in enumerate(zip(net.up_samples, net.up_layers, strict=True)):
            is_last = i == count - 1
            last = net.conv_final[:-1] if is_last else nn.Identity()
            stages.append(Added(up, convs, last))
        return stages

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """Return the stride of the bottleneck for each axis."""
        return (2 ** (params.depth - 1),) * dims


class Basic(Monai):
    """U-Net with instance normalization, leaky ReLU, concatenation, transposed convolutions."""

    class Params(BackboneParams):
        width: int = Field(
            32,
            ge=2,
            le=256,
            description="channels of the two finest levels; then doubled per level",
        )
        dropout: float = DROPOUT

    def whole(self, channels: int) -> Any:
        """Return the MONAI network."""
        return BasicUNet(self.dims, channels, 1, (*self.levels(), self.p.width))

    def levels(self) -> tuple[int, ...]:
        """Return the numbers of channels of the encoder's maps, fine to coarse."""
        return tuple(self.p.width * factor for factor in (1, 1, 2, 4, 8))

    def encoder_of(self, net: Any) -> nn.Module:
        """Return the encoder of the network."""
        return Chain([net.conv_0, net.down_1, net.down_2, net.down_3, net.down_4])

    def stages_of(self, net: Any) -> list[nn.Module]:
        """Return the stages of the decoder, coarse to fine."""
        return [net.upcat_4, net.upcat_3, net.upcat_2, net.upcat_1]

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """Return the stride of the bottleneck for each axis."""
        return (16,) * dims


class Swin(Monai):
    """Swin UNETR: a shifted-window transformer with a convolutional decoder.

    Residual blocks use instance normalization, and skip connections are concatenated.
    """

    class Params(BackboneParams):
        width: int = Field(
            24,
            ge=12,
            le=192,
            multiple_of=12,
            description="channels at full resolution; 24 is the default of MONAI",
        )
        dropout: float = DROPOUT

    def whole(self, channels: int) -> Any:
        """Return the MONAI network."""
        return SwinUNETR(channels, 1, feature_size=self.p.width, spatial_dims=self.dims)

    def levels(self) -> tuple[int, ...]:
        """Return the numbers of channels of the encoder's maps, fine to coarse."""
        return tuple(self.p.width * factor for factor in (1, 1, 2, 4, 8, 16))

    def encoder_of(self, net: Any) -> nn.Module:
        """Return the encoder of the network."""
        return SwinEncoder(net)

    def stages_of(self, net: Any) -> list[nn.Module]:
        """Return the stages of the decoder, coarse to fine."""
        return [net.decoder5, net.decoder4, net.decoder3, net.decoder2, net.decoder1]

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """Return the stride of the bottleneck for each axis."""
        return (32,) * dims


for _name, _class in zip(Monai.variants, (SegRes, Basic, Swin), strict=True):
    _class.name = f"monai:{_name}"
    Monai.members[_name] = _class
