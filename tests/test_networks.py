"""What the engine does with networks: dry runs, costs, and computing activations again."""

from __future__ import annotations

import pytest
import torch

from segbench import registry
from segbench.conformance import Drill, Trial
from segbench.contracts.method import Setting, Source
from segbench.errors import PluginError, UsageError
from segbench.nn.inspect import cost, dry_run, receptive_field, recompute
from segbench.training.build import network_factory
from segbench.training.checkpoint import digest


def build(name: str, dims: int = 2, **params):
    cls = registry.get("backbone", name).cls
    torch.manual_seed(0)
    return cls(cls.Params(**params), 1, dims, (2,))


@pytest.mark.parametrize("backbone", ["vnet", "unet3d", "timm:test_resnet", "monai:segresnet"])
@pytest.mark.parametrize("method", ["mean_teacher", "ss_net", "sassnet"])
def test_recomputed_runs_are_equal_to_the_last_bit(method, backbone):
    """Dropout, running statistics, a teacher, gradients of the image, evaluation in between."""

    def trained(again: bool) -> str:
        drill = Drill(Trial(method, backbone, dims=2))
        if again:
            recompute(drill.method)
        return digest(drill.run(last=3).method.state_dict())

    assert trained(True) == trained(False)


@pytest.mark.parametrize("backbone", ["vnet", "unet3d", "timm:test_resnet", "monai:segresnet"])
def test_recomputing_keeps_less_for_going_backward(backbone):
    net = build(backbone, 3, **Trial("", backbone).params)
    kept = []
    for again in (False, True):
        if again:
            recompute(net)
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (
                sizes.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x
            ),
            lambda x: x,
        ):
            net(torch.rand(2, 1, 32, 32, 32))
        kept.append(sum(sizes.values()))
    assert kept[1] < 0.7 * kept[0]


def test_costs_of_a_network_worked_out_by_hand():
    """Two convolutions and a decoder: multiplications and additions of 3x3 and 1x1 kernels."""
    net = build("unet3d", width=2, depth=2)
    found = cost(net, 1, (8, 8))
    full, half = 64 * 9 * 2, 16 * 9 * 2
    enlargement = 2 * 4 * (8 * 4 * 4 + 8 * 8 * 4)  # four maps, each axis by a matrix of 8x4
    assert (
        found.flops
        == full * (1 * 2 + 2 * 2 + 6 * 2 + 2 * 2)
        + half * (2 * 4 + 4 * 4)
        + 64 * 2 * (2 * 2)
        + enlargement
    )
    assert found.parameters == sum(p.numel() for p in net.parameters())
    larger = cost(net, 1, (16, 8))
    assert larger.flops > 2 * found.flops and larger.activation_bytes > 1.9 * found.activation_bytes
    assert found.activation_bytes > 4 * 64 * (
        1 + 2 + 2 + 6 + 2 + 2
    )  # at least the inputs of all convolutions


@pytest.mark.parametrize("name", ["vnet", "timm:test_vit"])
def test_activations_are_those_of_a_real_pass(name):
    """Weights are kept anyway, transposed ones too (linear layers)."""
    net = build(name, depth=2).train()
    weights, kept = (
        {p.untyped_storage().data_ptr() for p in net.state_dict(keep_vars=True).values()},
        {},
    )

    def keep(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = net(torch.randn(2, 1, 32, 32))
    assert outputs is not None
    real = sum(x.untyped_storage().nbytes() for x in kept.values()) / 2
    assert cost(net, 1, (32, 32)).activation_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(
    "name, params, seen",
    [
        # 1 + (edge - 1) * stride, summed over the layers
        ("vnet", {"width": 2, "depth": 3}, 1 + 2 + 1 + 2 * 4 + 2 + 3 * 8),
        ("unet3d", {"width": 2, "depth": 3}, 1 + 2 * 2 + 1 + 2 * 4 + 2 + 2 * 8),
        ("timm:resnet18", {"width": 2, "depth": 4}, 99),  # the known field of its second stage
    ],
)
def test_receptive_field(name, params, seen):
    assert receptive_field(build(name, **params), 1, 2) == (seen, seen)
    if name != "timm:resnet18":
        assert receptive_field(build(name, 3, **params), 1, 3) == (seen,) * 3


@pytest.mark.parametrize(
    "name, seen",
    [
        # measured by gradients of whole, unchanged encoders at random weights
        ("regnetx_002", 543),
        ("repvgg_a0", 535),
        ("resnetv2_50x1_bit", 427),
        ("mobileone_s0", 471),
        # worked out by hand: 3x3 of steps 1 2 1 2 1 2 1 2 1 1; squeeze and excitation does not
        # count
        ("sedarknet21", 1 + 2 * (1 + 1 + 2 + 2 + 4 + 4 + 8 + 8 + 16 + 16)),
    ],
)
def test_receptive_field_of_many_kinds_of_encoders(name, seen):
    assert receptive_field(build(f"timm:{name}", width=2), 1, 2) == (seen, seen)


def test_receptive_field_along_the_stack_is_its_own():
    """Kernels of 11 x 1 and 1 x 11 span one slice."""
    assert receptive_field(build("timm:inception_next_atto", 3, depth=2, width=2), 1, 3) == (
        68,
        68,
        20,
    )


def test_receptive_field_of_thick_slices_and_of_attention():
    assert receptive_field(build("unet3d", 3, width=2, depth=3, flat=1), 1, 3) == (
        32,
        32,
        1 + 2 * 2 + 2 * 2 + 1 + 2 * 4,
    )
    assert receptive_field(build("timm:test_vit", depth=2), 1, 2) is None


def test_a_dry_run_draws_no_number_and_changes_nothing():
    net = build("vnet", width=4, depth=3)
    before, state = digest(net.state_dict()), torch.get_rng_state()
    dry_run(net, 1, (16, 16))
    assert digest(net.state_dict()) == before and torch.equal(torch.get_rng_state(), state)


def test_maps_that_are_not_as_declared_are_the_plug_ins_fault(monkeypatch):
    cls = registry.get("backbone", "unet3d").cls
    make = cls.make_encoder
    monkeypatch.setattr(
        cls,
        "make_encoder",
        lambda self, c: make(self, c)._replace(strides=((1, 1), (2, 2), (3, 3))),
    )
    monkeypatch.setattr(cls, "make_decoder", lambda self, kind: torch.nn.Identity())
    monkeypatch.setattr(cls, "decode", lambda self, pyramid: [torch.zeros(1, 4, 16, 16)])
    setting = Setting((Source("set", ("organ",)),), 1, (16, 16))
    with pytest.raises(PluginError, match="differ from the declared shapes"):
        network_factory("unet3d", {"width": 4, "depth": 3}, setting, frozenset())()


# -- pooling and kernels per axis ------------------------------------------------------------------

THICK = {"pooling": [[2, 2, 1], [2, 2, 2]], "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]]}


@pytest.mark.parametrize("name", ["unet3d", "vnet", "resvnet"])
def test_the_default_is_two_along_every_axis_and_kernels_of_three(name):
    plain = build(name, 3, width=2, depth=3)
    named = build(name, 3, width=2, depth=3, pooling=[[2] * 3] * 2, kernels=[[3] * 3] * 3)
    assert digest(plain.state_dict()) == digest(named.state_dict())
    image = torch.rand(2, 1, 16, 16, 8)
    assert torch.equal(plain.eval()(image), named.eval()(image))


@pytest.mark.parametrize("kind", ["transposed", "trilinear", "nearest"])
@pytest.mark.parametrize("name", ["unet3d", "vnet", "resvnet"])
def test_thick_slices_are_pooled_less_and_joined_later(name, kind):
    cls = registry.get("backbone", name).cls
    params = cls.Params(width=2, depth=3, **THICK)
    net = cls(params, 1, 3, (2,), (kind,)).eval()
    assert net.strides == ((1, 1, 1), (2, 2, 1), (4, 4, 2))
    assert cls.multiple(params, 3) == (4, 4, 2)
    dry_run(net, 1, (16, 16, 6))

    cubes = build(name, 3, width=2, depth=3, pooling=THICK["pooling"])
    in_plane = receptive_field(cubes, 1, 3)
    thick = receptive_field(net, 1, 3)
    assert thick[:2] == in_plane[:2]
    assert thick[2] < in_plane[2]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pooling": [[2, 2, 1]]}, "pooling: expected 2 lists of 1 or 2"),
        ({"pooling": [[3, 2, 1], [2, 2, 2]]}, "pooling: expected 2 lists of 1 or 2"),
        ({"kernels": [[3, 3, 1]]}, "kernels: expected 3 lists of 1 or 3"),
    ],
)
def test_wrong_numbers_of_levels_and_factors_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        registry.get("backbone", "vnet").cls.Params(depth=3, **params)


def test_pooling_for_another_number_of_axes_is_refused():
    with pytest.raises(UsageError, match="number of axes"):
        build("vnet", 2, width=2, depth=3, **THICK)
    with pytest.raises(UsageError, match="exclude each other"):
        build("unet3d", 3, width=2, depth=3, flat=1, **THICK)


def test_a_patch_that_does_not_fit_finds_a_smaller_depth():
    cls = registry.get("backbone", "unet3d").cls
    params = cls.Params(depth=3, **THICK)
    with pytest.raises(UsageError) as caught:
        cls.check_patch(params, (16, 16, 5))
    assert "4x4x2" in caught.value.details["expected"]
    assert "backbone.depth=2" in caught.value.details["fix"]
