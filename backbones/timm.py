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
    is_odd = edge % 2 == 1
    total = edge - 1 if is_odd and edge != step else max(edge - step, 0)
    if total == 0:
        return x
    before = total // 2
    after = total - before
    first = x.narrow(axis, 0, 1)
    last = x.narrow(axis, x.shape[axis] - 1, 1)
    return torch.cat([*[first] * before, x, *[last] * after], axis)


class Inflated(nn.Conv3d):
    """A 2D convolution extended across slices; its input and output are stacks of slices."""

    def __init__(self, flat: nn.Conv2d, fold: Fold, step: int) -> None:
        """Build the layer with the weights of ``flat``; ``step`` is the stride along the stack."""
        edge = min(flat.kernel_size)
        splits_into_patches = flat.kernel_size == flat.stride
        if splits_into_patches and step < min(flat.stride):
            edge = 1  # the patches of an image stay within their slice
        super().__init__(
            flat.in_channels,
            flat.out_channels,
            kernel_size=(edge, *flat.kernel_size),  # type: ignore[arg-type]
            stride=(step, *flat.stride),  # type: ignore[arg-type]
            padding=(0, *flat.padding),
            groups=flat.groups,
            bias=flat.bias is not None,
            device=flat.weight.device,
        )
        self.fold = fold
        self.edge = edge
        self.step = step
        with torch.no_grad():
            repeated = flat.weight.unsqueeze(2).expand_as(self.weight)
            self.weight.copy_(repeated / edge)
            if self.bias is not None and flat.bias is not None:
                self.bias.copy_(flat.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N D', C', H', W') for a stack of slices (N D, C, H, W)."""
        volume = x.unflatten(0, (self.fold.volumes, -1)).transpose(1, 2)  # (N, C, D, H, W)
        volume = padded(volume, 2, self.edge, self.step)
        result = super().forward(volume)  # (N, C', D', H', W')
        return result.transpose(1, 2).flatten(0, 1)


class InflatedPool(nn.Module):
    """Pooling of each slice, followed by the same pooling along the stack."""

    def __init__(self, flat: nn.MaxPool2d | nn.AvgPool2d, fold: Fold, step: int) -> None:
        super().__init__()
        self.flat = flat
        self.fold = fold
        self.step = step
        kernel = flat.kernel_size
        self.edge = kernel if isinstance(kernel, int) else min(kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N D', C, H', W') for a stack of slices (N D, C, H, W)."""
        slices = self.flat(x)  # (N D, C, H', W')
        stack = slices.unflatten(0, (self.fold.volumes, -1))  # (N, D, C, H', W')
        stack = padded(stack, 1, self.edge, self.step)
        groups = stack.unfold(1, self.edge, self.step)  # (N, D', C, H', W', edge)
        pooled = groups.amax(-1) if isinstance(self.flat, nn.MaxPool2d) else groups.mean(-1)
        return pooled.flatten(0, 1)


def inflate(body: nn.Module, fold: Fold, steps: dict[str, int]) -> None:
    """Inflate the layers of a 2D encoder in place.

    ``steps`` contains the strides along the stack by layer name.

    Raises:
        UsageError: the encoder has a convolution that cannot be inflated.
    """
    for name, layer in list(body.named_modules()):
        if not isinstance(layer, STRIDED):
            continue
        step = steps.get(name, 1)
        if not isinstance(layer, nn.Conv2d):
            body.set_submodule(name, InflatedPool(layer, fold, step))
        elif not is_plain(layer):
            raise UsageError(
                "a layer cannot be inflated",
                found=f"{name}: {layer}",
                fix="-o backbone.through=slices",
                expected="plain convolutions without dilation, padded with zeros",
            )
        elif max(layer.kernel_size) > 1 or name in steps:
            body.set_submodule(name, Inflated(layer, fold, step))


def is_plain(layer: nn.Conv2d) -> bool:
    """Return whether ``Inflated`` can extend a convolution."""
    is_dilated = max(layer.dilation) > 1
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not is_dilated


class Body(nn.Module):
    """A convolution at full resolution and a timm encoder.

    The encoder processes images, or volumes as stacks of slices.
    """

    def __init__(
        self, stem: nn.Module, encoder: nn.Module, fold: Fold, channels_last: bool
    ) -> None:
        super().__init__()
        self.stem = stem
        self.encoder = encoder
        self.fold = fold
        self.channels_last = channels_last

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps of an image (N, C, H, W) or a volume (N, C, H, W, D)."""
        full_size = self.stem(image)
        maps = self.maps(image) if image.ndim == 4 else self.maps_of_volumes(image)
        return [full_size, *maps]

    def maps(self, image: Tensor) -> list[Tensor]:
        """Return the timm maps of an image (N, C, H, W)."""
        maps = self.encoder(image)
        if self.channels_last:
            return [features.movedim(-1, 1) for features in maps]
        return list(maps)

    def maps_of_volumes(self, image: Tensor) -> list[Tensor]:
        """Return the timm maps of a volume (N, C, H, W, D), encoded as (N D, C, H, W)."""
        volumes = len(image)
        self.fold.volumes = volumes
        slices = image.movedim(-1, 1).flatten(0, 1)
        maps = self.maps(slices)
        return [features.unflatten(0, (volumes, -1)).movedim(1, -1) for features in maps]


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
        return 512 if self.unit == 256 else lcm(EDGE, self.unit)


@cache
def facts(architecture: str) -> Facts:
    """Return the properties of a model, determined on the meta device.

    Raises:
        UsageError: the model returns no feature maps, or does not support several image sizes.
    """
    reason = "no option of timm makes the model accept several image sizes"
    for options in OPTIONS:
        try:
            with torch.device("meta"):
                net: Any = timm.create_model(
                    architecture, features_only=True, in_chans=1, **options
                ).eval()
                unit, shapes = _unit(net)
        except TypeError:  # the model does not know the option
            continue
        except Exception as error:  # models raise errors of any type
            reason = _first_line(error)
            continue
        info = net.feature_info
        channels = tuple(info.channels())
        second_axes = tuple(shape[1] for shape in shapes)
        return Facts(
            options,
            indices=tuple(info.out_indices),
            channels=channels,
            reductions=tuple(info.reduction()),
            unit=unit,
            channels_last=second_axes != channels,
            attention=any(hasattr(module, "num_heads") for module in net.modules()),
        )
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
    largest = max(net.feature_info.reduction())
    candidates = dict.fromkeys(unit or largest for unit in UNITS)  # without duplicates
    for unit in candidates:
        if unit % largest:
            continue
        try:
            _map_shapes(net, 3 * unit, unit)
            return unit, _map_shapes(net, 5 * unit, 10 * unit)
        except Exception as error:  # try the next candidate
            reason = error
    raise reason


def _map_shapes(net: Any, height: int, width: int) -> list[torch.Size]:
    """Return the shapes of the maps of an image.

    Raises:
        ValueError: a map does not have the size that its stride implies.
    """
    reductions = net.feature_info.reduction()
    maps = net(torch.zeros(1, 1, height, width))
    shapes = [features.shape for features in maps]
    for shape, reduction in zip(shapes, reductions, strict=True):
        if not {height // reduction, width // reduction} <= set(shape):
            raise ValueError(
                f"an image of {height} x {width} pixels gives a map of shape {tuple(shape)}, "
                f"which is not {reduction} times smaller"
            )
    return shapes


def _first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")


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
            found=_first_line(error),
            expected="weights in the cache of the Hugging Face Hub, or an internet connection",
            fix="-o backbone.pretrained=false, or copy the cache folder (HF_HOME) from a machine "
            "that has the weights",
        ) from error


@cache
def idle(architecture: str, levels: int) -> tuple[str, ...]:
    """Return the parameters that do not affect the first ``levels`` maps.

    timm does not always remove them.
    """
    # The first caller may have disabled gradients.
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        encoder = create(architecture, 1, levels).eval()
        edge = facts(architecture).edge
        maps = encoder(torch.zeros(1, 1, edge, edge))
        sums = [features.sum() for features in maps]
        torch.stack(sums).sum().backward()
    parameters = encoder.named_parameters()
    return tuple(name for name, parameter in parameters if parameter.grad is None)


@cache
def unused(architecture: str, levels: int) -> tuple[str, ...]:
    """Return the modules that can be removed because they do not affect the first ``levels`` maps.

    Returns an empty tuple if the encoder fails without them.
    """
    edge = facts(architecture).edge
    with torch.device("meta"):
        encoder = create(architecture, 1, levels).eval()
        found = _idle_modules(encoder, idle(architecture, levels))
        image = torch.zeros(1, 1, edge, edge)
        before = [features.shape for features in encoder(image)]
        cut(encoder, found)
        try:
            after = [features.shape for features in encoder(image)]
        except Exception:  # a module without parameters needs their output
            return ()
    return found if after == before else ()


def _idle_modules(encoder: nn.Module, idle_parameters: tuple[str, ...]) -> tuple[str, ...]:
    """Return the outermost modules that have parameters, all of which are idle."""
    found: list[str] = []
    inside: list[str] = []  # what the names of modules inside those found begin with
    for name, module in encoder.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        if not name or not own or name.startswith(tuple(inside)):
            continue
        if own <= set(idle_parameters):
            found.append(name)
            inside.append(f"{name}.")
    return tuple(found)


def cut(encoder: nn.Module, names: tuple[str, ...]) -> None:
    """Replace modules by identities, in place."""
    for name in names:
        encoder.set_submodule(name, nn.Identity())


@cache
def steps(architecture: str, flat: int) -> dict[str, int]:
    """Return the strides along the stack of an inflated encoder by layer name.

    The first ``flat`` halvings do not reduce the number of slices.
    """
    found: dict[str, int] = {}
    names: dict[nn.Module, str] = {}
    edge = facts(architecture).edge

    def note_step(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        stride: Any = layer.stride
        step = stride if isinstance(stride, int) else min(stride)
        if step == 1:
            return
        reduction = edge // inputs[0].shape[2]  # of the layer's input
        found[names[layer]] = step if reduction >= 2**flat else 1

    with torch.device("meta"):
        encoder = create(architecture, 1, 9).eval()
        for name, layer in encoder.named_modules():
            if isinstance(layer, STRIDED):
                names[layer] = name
                layer.register_forward_pre_hook(note_step)
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
    known = facts(architecture)
    levels = depth - 1
    sliced = [(1, 1, 1)]
    for reduction in known.reductions[:levels]:
        sliced.append((reduction, reduction, 1))
    if through == "slices" or (through == "auto" and known.attention):
        return "slices", tuple(sliced)
    try:
        return "inflate", _inflated_strides(architecture, levels, flat)
    except Exception as error:  # map sizes differ, or a layer type is unknown
        if through == "auto":
            return "slices", tuple(sliced)
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"'timm:{architecture}' cannot be inflated",
            found=_first_line(error),
            fix="-o backbone.through=slices",
        ) from error


def _inflated_strides(architecture: str, levels: int, flat: int) -> tuple[tuple[int, ...], ...]:
    """Return the strides of all levels of an inflated encoder, measured on a cube."""
    known = facts(architecture)
    edge = known.edge
    fold = Fold()
    with torch.device("meta"):
        encoder = create(architecture, 1, levels).eval()
        cut(encoder, unused(architecture, levels))
        inflate(encoder, fold, steps(architecture, flat))
        body = Body(nn.Identity(), encoder, fold, known.channels_last)
        maps = body(torch.zeros(1, 1, edge, edge, edge))
    for features, channels in zip(maps[1:], known.channels[:levels], strict=True):
        found = features.shape[1]
        if found != channels:  # the encoder mixes slices, such as a transformer with patches
            raise ValueError(f"a map has {found} channels instead of {channels}")
    strides: list[tuple[int, ...]] = []
    for features in maps:
        strides.append(tuple(edge // size for size in features.shape[2:]))
    return tuple(strides)


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
            known = timm.list_models()
            examples = get_close_matches(name, known, 5, 0.5) or cls.variants
            raise UsageError(
                f"unknown backbone 'timm:{name}'.{did_you_mean(name, known)}",
                expected=f"one of timm.list_models(), such as {', '.join(examples)}",
                fix="segbench list backbones",
            )
        architecture, _, tag = name.partition(".")
        weights = [
            candidate
            for candidate in timm.list_pretrained(f"{architecture}.*")
            if candidate.partition(".")[0] == architecture
        ]
        if tag and name not in weights:
            choices = [f"timm:{candidate}" for candidate in (architecture, *weights)]
            raise UsageError(
                f"unknown weights 'timm:{name}'.{did_you_mean(name, weights)}",
                expected=f"one of {', '.join(choices)}",
                fix=f"--backbone timm:{architecture}",
            )
        return _variant(cls, name)  # type: ignore[arg-type]

    def make_encoder(self, channels: int) -> Encoder:
        """Return the stem and the timm encoder."""
        p = self.p
        known = facts(self.architecture)
        deeper = known.channels[: p.depth - 1]
        levels = len(deeper)
        encoder = create(self.architecture, channels, levels, p.pretrained)
        strides = self._strides(p, self.dims)
        cut(encoder, unused(self.architecture, levels))

        fold = Fold()
        if self.dims == 3:
            way, _ = layout(self.architecture, p.depth, p.through, p.flat)
            if way == "inflate":
                inflate(encoder, fold, steps(self.architecture, p.flat))

        frozen = idle(self.architecture, levels)
        for name, parameter in encoder.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)

        stem = Layers(self.dims).unit(channels, p.width, count=1)
        body = Body(stem, encoder, fold, known.channels_last)
        return Encoder(body, (p.width, *deeper), strides)

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the channels per level: doubled at each level, at most those of the encoder."""
        widths = []
        for level, channels in enumerate(self.channels[:-1]):
            doubled = self.p.width * 2**level
            widths.append(min(doubled, channels))
        return tuple(widths)

    @classmethod
    def _strides(cls, params: Any, dims: int) -> tuple[tuple[int, ...], ...]:
        """Return the strides of all levels, fine to coarse."""
        if dims == 3:
            _, strides = layout(cls.architecture, params.depth, params.through, params.flat)
            return strides
        if params.flat:
            raise UsageError(
                "backbone.flat requires a 3D patch", found="a 2D patch", fix="-o backbone.flat=0"
            )
        reductions = facts(cls.architecture).reductions[: params.depth - 1]
        return tuple((stride, stride) for stride in (1, *reductions))

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """Return the strides of the bottleneck, or the multiples that attention windows need."""
        bottleneck = cls._strides(params, dims)[-1]
        known = facts(cls.architecture)
        if known.unit == max(known.reductions):
            return bottleneck
        # Attention windows lie within slices, so they restrict only the first two axes.
        in_plane = [lcm(stride, known.unit) for stride in bottleneck[:2]]
        return (*in_plane, *bottleneck[2:])


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
