"""DTC against numbers made with the reference formulas (float64, sine waves as inputs).

Its distance map has the published numbers in tests/test_distance.py.
"""

import importlib

import pytest
import torch
from helpers import BALL, TwoTables, hash_fill, near, wave
from torch import nn

from segbench import Batch, Clock
from segbench.contracts.method import Setting, Source
from segbench.nn.distance import signed_distance
from segbench.registry import get

SHAPE = (14, 15, 16)
BATCH = Batch(
    torch.zeros(1, 1, *SHAPE), BALL[None].long(), torch.zeros(1, 1, *SHAPE), torch.zeros(2).long()
)


def pair() -> TwoTables:
    distance = wave((2, 1, *SHAPE), 0.11, 0.3, 0.004)
    logits = wave((2, 1, *SHAPE), 0.07, 0.6, 3)
    return TwoTables(distance, logits)


def build(network=None, **params) -> nn.Module:
    cls = get("method", "dtc").cls
    model = cls(cls.Params(**params), Setting((Source("la", ("atrium",)),), 1, SHAPE))
    asked = []
    model.build(lambda heads: asked.append(heads) or network or pair())
    assert asked == [(1, 1)]
    return model


def test_a_step():
    model = build()
    terms = model.loss(BATCH, Clock(3000, 6000))
    assert list(terms) == ["dice", "distance", "consistency"]
    assert terms["dice"].item() == near(0.832832)
    assert terms["distance"].item() == near(0.3 * 0.211935)
    assert terms["consistency"].item() == near(0.286505 * 0.323183)
    total = sum(terms.values())
    assert total.item() == near(0.989006)
    total.backward()
    # The distance of the unlabeled item has a gradient: no side of the consistency is detached.
    assert model.network.distance.grad.flatten(1).norm(dim=1).tolist() == [
        near(0.299660),
        near(0.299916),
    ]
    assert model.network.logits.grad.flatten(1).norm(dim=1).tolist() == [
        near(0.002857),
        near(0.000345),
    ]


def test_terms_before_their_weights():
    model = build(distance_weight=1.0)
    terms = model.loss(BATCH, Clock(6000, 6000))
    assert terms["distance"].item() == near(0.211935) and terms["consistency"].item() == near(
        0.323183
    )
    unused = nn.functional.binary_cross_entropy_with_logits(
        model.network.logits[0, 0], BALL.double()
    )
    assert unused.item() == near(1.158531)


def test_conversion():
    as_mask = importlib.import_module("segbench.methods.dtc").as_mask
    mask = as_mask(signed_distance(BALL[None].long(), 2))[0, 0]
    error = (mask - BALL.float()).abs()
    assert error.mean().item() == near(0.019940)
    assert (error > 1e-6).sum() == 134 and error[error > 1e-6].tolist() == [
        0.5
    ] * 134  # the inner boundary


def test_steepness():
    as_mask = importlib.import_module("segbench.methods.dtc").as_mask
    soft = as_mask(torch.tensor([0, 0.001, 0.002, 0.005, 0.01], dtype=torch.float64))
    assert soft[:4].tolist() == [near(v) for v in (0.5, 0.182426, 0.047426, 0.000553)]
    assert soft[4].item() == pytest.approx(3.059022e-7, abs=0.51e-13)


@pytest.mark.parametrize(("total", "share"), [(6000, 1.0), (15000, 0.4)])
def test_weight(total, share):
    model = build(ramp_share=share)
    full = model.loss(BATCH, Clock(total, total))["consistency"].item()
    for step, value in (
        (0, 0.006738),
        (1500, 0.060055),
        (3000, 0.286505),
        (4500, 0.731616),
        (5999, 0.996880),
    ):
        assert model.loss(BATCH, Clock(step, total))["consistency"].item() / full == near(value)


@pytest.mark.parametrize(
    ("training", "distances", "logits"),
    [
        (False, (0.642809, -0.186350), (1.072977, 0.017004)),
        (True, (0.395407, -0.390100), (0.274602, -0.694187)),
    ],
)
def test_network(training, distances, logits):
    backbone = get("backbone", "vnet").cls
    network = backbone(backbone.Params(dropout=0.0), 1, 3, (1, 1)).double()
    hash_fill(network, lambda key: key.removeprefix("encoder.").removeprefix("decoders.0."))
    model = build(network).train(training)
    x = wave((2, 1, 32, 32, 16), 0.013, 0, 1)
    with torch.no_grad():
        distance, p = model.answer(x)
    z = p.double().logit()
    assert (distance.mean().item(), distance.flatten()[0].item()) == tuple(map(near, distances))
    assert (z.mean().item(), z.flatten()[0].item()) == tuple(map(near, logits))


# What is not in the numbers


def test_supervised_terms_leave_unlabeled_items_alone():
    model = build()
    terms = model.loss(BATCH, Clock(3000, 6000))
    (terms["dice"] + terms["distance"]).backward()
    for part in (model.network.distance, model.network.logits):
        assert part.grad[0].any() and not part.grad[1].any()


def test_the_steep_sigmoid_stays_in_float32_under_lower_precision():
    model = build()
    whole = model.loss(BATCH, Clock(6000, 6000))
    for part in (model.network.distance, model.network.logits):
        part.data = part.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        distance, p = model.answer(BATCH.x)
        half = model.loss(BATCH, Clock(6000, 6000))
    assert distance.dtype == p.dtype == half["consistency"].dtype == torch.float32
    assert half["consistency"].item() == pytest.approx(whole["consistency"].item(), abs=1e-3)


def test_a_crop_without_the_class():
    empty = Batch(BATCH.x, torch.zeros_like(BATCH.y), BATCH.u, BATCH.source)
    model = build(distance_weight=1.0)
    s = model.answer(BATCH.x)[0][:1]
    for absent in (0.0, 1.0):
        model = build(distance_weight=1.0, absent=absent)
        distance = model.loss(empty, Clock(0, 6000))["distance"]
        assert distance.item() == pytest.approx((s - absent).square().mean().item())


def test_prediction_is_the_mask_head_s():
    model = build()
    with torch.no_grad():
        p, z = model.predict(BATCH.x), model.network.logits
    assert torch.equal(p.argmax(1), (z[:, 0] > 0).long())  # sigmoid > 1/2
    torch.testing.assert_close(p[:, 1], z[:, 0].sigmoid().float())
