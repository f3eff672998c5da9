"""The memory format depends on device and normalization, and only changes rounding."""

import copy

import pytest
import torch

from segbench.contracts.method import Method, MethodParams, Setting, Source
from segbench.registry import get
from segbench.training import checkpoint
from segbench.training.placement import memory_format, to_device


class OneNetwork(Method):
    def build(self, network):
        self.network = network


def built(norm, dims):
    backbone = get("backbone", "vnet").cls
    setting = Setting((Source("d", ("a",)),), 1, (16,) * dims)
    method = OneNetwork(MethodParams(), setting)
    torch.manual_seed(0)
    params = backbone.Params(width=4, depth=3, norm=norm, dropout=0.0)
    method.build(backbone(params, 1, dims, (2,)))
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
