"""What every registered backbone must do, those of other people's plug-ins included."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from segbench.conformance import Trial
from segbench.contracts.backbone import Backbone, BackboneParams
from segbench.errors import PluginError, UsageError
from segbench.registry import Entry, get, names

CAPABILITIES = {"heads", "decoders", "side_outputs", "features", "dropout"}
EDGE = 32  # of the inputs of a backbone with its default parameters, rounded up to what it takes
# Small members of each family. For other families, the variants that they name are tested. The slow
# tests have more members.
MEMBERS = {"timm": ["test_resnet"], "monai": ["segresnet"]}
SLOW = {
    "timm": ["test_convnext", "test_efficientnet", "test_vit", "mobilenetv3_small_050"],
    "monai": ["basic_unet", "swin_unetr"],
}
WHOLE = ("vnet",)  # the others are made small


def members(name: str) -> list[Any]:
    slow = [
        pytest.param(f"{name}:{member}", marks=pytest.mark.slow) for member in SLOW.get(name, [])
    ]
    try:
        variants = MEMBERS.get(name, getattr(get("backbone", name).cls, "variants", ()))
    except PluginError:
        variants = ()
    return [*(f"{name}:{member}" for member in variants), *slow] or [name]


every_backbone = pytest.mark.parametrize(
    "name", [m for name in names("backbone") for m in members(name)]
)
every_dims = pytest.mark.parametrize("dims", [2, 3])


def entry(name: str) -> Entry:
    try:
        return get("backbone", name)
    except PluginError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and not str(
            error.__cause__.name
        ).startswith("segbench"):
            pytest.skip(f"an optional dependency is missing: {error.__cause__.name}")
        raise


def build(
    name: str, dims: int, channels: int = 1, heads: tuple[int, ...] = (2,), **asked: Any
) -> Backbone:
    """Return ``parameters``; skip the numbers of axes that the backbone refuses.

    ``test_some_axes`` checks that it accepts at least one.
    """
    cls = entry(name).cls
    torch.manual_seed(0)
    try:
        cls(parameters(name), 1, dims, (2,))
    except UsageError as error:
        pytest.skip(error.what)
    net = cls(parameters(name), channels, dims, heads, **asked)
    for p in net.parameters():
        if not p.any():  # some begin with scales of zero, which let no gradient through
            torch.nn.init.constant_(p, 0.1)
    return net


def parameters(name: str) -> Any:
    cls = entry(name).cls
    return cls.Params() if name in WHOLE else cls.Params(**Trial("", name).params)


def shape(net: Backbone, dims: int) -> tuple[int, ...]:
    if net.name in WHOLE:
        return tuple(math.ceil(EDGE / m) * m for m in net.multiple(net.p, dims))
    return Trial("", net.name, dims=dims).patch


def image(net: Backbone, dims: int, channels: int = 1) -> Tensor:
    return torch.rand(2, channels, *shape(net, dims), generator=torch.Generator().manual_seed(1))


def reaches_every_parameter(net: Backbone, outputs: tuple[Tensor, ...]) -> list[str]:
    """Names of parameters without a gradient; convolutions' must not be all zero either."""
    net.zero_grad()
    generator = torch.Generator().manual_seed(2)
    torch.stack(
        [(z * torch.rand(z.shape, generator=generator)).sum() for z in outputs]
    ).sum().backward()
    return [
        name
        for name, p in net.named_parameters()
        if p.requires_grad
        and (p.grad is None or not p.grad.isfinite().all() or (p.ndim > 1 and not p.grad.any()))
    ]


@every_backbone
def test_some_axes(name):
    cls, refused = entry(name).cls, []
    for dims in (2, 3):
        try:
            cls(cls.Params(), 1, dims, (2,))
        except UsageError:
            refused.append(dims)
    assert refused != [2, 3]


@every_backbone
def test_declaration(name):
    cls = entry(name).cls
    assert issubclass(cls, Backbone) and issubclass(cls.Params, BackboneParams)
    assert cls.provides <= CAPABILITIES
    assert cls.__doc__
    undocumented = [k for k, field in cls.Params.model_fields.items() if not field.description]
    assert not undocumented
    unbounded = [
        k
        for k, schema in cls.Params.model_json_schema().get("properties", {}).items()
        if schema.get("type") in ("integer", "number")
        and not {"minimum", "exclusiveMinimum"} & schema.keys()
    ]
    assert not unbounded
    with pytest.raises(ValueError):
        cls.Params(no_such_parameter=1)


@every_backbone
@every_dims
@pytest.mark.parametrize("channels, outputs", [(1, 2), (2, 4)])
def test_logits_and_gradients(name, dims, channels, outputs):
    net = build(name, dims, channels, (outputs,)).train()
    x = image(net, dims, channels)
    logits = net(x)
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, outputs, *x.shape[2:])
    assert not reaches_every_parameter(net, (logits,))


@every_backbone
@every_dims
@pytest.mark.parametrize("channels, outputs", [(1, 4), (2, 2)])
def test_features(name, dims, channels, outputs):
    net = build(name, dims, channels, (outputs,)).eval()
    x = image(net, dims, channels)
    if "features" not in net.provides:
        with pytest.raises(UsageError):
            net.encode(x)
        return
    with torch.no_grad():
        pyramid = net.encode(x)
        assert len(pyramid) == len(net.channels) == len(net.strides)
        for level, width, stride in zip(pyramid, net.channels, net.strides, strict=True):
            assert level.shape == (
                2,
                width,
                *(s // r for s, r in zip(x.shape[2:], stride, strict=True)),
            )
        before = [level.clone() for level in pyramid]
        features = net.decode(pyramid)
        assert features[0].shape == (2, net.width, *x.shape[2:])
        assert all(a.shape[2] >= b.shape[2] for a, b in pairwise(features))
        assert all(
            torch.equal(a, b) for a, b in zip(pyramid, before, strict=True)
        )  # a pyramid can be decoded again
        assert torch.equal(net.head(features[0]), net(x))


@every_backbone
@every_dims
def test_eval_is_deterministic_and_the_state_dict_is_all_there_is(name, dims):
    net = build(name, dims)
    x = image(net, dims)
    with torch.no_grad():
        net.train()(x)  # moves running values, if there are any
        first, second = net.eval()(x), net(x)
        assert torch.equal(first, second)
        file = io.BytesIO()
        torch.save(net.state_dict(), file)
        file.seek(0)
        other = type(net)(net.p, 1, dims, (2,)).eval()
        assert not torch.equal(other(x), first)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), first)


@every_backbone
@every_dims
def test_dropout(name, dims):
    net = build(name, dims).train()
    x = image(net, dims)
    with torch.no_grad():
        torch.manual_seed(3)
        first, second = net(x), net(x)
        torch.manual_seed(3)
        again = net(x)
    assert torch.equal(first, second) == ("dropout" not in net.provides)
    assert torch.allclose(first, again)  # torch's generator is the only source of chance


ASKED: dict[str, tuple[dict[str, Any], int]] = {
    "heads": ({"heads": (1, 2)}, 2),
    "decoders": ({"decoders": ("transposed", "trilinear")}, 2),
    "side_outputs": ({"side_outputs": True}, 0),
}


@every_backbone
@every_dims
@pytest.mark.parametrize("capability", ASKED)
def test_capabilities(name, dims, capability):
    asked, count = ASKED[capability]
    if capability not in entry(name).cls.provides:
        with pytest.raises(UsageError):
            build(name, dims, **asked)
        return
    net = build(name, dims, **asked).train()
    x = image(net, dims)
    outputs = net(x)
    assert isinstance(outputs, tuple) and (len(outputs) == count if count else len(outputs) > 1)
    for z, k in zip(outputs, asked.get("heads", (2,) * len(outputs)), strict=True):
        assert z.shape == (2, k, *x.shape[2:])
    assert not reaches_every_parameter(net, outputs)
    if "features" in net.provides:
        with torch.no_grad():
            outputs, pyramid = net.eval()(x), net.encode(x)
            for i, z in enumerate(outputs):
                maps = net.decode(pyramid, i if capability == "decoders" else 0)
                assert torch.equal(net.head(maps[i if capability == "side_outputs" else 0], i), z)


@every_backbone
@every_dims
def test_an_input_of_another_size_is_refused(name, dims):
    net = build(name, dims).eval()
    unit = net.multiple(net.p, dims)
    assert len(unit) == dims
    if max(unit) == 1:
        return
    with pytest.raises(UsageError) as error:
        net(torch.zeros(1, 1, *(s + (m > 1) for s, m in zip(shape(net, dims), unit, strict=True))))
    assert error.value.details["fix"]


@every_backbone
def test_an_unknown_decoder_is_refused(name):
    cls = entry(name).cls
    for dims in (2, 3):
        with pytest.raises(UsageError):
            cls(cls.Params(), 1, dims, (2,), decoders=("no_such_decoder",))
