"""The supervised baseline: UA-MT's loss, averaged over the foreground classes."""

import pytest
import torch
from helpers import Table
from torch import nn

from segbench import Batch, Clock
from segbench.contracts.method import Setting, Source
from segbench.registry import get


def build(classes: int, **params) -> nn.Module:
    cls = get("method", "supervised").cls
    source = Source("a", tuple(f"c{i}" for i in range(1, classes)))
    model = cls(cls.Params(**params), Setting((source,), 1, (4, 4, 4)))
    model.build(lambda: nn.Conv3d(1, classes, 1, dtype=torch.float64))
    return model


def test_two_classes_give_the_loss_of_ua_mt():
    n = torch.arange(512, dtype=torch.float64)
    z = (2 * torch.sin(0.37 * n + 0.2)).view(4, 2, 4, 4, 4)[:2]
    y = (torch.sin(0.91 * n[:256] + 0.4).view(4, 4, 4, 4) > 0.25).long()[:2]
    model = build(2)
    model.network = Table(z)
    batch = Batch(torch.zeros(2, 1, 4, 4, 4), y, torch.empty(0, 1, 4, 4, 4), torch.zeros(2).long())
    assert model.loss(batch, Clock(0, 6000))["supervised"].item() == pytest.approx(
        0.789934, abs=0.51e-6
    )


def test_only_labeled_items_and_one_phase():
    model = build(4, dice="all")
    assert [(p.unlabeled, p.labeled, p.share) for p in model.phases()] == [(0, None, 1.0)]
    batch = Batch(
        torch.rand(4, 1, 4, 4, 4).double(),
        torch.randint(0, 4, (4, 4, 4, 4)),
        torch.empty(0, 1, 4, 4, 4),
        torch.zeros(4).long(),
    )
    terms = model.loss(batch, Clock(0, 10))
    z = model.network(batch.x)
    p, loss = z.softmax(1), nn.functional.cross_entropy(z, batch.y)
    for c in range(4):
        g = batch.y == c
        loss = (
            loss
            + (1 - (2 * p[:, c][g].sum() + 1e-5) / (p[:, c].square().sum() + g.sum() + 1e-5)) / 4
        )
    torch.testing.assert_close(terms, {"supervised": loss / 2})
    torch.testing.assert_close(model.predict(batch.x), p)
