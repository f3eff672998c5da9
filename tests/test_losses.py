"""Losses against sums written out class by class and item by item, in numpy."""

import numpy as np
import pytest
import torch

from segbench.nn.losses import cross_entropy, dice, dice_ce, masked_mean, soft_dice, squared_error

CASES = [(k, shape) for k in (2, 4) for shape in ((5, 7), (3, 4, 5))]


def example(
    k: int, shape: tuple[int, ...], items: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (N, K, *S), labels (N, *S) and a mask (N, *S)."""
    g = torch.Generator().manual_seed(k * 10 + len(shape))
    z = torch.randn(items, k, *shape, generator=g, dtype=torch.float64) * 2
    y = torch.randint(0, k, (items, *shape), generator=g)
    return z.requires_grad_(), y, torch.rand(items, *shape, generator=g) > 0.4


def by_hand(p, y, w, classes, per_item: bool, squared: bool, s: float) -> float:
    p, y, w = (np.asarray(a.detach(), dtype=np.float64) for a in (p, y, w))
    values = []
    for c in classes:
        for chosen in [[i] for i in range(len(y))] if per_item else [range(len(y))]:
            top = bottom = 0.0
            for i in chosen:
                g = (y[i] == c).astype(np.float64)
                top += 2 * np.sum(w[i] * p[i, c] * g)
                bottom += np.sum(w[i] * (p[i, c] ** 2 + g if squared else p[i, c] + g))
            values.append(1 - (top + s) / (bottom + s))
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
    got = dice(
        p,
        y,
        background=background,
        per_item=per_item,
        squared=squared,
        smooth=smooth,
        weight=mask if masked else None,
    )
    weight, classes = mask if masked else torch.ones_like(mask), range(0 if background else 1, k)
    assert got.item() == pytest.approx(by_hand(p, y, weight, classes, per_item, squared, smooth))


@pytest.mark.parametrize(("k", "shape"), CASES)
def test_cross_entropy(k, shape):
    z, y, mask = example(k, shape)
    q = -np.log(np.take_along_axis(z.softmax(1).detach().numpy(), y.unsqueeze(1).numpy(), 1))[:, 0]
    assert cross_entropy(z, y).item() == pytest.approx(q.mean())
    assert cross_entropy(z, y, mask).item() == pytest.approx(q[mask.numpy()].mean())
    for background in (False, True):
        hand = by_hand(
            z.softmax(1), y, torch.ones_like(mask), range(1 - background, k), False, True, 1e-5
        )
        assert dice_ce(z, y, background=background).item() == pytest.approx((q.mean() + hand) / 2)


def test_perfect_absent_and_wrong():
    y = torch.tensor([[[0, 1], [1, 1]]])
    p = torch.stack([y == 0, y == 1], 1).double()
    assert dice(p, y).item() == pytest.approx(0, abs=1e-12)
    assert dice(p.flip(1), y).item() == pytest.approx(1, abs=1e-4)
    assert dice(p[:, [0, 0]] * 0, 0 * y).item() == 0  # nothing there, nothing found
    assert cross_entropy(torch.zeros(1, 4, 2, 2), y).item() == pytest.approx(np.log(4))


def test_soft_dice_axes_and_weights():
    g = torch.Generator().manual_seed(0)
    p, y = torch.rand(2, 3, 4, 5, generator=g), torch.rand(2, 3, 4, 5, generator=g)
    each = [soft_dice(p[:, i], y[:, i]) for i in range(3)]
    torch.testing.assert_close(soft_dice(p, y, keep=(1,)), torch.stack(each).mean())
    each = [soft_dice(p[i, j], y[i, j], squared=False) for i in range(2) for j in range(3)]
    torch.testing.assert_close(
        soft_dice(p, y, keep=(0, 1), squared=False), torch.stack(each).mean()
    )
    twice, places = (
        torch.tensor([1.0, 1, 2, 0, 1]),
        [0, 1, 2, 2, 4],
    )  # a voxel counted twice, another not at all
    torch.testing.assert_close(
        soft_dice(p, y, weight=twice), soft_dice(p[..., places], y[..., places])
    )


def test_nothing_is_detached():
    for loss in (soft_dice, squared_error):
        p, q = (torch.rand(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
        assert torch.autograd.gradcheck(loss, (p, q))
        loss(p, q).backward()
        assert p.grad.norm() > 0 and q.grad.norm() > 0
    p.grad = q.grad = None
    squared_error(p, q).backward()
    torch.testing.assert_close(p.grad, -q.grad)


def test_gradients():
    z, y, mask = example(3, (3, 2), items=2)
    assert torch.autograd.gradcheck(lambda z: dice_ce(z, y), z)
    assert torch.autograd.gradcheck(
        lambda z: dice(z.softmax(1), y, background=True, per_item=True, weight=mask), z
    )
    (g,) = torch.autograd.grad(cross_entropy(z, y, mask), z)
    assert (g.abs().sum(1) > 0).equal(mask)


def test_masked_mean():
    v = torch.arange(6.0).view(2, 3).requires_grad_()
    assert masked_mean(v, v.detach() > 3.5).item() == 4.5
    assert masked_mean(v, torch.tensor([[1.0], [3.0]])).item() == pytest.approx((3 + 3 * 12) / 12)
    empty = masked_mean(v, torch.zeros(2, 3, dtype=torch.bool))
    assert empty.item() == 0 and torch.autograd.grad(empty, v)[0].abs().sum() == 0


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
    assert all(v.dtype == torch.float32 for v in values)
    assert [v.item() for v in values] == pytest.approx([0.2, 0.2, 0.5, 0.25, np.log(2)], abs=1e-5)
