"""SS-Net against numbers made with the reference formulas and reproduced independently (float64).

Elsewhere: the network and its embedding (test_vnet.py), the pads of crops (data).
"""

import importlib

import pytest
import torch
import torch.nn.functional as F
from helpers import balls, grid, near, ripples, wave_fill
from torch import Tensor, nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.registry import get

END = Clock(5999, 6000)


def module():
    return importlib.import_module("segbench.methods.ss_net")


def start(n: int, edge: int) -> Tensor:
    """The random perturbation's direction, of values in [-0.5, 0.5]."""
    b, i, j, k = grid(n, edge, edge, edge)
    return 0.5 * torch.sin(1.3 * i + 0.9 * j + 2.1 * k + 0.4 + b)[:, None]


def build(network=None, classes: int = 2, dims: int = 3, **params) -> nn.Module:
    """SS-Net on ``network``, by default a tiny V-Net."""
    cls, vnet = get("method", "ss_net").cls, get("backbone", "vnet").cls
    kinds = tuple(f"class{i}" for i in range(1, classes))
    model = cls(cls.Params(**params), Setting((Source("d", kinds),), 1, (16,) * dims))
    torch.manual_seed(0)
    model.build(lambda: network or vnet(vnet.Params(width=4, depth=3), 1, dims, (classes,)))
    return model


def published() -> nn.Module:
    """On the published network without dropout, filled with the waves of the fixture."""
    vnet = get("backbone", "vnet").cls
    model = build(vnet(vnet.Params(dropout=0.0), 1, 3, (2,))).double()
    wave_fill(model)
    return model


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return published()


@pytest.fixture
def filled(reference) -> nn.Module:
    """In evaluation mode with the prototypes of P3."""
    for part in (
        reference.projection,
        reference.prediction,
        *reference.selectors,
        *reference.memory_selectors,
    ):
        part[1].reset_running_stats()
    reference.zero_grad()
    reference.eval().remember(rows(), ONES, ONES)
    return reference


def rows() -> Tensor:
    a, c = grid(40, 16)
    return torch.sin(0.3 * a + 0.7 * c + 0.05 * a * c)


ONES = torch.ones(40, dtype=torch.long)


def test_parameters(reference):
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in reference.named_children()
    }
    assert count == {
        "network": 9_448_866,
        "projection": 1664,
        "prediction": 2176,
        "selectors": 2 * 1153,
        "memory_selectors": 2 * 1153,
    }
    assert sum(count.values()) == 9_457_318
    # Published state dictionaries have everything but the prototypes.
    assert len(reference.state_dict().keys() - {"bank", "filled"}) == 259


# P2: virtual adversarial perturbation


class Toy(nn.Conv3d):
    width = 16

    def __init__(self) -> None:
        super().__init__(1, 2, 3, padding=1, dtype=torch.float64)
        wave_fill(self)


def test_perturbation():
    toy, x = Toy(), ripples(2, edge=6)
    n, i, j, k = grid(2, 6, 6, 6)
    first = 0.5 * torch.sin(1.3 * i + 0.9 * j * n + 2.1 * k + 0.4 + n)[:, None]
    unit, overlap_loss = module().unit, module().overlap_loss
    with torch.no_grad():
        p = toy(x).softmax(1)
        assert (10 * unit(first)).flatten(1).norm(dim=1).tolist() == [near(10), near(10)]
        assert overlap_loss(toy(x + 10 * unit(first)), p).item() == near(0.428136)
        assert overlap_loss(toy(x), p).item() == near(0.428023)
        assert (1 - p.square().sum(1)).mean().item() == near(0.428023)  # Gini impurity
    r = 10 * module().worst_direction(toy, x, p, first, 10.0)
    with torch.no_grad():
        assert r.flatten(1).norm(dim=1).tolist() == [
            near(10, 5),
            near(10, 5),
        ]  # the stabiliser takes 3e-7 of it
        assert overlap_loss(toy(x + r), p).item() == near(0.501020)
    assert r[0, 0, 0, 0, :3].tolist() == [near(v) for v in (-0.162196, -0.478316, -0.867168)]
    assert r[1, 0, 3, 2, 1].item() == near(-1.034916)
    assert toy.weight.grad is None


def test_smoothness(monkeypatch):
    toy, x = Toy(), ripples(2, edge=6)
    n, i, j, k = grid(2, 6, 6, 6)
    first = 0.5 * torch.sin(1.3 * i + 0.9 * j * n + 2.1 * k + 0.4 + n)[:, None]
    monkeypatch.setattr(torch, "rand_like", lambda image: first + 0.5)
    value = build(toy).smoothness(x)
    assert value.item() == near(0.501020)
    assert toy.weight.grad is None
    value.backward()
    assert toy.weight.grad.any()


# P3: prototypes


def test_heads_and_choice_of_prototypes(filled):
    with torch.no_grad():
        projected = filled.projection(rows())
        predicted = filled.prediction(projected)
        score = filled.score(1, projected)
    assert projected.mean().item() == near(0.005808)
    assert projected[0, :3].tolist() == [near(v) for v in (-0.120051, -0.548007, -0.700076)]
    assert (predicted.mean().item(), predicted[7, 5].item()) == (near(0.006273), near(0.106856))
    assert score[:5].tolist() == [
        near(v) for v in (0.441042, 0.468986, 0.468396, 0.448688, 0.435420)
    ]
    kept = [int((projected - row).norm(dim=1).argmin()) for row in filled.bank[1]]
    assert torch.equal(filled.bank[1], projected[kept])
    assert kept[:8] == [4, 0, 5, 3, 22, 23, 28, 27]
    assert set(range(40)) - set(kept) == {7, 8, 12, 13, 14, 31, 36, 37}
    assert filled.filled.tolist() == [0, 32]


def test_only_correct_foreground_gives_prototypes(filled):
    before = filled.bank.clone()
    filled.remember(rows(), ONES, 1 - ONES)  # all wrong
    filled.remember(rows(), 1 - ONES, 1 - ONES)  # right, but background
    assert torch.equal(filled.bank, before) and filled.filled.tolist() == [0, 32]
    guess = (torch.arange(40) < 5).long()
    filled.remember(rows(), guess, ONES)  # no more than there is room for: all, in their order
    assert filled.filled.tolist() == [0, 5]
    with torch.no_grad():
        torch.testing.assert_close(filled.bank[1, :5], filled.projection(rows()[:5]))


# P4: attraction to prototypes


def test_attraction(filled):
    with torch.no_grad():
        predicted = filled.prediction(filled.projection(rows()))
        score = filled.score(1, predicted)
        assert filled.attraction(rows(), ONES).item() == near(0.203530)
        assert module().distance(predicted, filled.bank[1], torch.ones(40)).item() / 2 == near(
            0.203520
        )
        weights = score / score.mean()
        assert (weights.min().item(), weights.max().item()) == (near(0.996208), near(1.001288))
        thirds = (torch.arange(40) % 3 == 0).long()
        assert filled.attraction(rows(), thirds).item() == near(0.201659)


def test_attraction_in_training_mode(filled):
    value = filled.train().attraction(rows(), ONES)
    assert value.item() == near(0.290887)
    value.backward()
    assert max(p.grad.abs().max().item() for p in filled.selectors[1].parameters()) == near(
        0.040264
    )
    # Less than 1e-16 where the official code computes weights that are 1; here they are not
    # computed.
    assert all(p.grad is None for n, p in filled.named_parameters() if n.startswith(filled.dormant))


def test_distance_equals_the_matrix_form(filled):
    """Values and gradients equal those of the official code, which loops over prototypes."""
    bank, results = filled.bank[1], []
    for lean in (True, False):
        filled.zero_grad()
        features = (
            torch.sin(torch.arange(50 * 32.0, dtype=torch.float64)).view(50, 32).requires_grad_()
        )
        score = filled.score(1, features.detach())
        if lean:
            value = module().distance(features, bank, score)
        else:
            a, b = F.normalize(features, dim=1), F.normalize(bank, dim=1)
            alpha = len(a) * score[:, None] / score.sum()
            sigma = filled.memory_selectors[1](b).sigmoid()
            beta = sigma / sigma.sum(1, keepdim=True)  # along the axis of length 1
            value = (alpha * beta.T * (1 - a @ b.T)).mean()
        value.backward()
        weights = [p.grad.clone() for p in filled.selectors[1].parameters()]
        results.append([value.detach(), features.grad, *weights])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-14)


def test_several_classes_attract_separately():
    model = build(classes=4).double().eval()
    labels = torch.arange(40) % 4
    model.remember(
        rows()[:, :4], labels, torch.where(labels == 3, 0, labels)
    )  # nothing correct in class 3
    assert model.filled.tolist() == [0, 10, 10, 0]
    with torch.no_grad():
        predicted = model.prediction(model.projection(rows()[:, :4]))
        each = [
            module().distance(
                predicted[labels == c], model.bank[c, :10], model.score(c, predicted[labels == c])
            )
            for c in (1, 2)
        ]
        assert model.attraction(rows()[:, :4], labels).item() == pytest.approx(sum(each).item() / 4)
        assert model.attraction(rows()[:, :4], 3 * ONES).item() == 0  # no prototypes
        few = torch.where(torch.arange(40) == 1, 1, 0)
        assert model.attraction(rows()[:, :4], few).item() == 0  # one voxel


# P5: full step


def test_a_full_step(monkeypatch):
    model = published().train()
    x, y, answers, pulls = torch.cat([ripples(2, 0), ripples(2, 1.9)]), balls(4), [], []
    model.network.decoders[0]["out_conv"].register_forward_hook(
        lambda *args: answers.append(args[2].detach())
    )
    attraction = model.attraction
    monkeypatch.setattr(
        model, "attraction", lambda *args: pulls.append(attraction(*args)) or pulls[-1]
    )
    monkeypatch.setattr(torch, "rand_like", lambda image: start(len(image), 32) + 0.5)
    terms = model.loss(Batch(x[:2], y[:2], x[2:], torch.zeros(4).long()), END)
    assert list(terms) == ["dice", "separation", "smoothness"]
    assert len(answers) == 4  # main, clean, probed, perturbed
    guess, p = answers[0].argmax(1), answers[1].softmax(1)
    assert ((guess == y) & (guess > 0))[:2].sum() == 844
    assert guess.double().flatten(1).mean(1).tolist() == [
        near(v) for v in (0.376465, 0.380768, 0.377411, 0.380310)
    ]
    assert terms["dice"].item() == near(0.920612)
    assert [v.item() for v in pulls] == [near(0.262615), near(0.335615)]
    assert terms["separation"].item() == near(0.1 * (0.262615 + 0.335615))
    assert terms["smoothness"].item() == near(0.499943)
    assert (1 - p.square().sum(1)).mean().item() == near(0.499927)
    assert sum(terms.values()).item() == near(1.480378)
    assert all(q.grad is None for q in model.parameters())
    # Running statistics of the network move in the main and in the clean pass.
    moves: dict[str, set[int]] = {}
    for name, buffer in model.named_buffers():
        if "num_batches" in name:
            moves.setdefault(name.split(".")[0], set()).add(int(buffer))
    assert moves == {
        "network": {2},
        "projection": {2},
        "prediction": {2},
        "selectors": {0, 3},
        "memory_selectors": {0},
    }


# P6: schedules


def test_learning_rate():
    optim = Optim(
        lr=0.01, schedule="step", milestones=tuple(range(2500, 15001, 2500)), reference=15000
    )
    for it, rate in (
        (0, 1e-2),
        (2499, 1e-2),
        (2500, 1e-3),
        (5000, 1e-4),
        (7500, 1e-5),
        (10000, 1e-6),
        (12500, 1e-7),
        (15000, 1e-8),
    ):
        assert optim.lr_at(it, 15000) == pytest.approx(rate)


@pytest.mark.parametrize(("total", "share"), [(6000, 1.0), (15000, 0.4)])
def test_weight_counts_from_one(total, share, monkeypatch):
    model = build(dims=2, ramp_share=share)
    monkeypatch.setattr(model, "smoothness", lambda image: torch.ones(()))
    monkeypatch.setattr(model, "separation", lambda *args: torch.ones(()))
    for it, value in (
        (1, 0.006738),
        (1500, 0.060055),
        (3000, 0.286505),
        (4500, 0.731616),
        (6000, 1),
        (total, 1),
    ):
        terms = model.loss(some_batch(2), Clock(it - 1, total))
        assert (terms["smoothness"].item(), terms["separation"].item()) == (
            near(value),
            near(0.1 * value),
        )


# What is not in the numbers


def some_batch(dims: int = 3, classes: int = 2) -> Batch:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, *(16,) * dims, generator=draw)
    y = torch.randint(classes, (2, *(16,) * dims), generator=draw)
    return Batch(x[:2], y, x[2:], torch.zeros(4).long())


class Normalized(nn.Module):
    """Several kinds of running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.BatchNorm2d(3),
                nn.BatchNorm2d(3, momentum=None),
                nn.InstanceNorm2d(3, track_running_stats=True),
                nn.BatchNorm2d(3, track_running_stats=False),
                nn.InstanceNorm2d(3),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x) for layer in self.layers)


def test_running_statistics_are_held_and_let_go():
    model, x = Normalized().train(), torch.randn(4, 3, 5, 5, requires_grad=True)
    outer = model(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(KeyError), module().statistics_held(model):
        held = model(x)
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), held)  # normalized by the batch all the same
    assert all(
        not torch.equal(
            model.state_dict()[f"layers.{i}.running_mean"], before[f"layers.{i}.running_mean"]
        )
        for i in (0, 2)
    )  # a cumulative mean of equal batches stays
    (outer * held).square().sum().backward()  # autograd does not mind
    (reference,) = torch.autograd.grad((Normalized().train()(x) ** 2).square().sum(), x)
    torch.testing.assert_close(x.grad, reference)


def test_no_gradient_before_the_engine_asks_and_a_new_direction_each_step():
    model = build().train()
    parameter = next(model.network.parameters())
    parameter.grad = torch.full_like(parameter, 7)
    seen = []
    model.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model.loss(some_batch(), END)
    assert parameter.grad.eq(7).all()
    clean, probed, perturbed = seen[:3]
    r = (perturbed - clean).flatten(1)
    torch.testing.assert_close(r.norm(dim=1), torch.full((4,), 10.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        (probed - clean).flatten(1).norm(dim=1), torch.full((4,), 10.0), rtol=1e-4, atol=0
    )
    assert torch.equal(seen[4], probed) and not torch.allclose(seen[7], probed, atol=0.1)


def test_gradients_of_the_attraction():
    model = build().train()
    model.loss(some_batch(), END)["separation"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {n.split(".")[0] for n in reached} == {
        "network",
        "projection",
        "prediction",
        "selectors",
    }
    assert any(n.startswith("network.encoder") for n in reached) and not any(
        "out_conv" in n for n in reached
    )


def test_selectors_do_not_pull_at_features(filled):
    features = rows().requires_grad_()
    predicted = filled.prediction(filled.projection(features))
    score = filled.score(1, predicted).detach()
    (expected,) = torch.autograd.grad(
        module().distance(predicted, filled.bank[1], score) / 2, features
    )
    (found,) = torch.autograd.grad(filled.attraction(features, ONES), features)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


def test_half_precision_keeps_the_direction():
    """A gradient of a mean over many voxels is below the smallest float16."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 64, 64, 32, generator=draw)
    x = torch.randn(2, 1, 64, 64, 32, generator=draw)
    p, first = (x * weight).softmax(1), torch.rand(x.shape, generator=draw) - 0.5
    half = module().worst_direction(lambda v: v.half() * weight.half(), x, p, first, 10.0)
    full = module().worst_direction(lambda v: v * weight, x, p, first, 10.0)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half.flatten(1), full.flatten(1)).min() > 0.999


def test_a_step_in_bfloat16():
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(some_batch(), END)
    assert all(v.isfinite() and v.dtype == torch.float32 for v in terms.values())
    sum(terms.values()).backward()
    missing = {
        n for n, p in model.named_parameters() if p.grad is None and not n.startswith(model.dormant)
    }
    assert not missing


def test_prediction():
    model, image = build(classes=3, dims=2).eval(), torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.predict(image), model.network(image).softmax(1))
