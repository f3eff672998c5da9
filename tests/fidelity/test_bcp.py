"""BCP against numbers of the official formulas, reproduced independently (float64).

Boxes come from the step's own generator, not from NumPy's: their geometry and range are tested. The
partners of the pancreas script (n with 11 - n) need batches that are not shuffled, which the engine
does not have: only their pairing within a batch is tested. Numbers of the left atrium leave the
network's unused heads out.
"""

from importlib import import_module

import numpy as np
import pytest
import torch
from helpers import balls, grid, near, ripples, wave_fill
from torch import Tensor, nn

from segbench import Batch, Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.nn.losses import cross_entropy, dice
from segbench.nn.ops import Ema, box_edges, context_mask, mix, outside_boxes
from segbench.registry import get
from segbench.training.plan import stages

bcp = import_module(get("method", "bcp").cls.__module__)
PANCREAS = {"norm": "instance", "dropout": 0.0}
HEADS = 8452  # learnable numbers of the official network's unused heads


def build(network=None, size=(32, 32, 32), classes=2, **params) -> nn.Module:
    """BCP; its network is V-Net without dropout unless another one is given."""
    cls, vnet = get("method", "bcp").cls, get("backbone", "vnet").cls
    model = cls(
        cls.Params(**params), Setting((Source("la", ("a", "b", "c")[: classes - 1]),), 1, size)
    )
    model.build(network or (lambda: vnet(vnet.Params(dropout=0.0), 1, 3, (2,))))
    return model


# P1: masks


@pytest.mark.parametrize(
    ("patch", "edges", "last", "seed", "corners"),
    [
        ((112, 112, 80), (74, 74, 53), (37, 37, 26), 1337, [(23, 28, 8), (25, 26, 18)]),
        ((96, 96, 96), (64, 64, 64), (31, 31, 31), 2020, [(0, 8, 3), (22, 3, 27)]),
    ],
)
def test_boxes(patch, edges, last, seed, corners):
    assert box_edges(patch, build(lambda: nn.Conv3d(1, 2, 1)).p.box) == edges
    draw = np.random.RandomState(seed)
    assert [
        tuple(draw.randint(0, p - e) for p, e in zip(patch, edges, strict=True)) for _ in range(2)
    ] == corners
    mask = outside_boxes(torch.tensor(corners), edges, patch)
    for each, corner in zip(mask, corners, strict=True):
        assert (~each).nonzero().amin(0).tolist() == list(corner)
        assert (~each).nonzero().amax(0).tolist() == [
            c + e - 1 for c, e in zip(corner, edges, strict=True)
        ]
    # Ranges of the engine's own draws, on lines instead of volumes.
    for extent, final in zip(patch, last, strict=True):
        drawn = context_mask(3000, (extent, 2), 2 / 3, torch.Generator().manual_seed(0))
        assert (~drawn[:, :, 0]).int().argmax(1).unique().tolist() == list(range(final + 1))


def test_box_of_the_left_atrium():
    mask = outside_boxes(torch.tensor([(23, 28, 8)]), (74, 74, 53), (112, 112, 80))
    assert (~mask).nonzero().amax(0).tolist() == [0, 96, 101, 60]
    assert (~mask).sum().item() == 290_228 and (~mask).double().mean().item() == near(0.289210)


# P2: losses


def test_mixed_loss():
    b, i, j, q = grid(2, 4, 4, 4)
    z = torch.stack(
        [
            torch.sin(b + 0.7 * i + 0.4 * j + 0.9 * q),
            torch.cos(0.6 * b + 0.5 * i + 0.3 * j + 0.2 * q),
        ],
        1,
    )
    outer, inner = (
        ((b + i + 2 * j + 3 * q) % 5 < 2).long(),
        ((2 * b + 3 * i + j + q) % 7 < 3).long(),
    )
    assert (outer.sum().item(), inner.sum().item()) == (51, 52)
    mask = outside_boxes(torch.tensor([(1, 0, 2)]), (2, 2, 2), (4, 4, 4))
    assert [
        bcp.mixed_loss(z, outer, inner, mask, *w).item() for w in ((1, 0.5), (0.5, 1), (1, 1))
    ] == [near(0.880011), near(0.869167), near(1.166119)]
    assert bcp.dice_and_entropy(z, outer).item() == near(0.596204)
    assert bcp.dice_and_entropy(z, outer, mask).item() == near((0.494778 + 0.693028) / 2)
    assert bcp.dice_and_entropy(z, inner, ~mask).item() == near((0.477536 + 0.666896) / 2)
    assert overlap(z, outer, mask) == near(0.494778) and overlap(z, inner, ~mask) == near(0.477536)
    assert overlap(z, outer) == near(0.495029) and overlap(z, 0 * outer, mask) == near(0.653520)
    assert cross_entropy(z, outer, mask).item() == near(0.693028)
    assert cross_entropy(z, inner, ~mask).item() == near(0.666896)
    assert cross_entropy(z, outer).item() == near(0.697379)


def overlap(z: Tensor, y: Tensor, mask: Tensor | None = None) -> float:
    """The Dice term alone: what is left when the cross entropy is taken away."""
    value = 2 * bcp.dice_and_entropy(z, y, mask).item() - cross_entropy(z, y, mask).item()
    assert value == near(
        dice(z.softmax(1), y, background=True, per_item=True, squared=False, weight=mask).item(), 9
    )
    return value


# P3: largest component


@pytest.mark.parametrize(("connectivity", "size"), [(6, 8), (18, 8), (26, 16)])
def test_largest_component(connectivity, size):
    y = torch.zeros(2, 6, 6, 6, dtype=torch.long)
    y[0, :2, :2, :2] = y[0, 2:4, 2:4, 2:4] = y[0, 4:, 4:, 0] = 1
    y[0, 5, 5, 5] = y[0, 0, 4, 4] = y[0, 0, 5, 5] = 1
    kept = bcp.largest_components(y, 2, connectivity)
    assert kept.dtype == y.dtype and kept.sum().item() == size
    assert (
        kept[0, 0, 0, 0] == 1 and kept[1].sum() == 0
    )  # a tie goes to the first in raster order; none stays none
    rest, count = y.clone(), 0
    while rest[0].any():
        rest -= bcp.largest_components(rest, 2, connectivity)
        count += 1
    assert count == {6: 6, 18: 5, 26: 4}[connectivity]


@pytest.mark.parametrize(("connectivity", "kept"), [(6, 1), (18, 2), (26, 2)])
def test_largest_component_of_each_class_in_a_plane(connectivity, kept):
    y = torch.tensor([[[1, 0, 0, 3], [0, 1, 0, 3], [2, 2, 0, 0], [0, 0, 0, 2]]])
    got = bcp.largest_components(y, 4, connectivity)
    assert [(got == c).sum().item() for c in (1, 2, 3)] == [kept, 2, 2] and got[0, 0, 0] == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_hard_labels(classes):
    z = torch.tensor([[0.0, 1.0], [0.0, 2.0], [-1.0, 3.0]][:classes])[None]
    assert bcp.harden(z).tolist() == ([[1, 1]] if classes == 2 else [[0, 2]])
    if classes == 2:
        z = torch.randn(1, 2, 500, generator=torch.Generator().manual_seed(0)).double()
        assert torch.equal(bcp.harden(z), (z.softmax(1)[:, 1] >= 0.5).long())


# P4: steps of the left atrium

CORNER = torch.tensor([(3, 5, 7)])


@pytest.fixture(scope="module")
def atrium() -> tuple[nn.Module, Batch]:
    model = build().double().train()
    wave_fill(model.student.double())
    model.start_phase(model.phases()[1])
    return model, Batch(ripples(4, 0), balls(4), ripples(4, 1.9), torch.zeros(8).long())


def loss(model: nn.Module, batch: Batch, phase: str, monkeypatch) -> dict[str, Tensor]:
    """Terms of a step whose box has the fixture's corner."""

    def drawn(count, size, ratio, generator, device):
        return outside_boxes(CORNER, box_edges(size, ratio), size)

    assert box_edges((32, 32, 32), model.p.box) == (21, 21, 21)
    monkeypatch.setattr(bcp, "context_mask", drawn)
    return model.loss(batch, Clock(0, 17000, phase))


def test_network_of_the_left_atrium(atrium):
    assert sum(p.numel() for p in atrium[0].student.parameters()) + HEADS == 9_457_318
    assert atrium[1].y.sum((1, 2, 3)).tolist() == [1419] * 4


def test_pretraining_step(atrium, monkeypatch):
    model, batch = atrium
    seen = {}
    model.student.register_forward_hook(lambda _, args, out: seen.update(x=args[0], z=out))
    with torch.no_grad():
        terms = loss(model, batch, "pretrain", monkeypatch)
    assert terms["supervised"].item() == near(0.658979) and list(terms) == ["supervised"]
    mask = outside_boxes(CORNER, (21, 21, 21), (32, 32, 32))
    assert torch.equal(seen["x"], mix(mask, batch.x[:2], batch.x[2:]))
    y = mix(mask, batch.y[:2], batch.y[2:])
    assert cross_entropy(seen["z"], y).item() == near(0.688807) and overlap(seen["z"], y) == near(
        0.629151
    )


def test_self_training_step(atrium, monkeypatch):
    model, batch = atrium
    counts = []
    whole = bcp.largest_components

    def counted(y, *args):
        kept = whole(y, *args)
        counts.extend(zip(y.sum((1, 2, 3)).tolist(), kept.sum((1, 2, 3)).tolist(), strict=True))
        return kept

    monkeypatch.setattr(bcp, "largest_components", counted)
    terms = loss(model, batch, "self_train", monkeypatch)
    assert counts == [(12408, 12393), (12428, 12420), (12286, 12277), (12364, 12353)]
    assert {k: v.item() for k, v in terms.items()} == {
        "in_labeled": near(0.977555),
        "in_unlabeled": near(0.924490),
    }
    total = sum(terms.values())
    assert total.item() == near(1.902046)
    total.backward()
    assert model.student.decoders[0]["out_conv"].weight.grad.norm().item() == near(1.583422)
    assert all(p.grad is None for p in model.teacher.parameters())


# P5: network of the pancreas


def test_network_of_the_pancreas():
    vnet = get("backbone", "vnet").cls
    net = vnet(vnet.Params(**PANCREAS), 1, 3, (2,))
    assert (
        sum(p.numel() for p in net.parameters()) == 9_443_266 and len(list(net.parameters())) == 60
    )
    with torch.no_grad():
        wave_fill(net.double())
        z = net.eval()(ripples(2))
    assert (z.mean().item(), z.std().item()) == (near(-0.196091), near(0.048526))
    assert (z[0, 1, 3, 5, 7].item(), z[1, 0, 16, 8, 31].item()) == (
        near(-0.195218),
        near(-0.159045),
    )


# P6: pairs and moving average


class Recorder(nn.Module):
    """A small network with batch normalization that records its inputs and its mode."""

    def __init__(self, dims: int = 3, classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, classes, 1) if dims == 3 else nn.Conv2d(1, classes, 1)
        self.norm = nn.BatchNorm3d(1) if dims == 3 else nn.BatchNorm2d(1)
        self.seen: list[tuple[Tensor, bool]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append((image, self.training))
        return self.conv(self.norm(image))


def flat(values: range, dims: int = 3) -> Tensor:
    """Images that show their number everywhere."""
    return torch.tensor(values).float().view(-1, 1, *[1] * dims).expand(-1, 1, *[6] * dims)


def shown(image: Tensor) -> list[tuple[int, int]]:
    """Return, for each mixed image, the numbers outside and inside the box.

    The box never contains the last voxel.
    """
    outside = image.flatten(1)[:, -1]
    inside = [
        int(v.unique()[v.unique() != o].tolist()[0]) if (v != o).any() else int(o)
        for v, o in zip(image, outside, strict=True)
    ]
    return list(zip(outside.int().tolist(), inside, strict=True))


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "teacher", "student"),
    [
        (4, 4, [[10, 11], [12, 13]], [[(0, 10), (1, 11)], [(12, 2), (13, 3)]]),
        (2, 2, [[10], [11]], [[(0, 10)], [(11, 1)]]),
        (1, 1, [[10], [10]], [[(0, 10)], [(10, 0)]]),
        (3, 2, [[10, 10], [11, 11]], [[(0, 10), (1, 10)], [(11, 1), (11, 2)]]),
        (1, 3, [[10, 11], [11, 12]], [[(0, 10), (0, 11)], [(11, 0), (12, 0)]]),
    ],
)
def test_pairs(labeled, unlabeled, teacher, student):
    model = build(Recorder, (6, 6, 6)).train()
    batch = Batch(
        flat(range(labeled)),
        torch.zeros(labeled, 6, 6, 6).long(),
        flat(range(10, 10 + unlabeled)),
        torch.zeros(labeled + unlabeled).long(),
    )
    model.loss(batch, Clock(5, 10, "self_train"))
    assert [x[:, 0, 0, 0, 0].int().tolist() for x, _ in model.teacher.model.seen] == teacher
    assert [shown(x) for x, _ in model.student.seen] == student
    assert all(training for _, training in model.teacher.model.seen)


@pytest.mark.parametrize(
    ("labeled", "pairs"),
    [
        (8, [(0, 4), (1, 5), (2, 6), (3, 7)]),
        (4, [(0, 2), (1, 3)]),
        (3, [(0, 1), (1, 2)]),
        (1, [(0, 0)]),
    ],
)
def test_pairs_of_pretraining(labeled, pairs):
    model = build(Recorder, (6, 6, 6))
    nothing = torch.zeros(0, 1, 6, 6, 6)
    batch = Batch(
        flat(range(labeled)),
        torch.zeros(labeled, 6, 6, 6).long(),
        nothing,
        torch.zeros(labeled).long(),
    )
    model.loss(batch, Clock(0, 10, "pretrain"))
    assert [shown(x) for x, _ in model.student.seen] == [pairs] and not model.teacher.model.seen


def test_one_box_for_all_pairs_of_a_step_and_another_one_in_the_next():
    model = build(lambda: Recorder(2), (24, 24))
    x, u = torch.zeros(4, 1, 24, 24), torch.ones(4, 1, 24, 24)
    for step in (3, 3, 4):
        model.loss(
            Batch(x, torch.zeros(4, 24, 24).long(), u, torch.zeros(8).long()),
            Clock(step, 10, "self_train"),
        )
    boxes = [
        torch.cat([first, 1 - second])
        for (first, _), (second, _) in zip(*[iter(model.student.seen)] * 2, strict=True)
    ]
    assert all(torch.equal(b[:1].expand_as(b), b) and b[0].sum() == 16 * 16 for b in boxes)
    assert torch.equal(boxes[0], boxes[1]) and not torch.equal(boxes[0], boxes[2])


def test_labels_of_both_parts_come_from_the_right_images():
    """The teacher predicts class 2 everywhere and labels are class 1: the student learns both."""
    model = build(lambda: Recorder(2, 3), (12, 12), 3, weight=0.25)
    nn.init.zeros_(model.teacher.model.conv.weight)
    model.teacher.model.conv.bias.data = torch.tensor([0.0, 0.0, 1.0])
    nn.init.zeros_(model.student.conv.weight)
    model.student.conv.bias.data = torch.tensor([0.1, 0.5, -0.3])
    x = torch.rand(2, 1, 12, 12)
    terms = model.loss(
        Batch(x, torch.ones(2, 12, 12).long(), x, torch.zeros(4).long()), Clock(5, 10, "self_train")
    )
    p = torch.tensor([0.1, 0.5, -0.3]).softmax(0)

    def part(truth):  # constant predictions: no matter how large the part is
        others = (
            3 - 1 - 2 * p[truth] / (p[truth] + 1)
        )  # Dice losses of the three classes, two of them 1
        return ((others + 1) / 3 - p[truth].log()) / 2

    expected = part(1) + 0.25 * part(2)
    torch.testing.assert_close(terms["in_labeled"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["in_unlabeled"], expected, rtol=1e-4, atol=1e-4)


def test_moving_average():
    model = build(Recorder).double()
    for p in model.student.parameters():
        nn.init.ones_(p)
    for p in model.teacher.parameters():
        nn.init.zeros_(p)
    model.after_step(Clock(0, 200, "pretrain"))
    assert model.teacher.model.conv.bias.tolist() == [0, 0]  # it waits for its phase
    for step in range(100):
        model.after_step(Clock(100 + step, 200, "self_train"))  # no warm-up
    assert model.teacher.model.conv.bias[0].item() == near(0.633968)


# Phases


def test_phases_and_learning_rates():
    model = build(Recorder)
    plan = stages(model.phases(), 17000, 4, 4)
    assert [(s.steps, s.start, s.span, s.labeled, s.unlabeled) for s in plan] == [
        (2000, 0, 2000, 8, 0),
        (15000, 2000, 15000, 4, 4),
    ]
    protocol = Optim(schedule="step", milestones=tuple(range(2500, 15000, 2500)), reference=15000)
    first, second = (model.optimizer("network", protocol, s.phase) for s in plan)
    assert [first.lr_at(step, 2000) for step in (0, 1999)] == [0.01, 0.01] and second == protocol
    rates = [second.lr_at(step, plan[1].span) for step in (0, 2499, 2500, 14999)]
    assert rates == [pytest.approx(v) for v in (0.01, 0.01, 0.001, 1e-7)]
    assert (first.name, first.momentum, first.weight_decay) == ("sgd", 0.9, 1e-4)


def test_both_networks_start_from_the_pretrained_one():
    model = build(lambda: nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2))).train()
    batch = Batch(
        torch.rand(4, 1, 6, 6, 6),
        torch.zeros(4, 6, 6, 6).long(),
        torch.rand(0, 1, 6, 6, 6),
        torch.zeros(4).long(),
    )
    model.loss(batch, Clock(0, 10, "pretrain"))
    nn.init.ones_(model.student[0].weight)
    model.start_phase(model.phases()[1])
    state = model.student.state_dict()
    assert state["1.running_var"].min() < 1
    assert isinstance(model.teacher, Ema)
    assert all(torch.equal(v, state[k]) for k, v in model.teacher.model.state_dict().items())
    assert not any(p.requires_grad for p in model.teacher.parameters())


def test_half_precision_keeps_the_losses_in_float32():
    model = build(lambda: Recorder(2, 4), (16, 16), 4).train()
    batch = Batch(
        torch.rand(3, 1, 16, 16),
        torch.randint(0, 4, (3, 16, 16)),
        torch.rand(2, 1, 16, 16),
        torch.zeros(5).long(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        terms = [model.loss(batch, Clock(5, 10, phase)) for phase in ("pretrain", "self_train")]
    assert all(v.dtype == torch.float32 and 0 < v < 4 for each in terms for v in each.values())
