"""The memory format depends on device and normalization, and only changes rounding."""

import copy

import pytest
import torch
from torch import nn

from segbench.contracts.method import Method, MethodParams, Setting, Source
from segbench.evaluation.precision import autocast, use_precision
from segbench.nn.blocks import enlarge, logits_of
from segbench.nn.compiled import begin_pass, compile_networks
from segbench.nn.layout import FORMATS, is_channels_last
from segbench.registry import get
from segbench.training import checkpoint
from segbench.training.placement import fits_on_device, memory_format, to_device
from segbench.training.run import execute


class OneNetwork(Method):
    def build(self, network):
        self.network = network


def built(norm, dims, **options):
    backbone = get("backbone", "vnet").cls
    setting = Setting((Source("d", ("a",)),), 1, (16,) * dims)
    method = OneNetwork(MethodParams(), setting)
    torch.manual_seed(0)
    params = backbone.Params(width=4, depth=3, norm=norm, dropout=0.0)
    method.build(backbone(params, 1, dims, (2,), **options))
    return method


def gradients(method, image):
    method.zero_grad()
    method.network(image).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in method.parameters()])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("batch", "channels_last"),
        ("none", "channels_last"),
        ("instance", "contiguous"),
        ("group", "contiguous"),
    ],
)
def test_format_follows_the_normalization(norm, expected, dims):
    method = built(norm, dims)
    assert memory_format(method) == "contiguous"
    assert to_device(method, "cpu") is method
    assert memory_format(method) == expected
    features = method.network.decode(method.network.encode(torch.rand(2, 1, *(16,) * dims)))[0]
    assert features.is_contiguous() == (expected == "contiguous")
    first = next(m for m in method.network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    assert first(torch.rand(2, 1, *(16,) * dims)).is_contiguous() == (expected == "contiguous")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["transposed", "trilinear", "nearest"])
def test_channels_last_changes_rounding_only(kind, dims):
    plain = built("batch", dims, decoders=(kind,))
    changed = to_device(copy.deepcopy(plain), "cpu")
    image = torch.rand(2, 1, *(16,) * dims)
    for features in changed.network.decode(changed.network.encode(image))[:-1]:
        assert is_channels_last(features)
    plain.load_state_dict(changed.double().state_dict())
    plain, image = plain.double(), image.double()
    torch.testing.assert_close(changed.network(image), plain.network(image))
    torch.testing.assert_close(gradients(changed, image), gradients(plain, image))


@pytest.mark.parametrize("dims", [2, 3])
def test_heads_and_upsampling_keep_the_layout_and_the_values(dims):
    maps = torch.rand(2, 4, *(6,) * dims, dtype=torch.float64)
    ordered = maps.contiguous(memory_format=FORMATS[dims + 2])
    head = (nn.Conv2d if dims == 2 else nn.Conv3d)(4, 3, 1).double()
    for function in (lambda x: logits_of(head, x), lambda x: enlarge(x, (2,) * dims)):
        assert is_channels_last(function(ordered))
        torch.testing.assert_close(function(ordered), function(maps))


def test_other_devices_keep_their_format():
    assert memory_format(to_device(built("batch", 3), "meta")) == "contiguous"


@pytest.mark.parametrize("dims", [2, 3])
def test_only_rounding_differs(dims):
    plain = built("batch", dims)
    image = torch.rand(2, 1, *(16,) * dims)
    ordered = to_device(copy.deepcopy(plain), "cpu")
    a, b = gradients(plain, image), gradients(ordered, image)
    assert (a - b).norm() < 1e-3 * a.norm()


def test_weights_have_one_digest_and_keep_their_format_when_loaded():
    plain = built("batch", 3)
    ordered = to_device(copy.deepcopy(plain), "cpu")
    assert checkpoint.digest(ordered.state_dict()) == checkpoint.digest(plain.state_dict())
    ordered.load_state_dict(built("batch", 3).state_dict())
    assert memory_format(ordered) == "channels_last"


def test_images_are_resident_only_on_cuda_and_if_they_fit(monkeypatch):
    assert not fits_on_device(lambda: 0, "cpu")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert fits_on_device(lambda: 400, "cuda")
    assert not fits_on_device(lambda: 401, "cuda")


def test_images_on_the_device_train_the_same_weights(lab):
    run = lab.prepared("mean_teacher")
    plain = execute(run, lab.machine())["weights_sha256"]
    resident = execute(run, lab.machine(resident="yes"), restart=True)["weights_sha256"]
    assert resident == plain


@pytest.mark.slow
@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_compiled_networks_differ_in_rounding_only(norm, cuda_graphs):
    plain = built(norm, 2)
    compiled = copy.deepcopy(plain)
    compile_networks(compiled, cuda_graphs=cuda_graphs)
    for seed in (1, 2):
        image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        begin_pass(compiled)
        torch.testing.assert_close(
            gradients(compiled, image), gradients(plain, image), rtol=1e-4, atol=1e-6
        )
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "modes"),
    [({}, set()), ({"compile": True}, {None}), ({"cuda_graphs": True}, {"reduce-overhead"})],
)
def test_graphs_may_be_replayed_from_each_step_and_window_on(options, modes, lab, monkeypatch):
    compiled = set()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda stage, dynamic, mode: compiled.add(mode))
    begun = []
    monkeypatch.setattr(
        torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(torch.is_grad_enabled())
    )
    run = lab.prepared("supervised")
    execute(run, lab.machine(**options))
    assert compiled == modes
    replays = "cuda_graphs" in options
    assert begun.count(True) == (run.experiment.protocol.steps if replays else 0)
    assert (begun.count(False) > 0) == replays


def test_tf32_is_allowed_for_its_precision_only():
    for precision in ("tf32", "bf16", "fp32"):
        use_precision(precision)
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_what_networks_compute_in(precision, expected):
    with autocast("cpu", precision):
        assert torch.nn.Linear(2, 2)(torch.rand(1, 2)).dtype == expected


@pytest.mark.parametrize(("width", "expected"), [(4, "contiguous"), (8, "channels_last")])
def test_narrow_strided_convolutions_keep_their_format(width, expected):
    """On CPUs without AVX-512, oneDNN's gradients of them are wrong in the other format."""
    backbone = get("backbone", "resvnet").cls
    setting = Setting((Source("d", ("a",)),), 1, (16, 16))
    method = OneNetwork(MethodParams(), setting)
    method.build(backbone(backbone.Params(width=width), 1, 2, (2,)))
    assert memory_format(to_device(method, "cpu")) == expected
