"""Shared operations: the teacher, noise, entropy, masks."""

import math

import numpy as np
import pytest
import torch
from helpers import near, wave
from torch import nn

from segbench.nn.blocks import InstanceNorm2d, InstanceNorm3d
from segbench.nn.ops import (
    Ema,
    box_edges,
    clipped_noise,
    context_mask,
    entropy,
    mix,
    most_probable,
    one_hot,
    outside_boxes,
    pass_groups,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout2d(0.5),
        nn.Conv2d(4, 2, 1),
    )


def addresses(net: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in net.parameters()}


def test_a_teacher_starts_equal_takes_no_gradient_and_stays_in_step_with_train_and_eval():
    student = network()
    method = nn.ModuleDict({"student": student, "teacher": Ema(student)})
    teacher = method["teacher"]
    x = torch.rand(2, 1, 8, 8)
    method.eval()
    output = teacher(x)
    assert torch.equal(output, student(x))
    assert not output.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert addresses(teacher).isdisjoint(addresses(student))
    method.train()
    assert all(m.training for m in teacher.modules())
    assert not torch.equal(teacher(x), teacher(x))  # dropout is on
    assert all(p.requires_grad for p in student.parameters())


def test_a_teacher_follows_parameters_and_leaves_buffers_alone():
    student = network().train()
    teacher = Ema(student)
    before = [p.clone() for p in teacher.parameters()]
    for p in student.parameters():
        nn.init.normal_(p)
    student(torch.rand(4, 1, 8, 8) + 5)  # moves the student's running statistics
    teacher.follow(student, 0.9)
    for old, new, mine in zip(before, teacher.parameters(), student.parameters(), strict=True):
        expected = 0.9 * old + 0.1 * mine.detach()
        torch.testing.assert_close(new.detach(), expected)
    assert torch.equal(teacher.model[1].running_mean, torch.zeros(4))
    assert student[1].running_mean.abs().sum() > 0
    teacher.follow(student, 0.0)
    for new, mine in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(new, mine)


def test_clipped_noise():
    torch.manual_seed(0)
    x = torch.full((40, 1, 30, 30), 7.0)
    noise = clipped_noise(x, 0.1)
    assert noise.shape == x.shape
    assert noise.abs().max() == pytest.approx(0.2)
    # A normal variable clipped at twice its deviation: 4.55 % of the mass on the bounds, variance
    # 0.9205.
    is_clipped = noise.abs() > 0.2 - 1e-6
    assert is_clipped.float().mean() == pytest.approx(0.0455, abs=4e-3)
    assert noise.var().item() == pytest.approx(0.009205, rel=0.03)
    assert abs(noise.mean()) < 2e-3
    without_noise = clipped_noise(x, 0)
    assert torch.equal(without_noise, torch.zeros_like(x))


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)])
def test_entropy(k, shape):
    p = torch.randn(2, k, *shape, dtype=torch.float64).softmax(1)
    q = p.numpy()
    by_class = q * np.log(q + 1e-6)
    np.testing.assert_allclose(entropy(p), -by_class.sum(1))
    uniform = torch.full((1, k, *shape), 1 / k)
    assert entropy(uniform).max() == pytest.approx(math.log(k), abs=1e-5)
    certain = torch.eye(k)[:1].view(1, k, 1, 1)
    assert entropy(certain).abs().item() < 1e-5


def test_entropy_of_the_published_fixture():
    """Mean of eight passes of sine waves (UA-MT)."""
    passes = [wave((2, 2, 4, 4, 4), 0.35, 0.15 * i, 2).softmax(1) for i in range(8)]
    u = entropy(sum(passes) / 8)
    assert u.mean().item() == near(0.357638)
    assert u.min().item() == near(0.116293)
    assert u.max().item() == near(0.691860)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [2, 3, 16])
def test_most_probable_class(classes, axis):
    shape = [3, 4, 5]
    shape.insert(axis, classes)
    for values in (torch.randn(shape), torch.randint(0, 2, shape).float()):  # with and without ties
        expected = torch.from_numpy(values.detach().numpy().argmax(axis))  # the first of equal ones
        assert torch.equal(most_probable(values.requires_grad_(), axis), expected)
        assert most_probable(values, axis, torch.uint8).dtype == torch.uint8


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5)])
def test_one_hot(shape):
    y = torch.randint(0, 4, (2, *shape))
    masks = one_hot(y, 4)
    assert masks.shape == (2, 4, *shape)
    assert masks.dtype == torch.bool
    assert torch.equal(masks.int().argmax(1), y)
    assert masks.sum(1).eq(1).all()


@pytest.mark.parametrize("size", [(9, 7), (6, 5, 8)])
def test_boxes(size):
    first = torch.zeros(len(size), dtype=torch.long)
    last = torch.tensor(size) - 3
    corners = torch.stack([first, last])
    masks = outside_boxes(corners, (3,) * len(size), size)
    for mask, corner in zip(masks, corners.tolist(), strict=True):
        box = tuple(slice(start, start + 3) for start in corner)
        expected = torch.ones(size, dtype=torch.bool)
        expected[box] = False
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("size", [(112, 112, 80), (12, 9), (3, 1), (1, 1, 1)])
def test_context_masks(size):
    edges = box_edges(size, 2 / 3)
    masks = context_mask(50, size, 2 / 3, torch.Generator().manual_seed(3))
    assert masks.shape == (50, *size)
    inside = ~masks
    volumes = inside.flatten(1).sum(1)
    assert volumes.eq(math.prod(edges)).all()
    if size[0] == 112:
        assert edges == (74, 74, 53)
        starts = torch.stack([box.nonzero().amin(0) for box in inside])
        assert (starts <= torch.tensor([37, 37, 26])).all()
        assert len(starts.unique(dim=0)) > 40
    again = context_mask(50, size, 2 / 3, torch.Generator().manual_seed(3))
    assert torch.equal(masks, again)


def test_mix():
    mask = context_mask(2, (6, 6), 0.5, torch.Generator().manual_seed(0))
    outer = torch.zeros(2, 3, 6, 6)
    inner = torch.ones(2, 3, 6, 6)
    images = (~mask).float().unsqueeze(1).expand(-1, 3, -1, -1)
    assert torch.equal(mix(mask, outer, inner), images)
    labels = mix(mask, outer[:, 0].long(), inner[:, 0].long())
    assert torch.equal(labels, (~mask).long())
    # One box for the whole batch.
    one = context_mask(1, (6, 6), 0.5, torch.Generator().manual_seed(0))
    assert mix(one, outer, inner).sum() == 2 * 3 * 9


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    ("dims", "own", "torchs"),
    [(2, InstanceNorm2d, nn.InstanceNorm2d), (3, InstanceNorm3d, nn.InstanceNorm3d)],
)
def test_instance_normalization_is_torchs_own(dims, own, torchs, affine):
    ours = own(3, affine=affine)
    theirs = torchs(3, affine=affine)
    torch.manual_seed(0)
    if affine:
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
        theirs.load_state_dict(ours.state_dict())
    shape = (2, 3, *[5] * dims)
    x = torch.randn(shape, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    weight = torch.randn(shape)
    result = ours(x)
    expected = theirs(other)
    (result * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(x.grad, other.grad, rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="more than one voxel"):
        ours(torch.zeros(2, 3, *(1,) * dims))


@pytest.mark.parametrize(("norm", "passes"), [(nn.InstanceNorm2d, [5]), (nn.BatchNorm2d, [2, 3])])
def test_groups_share_a_pass_where_items_do_not_influence_each_other(norm, passes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm(4), nn.Conv2d(4, 2, 1))
    sizes = []
    net.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    groups = [torch.rand(2, 1, 6, 6), torch.rand(3, 1, 6, 6)]
    found = pass_groups(net, *groups)
    assert sizes == passes
    for group, output in zip(groups, found, strict=True):
        torch.testing.assert_close(output, net(group))
