"""SASSNet against numbers of the reference formulas in float64; inputs are waves and hashes.

Its distance map has the published numbers in tests/test_distance.py.
"""

import pytest
import torch
from helpers import BALL, TwoTables, hash_fill, near, wave
from torch import Tensor, nn

from segbench import Batch, Clock, Optim, Phase
from segbench.contracts.method import Setting, Source
from segbench.nn.distance import signed_distance
from segbench.nn.losses import soft_dice, squared_error
from segbench.registry import get
from segbench.training.optimizers import make_optimizer

SHAPE = (14, 15, 16)
VERDICTS = [[0.3, -0.2], [1.1, 0.4], [-0.5, 0.9], [0.2, 0.1]]


def pair() -> TwoTables:
    """Return a network with one labeled and two equal unlabeled items."""
    items = [0, 1, 1]
    distance = wave((2, 1, *SHAPE), 0.11, 0.3, 0.004)
    logits = wave((2, 1, *SHAPE), 0.07, 0.6, 3)
    return TwoTables(distance[items], logits[items])


class Verdicts(nn.Module):
    """A critic with a fixed answer."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(VERDICTS[:count]).double())

    def forward(self, distance: Tensor, image: Tensor) -> Tensor:
        return self.logits


def build(network=None, **params) -> nn.Module:
    cls = get("method", "sassnet").cls
    torch.manual_seed(0)
    model = cls(cls.Params(**params), Setting((Source("la", ("atrium",)),), 1, SHAPE))
    asked = []
    model.build(lambda heads: asked.append(heads) or network or pair())
    assert asked == [(1, 1)]
    return model.train()


def batch(labeled: int = 1, unlabeled: int = 2) -> Batch:
    y = BALL.long().expand(labeled, *SHAPE)
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(labeled + unlabeled, 1, *SHAPE, generator=draw)
    return Batch(x[:labeled], y, x[labeled:], torch.zeros(labeled + unlabeled).long())


def test_a_step():
    model = build()
    model.critic = Verdicts(2)
    terms = model.loss(batch(), Clock(3000, 6000))
    assert list(terms) == ["dice", "distance", "adversarial"]
    assert terms["dice"].item() == near(0.832832)
    assert terms["distance"].item() == near(0.3 * 0.211935)
    assert (terms["dice"] + terms["distance"]).item() == near(0.896413)
    assert terms["adversarial"].item() == near(2.865048e-3 * 1.038632)
    assert sum(terms.values()).item() == near(0.899388)


def test_what_enters_the_supervised_terms():
    model = build()
    distance, p = model.answer(torch.zeros(3, 1, *SHAPE))
    assert distance.dtype == p.dtype == torch.float32
    assert soft_dice(p[:1], BALL[None, None], keep=(1,)).item() == near(0.832832)
    unused = nn.functional.binary_cross_entropy_with_logits(
        model.network.logits[0, 0], BALL.double()
    )
    assert unused.item() == near(1.158531)
    assert squared_error(distance[:1], signed_distance(BALL[None].long(), 2)).item() == near(
        0.211935
    )


def test_cross_entropies_of_the_critic():
    model = build(weight=1.0)
    model.critic = Verdicts(2)
    assert model.loss(batch(), Clock(6000, 6000))["adversarial"].item() == near(1.038632)
    model.critic = Verdicts(4)
    terms = model.loss_critic(batch(2, 2), Clock(0, 6000))
    assert list(terms) == ["critic"] and terms["critic"].item() == near(1.085519)  # not weighted


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        (0.01, (6.737947e-5, 2.865048e-3, 9.968799e-3)),
        (0.015, (1.010692e-4, 4.297572e-3, 1.495320e-2)),
    ],
)
@pytest.mark.parametrize(("total", "share"), [(6000, 1.0), (15000, 0.4)])
def test_weight(total, share, weight, values):
    assert get("method", "sassnet").cls.Params().weight == 0.01
    model = build(weight=weight, ramp_share=share)
    at_once = build(weight=1.0, ramp_share=share)
    model.critic = at_once.critic = Verdicts(2)
    full = at_once.loss(batch(), Clock(total, total))["adversarial"].item()
    for step, value in zip((0, 3000, 5999), values, strict=True):
        part = model.loss(batch(), Clock(step, total))["adversarial"].item() / full
        assert part == pytest.approx(value, rel=3e-7)


def test_size_of_the_critic():
    model = build()
    sizes = {
        name: sum(p.numel() for p in layer.parameters())
        for name, layer in model.critic.named_children()
    }
    assert sizes == {
        "conv0": 4_160,
        "conv1": 4_160,
        "conv2": 524_416,
        "conv3": 2_097_408,
        "conv4": 8_389_120,
        "dropout": 0,
        "classifier": 1_026,
    }
    assert sum(sizes.values()) == 11_020_290


def test_critic():
    model = build()
    critic = model.critic.double().eval()
    hash_fill(critic)
    patch = (2, 1, 112, 112, 80)
    with torch.no_grad():
        logits = critic(wave(patch, 0.0013, 0.5, 1).tanh(), wave(patch, 0.013, 0, 1))
    assert logits[0].tolist() == [near(2.485859), near(1.356323)]
    assert logits[1].tolist() == [near(2.462354), near(1.335379)]


def test_adam_of_the_critic():
    model, protocol = build(), Optim(lr=0.01)
    assert model.optimizer("network", protocol, Phase()) is protocol
    spec = model.optimizer("critic", protocol, Phase())
    assert spec.lr_at(0, 6000) == spec.lr_at(5999, 6000) == 1e-4
    theta = nn.Parameter(torch.ones((), dtype=torch.float64))
    adam = make_optimizer(spec, [theta])
    assert adam.defaults["eps"] == 1e-8
    for gradient, value in ((0.5, 0.9999000000), (-0.2, 0.9998653826), (0.1, 0.9998273055)):
        theta.grad = torch.tensor(gradient).double()
        adam.step()
        assert theta.item() == near(value, 10)


def test_network():
    backbone = get("backbone", "vnet").cls
    network = backbone(backbone.Params(dropout=0.0), 1, 3, (1, 1)).double().eval()
    hash_fill(network, lambda key: key.removeprefix("encoder.").removeprefix("decoders.0."))
    model = build(network)
    x = wave((2, 1, 32, 32, 16), 0.013, 0, 1)
    with torch.no_grad():
        distance, p = model.eval().answer(x)
        z = p.double().logit()
        torch.testing.assert_close(model.predict(x), torch.cat([1 - p, p], 1))
    assert [
        distance.mean().item(),
        distance.flatten()[0].item(),
        distance.flatten()[-1].item(),
    ] == [near(v) for v in (0.642809, -0.186350, 0.502065)]
    assert distance.std(correction=0).item() == near(0.298463)
    assert [z.mean().item(), z.std(correction=0).item()] == [near(1.072977), near(0.724121)]
    assert [z.flatten()[0].item(), z.flatten()[-1].item()] == [near(0.017004), near(0.276567)]


# The game


def test_the_adversarial_term_reaches_distances_of_unlabeled_items_only():
    model = build()
    model.loss(batch(), Clock(3000, 6000))["adversarial"].backward()
    gradient = model.network.distance.grad
    assert not gradient[0].any() and gradient[1].any() and gradient[2].any()
    assert model.network.logits.grad is None
    assert all(p.grad is None for p in model.critic.parameters())


def test_gradient_through_the_critic_is_that_of_the_critic_itself():
    model, b = build(weight=1.0), batch()
    model.loss(b, Clock(6000, 6000))["adversarial"].backward()
    detour = model.network.distance.grad.clone()
    model.network.distance.grad = None
    verdict = model.critic.eval()(model.answer(torch.cat([b.x, b.u]))[0][1:], b.u)
    nn.functional.cross_entropy(verdict, torch.ones(2).long()).backward()
    torch.testing.assert_close(detour, model.network.distance.grad)


def test_supervised_terms_leave_unlabeled_items_alone():
    model = build()
    terms = model.loss(batch(), Clock(3000, 6000))
    (terms["dice"] + terms["distance"]).backward()
    for part in (model.network.distance, model.network.logits):
        assert part.grad[0].any() and not part.grad[1:].any()


def test_modes_of_the_two_updates():
    model, modes = build(), []
    model.network.register_forward_pre_hook(lambda m, _: modes.append(("network", m.training)))
    model.critic.dropout.register_forward_pre_hook(
        lambda m, _: modes.append(("critic", m.training))
    )
    model.loss(batch(), Clock(0, 6000))
    assert modes == [("network", True), *[("critic", False)] * 3]
    modes.clear()
    model.train()
    model.loss_critic(batch(), Clock(0, 6000))
    assert modes == [("network", False), *[("critic", True)] * 3]


def test_the_critic_learns_from_predictions_of_the_updated_network_for_labeled_items_too():
    model, seen = build(), []
    model.critic.register_forward_pre_hook(lambda _, args: seen.append(args))
    model.network.distance.data += 0.5
    b = batch()
    model.loss_critic(b, Clock(0, 6000))["critic"].backward()
    distance, image = seen[0]
    torch.testing.assert_close(distance, model.network.distance.detach().tanh().float())
    assert torch.equal(image, torch.cat([b.x, b.u]))
    assert model.network.distance.grad is None and all(
        p.grad is not None for p in model.critic.parameters()
    )


@pytest.mark.parametrize("size", [(8, 8), (16, 5), (48, 33), (8, 16, 8), (18, 32, 16)])
def test_critics_of_any_patch(size):
    critic = type(build().critic)(3, 2, len(size)).eval()
    distance, image = torch.rand(2, 3, *size), torch.rand(2, 2, *size)
    assert critic(distance, image).shape == (2, 2)
    zeros = [(0, max(16 - n, 0)) for n in reversed(size)]
    pad = [n for pair in zeros for n in pair]
    torch.testing.assert_close(
        critic(distance, image), critic(*(nn.functional.pad(x, pad) for x in (distance, image)))
    )


def test_several_classes_are_binary_problems():
    cls = get("method", "sassnet").cls
    model = cls(cls.Params(), Setting((Source("a", ("b", "c", "d")),), 1, (8, 8)))
    model.build(lambda heads: Fixed(heads))
    p = model.predict(torch.zeros(1, 1, 8, 8))
    assert p[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.8, 0.6, 0.1])


class Fixed(nn.Module):
    def __init__(self, heads: tuple[int, ...]) -> None:
        super().__init__()
        assert heads == (3, 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        p = (
            torch.tensor([0.8, 0.6, 0.1])
            .logit()
            .view(1, 3, 1, 1)
            .expand(len(image), 3, *image.shape[2:])
        )
        return torch.zeros_like(p), p
