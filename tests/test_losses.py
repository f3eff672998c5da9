"""Losses against sums written out class by class and item by item, in numpy."""

import numpy as np
import pytest
import torch

from segbench.contracts.dataset import IGNORED
from segbench.nn import losses
from segbench.nn.losses import (
    cross_entropy,
    dice,
    dice_ce,
    known_mean,
    masked_mean,
    soft_dice,
    squared_error,
)

CASES = [(k, shape) for k in (2, 4) for shape in ((5, 7), (3, 4, 5))]


def example(
    k: int, shape: tuple[int, ...], items: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (N, K, *S), labels (N, *S) and a mask (N, *S)."""
    seed = k * 10 + len(shape)
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, k, *shape, generator=draw, dtype=torch.float64) * 2
    labels = torch.randint(0, k, (items, *shape), generator=draw)
    mask = torch.rand(items, *shape, generator=draw) > 0.4
    return logits.requires_grad_(), labels, mask


def by_hand(p, y, w, classes, per_item: bool, squared: bool, s: float) -> float:
    """Return the Dice loss of probabilities ``p``, labels ``y`` and weights ``w`` by plain sums."""
    p = p.detach().double().numpy()
    y = y.numpy()
    w = w.double().numpy()
    items = range(len(y))
    groups = [[i] for i in items] if per_item else [items]
    values = []
    for c in classes:
        for group in groups:
            top = 0.0
            bottom = 0.0
            for i in group:
                truth = (y[i] == c).astype(np.float64)
                predicted = p[i, c]
                size = predicted**2 if squared else predicted
                top += 2 * np.sum(w[i] * predicted * truth)
                bottom += np.sum(w[i] * (size + truth))
            overlap = (top + s) / (bottom + s)
            values.append(1 - overlap)
    return float(np.mean(values))


@pytest.mark.parametrize(("k", "shape"), CASES)
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("per_item", "squared", "smooth"),
    [(False, True, 1e-5), (True, False, 1e-5), (False, False, 1e-8)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_dice(k, shape, background, per_item, squared, smooth, masked):
    z, y, mask = example(k, shape)
    p = z.softmax(1)
    found = dice(
        p,
        y,
        background=background,
        per_item=per_item,
        squared=squared,
        smooth=smooth,
        weight=mask if masked else None,
    )
    weight = mask if masked else torch.ones_like(mask)
    first = 0 if background else 1
    expected = by_hand(p, y, weight, range(first, k), per_item, squared, smooth)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize(("k", "shape"), CASES)
def test_cross_entropy(k, shape):
    z, y, mask = example(k, shape)
    p = z.softmax(1)
    of_label = np.take_along_axis(p.detach().numpy(), y.unsqueeze(1).numpy(), 1)
    entropy = -np.log(of_label[:, 0])
    assert cross_entropy(z, y).item() == pytest.approx(entropy.mean())
    assert cross_entropy(z, y, mask).item() == pytest.approx(entropy[mask.numpy()].mean())
    everywhere = torch.ones_like(mask)
    for background, first in ((False, 1), (True, 0)):
        overlap = by_hand(p, y, everywhere, range(first, k), False, True, 1e-5)
        found = dice_ce(z, y, background=background)
        assert found.item() == pytest.approx((entropy.mean() + overlap) / 2)


def test_perfect_absent_and_wrong():
    y = torch.tensor([[[0, 1], [1, 1]]])
    perfect = torch.stack([y == 0, y == 1], 1).double()
    wrong = perfect.flip(1)
    nothing = torch.zeros_like(perfect)
    assert dice(perfect, y).item() == pytest.approx(0, abs=1e-12)
    assert dice(wrong, y).item() == pytest.approx(1, abs=1e-4)
    assert dice(nothing, torch.zeros_like(y)).item() == 0  # the class is absent from both
    uniform = torch.zeros(1, 4, 2, 2)
    assert cross_entropy(uniform, y).item() == pytest.approx(np.log(4))


def test_soft_dice_axes_and_weights():
    draw = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, 4, 5, generator=draw)
    y = torch.rand(2, 3, 4, 5, generator=draw)

    by_class = [soft_dice(p[:, c], y[:, c]) for c in range(3)]
    expected = torch.stack(by_class).mean()
    torch.testing.assert_close(soft_dice(p, y, keep=(1,)), expected)

    by_map = []
    for i in range(2):
        for c in range(3):
            by_map.append(soft_dice(p[i, c], y[i, c], squared=False))
    expected = torch.stack(by_map).mean()
    torch.testing.assert_close(soft_dice(p, y, keep=(0, 1), squared=False), expected)

    # One voxel counts twice, another not at all.
    weight = torch.tensor([1.0, 1, 2, 0, 1])
    places = [0, 1, 2, 2, 4]
    expected = soft_dice(p[..., places], y[..., places])
    torch.testing.assert_close(soft_dice(p, y, weight=weight), expected)


def test_nothing_is_detached():
    for loss in (soft_dice, squared_error):
        p = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
        q = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(loss, (p, q))
        loss(p, q).backward()
        assert p.grad.norm() > 0
        assert q.grad.norm() > 0
    p.grad = None
    q.grad = None
    squared_error(p, q).backward()
    torch.testing.assert_close(p.grad, -q.grad)


def test_gradients():
    z, y, mask = example(3, (3, 2), items=2)

    def masked_dice(logits):
        p = logits.softmax(1)
        return dice(p, y, background=True, per_item=True, weight=mask)

    assert torch.autograd.gradcheck(lambda logits: dice_ce(logits, y), z)
    assert torch.autograd.gradcheck(masked_dice, z)
    loss = cross_entropy(z, y, mask)
    (gradient,) = torch.autograd.grad(loss, z)
    has_gradient = gradient.abs().sum(1) > 0
    assert has_gradient.equal(mask)


def test_masked_mean():
    values = torch.arange(6.0).view(2, 3).requires_grad_()
    mask = values.detach() > 3.5
    assert masked_mean(values, mask).item() == 4.5
    weights = torch.tensor([[1.0], [3.0]])
    assert masked_mean(values, weights).item() == pytest.approx((3 + 3 * 12) / 12)
    empty = masked_mean(values, torch.zeros_like(mask))
    assert empty.item() == 0
    (gradient,) = torch.autograd.grad(empty, values)
    assert gradient.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    p = torch.full((1, 2, 70_000), 0.5, dtype=dtype)
    y = torch.ones(1, 70_000, dtype=torch.long)
    values = (
        soft_dice(p[:, 1], y),
        dice(p, y),
        masked_mean(p[:, 1], y),
        squared_error(p, 0 * p),
        cross_entropy(p, y),
    )
    assert all(value.dtype == torch.float32 for value in values)
    found = [value.item() for value in values]
    assert found == pytest.approx([0.2, 0.2, 0.5, 0.25, np.log(2)], abs=1e-5)


@pytest.mark.parametrize(("k", "shape"), CASES)
@pytest.mark.parametrize("background", [False, True])
def test_voxels_left_out_are_as_if_they_were_not_there(k, shape, background):
    z, y, known = example(k, shape)
    left_out = y.masked_fill(~known, IGNORED)
    z_known = z.movedim(1, -1)[known].T[None]  # (1, K, M)
    y_known = y[known][None]
    found = dice_ce(z, left_out, background=background)
    expected = dice_ce(z_known, y_known, background=background)
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad(found, z)
    assert (gradient.abs().sum(1) > 0).equal(known)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) > 0.5
    for loss in (cross_entropy, dice):
        with_both = loss(z.softmax(1), left_out, weight=mask)
        with_one = loss(z.softmax(1), y, weight=mask & known)
        assert with_both.item() == pytest.approx(with_one.item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_mean_of_known_values(dtype):
    values = torch.rand(3, 2, 7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    everything = torch.ones(3, 1, 7, 5, dtype=torch.bool)
    assert known_mean(values, everything).equal(values.mean())
    known = everything.clone()
    known[1:, :, 2:] = False
    chosen = values[known.expand_as(values)]
    assert known_mean(values, known).item() == pytest.approx(
        chosen.double().mean().item(), rel=2e-3
    )
    error = squared_error(values, 0 * values, known)
    assert error.item() == pytest.approx(chosen.double().square().mean().item(), rel=2e-3)
    assert known_mean(values, ~everything).item() == 0


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(("per_item", "squared"), [(False, True), (True, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_many_classes_are_as_all_masks_at_once(background, per_item, squared, masked, monkeypatch):
    z, y, mask = example(5, (3, 4, 5))
    y[0, 0] = losses.IGNORED
    options = {"background": background, "per_item": per_item, "squared": squared}
    found = []
    for few in (2, 5):
        monkeypatch.setattr(losses, "FEW_CLASSES", few)
        value = dice(z.softmax(1), y, weight=mask if masked else None, **options)
        found.append((value, *torch.autograd.grad(value, z)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_weights_with_a_gradient_get_it():
    z, y, _ = example(4, (5, 7))
    weight = torch.rand(y.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dice(z.softmax(1), y, weight=weight), weight)
    assert gradient.abs().sum() > 0
