"""Strong views, random boxes, and passes in eval mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from segbench.nn import ops
from segbench.nn.ops import evaluating, pseudo_labels, random_boxes, strong_view
from segbench.nn.views import cutmix_view, paste


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(1)) * 3 + 5


@pytest.mark.parametrize("size", [(24, 20), (10, 12, 8)])
def test_a_strong_view_depends_on_the_generator_alone(size):
    image = images(4, 2, *size)
    before = image.clone()
    first = strong_view(image, generator(), noise=0.5)
    assert first.shape == image.shape and first.dtype == image.dtype
    assert torch.equal(first, strong_view(image, generator(), noise=0.5))
    assert not torch.equal(first, strong_view(image, generator(3), noise=0.5))
    assert torch.equal(image, before)


@pytest.mark.parametrize("size", [(16, 12), (8, 9, 10)])
def test_a_view_without_any_change_is_the_image(size):
    image = images(3, 1, *size)
    same = strong_view(image, generator(), jitter=0, blur=0, noise=0)
    torch.testing.assert_close(same, image, rtol=0, atol=1e-5)


def test_brightness_and_contrast_are_those_of_the_formula():
    image = images(6, 2, 9, 9)
    view = strong_view(image, generator(5), jitter=1, blur=0)
    draws = torch.rand(6, 6, generator=generator(5)).double().numpy()
    x = image.double().numpy()
    for item in range(6):
        for channel in range(2):
            gray = x[item, channel]
            low = gray.min()
            unit = (gray - low) / (gray.max() - low)
            unit = np.clip(unit * (0.5 + draws[3, item]), 0, 1)
            unit = np.clip(unit.mean() + (unit - unit.mean()) * (0.5 + draws[4, item]), 0, 1)
            expected = low + unit * (gray.max() - low)
            np.testing.assert_allclose(view[item, channel], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("factor", [0.01, 1000.0])
def test_a_view_does_not_depend_on_the_scale_of_gray_values(factor):
    image = images(4, 1, 16, 16)
    view = strong_view(image, generator(2), noise=1)
    scaled = strong_view(image * factor, generator(2), noise=1)
    torch.testing.assert_close(scaled / factor, view, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(40, 36), (20, 24, 22)])
def test_blur_is_that_of_scipy_away_from_the_border(size):
    image = images(2, 1, *size)
    sigma = torch.tensor([0.0, 1.3])
    blurred = ops._blur(image, sigma)
    assert torch.equal(blurred[0], image[0])
    expected = ndimage.gaussian_filter(image[1, 0].double().numpy(), 1.3, truncate=6)
    inner = tuple(slice(9, -9) for _ in size)
    np.testing.assert_allclose(blurred[1, 0][inner], expected[inner], rtol=0, atol=1e-4)
    flat = torch.full((1, 1, *size), 7.0)
    torch.testing.assert_close(ops._blur(flat, torch.tensor([2.0])), flat)


def test_shares_of_changed_items():
    image = images(2000, 1, 4, 4)
    shares = []
    for changes in ({"jitter": 0.8}, {"blur": 0.5}, {"noise": 0.2}):
        view = strong_view(image, generator(), **{"jitter": 0, "blur": 0, **changes})
        shares.append((view - image).abs().amax((1, 2, 3)).gt(1e-3).double().mean().item())
    assert shares == pytest.approx([0.8, 0.5, 0.2], abs=0.04)


def test_a_view_keeps_its_precision_under_autocast():
    image = images(4, 1, 16, 16)
    plain = strong_view(image, generator(7), jitter=0, blur=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(strong_view(image, generator(7), jitter=0, blur=1), plain)


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (32, 40, 24)])
def test_random_boxes(size):
    mask = random_boxes(300, size, (0.02, 0.4), (0.3, 1 / 0.3), generator())
    assert mask.shape == (300, *size) and mask.dtype == torch.bool
    edges = []
    for inside in ~mask:
        places = inside.nonzero()
        box = places.amax(0) - places.amin(0) + 1
        assert inside.sum() == box.prod()  # one box, nothing else
        edges.append(box.double() / torch.tensor(size))
    relative = torch.stack(edges)
    share = relative.prod(1)
    assert share.max() <= 0.4 + 1e-9 and share.min() > 0.005 and share.std() > 0.05
    ratio = relative.amax(1) / relative.amin(1)
    assert ratio.max() < 1 / 0.3 + 1.5 and ratio.max() > 2  # edges are rounded down
    again = random_boxes(300, size, (0.02, 0.4), (0.3, 1 / 0.3), generator())
    assert torch.equal(mask, again)


def test_a_box_in_the_plane_is_that_of_the_formula():
    """One box by hand: share, then ratio, axes and corner until it fits."""
    draws = generator(11)
    torch.rand((), generator=draws)  # whether there is a box
    share = 0.3 + 0.1 * torch.rand((), generator=draws).item()
    while True:
        ratio = 0.5 + 1.5 * torch.rand((), generator=draws).item()
        torch.randperm(2, generator=draws)
        height, width = math.sqrt(share * ratio), math.sqrt(share / ratio)
        edges = int(40 * height), int(50 * width)
        y, x = (torch.rand(2, generator=draws) * torch.tensor([40, 50])).int().tolist()
        if y + edges[0] <= 40 and x + edges[1] <= 50:
            break
    expected = torch.ones(1, 40, 50, dtype=torch.bool)
    expected[:, y : y + edges[0], x : x + edges[1]] = False
    found = random_boxes(1, (40, 50), (0.3, 0.4), (0.5, 2), generator(11))
    assert torch.equal(found, expected)


def test_share_of_masks_with_a_box():
    mask = random_boxes(400, (20, 20), (0.1, 0.4), (0.5, 2), generator(), probability=0.5)
    with_box = (~mask).flatten(1).any(1).double().mean().item()
    assert with_box == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("size", [(24, 20), (10, 12, 8)])
def test_a_cutmix_view_has_boxes_of_the_item_before(size):
    image = images(3, 2, *size)
    view, outside = cutmix_view(image, generator(4), 1.0)
    assert outside.shape == (3, *size) and (~outside).flatten(1).any(1).all()

    draws = generator(4)
    plain = strong_view(image, draws)
    assert torch.equal(outside, random_boxes(3, size, (0.02, 0.4), (0.3, 1 / 0.3), draws))
    for item in range(3):
        inside = ~outside[item]
        assert torch.equal(view[item][:, inside], plain[item - 1][:, inside])
        assert torch.equal(view[item][:, ~inside], plain[item][:, ~inside])


def test_without_boxes_a_cutmix_view_is_a_strong_view():
    image = images(3, 1, 16, 12)
    view, outside = cutmix_view(image, generator(), 0.0)
    assert outside.all() and torch.equal(view, strong_view(image, generator()))


def test_labels_are_pasted_like_images():
    labels = torch.arange(3).view(3, 1, 1).expand(3, 4, 5)
    outside = torch.ones(3, 4, 5, dtype=torch.bool)
    outside[:, 1:3, 2:4] = False
    pasted = paste(labels, outside)
    assert pasted[:, 1, 2].tolist() == [2, 0, 1] and pasted[:, 0, 0].tolist() == [0, 1, 2]
    assert torch.equal(paste(labels.unsqueeze(1), outside), pasted.unsqueeze(1))
    assert torch.equal(paste(labels[:1], outside[:1]), labels[:1])


def test_pseudo_labels_have_no_gradient():
    logits = torch.randn(2, 3, 4, 5, generator=generator(), requires_grad=True)
    labels, confidence = pseudo_labels(logits)
    assert torch.equal(labels, logits.argmax(1)) and not confidence.requires_grad
    torch.testing.assert_close(confidence, logits.detach().softmax(1).amax(1))


def test_eval_mode_for_one_pass():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 3)).train()
    network[1].eval()  # a layer that is in eval mode stays so
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, False, True]
    with pytest.raises(RuntimeError), evaluating(network):
        raise RuntimeError
    assert network[0].training and not network[1].training
