"""Encoders of timm: maps in 2-D, inflation and slices in 3-D, pretrained weights."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from segbench.errors import PluginError, UsageError
from segbench.registry import get


def build(name: str, dims: int, channels: int = 1, **params):
    cls = get("backbone", f"timm:{name}").cls
    torch.manual_seed(0)
    return cls(cls.Params(width=4, **params), channels, dims, (2,)).eval()


def stirred(net: nn.Module) -> nn.Module:
    """Change the initial scales and statistics, with which parts of a block have no effect."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
        if tensor.ndim == 1:
            tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return net


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "resnet18"])
def test_maps_of_images_are_timms(name):
    net = build(name, 2, channels=2)
    theirs = timm.create_model(
        name,
        features_only=True,
        in_chans=2,
        **({"dynamic_img_size": True} if "vit" in name else {}),
    ).eval()
    theirs.load_state_dict(net.encoder.encoder.state_dict())
    x = torch.rand(2, 2, 64, 96)
    with torch.no_grad():
        pyramid, expected = net.encode(x), theirs(x)
    assert len(pyramid) == 1 + len(expected) and pyramid[0].shape == (2, 4, 64, 96)
    assert all(torch.equal(a, b) for a, b in zip(pyramid[1:], expected, strict=True))


def test_maps_with_channels_last_are_turned():
    net = build("swin_s3_tiny_224", 2, depth=2)
    with torch.no_grad():
        maps = net.encode(torch.rand(1, 1, 64, 32))
    assert maps[1].shape == (1, 96, 16, 8) and net.channels == (4, 96)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "resnet18d", "densenet121"]
)
def test_a_volume_that_is_constant_along_its_last_axis_gives_what_a_slice_gives(name):
    """Convolutions of all kinds, both poolings, squeeze and excitation."""
    flat, deep = (stirred(build(name, dims, depth=4)).double() for dims in (2, 3))
    other = dict(flat.encoder.encoder.named_parameters())
    for key, p in deep.encoder.encoder.named_parameters():
        key = key.replace(".flat.", ".")
        p.data.copy_(
            other[key].unsqueeze(2).expand_as(p) / p.shape[2]
            if p.ndim > other[key].ndim
            else other[key]
        )
    for key, b in deep.encoder.encoder.named_buffers():
        b.data.copy_(dict(flat.encoder.encoder.named_buffers())[key])
    x = torch.rand(2, 1, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        slices, volumes = (
            flat.encode(x)[1:],
            deep.encode(x.unsqueeze(-1).expand(-1, -1, -1, -1, 16))[1:],
        )
    assert [v.shape[-1] for v in volumes] == [
        16 // s[2] for s in deep.strides[1:]
    ] and deep.strides[-1][2] > 1
    for a, b in zip(slices, volumes, strict=True):
        assert a.std() > 1e-3
        assert torch.allclose(a.unsqueeze(-1).expand_as(b), b, rtol=1e-9, atol=1e-9)


def test_inflated_weights_are_those_of_slices_averaged():
    flat, deep = build("test_resnet", 2), build("test_resnet", 3)
    a, b = flat.encoder.encoder.conv1, deep.encoder.encoder.conv1
    a, b = (m[0] if isinstance(m, nn.Sequential) else m for m in (a, b))
    assert isinstance(b, nn.Conv3d) and torch.allclose(b.weight.sum(2), a.weight, atol=1e-6)
    assert all(torch.equal(b.weight[:, :, 0], b.weight[:, :, i]) for i in range(b.weight.shape[2]))


def test_slices_mix_when_inflated_and_not_when_they_pass_one_by_one():
    for through, mixed in (("inflate", True), ("slices", False)):
        net = stirred(build("test_resnet", 3, depth=3, through=through))
        x = torch.rand(1, 1, 32, 32, 8)
        y = x.clone()
        y[..., 3] += 1
        with torch.no_grad():
            moved = (net.encode(x)[1] - net.encode(y)[1]).abs().amax((0, 1, 2, 3)) > 1e-6
        assert moved[1 if mixed else 3] and bool(moved.sum() > 1) == mixed
        assert net.strides[-1] == ((4, 4, 4) if mixed else (4, 4, 1))


@pytest.mark.parametrize(
    "name, strides",
    [("test_vit", (16, 16, 1)), ("test_convnext", (16, 16, 16)), ("tf_efficientnet_b0", (8, 8, 1))],
)
def test_auto_inflates_what_can_be_inflated(name, strides):
    """Transformers, and encoders whose padding depends on the image size, process slices."""
    cls = get("backbone", f"timm:{name}").cls
    assert cls.multiple(cls.Params(depth=4), 3) == strides


def test_thick_slices():
    net = build("test_resnet", 3, depth=4, flat=2)
    assert net.strides == ((1, 1, 1), (2, 2, 1), (4, 4, 1), (8, 8, 2))
    assert net(torch.rand(1, 1, 32, 16, 4)).shape == (1, 2, 32, 16, 4)
    for name in ("test_resnet", "test_convnext"):
        cls = get("backbone", f"timm:{name}").cls
        assert cls.multiple(cls.Params(flat=5), 3) == (32, 32, 1)


def test_patches_of_fourteen():
    cls = get("backbone", "timm:vit_small_patch14_dinov2").cls
    assert cls.multiple(cls.Params(), 2) == (14, 14)


@pytest.mark.parametrize(
    "name, unit",
    [("mobilevitv2_050", 64), ("maxvit_nano_rw_256", 256), ("maxvit_tiny_rw_224", 224)],
)
def test_windows_of_attention_want_larger_multiples(name, unit):
    cls = get("backbone", f"timm:{name}").cls
    assert cls.multiple(cls.Params(depth=3), 2) == (unit, unit)
    assert cls.multiple(cls.Params(depth=3), 3)[:2] == (unit, unit)


@pytest.mark.parametrize(
    "name, depth", [("efficientnet_b0", 3), ("mobilenetv3_small_050", 3), ("test_efficientnet", 4)]
)
def test_what_lies_behind_the_last_map_is_cut_off(name, depth):
    """And the maps are those of timm's whole encoder."""
    net, whole = build(name, 2, depth=depth).eval(), build(name, 2).eval()
    used = dict(net.encoder.encoder.named_parameters())
    assert len(used) < len(dict(whole.encoder.encoder.named_parameters()))
    net.encoder.encoder.load_state_dict(
        {
            n: v
            for n, v in whole.encoder.encoder.state_dict().items()
            if n in net.encoder.encoder.state_dict()
        }
    )
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        for a, b in zip(net.encoder.maps(x), whole.encoder.maps(x), strict=False):
            assert torch.equal(a, b)


def test_what_no_map_depends_on_is_not_trained():
    net = build("hrnet_w18_small", 2, depth=3).train()
    net(torch.rand(2, 1, 32, 32)).sum().backward()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen and frozen == {name for name, p in net.named_parameters() if p.grad is None}


def test_refusals():
    with pytest.raises(UsageError, match="Did you mean 'resnet34'"):
        get("backbone", "timm:resnt34")
    for name in (
        "coat_tiny",
        "csatv2",
        "botnet26t_256",
    ):  # of one size; of three channels; whose error says nothing
        with pytest.raises(
            UsageError, match="not provide feature maps for several image sizes"
        ) as refused:
            build(name, 2)
        assert refused.value.details["expected"] and not str(
            refused.value.details["found"]
        ).endswith(":")
    with pytest.raises(UsageError, match=r"Did you mean 'resnet18\.tv_in1k'"):
        get("backbone", "timm:resnet18.tv_in1")
    for name in ("tf_efficientnet_b0", "vit_tiny_patch16_224"):
        with pytest.raises(UsageError, match="inflated"):
            build(name, 3, through="inflate")
    with pytest.raises(UsageError, match="requires a 3D patch"):
        build("test_resnet", 2, flat=1)


def test_pretrained_weights_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        PluginError, match=r"pretrained weights of 'timm:test_resnet' cannot be loaded"
    ) as error:
        build("test_resnet", 2, pretrained=True)
    assert "backbone.pretrained=false" in error.value.details["fix"]
    with pytest.raises(PluginError, match="cannot be loaded"):
        build("resnet50t", 2, pretrained=True)


def test_pretrained_weights_are_timms_inflated(monkeypatch):
    """timm is handed the wish, and what it loads survives inflation."""
    create = timm.create_model

    def loaded(name, pretrained=False, **options):
        net = create(name, **options)
        if pretrained:
            nn.init.constant_(next(net.parameters()), 0.5)
        return net

    monkeypatch.setattr(timm, "create_model", loaded)
    flat, deep = (
        next(build("test_resnet", dims, pretrained=True).encoder.encoder.parameters())
        for dims in (2, 3)
    )
    assert torch.all(flat == 0.5) and torch.allclose(deep, torch.tensor(0.5 / 3))
