"""VerSemi against numbers made with the reference formulas and reproduced independently (float64).

Elsewhere: padding and corners of crops (data), sliding windows (inference), the moving average
(mean teacher; VerSemi's is never used and left out). Boxes come from the step's own generator, not
from NumPy's or Python's: what those draw is put in here.
"""

import random
import sys

import numpy as np
import pytest
import torch
from helpers import grid, near
from torch import Tensor

from segbench import Batch, Clock
from segbench.contracts.method import Setting, Source, sigmoid_ramp
from segbench.nn.losses import cross_entropy, soft_dice
from segbench.nn.ops import box_edges, context_mask, mix, outside_boxes
from segbench.registry import get

VARIANT = {"norm": "instance", "last_block": False, "first_skip": False, "dropout": 0.0}


NORM_WEIGHTS = (56, 60)  # places of the two batch normalizations' scales among the 64 tensors


def build(tasks: int = 4, **params) -> torch.nn.Module:
    """VerSemi on the published network, one class a data set, filled with the waves of the
    fixture.
    """
    cls, backbone = get("method", "versemi").cls, get("backbone", "vnet").cls
    setting = Setting(tuple(Source(f"d{i}", ("target",)) for i in range(tasks)), 1, (32, 32, 32))
    model = cls(cls.Params(**params), setting)
    assert cls.backbone_defaults["vnet"] == VARIANT
    model.build(lambda heads=(2,): backbone(backbone.Params(**VARIANT), 1, 3, heads))
    return model.double()


def fill(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for t, p in enumerate(parameters(model)):
            k = torch.arange(1, p.numel() + 1, dtype=torch.float64)
            if p.ndim > 1:
                wave = torch.sin(0.37 * k + t) / (p.numel() / p.shape[0]) ** 0.5
            elif t in NORM_WEIGHTS:
                wave = 1 + 0.1 * torch.sin(k + t)
            else:
                wave = 0.1 * torch.cos(0.53 * k + t)
            p.copy_(wave.view_as(p))
    return model


def parameters(model: torch.nn.Module) -> list[Tensor]:
    return [*model.backbone.parameters(), *model.head.parameters()]


def images(n: int, phase: float) -> Tensor:
    b, i, j, k = grid(n, 32, 32, 32)
    return torch.sin(0.11 * i + 0.23 * j + 0.31 * k + 0.7 * b + phase).unsqueeze(1)


def labels(n: int) -> Tensor:
    b, i, j, k = grid(n, 32, 32, 32)
    return ((i - 8 - 2 * b) ** 2 + (j - 10 - b) ** 2 + (k - 12 - b) ** 2 <= 49).long()


def index_grid() -> tuple[Tensor, Tensor]:
    """The 2 x 4^3 grid of P4 and P5: the phase of p and the label."""
    b, i, j, q = grid(2, 4, 4, 4)
    return b + 0.7 * i + 0.4 * j + 0.9 * q, (b + i + 2 * j + 3 * q) % 5 < 2


# P1: context mask


def test_edges_and_volume_of_the_context_mask():
    assert [box_edges((96,), r)[0] for r in (2 / 3, 0.3, 0.45, 0.6, 0.7)] == [64, 28, 43, 57, 67]
    draw = random.Random(2333)
    ratios = [draw.uniform(0.3, 0.6) for _ in range(4)]
    assert ratios == [near(r) for r in (0.309730, 0.375337, 0.573485, 0.468665)]
    assert [box_edges((96,), r)[0] for r in ratios] == [29, 36, 55, 44]
    released = np.random.RandomState(2333)
    for expected in (
        [(0, 28, 19), (29, 15, 21), (23, 26, 6), (13, 6, 22)],
        [(8, 27, 22), (22, 29, 24), (13, 15, 11), (7, 1, 16)],
    ):
        corners = torch.tensor([[released.randint(0, 96 - 64) for _ in range(3)] for _ in range(4)])
        assert corners.tolist() == [list(corner) for corner in expected]
        mask = outside_boxes(corners, (64, 64, 64), (96, 96, 96))
        assert (~mask).sum().item() == 4 * 64**3 == 1_048_576
        for m, corner in zip(mask, corners.tolist(), strict=True):
            first, last = (~m).nonzero().amin(0), (~m).nonzero().amax(0)
            assert first.tolist() == corner and last.tolist() == [c + 63 for c in corner]


def test_corners_cover_the_released_range():
    draw = torch.Generator().manual_seed(0)
    mask = context_mask(3000, (96, 6), 2 / 3, draw)  # the short axis leaves offsets 0 and 1
    first = [(~mask).any(3 - a).int().argmax(1) for a in (1, 2)]
    assert first[0].unique().tolist() == list(range(32)) and first[1].unique().tolist() == [0, 1]
    assert torch.equal(
        mask[:5], context_mask(3000, (96, 6), 2 / 3, torch.Generator().manual_seed(0))[:5]
    )


# P2: dynamic head


def test_dynamic_layers():
    k = torch.arange(180, dtype=torch.float64)
    theta = torch.stack([0.5 * torch.sin(0.3 * (k + 1)), 0.5 * torch.cos(0.2 * (k + 1))]).unsqueeze(
        1
    )
    n, c, d, h, w = grid(2, 8, 2, 2, 2)
    f = torch.cos(0.9 * n + 0.5 * c + 0.3 * d + 0.2 * h + 0.1 * w)
    layers = build().head.layers
    organ, tumor = layers(f, theta)[:, 0], layers(f, theta, branch=1)[:, 0]
    assert organ.shape == (2, 2, 2, 2, 2)
    assert organ[0, :, 0, 0, 0].tolist() == [near(2.212331), near(-1.831389)]
    assert organ[0, :, 1, 1, 1].tolist() == [near(2.282845), near(-1.888354)]
    assert organ[1, :, 0, 0, 0].tolist() == [near(-0.179841), near(-1.831353)]
    assert organ[1, :, 1, 1, 1].tolist() == [near(-0.184373), near(-2.314128)]
    assert tumor[0, :, 0, 0, 0].tolist() == [near(0.500554), near(0.604396)]
    assert tumor[1, :, 0, 0, 0].tolist() == [near(-0.221960), near(1.518878)]
    assert organ.sum().item() == near(-15.457439) and tumor.sum().item() == near(21.939872)


# P3: whole network


@pytest.mark.parametrize(
    ("tasks", "size"), [(4, 9_484_144), (1, 9_483_604), (13, 9_484_144 + 9 * 180)]
)
def test_sizes(tasks, size):
    model = build(tasks)
    assert sum(p.numel() for p in parameters(model)) == size
    shapes = [tuple(p.shape) for p in parameters(model)]
    assert len(shapes) == 64 and [shapes[t] for t in NORM_WEIGHTS] == [(256,), (16,)]
    assert shapes[58] == (180, 256 + tasks + 1) and shapes[62] == (8, 16, 1, 1, 1)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return fill(build())


def answers(model, prompts: list[int], branch: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, 2, *S) of X(2, 0) with one prompt (counted from 1) each, and the pooled
    features.
    """
    view = model.encode_group(images(2, 0))
    one_hot = torch.nn.functional.one_hot(torch.tensor(prompts) - 1, 5).double()
    theta = model.head.controller(torch.cat([view.pooled, one_hot], 1))
    logits = model.head.layers(view.features, theta.unsqueeze(1), branch)[:, 0]
    if branch == 0:
        assert torch.equal(logits, model.head(view, torch.tensor(prompts)[:, None] - 1)[:, 0])
    return logits, view.pooled


@torch.no_grad()
def test_network_in_eval_mode(network):
    network.eval()
    means = [f.mean().item() for f in network.backbone.encode(images(2, 0))]
    assert means == [near(v) for v in (0.437004, 0.357745, 0.391639, 0.381954, 0.447741)]
    z, pooled = answers(network, [1, 5])
    assert pooled.mean().item() == near(0.463218)
    assert pooled[0, :3].tolist() == [near(0.480977), near(0.491466), near(0.475199)]
    assert (z.mean().item(), z.std(correction=0).item()) == (near(-0.060685), near(0.125144))
    assert (z[0, 1, 3, 5, 7].item(), z[1, 0, 16, 8, 31].item()) == (
        near(-0.078380),
        near(-0.156057),
    )
    assert answers(network, [1, 5], branch=1)[0].mean().item() == near(-0.050009)
    pairs = [
        (-0.127441, -0.078380),
        (-0.141408, -0.064363),
        (-0.163694, -0.046197),
        (-0.189104, -0.026883),
        (-0.214037, -0.009238),
    ]
    together = network.head(
        network.encode_group(images(2, 0)), torch.arange(5).expand(2, -1)
    )  # one pass, all prompts
    for t, pair in enumerate(pairs):
        assert answers(network, [t + 1, t + 1])[0][0, :, 3, 5, 7].tolist() == [
            near(v) for v in pair
        ]
        assert together[0, t, :, 3, 5, 7].tolist() == [near(v) for v in pair]


@torch.no_grad()
def test_network_in_train_mode(network):
    reset(network)
    network.train()
    z, _ = answers(network, [1, 5])
    assert (z.mean().item(), z.std(correction=0).item()) == (near(-0.075072), near(0.085777))
    assert z[0, 1, 3, 5, 7].item() == near(-0.123228)
    head = network.head
    assert head.deep_norm.running_mean[0].item() == near(0.043697)
    assert head.deep_norm.running_var[0].item() == near(0.930488)
    assert head.fine_norm.running_mean[0].item() == near(0.034417)


def reset(model) -> None:
    for norm in (model.head.deep_norm, model.head.fine_norm):
        norm.reset_running_stats()
    model.zero_grad()


def test_one_pass_moves_the_running_statistics_like_many():
    model, x = small((1,)).double().train(), images(2, 0)
    moved = []
    for calls in ([1, 1, 1], [3]):
        reset(model)
        for k in calls:
            model.encode_group(x, k)
        moved.append([b.clone() for n, b in model.head.named_buffers() if "running" in n])
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    model.eval().encode_group(x, 5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            moved[1], [b for n, b in model.head.named_buffers() if "running" in n], strict=True
        )
    )
    once = small((1,), repeat_updates=False).double().train()
    once.encode_group(x, 3)
    assert once.head.deep_norm.momentum == pytest.approx(0.1)


# P4 and P5: losses


def test_losses():
    wave, y = index_grid()
    p = 0.5 + 0.4 * torch.sin(wave)
    sums = (y.sum().item(), p.sum().item(), p.square().sum().item(), (p * y).sum().item())
    assert sums == (51, near(58.278279), near(36.567421), near(22.766936))
    assert soft_dice(p, y).item() == near(0.480014)
    logits = torch.stack([torch.zeros_like(p), (p / (1 - p)).log()], 1)
    assert cross_entropy(logits, y.long()).item() == near(0.911631)
    box = ~outside_boxes(torch.tensor([(0, 0, 0), (1, 2, 1)]), (2, 2, 2), (4, 4, 4))
    assert soft_dice(p, y, weight=box.sum(0)).item() == near(0.414898)  # released
    assert soft_dice(p, y, weight=box).item() == near(0.411980)  # own box
    pairs = [
        (box[i] * p[j], box[i] * y[j].double()) for i in range(2) for j in range(2)
    ]  # the broadcast written out
    top = 2 * sum((a * b).sum() for a, b in pairs) + 1e-5
    assert (1 - top / (sum((a * a).sum() + (b * b).sum() for a, b in pairs) + 1e-5)).item() == near(
        0.414898
    )


def test_consistency():
    wave, _ = index_grid()
    p = torch.stack([0.5 + 0.4 * torch.sin(wave + 0.8 * t) for t in range(5)]).requires_grad_()
    aggregate = p[1:].amax(0)
    loss = soft_dice(p[0], aggregate)
    loss.backward()
    assert (aggregate.mean().item(), loss.item()) == (near(0.722139), near(0.276845))
    norms = [g.norm().item() for g in p.grad]
    assert norms == [near(v) for v in (0.108266, 0.042489, 0.009677, 0.030363, 0.056888)]


# P6: whole steps


MIXED = [(3, 5, 7), (8, 1, 4)]  # corners of the boxes
SEMI = [(2, 4, 6), (9, 9, 9), (15, 3, 12), (6, 17, 1)]


def step(model, monkeypatch, phase: str, masks: list[tuple[int, list]]) -> dict[str, Tensor]:
    """Loss terms of the fixture's batch, prompts (1, 2 | 1, 4), with boxes of given edges and
    corners.
    """
    queue = list(masks)

    def given(count, size, ratio, generator, device="cpu"):
        edge, corners = queue.pop(0)
        assert count == len(corners)
        assert ratio == 2 / 3 if phase == "pretrain" else 0.3 <= ratio < 0.6
        return outside_boxes(torch.tensor(corners), (edge,) * 3, size)

    monkeypatch.setattr(f"{type(model).__module__}.context_mask", given)
    reset(model.train())
    u = images(4, 1.9) if phase == "mine" else torch.empty(0, 1, 32, 32, 32, dtype=torch.float64)
    batch = Batch(images(4, 0), labels(4), u, torch.tensor([0, 1, 0, 3] + [0] * len(u)))
    terms = model.loss(batch, Clock(0, 100, phase, 0, 50))
    sum(terms.values()).backward()
    assert not queue
    return terms


def test_stage_one(network, monkeypatch):
    y = labels(4)
    assert y.flatten(1).sum(1).tolist() == [1419] * 4
    asked = []
    own_classes = type(network).own_classes

    def recorded(self, images, labels, source):
        asked.append(own_classes(self, images, labels, source))
        return asked[-1]

    monkeypatch.setattr(type(network), "own_classes", recorded)
    terms = step(network, monkeypatch, "pretrain", [(21, MIXED)])
    assert list(terms) == ["supervised", "synthetic", "specific"]
    (logits, target), of_a, of_b = asked
    mixed = mix(outside_boxes(torch.tensor(MIXED), (21,) * 3, (32,) * 3), y[:2], y[2:])
    assert mixed.flatten(1).sum(1).tolist() == [1557, 1763]
    assert of_a[1].flatten(1).sum(1).tolist() == [1557, 345] and of_b[1].flatten(1).sum(
        1
    ).tolist() == [1557, 1418]
    dices = [
        soft_dice(z.softmax(2)[:, 0, 1], t[:, 0]).item() for z, t in ((logits, target), of_a, of_b)
    ]
    assert dices == [near(0.855405), near(0.904624), near(0.848579)]
    assert [terms[k].item() for k in ("supervised", "synthetic")] == [
        near(1.575214),
        near(0.834794),
    ]
    assert sum(terms.values()).item() == near(3.286610)
    assert network.head.controller.weight.grad.norm().item() == near(6.619925)
    assert last_up(network).grad.norm().item() == near(0.055203)
    head = network.head
    assert head.deep_norm.running_mean[0].item() == near(0.151422)
    assert head.deep_norm.running_var[0].item() == near(0.757767)
    assert head.fine_norm.running_mean[0].item() == near(0.119536)


def last_up(model) -> Tensor:
    """Weight of the last enlargement, 32 to 16 channels: the backbone's last but one tensor."""
    weight = list(model.backbone.parameters())[-2]
    assert weight.shape == (32, 16, 2, 2, 2)
    return weight


@pytest.mark.parametrize(
    ("aux", "auxiliary", "total", "gradient"),
    [("pairs", 0.559462, 3.000458, 6.477519), ("own", 0.535458, 2.976454, 6.448603)],
)
def test_stage_two(network, monkeypatch, aux, auxiliary, total, gradient):
    monkeypatch.setattr(network, "p", type(network).Params(aux_mask=aux))
    terms = step(network, monkeypatch, "mine", [(14, MIXED), (14, SEMI)])
    assert list(terms) == ["supervised", "synthetic", "consistency", "auxiliary"]
    values = {k: v.item() for k, v in terms.items()}
    assert values == {
        "supervised": near(1.575214),
        "synthetic": near(0.865604),
        "consistency": near(1.780635e-4, 10),
        "auxiliary": near(auxiliary),
    }
    assert sum(values.values()) == near(total)
    assert network.head.controller.weight.grad.norm().item() == near(gradient)


def test_running_statistics_settle_on_the_released_mixture():
    """Stationary shares of the batches, in the order they come: as released, and had each pass
    moved them once.
    """

    def mixture(calls):
        kept = [0.9**k for k in calls]
        shares = [
            (1 - kept[i]) * torch.tensor(kept[i + 1 :]).prod().item() for i in range(len(calls))
        ]
        return [s / sum(shares) for s in shares]

    model = small((1,) * 4).double().eval()
    momenta = []
    for calls in (1, 1 + 2 * model.prompts_per_image, model.tasks + 1):
        model.encode_group(images(1, 0), calls)
        momenta.append(model.head.deep_norm.momentum)
    assert momenta == pytest.approx([0.1, 0.271, 0.40951])
    assert mixture([1, 3]) == [near(0.21198, 5), near(0.78802, 5)]
    assert mixture([1, 1]) == [near(0.47368, 5), near(0.52632, 5)]
    assert mixture([1, 1, 1]) == [near(0.29889, 5), near(0.33210, 5), near(0.36900, 5)]
    assert mixture([1, 1, 5]) == [near(0.10187, 5), near(0.11319, 5), near(0.78495, 5)]


# P7: ramp


def test_ramp():
    values = {0: 0.006738, 1: 0.008625, 10: 0.060055, 20: 0.286505, 30: 0.731616, 40: 1, 55: 1}
    assert {e: sigmoid_ramp(e, 40) for e in values} == {e: near(v) for e, v in values.items()}
    clock = Clock(step=700, total=1000, phase="mine", phase_step=100, phase_total=400)
    assert clock.ramp(40, of_phase=True) == near(0.060055)


# Beyond the release: variants, several classes, odd batches, two dimensions


def small(classes: tuple[int, ...], dims: int = 3, **params) -> torch.nn.Module:
    cls, backbone = get("method", "versemi").cls, get("backbone", "vnet").cls
    sources = tuple(
        Source(f"d{i}", tuple(f"c{j}" for j in range(n))) for i, n in enumerate(classes)
    )
    torch.manual_seed(1)
    model = cls(cls.Params(**params), Setting(sources, 1, (32,) * dims))
    model.build(lambda heads=(2,): backbone(backbone.Params(width=4, **VARIANT), 1, dims, heads))
    return model


def some_batch(
    labeled: int, unlabeled: int, sources: list[int], classes: int, dims: int = 3
) -> Batch:
    torch.manual_seed(2)
    shape = (32,) * dims
    return Batch(
        torch.randn(labeled, 1, *shape),
        torch.randint(0, classes + 1, (labeled, *shape)),
        torch.randn(unlabeled, 1, *shape),
        torch.tensor(sources),
    )


def test_variants_and_phases():
    cls = get("method", "versemi").cls
    described, released = cls.Params(), cls.Params(variant="released")
    assert (described.stages, described.aux_mask) == (2, "own")
    assert (released.stages, released.aux_mask) == (1, "pairs")
    assert cls.Params(variant="released", stages=2).stages == 2
    assert [(p.name, p.share, p.unlabeled, p.fresh_optimizer) for p in small((1,)).phases()] == [
        ("pretrain", 0.55, 0, False),
        ("mine", pytest.approx(0.45), None, False),
    ]
    assert [(p.name, p.share) for p in small((1,), variant="released").phases()] == [
        ("pretrain", 1.0)
    ]


def test_optimizer():
    from segbench import Optim, Phase

    default = Optim()
    adam = small((1,)).optimizer("network", default, Phase())
    assert (adam.name, adam.lr, adam.betas, adam.weight_decay) == ("adam", 1e-3, (0.5, 0.999), 0)
    assert adam.lr_at(999, 1000) == 1e-3
    annealed = small((1,), optimizer="annealed").optimizer("network", default, Phase())
    assert (annealed.lr_at(0, 1000), annealed.betas) == (1e-3, adam.betas)
    assert annealed.lr_at(999, 1000) < 1e-5
    assert small((1,), optimizer="protocol").optimizer("network", default, Phase()) is default


@pytest.mark.parametrize(
    ("dims", "classes", "labeled", "unlabeled"),
    [
        *(
            (2, classes, *items)
            for classes in [(1,), (3,), (1, 3)]
            for items in [(1, 1), (3, 2), (2, 3)]
        ),
        (3, (1,), 1, 1),
        (3, (1, 3), 3, 2),
    ],
)
def test_any_batch_and_any_data_sets(dims, classes, labeled, unlabeled):
    model = small(classes, dims)
    source = [i % len(classes) for i in range(labeled + unlabeled)]
    batch = some_batch(labeled, unlabeled, source, max(classes), dims)
    for phase, names in (("pretrain", 3), ("mine", 4)):
        model.zero_grad(set_to_none=True)
        terms = model.loss(batch, Clock(3, 10, phase, 1, 5))
        assert len(terms) == names and all(v.isfinite() and v.ndim == 0 for v in terms.values())
        sum(terms.values()).backward()
        assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for source, n in enumerate(classes):
            p = model.eval().predict(batch.u, source)
            assert p.shape == (unlabeled, 1 + n, *(32,) * dims)
            torch.testing.assert_close(p[:, 0], 1 - p[:, 1:].amax(1))


def test_supervised_term_averages_over_the_tasks_of_an_image_s_data_set():
    model = small((3,))
    batch = some_batch(2, 0, [0, 0], 3)
    got = model.loss(batch, Clock(0, 10, "pretrain", 0, 5))["supervised"]
    model.head.deep_norm.reset_running_stats()
    view = model.encode_group(batch.x)
    by_task = []
    for t in range(3):
        z = model.head(view, torch.full((2, 1), t))[:, 0]
        y = (batch.y == t + 1).long()
        p = z.softmax(1)[:, 1]
        by_task.append(
            torch.nn.functional.cross_entropy(z, y)
            + 1
            - (2 * (p * y).sum() + 1e-5) / ((p * p).sum() + y.sum() + 1e-5)
        )
    torch.testing.assert_close(got, sum(by_task) / 3, rtol=1e-5, atol=1e-6)


def test_data_sets_of_two_and_three_classes_ask_each_class_equally_often():
    model = small((2, 3))
    assert model.prompts_per_image == 6 and model.tasks == 5
    assert model.prompts.tolist() == [[0, 1, 0, 1, 0, 1], [2, 3, 4, 2, 3, 4]]
    assert model.label_values.tolist() == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]


@pytest.mark.parametrize("same", [True, False])
def test_specific_targets_on_mixed_images(same, monkeypatch):
    """A class counts in both parts when one data set holds both images, otherwise in its own part
    only.
    """
    model = small((2, 2))
    batch = some_batch(2, 0, [0, 0 if same else 1], 2)
    asked = []
    own_classes = type(model).own_classes

    def recorded(self, images, labels, source):
        asked.append((labels, source))
        return own_classes(self, images, labels, source)

    monkeypatch.setattr(type(model), "own_classes", recorded)
    clock = Clock(0, 10, "pretrain", 0, 5)
    model.loss(batch, clock)
    inside = ~context_mask(1, (32,) * 3, 2 / 3, clock.generator("mask"))
    a, b = batch.y[:1], batch.y[1:]
    (of_a, d_a), (of_b, d_b) = asked[1:]
    assert torch.equal(of_a, torch.where(inside, b if same else 0 * b, a)) and d_a.tolist() == [0]
    assert torch.equal(of_b, torch.where(inside, b, a if same else 0 * a)) and d_b.tolist() == [
        0 if same else 1
    ]


def test_processes_of_one_training_draw_their_own_boxes():
    model, batch = small((1,)), some_batch(2, 2, [0] * 4, 1)
    terms = [model.loss(batch, Clock(0, 100, "mine", 0, 50, rank=rank)) for rank in (0, 0, 1)]
    assert terms[0] == terms[1] and terms[0]["supervised"] == terms[2]["supervised"]
    assert (
        terms[0]["synthetic"] != terms[2]["synthetic"]
        and terms[0]["auxiliary"] != terms[2]["auxiliary"]
    )


def test_detached_aggregate_and_ramp():
    batch = some_batch(2, 2, [0, 0, 0, 0], 1)
    clock = Clock(60, 100, "mine", 0, 40)
    grads = {}
    for detach in (False, True):
        model = small((1,), detach_aggregate=detach)
        model.loss(batch, clock)["consistency"].backward()
        grads[detach] = model.head.controller.weight.grad[:, -2:].norm(
            dim=0
        )  # prompt columns: real, synthetic
    assert grads[False].min() > 0 and grads[True][0] == 0 and grads[True][1] > 0
    plain, ramped = (small((1,), ramp=r).loss(batch, clock) for r in (False, True))
    for name in ("consistency", "auxiliary"):
        torch.testing.assert_close(ramped[name], plain[name] * sigmoid_ramp(0, 40))
    torch.testing.assert_close(ramped["supervised"], plain["supervised"])


def test_half_precision_keeps_the_losses_in_float32():
    model, batch = small((1, 2)), some_batch(2, 2, [0, 1, 0, 1], 2)
    with torch.autocast("cpu", torch.bfloat16):
        terms = [model.loss(batch, Clock(0, 10, phase, 0, 5)) for phase in ("pretrain", "mine")]
    assert all(v.dtype == torch.float32 and 0 < v < 3 for each in terms for v in each.values())


def test_one_prediction_equals_the_softmax():
    model = small((1,)).eval()
    x = some_batch(1, 0, [0], 1).x
    with torch.no_grad():
        expected = model.head(model.encode_group(x), torch.zeros(1, 1, dtype=torch.long)).softmax(
            2
        )[:, 0]
        torch.testing.assert_close(model.predict(x), expected)


def test_stage_two_ratio_range():
    from importlib import import_module

    ratio = import_module(get("method", "versemi").cls.__module__).random_edge
    draw = torch.Generator().manual_seed(0)
    values = torch.tensor([ratio(draw) for _ in range(2000)])
    assert (
        0.3 <= values.min() < 0.303
        and 0.597 < values.max() < 0.6
        and values.mean() == pytest.approx(0.45, abs=0.01)
    )
    assert abs(values.std() - 0.3 / 12**0.5) < 0.005


@pytest.mark.parametrize("phase", ["pretrain", "mine"])
def test_one_pass_of_the_backbone_equals_one_per_group(phase):
    """Where every image is normalized for itself, it does not matter which other images share its
    pass.
    """
    batch = some_batch(3, 2, [0, 1, 0, 1, 0], 2)
    clock = Clock(3, 10, phase, 1, 5)
    results = []
    for together in (True, False):
        model = small((1, 2))
        assert model.normalizes_items
        model.normalizes_items = together
        passes = []
        first = model.backbone.encoder["block_one"]
        first.register_forward_hook(lambda m, x, y, passes=passes: passes.append(len(y)))
        terms = model.loss(batch, clock)
        sum(terms.values()).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        statistics = torch.cat([b.flatten() for b in model.head.buffers() if b.is_floating_point()])
        results.append((passes, terms, gradients, statistics))
    (one, terms, gradients, statistics), (many, *expected) = results
    sizes = [3, 2] if phase == "pretrain" else [3, 2, 2]
    assert one == [sum(sizes)] and many == sizes
    for name, value in expected[0].items():
        torch.testing.assert_close(terms[name], value, rtol=1e-6, atol=1e-6)
    assert (gradients - expected[1]).norm() < 1e-4 * gradients.norm()
    torch.testing.assert_close(statistics, expected[2], rtol=1e-5, atol=1e-6)


def test_batch_normalization_keeps_the_groups_apart():
    cls, backbone = get("method", "versemi").cls, get("backbone", "vnet").cls
    model = cls(cls.Params(), Setting((Source("d", ("a",)),), 1, (32, 32)))
    params = backbone.Params(width=4, depth=3)
    model.build(lambda heads=(2,): backbone(params, 1, 2, heads))
    assert not model.normalizes_items
    passes = []
    model.backbone.encoder["block_one"].register_forward_hook(lambda m, x, y: passes.append(len(y)))
    model.loss(some_batch(4, 2, [0] * 6, 1, dims=2), Clock(3, 10, "mine", 1, 5))
    assert passes == [4, 2, 2]


# Options


def test_dice_by_prompt_has_one_ratio_for_each_prompt():
    """Two data sets of one and two classes: prompt 0 is asked twice per image, prompts 1 and 2
    once.
    """
    model = small((1, 2), dice_by="prompt")
    source = torch.tensor([0, 1, 0])
    torch.manual_seed(3)
    logits = torch.randn(3, 2, 2, 6, 5, 4, dtype=torch.float64)
    target = torch.rand(3, 2, 6, 5, 4) < 0.3
    p = logits.softmax(2)[:, :, 1]
    ratios = []
    for places in ([(0, 0), (0, 1), (2, 0), (2, 1)], [(1, 0)], [(1, 1)]):
        overlap = sum((p[place] * target[place]).sum() for place in places)
        total = sum((p[place] ** 2).sum() + target[place].sum() for place in places)
        ratios.append(1 - (2 * overlap + 1e-5) / (total + 1e-5))
    torch.testing.assert_close(model.task_dice(logits, target, source), sum(ratios) / 3)

    # A prompt that does not occur in the batch has no share.
    alone = model.task_dice(logits[:1], target[:1], source[:1])
    torch.testing.assert_close(alone, soft_dice(p[0], target[0]))


def test_with_one_prompt_both_dice_losses_are_equal():
    torch.manual_seed(3)
    logits = torch.randn(3, 1, 2, 6, 5, 4, dtype=torch.float64)
    target = torch.rand(3, 1, 6, 5, 4) < 0.3
    source = torch.zeros(3, dtype=torch.long)
    by_batch, by_prompt = (
        small((1,), dice_by=way).task_dice(logits, target, source) for way in ("batch", "prompt")
    )
    torch.testing.assert_close(by_batch, by_prompt)


def test_a_controller_that_sees_the_prompt_only_has_the_same_weights_for_all_images():
    model = small((1, 2), condition="prompt").eval()
    assert model.head.deep_norm is None
    assert model.head.controller.in_features == 4
    x = some_batch(2, 0, [0, 1], 2).x
    encoded = model.encode_group(x)
    prompts = torch.tensor([[0], [0]])
    one_hot = torch.nn.functional.one_hot(prompts, 4).float()
    theta = model.head.controller(one_hot)
    assert torch.equal(theta[0], theta[1])
    expected = model.head.layers(encoded.features, theta)
    torch.testing.assert_close(model.head(encoded, prompts), expected)


def test_the_composed_target_is_the_label_inside_and_the_detached_union_outside(monkeypatch):
    model = small((1,), unlabeled_target="composed")
    batch = some_batch(2, 2, [0] * 4, 1)
    seen = []
    foregrounds = type(model).foregrounds

    def recorded(self, images):
        seen.append(foregrounds(self, images))
        return seen[-1]

    monkeypatch.setattr(type(model), "foregrounds", recorded)
    clock = Clock(3, 10, "mine", 1, 5)
    terms = model.loss(batch, clock)
    assert list(terms) == ["supervised", "synthetic", "consistency"]
    synthetic, aggregate = seen[0]

    module = sys.modules[type(model).__module__]
    draw = clock.generator("mask", own=True)
    module.paste_pairs(batch.x, batch.y, batch.source[:2], module.random_edge(draw), draw)
    mixed = module.paste_into(batch.u, batch.x, batch.y, module.random_edge(draw), draw)
    target = torch.where(mixed.box, (mixed.label > 0).float(), aggregate)
    overlap = (synthetic * target).sum()
    total = (synthetic**2).sum() + (target**2).sum()
    expected = 1 - (2 * overlap + 1e-5) / (total + 1e-5)
    torch.testing.assert_close(terms["consistency"], expected)
    (gradient,) = torch.autograd.grad(terms["consistency"], aggregate, allow_unused=True)
    assert gradient is None


def test_the_closing_remark_of_the_code():
    """Stage 1 without class-specific prompts; stage 2 with a ramp, and a tenth of it on mixed
    images.
    """
    model = small((1,), recipe="one_gpu").eval()
    assert model.p.ramp
    batch = some_batch(2, 2, [0] * 4, 1)
    first = model.loss(batch, Clock(0, 100, "pretrain", 0, 60))
    assert list(first) == ["supervised", "synthetic"]

    clock = Clock(70, 100, "mine", 10, 40)
    terms = model.loss(batch, clock)
    assert list(terms) == ["supervised", "plain", "consistency"]
    ramp = sigmoid_ramp(10, 40)
    plain = model.consistency_loss(model.encode_group(batch.u))
    torch.testing.assert_close(terms["plain"], ramp * plain)
    module = sys.modules[type(model).__module__]
    draw = clock.generator("mask", own=True)
    mixed = module.paste_into(batch.u, batch.x, batch.y, module.random_edge(draw), draw)
    consistency = model.consistency_loss(model.encode_group(mixed.image))
    torch.testing.assert_close(terms["consistency"], 0.1 * ramp * consistency)
