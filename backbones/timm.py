"""Encoders of timm (Wightman: PyTorch Image Models, github.com/huggingface/pytorch-image-models, Apache-2.0).

``timm:NAME`` is any model of timm's list that offers ``features_only`` for images of many sizes: a convolution at full
resolution of ours, then timm's maps, then a decoder of ours. In two dimensions the maps are timm's own. In three a volume
passes as a stack of slices along its last axis:

inflate  every convolution and pooling also spans slices, its weights averaged over them (Carreira, Zisserman: I3D, CVPR
         2017, arXiv:1705.07750); beyond the first and last slice these are repeated, so that a volume that is constant
         along the axis gives what the slice gives in two dimensions. Squeeze and excitation stay within a slice.
slices   slices are encoded one by one; only the decoder joins them.

``through=auto`` inflates encoders without attention whose layers allow it.
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

# Options with which some models accept images of any size.
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
EDGE = 448  # of images for dry runs: a multiple of all strides, of 14 too
UNITS = (
    0,
    64,
    224,
    256,
)  # edges are multiples of the largest stride, or of these: the windows of some kinds of attention


class Fold:
    """Number of volumes in the stack of slices that is being encoded; set before every pass."""

    volumes = 1


def padded(x: Tensor, axis: int, edge: int, step: int) -> Tensor:
    """With the first and last slice repeated, so that windows of ``edge`` slices leave one of ``step``."""
    total = edge - 1 if edge % 2 and edge != step else max(edge - step, 0)
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    return (
        torch.cat([*[first] * (total // 2), x, *[last] * (total - total // 2)], axis)
        if total
        else x
    )


class Inflated(nn.Conv3d):
    """A convolution of slices that spans slices too; takes and gives stacks of slices."""

    def __init__(self, flat: nn.Conv2d, fold: Fold, step: int) -> None:
        """``flat`` with its weights; one of ``step`` slices is left."""
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
    """A pooling of slices, followed by the same along the stack."""

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
    """Make the layers of an encoder of slices span slices, in place; ``steps`` are strides along the stack, by name.

    Raises:
        UsageError: it has a kind of convolution that cannot be inflated.
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
    """A convolution at full resolution, and timm's encoder: of images, or of volumes as stacks of slices."""

    def __init__(
        self, stem: nn.Module, encoder: nn.Module, fold: Fold, channels_last: bool
    ) -> None:
        super().__init__()
        self.stem, self.encoder, self.fold, self.channels_last = stem, encoder, fold, channels_last

    def forward(self, image: Tensor) -> list[Tensor]:
        """The maps of (N, C, H, W) or (N, C, H, W, D)."""
        return [
            self.stem(image),
            *(self.maps(image) if image.ndim == 4 else self.maps_of_volumes(image)),
        ]

    def maps(self, image: Tensor) -> list[Tensor]:
        """timm's maps of (N, C, H, W)."""
        return [m.movedim(-1, 1) if self.channels_last else m for m in self.encoder(image)]

    def maps_of_volumes(self, image: Tensor) -> list[Tensor]:
        """Those of (N, C, H, W, D), which passes as (N D, C, H, W)."""
        self.fold.volumes = len(image)
        maps = self.maps(image.movedim(-1, 1).flatten(0, 1))
        return [m.unflatten(0, (len(image), -1)).movedim(1, -1) for m in maps]


@dataclass(frozen=True)
class Facts:
    """What a model of timm's list is like."""

    options: dict[str, Any]
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    unit: int  # edges are multiples of it
    channels_last: bool
    attention: bool

    @property
    def edge(self) -> int:
        """Of images for dry runs."""
        return lcm(EDGE, self.unit) if self.unit != 256 else 512


@cache
def facts(architecture: str) -> Facts:
    """Found with a model without numbers.

    Raises:
        UsageError: it gives no feature maps, or not of images of many sizes.
    """
    reason = "TypeError: none of its options"
    for options in OPTIONS:
        try:
            with torch.device("meta"):
                net: Any = timm.create_model(
                    architecture, features_only=True, in_chans=1, **options
                ).eval()
                unit, shapes = _unit(net)
        except Exception as error:  # whatever a model raises is its answer
            if not isinstance(error, TypeError):  # that of an option which it does not know
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
        f"'timm:{architecture}' gives no feature maps of images of many sizes",
        found=reason,
        expected="an encoder that is not made for one size of image",
        fix="segbench list backbones names some",
    )


def _unit(net: Any) -> tuple[int, list[torch.Size]]:
    """What edges must be a multiple of, tried at 3 x 1 and 5 x 10 of it, which few windows divide; and shapes of maps."""
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
        except Exception as error:  # the next unit may be its own
            reason = error
    raise reason


def create(architecture: str, channels: int, levels: int, pretrained: bool = False) -> nn.Module:
    """timm's encoder of ``channels``, its first ``levels`` maps.

    Raises:
        PluginError: the pretrained weights cannot be had.
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
            f"the pretrained weights of 'timm:{architecture}' cannot be had",
            found=f"{type(error).__name__}: {error}".splitlines()[0],
            expected="weights in Hugging Face's cache, or a network",
            fix="-o backbone.pretrained=false, or copy the cache of another machine (HF_HOME)",
        ) from error


@cache
def idle(architecture: str, levels: int) -> tuple[str, ...]:
    """Parameters that none of the first ``levels`` maps depends on; timm does not always cut them off."""
    with (
        torch.device("meta"),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # whoever asks first
        encoder = create(architecture, 1, levels).eval()
        edge = facts(architecture).edge
        torch.stack([m.sum() for m in encoder(torch.zeros(1, 1, edge, edge))]).sum().backward()
    return tuple(name for name, p in encoder.named_parameters() if p.grad is None)


@cache
def unused(architecture: str, levels: int) -> tuple[str, ...]:
    """Parts that can be cut out because none of the first ``levels`` maps depends on them; none where that fails."""
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
        except Exception:  # something that has no parameters wants what they gave
            return ()


def cut(encoder: nn.Module, names: tuple[str, ...] | list[str]) -> None:
    """Take parts out, in place."""
    for name in names:
        encoder.set_submodule(name, nn.Identity())


@cache
def steps(architecture: str, flat: int) -> dict[str, int]:
    """Strides along the stack of an inflated encoder by layer; the first ``flat`` halvings leave the number of slices."""
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
    """How volumes pass (inflate or slices), and the strides of all levels.

    Raises:
        UsageError: the encoder cannot be inflated, as ``through`` asks for.
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
    except Exception as error:  # slices do not meet again, or a layer is of an unknown kind
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
    """Any encoder of timm's list that gives feature maps, as timm:NAME; volumes inflated or slice by slice."""

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
            description="number of levels, with that at full resolution; 9: all there are",
        )
        dropout: float = Field(
            0.3,
            ge=0,
            le=0.5,
            description="at bottleneck and end; with side outputs after each stage",
        )
        pretrained: bool = Field(
            False, description="begin with timm's weights; inflated, in three dimensions"
        )
        through: Literal["auto", "inflate", "slices"] = Field(
            "auto",
            description="volumes: inflate the encoder, or slice by slice; auto: by what the encoder is",
        )
        flat: int = Field(
            0,
            ge=0,
            le=5,
            description="first halvings that leave the last axis alone (thick slices)",
        )

    variants = ("resnet18", "resnet34", "convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224")
    architecture: ClassVar[str]

    @classmethod
    def variant(cls, name: str) -> type[Backbone]:
        """The encoder of that name in timm's list."""
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
        """The stem, and timm's encoder."""
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
        """Twice as many at each level, as far as the encoder has as many."""
        return tuple(min(self.p.width * 2**i, c) for i, c in enumerate(self.channels[:-1]))

    @classmethod
    def _strides(cls, params: Any, dims: int) -> tuple[tuple[int, ...], ...]:
        if dims == 3:
            return layout(cls.architecture, params.depth, params.through, params.flat)[1]
        if params.flat:
            raise UsageError(
                "backbone.flat is for three axes", found="a patch of two", fix="-o backbone.flat=0"
            )
        return tuple((s, s) for s in (1, *facts(cls.architecture).reductions[: params.depth - 1]))

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """The strides of the bottleneck; where windows of attention need more, that."""
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
