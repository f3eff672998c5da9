"""Provide encoders of timm.

Wightman: PyTorch Image Models, github.com/huggingface/pytorch-image-models, Apache-2.0.

``timm:NAME`` selects any timm model that supports ``features_only`` and several image sizes. The
network consists of a convolution at full resolution, the timm encoder, and a decoder of the engine.
In two dimensions, the encoder is unchanged. In three dimensions, a volume is processed as a stack
of slices along its last axis, in one of two ways:

inflate  Every convolution and pooling layer also spans slices, with its weights averaged over them
         (Carreira, Zisserman: I3D, CVPR 2017, arXiv:1705.07750). The first and last slices are
         repeated as padding, so that a volume that is constant along the last axis gives the same
         result as its slice in 2D. Squeeze and excitation are computed within each slice.
slices   Slices are encoded separately; only the decoder combines them.

``through=auto`` inflates encoders that have no attention and whose layers support inflation.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from math import lcm
from typing import Any, ClassVar, Literal

import timm
import torch
from torch import Tensor, nn

from segbench import Backbone, BackboneParams, Field, backbone
from segbench.errors import PluginError, UsageError, did_you_mean
from segbench.nn.blocks import Encoder, EncoderDecoder, Layers

# Options that let some models accept images of any size.
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
EDGE = 448  # image size of dry runs: a multiple of all strides, including 14
# Image sizes must be multiples of the largest stride (0) or of one of the other numbers, which are
# required by the attention windows of some models.
UNITS = (0, 64, 224, 256)


class Fold:
    """Number of volumes in the current stack of slices; set before every forward pass."""

    volumes = 1


def padded(x: Tensor, axis: int, edge: int, step: int) -> Tensor:
    """Repeat the end slices as padding for windows of ``edge`` slices with stride ``step``."""
    total = edge - 1 if edge % 2 and edge != step else max(edge - step, 0)
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    return (
        torch.cat([*[first] * (total // 2), x, *[last] * (total - total // 2)], axis)
        if total
        else x
    )


class Inflated(nn.Conv3d):
    """A 2D convolution extended across slices; its input and output are stacks of slices."""

    def __init__(self, flat: nn.Conv2d, fold: Fold, step: int) -> None:
        """Build the layer with the weights of ``flat``; ``step`` is the stride along the stack."""
        edge = (
            1
            if step < min(flat.stride) and flat.kernel_size == flat.stride
            else min(flat.kernel_size)
        )
        kernel, stride, padding = (
            (edge, *flat.kernel_size),
            (step, *flat.stride),
            (0, *flat.padding),
        )
        super().__init__(
            flat.in_channels,
            flat.out_channels,
            kernel,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,
            groups=flat.groups,
            bias=flat.bias is not None,
            device=flat.weight.device,
        )
        self.fold, self.edge, self.step = fold, edge, step
        with torch.no_grad():
            self.weight.copy_(flat.weight.unsqueeze(2).expand_as(self.weight) / edge)
            if self.bias is not None and flat.bias is not None:
                self.bias.copy_(flat.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N D, C, H, W) to (N D', C', H', W')."""
        volume = padded(
            x.unflatten(0, (self.fold.volumes, -1)).transpose(1, 2), 2, self.edge, self.step
        )
        return super().forward(volume).transpose(1, 2).flatten(0, 1)


class InflatedPool(nn.Module):
    """Pooling of each slice, followed by the same pooling along the stack."""

    def __init__(self, flat: nn.MaxPool2d | nn.AvgPool2d, fold: Fold, step: int) -> None:
        super().__init__()
        self.flat, self.fold, self.step = flat, fold, step
        self.edge = flat.kernel_size if isinstance(flat.kernel_size, int) else min(flat.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N D, C, H, W) to (N D', C, H', W')."""
        stack = padded(self.flat(x).unflatten(0, (self.fold.volumes, -1)), 1, self.edge, self.step)
        groups = stack.unfold(1, self.edge, self.step)
        return (
            groups.amax(-1) if isinstance(self.flat, nn.MaxPool2d) else groups.mean(-1)
        ).flatten(0, 1)


def inflate(body: nn.Module, fold: Fold, steps: dict[str, int]) -> None:
    """Inflate the layers of a 2D encoder in place.

    ``steps`` contains the strides along the stack by layer name.

    Raises:
        UsageError: the encoder has a convolution that cannot be inflated.
    """
    for name, layer in list(body.named_modules()):
        if not isinstance(layer, STRIDED):
            continue
        if not isinstance(layer, nn.Conv2d):
            body.set_submodule(name, InflatedPool(layer, fold, steps.get(name, 1)))
        elif (
            type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or max(layer.dilation) > 1
        ):
            raise UsageError(
                "a layer cannot be inflated",
                found=f"{name}: {layer}",
                fix="-o backbone.through=slices",
                expected="plain convolutions without dilation, padded with zeros",
            )
        elif max(layer.kernel_size) > 1 or name in steps:
            body.set_submodule(name, Inflated(layer, fold, steps.get(name, 1)))


class Body(nn.Module):
    """A convolution at full resolution and a timm encoder.

    The encoder processes images, or volumes as stacks of slices.
    """

    def __init__(
        self, stem: nn.Module, encoder: nn.Module, fold: Fold, channels_last: bool
    ) -> None:
        super().__init__()
        self.stem, self.encoder, self.fold, self.channels_last = stem, encoder, fold, channels_last

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps of an image (N, C, H, W) or a volume (N, C, H, W, D)."""
        return [
            self.stem(image),
            *(self.maps(image) if image.ndim == 4 else self.maps_of_volumes(image)),
        ]

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the timm maps of an image (N, C, H, W)."""
        return [m.movedim(-1, 1) if self.channels_last else m for m in self.encoder(image)]

    def maps_of_volumes(self, image: Tensor) -> list[Tensor]:
        """Return the timm maps of a volume (N, C, H, W, D), encoded as (N D, C, H, W)."""
        self.fold.volumes = len(image)
        maps = self.maps(image.movedim(-1, 1).flatten(0, 1))
        return [m.unflatten(0, (len(image), -1)).movedim(1, -1) for m in maps]


@dataclass(frozen=True)
class Facts:
    """Properties of a timm model."""

    options: dict[str, Any]
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    unit: int  # image sizes must be multiples of this number
    channels_last: bool
    attention: bool

    @property
    def edge(self) -> int:
        """Return the image size of dry runs."""
        return lcm(EDGE, self.unit) if self.unit != 256 else 512


@cache
def facts(architecture: str) -> Facts:
    """Return the properties of a model, determined on the meta device.

    Raises:
        UsageError: the model returns no feature maps, or does not support several image sizes.
    """
    reason = "TypeError: none of its options"
    for options in OPTIONS:
        try:
            with torch.device("meta"):
                net: Any = timm.create_model(
                    architecture, features_only=True, in_chans=1, **options
                ).eval()
                unit, shapes = _unit(net)
        except Exception as error:  # models raise errors of any type
            if not isinstance(error, TypeError):  # the model does not support the option
                reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
            continue
        info = net.feature_info
        last = any(shape[1] != c for shape, c in zip(shapes, info.channels(), strict=True))
        attention = any(hasattr(m, "num_heads") for m in net.modules())
        indices, channels, reductions = map(
            tuple, (info.out_indices, info.channels(), info.reduction())
        )
        return Facts(options, indices, channels, reductions, unit, last, attention)
    raise UsageError(
        f"'timm:{architecture}' does not provide feature maps for several image sizes",
        found=reason,
        expected="an encoder that supports several image sizes",
        fix="choose another encoder (segbench list backbones)",
    )


def _unit(net: Any) -> tuple[int, list[torch.Size]]:
    """Return the number that image sizes must be a multiple of, and the shapes of the maps.

    Each candidate is tested with images of 3 x 1 and 5 x 10 times its size, which few attention
    windows divide.
    """
    reductions, reason = net.feature_info.reduction(), Exception("no unit")
    for unit in dict.fromkeys(u or max(reductions) for u in UNITS):
        if unit % max(reductions):
            continue
        try:
            for a, b in ((3, 1), (5, 10)):
                shapes = [m.shape for m in net(torch.zeros(1, 1, a * unit, b * unit))]
                if not all(
                    {a * unit // r, b * unit // r} <= set(s)
                    for s, r in zip(shapes, reductions, strict=True)
                ):
                    raise ValueError(
                        f"maps of {a * unit} x {b * unit} pixels are not {', '.join(map(str, reductions))} "
                        "times smaller"
                    )
            return unit, shapes
        except Exception as error:  # try the next candidate
            reason = error
    raise reason


def create(architecture: str, channels: int, levels: int, pretrained: bool = False) -> nn.Module:
    """Build a timm encoder for ``channels`` channels that returns its first ``levels`` maps.

    Raises:
        PluginError: the pretrained weights cannot be loaded.
    """
    known = facts(architecture)
    try:
        return timm.create_model(
            architecture,
            pretrained=pretrained,
            features_only=True,
            in_chans=channels,
            out_indices=known.indices[:levels],
            **known.options,
        )
    except Exception as error:
        if not pretrained:
            raise
        raise PluginError(
            f"the pretrained weights of 'timm:{architecture}' cannot be loaded",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            expected="weights in the Hugging Face cache, or an internet connection",
            fix="-o backbone.pretrained=false, or copy the cache of another machine (HF_HOME)",
        ) from error


@cache
def idle(architecture: str, levels: int) -> tuple[str, ...]:
    """Return the parameters that do not affect the first ``levels`` maps.

    timm does not always remove them.
    """
    with (
        torch.device("meta"),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # the first caller may have disabled gradients
        encoder = create(architecture, 1, levels).eval()
        edge = facts(architecture).edge
        torch.stack([m.sum() for m in encoder(torch.zeros(1, 1, edge, edge))]).sum().backward()
    return tuple(name for name, p in encoder.named_parameters() if p.grad is None)


@cache
def unused(architecture: str, levels: int) -> tuple[str, ...]:
    """Return the modules that can be removed because they do not affect the first ``levels`` maps.

    Returns an empty tuple if the encoder fails without them.
    """
    names, edge = idle(architecture, levels), facts(architecture).edge
    with torch.device("meta"):
        encoder = create(architecture, 1, levels).eval()
        found: list[str] = []
        for name, part in encoder.named_modules():
            own = [f"{name}.{p}" for p, _ in part.named_parameters()]
            if (
                name
                and own
                and set(own) <= set(names)
                and not name.startswith(tuple(f"{f}." for f in found))
            ):
                found.append(name)
        image = torch.zeros(1, 1, edge, edge)
        before = [m.shape for m in encoder(image)]
        cut(encoder, found)
        try:
            return tuple(found) if [m.shape for m in encoder(image)] == before else ()
        except Exception:  # a module without parameters needs their output
            return ()


def cut(encoder: nn.Module, names: tuple[str, ...] | list[str]) -> None:
    """Replace modules by identities, in place."""
    for name in names:
        encoder.set_submodule(name, nn.Identity())


@cache
def steps(architecture: str, flat: int) -> dict[str, int]:
    """Return the strides along the stack of an inflated encoder by layer name.

    The first ``flat`` halvings do not reduce the number of slices.
    """
    found: dict[str, int] = {}
    edge = facts(architecture).edge
    with torch.device("meta"):
        encoder = create(architecture, 1, 9).eval()

        def note(name: str, stride: Any, rows: int) -> None:
            step = stride if isinstance(stride, int) else min(stride)
            if step > 1:
                found[name] = step if edge // rows >= 2**flat else 1

        for name, layer in encoder.named_modules():
            if isinstance(layer, STRIDED):
                layer.register_forward_pre_hook(
                    lambda m, x, name=name: note(name, m.stride, x[0].shape[2])
                )
        encoder(torch.zeros(1, 1, edge, edge))
    return found


@cache
def layout(
    architecture: str, depth: int, through: str, flat: int
) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Return how volumes are processed (inflate or slices), and the strides of all levels.

    Raises:
        UsageError: ``through`` is inflate, but the encoder cannot be inflated.
    """
    known, levels = facts(architecture), depth - 1
    sliced = tuple((s, s, 1) for s in (1, *known.reductions[:levels]))
    if through == "slices" or (through == "auto" and known.attention):
        return "slices", sliced
    try:
        with torch.device("meta"):
            fold, encoder = Fold(), create(architecture, 1, levels).eval()
            cut(encoder, unused(architecture, levels))
            inflate(encoder, fold, steps(architecture, flat))
            edge = known.edge
            maps = Body(nn.Identity(), encoder, fold, known.channels_last)(
                torch.zeros(1, 1, edge, edge, edge)
            )
        return "inflate", tuple(tuple(edge // n for n in m.shape[2:]) for m in maps)
    except Exception as error:  # map sizes differ, or a layer type is unknown
        if through == "auto":
            return "slices", sliced
        raise (
            error
            if isinstance(error, UsageError)
            else UsageError(
                f"'timm:{architecture}' cannot be inflated",
                found=f"{type(error).__name__}: {error}".splitlines()[0],
                fix="-o backbone.through=slices",
            )
        ) from error


@backbone("timm", paper="Wightman, PyTorch Image Models")
class Timm(EncoderDecoder):
    """Any timm encoder that returns feature maps, selected as timm:NAME.

    Volumes are processed by an inflated encoder or slice by slice.
    """

    class Params(BackboneParams):
        width: int = Field(
            16,
            ge=2,
            le=256,
            description="channels at full resolution; doubled at each decoder level",
        )
        depth: int = Field(
            9,
            ge=2,
            le=9,
            description="number of levels, including full resolution; 9 uses all levels",
        )
        dropout: float = Field(
            0.3,
            ge=0,
            le=0.5,
            description="at bottleneck and before the heads; with side outputs, after each stage",
        )
        pretrained: bool = Field(
            False, description="start with timm's weights, which are inflated in 3D if needed"
        )
        through: Literal["auto", "inflate", "slices"] = Field(
            "auto",
            description="encode volumes inflated or slice by slice; auto chooses by encoder type",
        )
        flat: int = Field(
            0,
            ge=0,
            le=5,
            description="number of first halvings that skip the last axis (thick slices)",
        )

    variants = ("resnet18", "resnet34", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224")
    architecture: ClassVar[str]

    @classmethod
    def variant(cls, name: str) -> type[Backbone]:
        """Return the class of the timm encoder with this name."""
        if not timm.is_model(name):
            known, near = timm.list_models(), get_close_matches(name, timm.list_models(), 5, 0.5)
            raise UsageError(
                f"unknown backbone 'timm:{name}'.{did_you_mean(name, known)}",
                expected=(f"one of timm.list_models(), such as {', '.join(near or cls.variants)}"),
                fix="segbench list backbones",
            )
        architecture, _, tag = name.partition(".")
        tags = [
            n
            for n in timm.list_pretrained(f"{architecture}.*")
            if n.partition(".")[0] == architecture
        ]
        if tag and name not in tags:
            raise UsageError(
                f"unknown weights 'timm:{name}'.{did_you_mean(name, tags)}",
                expected=f"timm:{architecture}, or one of {', '.join(tags) or 'none'}",
                fix=f"--backbone timm:{architecture}",
            )
        return _variant(cls, name)  # type: ignore[arg-type]

    def make_encoder(self, channels: int) -> Encoder:
        """Return the stem and the timm encoder."""
        p, known, fold = self.p, facts(self.architecture), Fold()
        levels = len(known.channels[: p.depth - 1])
        encoder = create(self.architecture, channels, levels, p.pretrained)
        strides = self._strides(p, self.dims)
        cut(encoder, unused(self.architecture, levels))
        if self.dims == 3 and layout(self.architecture, p.depth, p.through, p.flat)[0] == "inflate":
            inflate(encoder, fold, steps(self.architecture, p.flat))
        left = dict(encoder.named_parameters())
        for name in set(idle(self.architecture, levels)) & set(left):
            left[name].requires_grad_(False)
        stem = Layers(self.dims).unit(channels, p.width, count=1)
        return Encoder(
            Body(stem, encoder, fold, known.channels_last),
            (p.width, *known.channels[:levels]),
            strides,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels per level: doubled at each level, at most those of the encoder."""
        return tuple(min(self.p.width * 2**i, c) for i, c in enumerate(self.channels[:-1]))

    @classmethod
    def _strides(cls, params: Any, dims: int) -> tuple[tuple[int, ...], ...]:
        if dims == 3:
            return layout(cls.architecture, params.depth, params.through, params.flat)[1]
        if params.flat:
            raise UsageError(
                "backbone.flat requires a 3D patch", found="a 2D patch", fix="-o backbone.flat=0"
            )
        return tuple((s, s) for s in (1, *facts(cls.architecture).reductions[: params.depth - 1]))

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """Return the strides of the bottleneck, or the multiples that attention windows need."""
        strides, unit = cls._strides(params, dims)[-1], facts(cls.architecture).unit
        special = unit > max(facts(cls.architecture).reductions)
        return tuple(lcm(s, unit) if special and axis < 2 else s for axis, s in enumerate(strides))


@cache
def _variant(family: type[Timm], architecture: str) -> type[Backbone]:
    return type(
        family.__name__,
        (family,),
        {
            "architecture": architecture,
            "name": f"timm:{architecture}",
            "__module__": family.__module__,
            "__doc__": family.__doc__,
        },
    )
