"""The losses of the authors' 2-D scripts, code=2d, against their formulas in NumPy.

All arrays are float64. Classes are three, so that each class is sharpened on its own.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from helpers import Pixelwise, Tables, slices, softmax, wave
from torch import Tensor

from segbench import Clock, Optim
from segbench.contracts.method import Setting, Source
from segbench.registry import get

SIZE = (12, 10)
SETTING = Setting((Source("set", ("one", "two")),), 1, SIZE)
LAST = Clock(999, 1000, seed=1)


def build(name: str, **params):
    cls = get("method", name).cls
    return cls(cls.Params(code="2d", **params), SETTING)


def module(name: str):
    return sys.modules[get("method", name).cls.__module__]


def squared_dice(p: np.ndarray, q: np.ndarray, used: np.ndarray | None = None) -> float:
    """Mean over all classes of 1 - 2 sum pq / (sum pp + sum qq) over the batch."""
    used = np.ones(p[:, 0].shape) if used is None else used
    losses = []
    for k in range(p.shape[1]):
        overlap = 2 * (p[:, k] * q[:, k] * used).sum()
        total = ((p[:, k] ** 2 + q[:, k] ** 2) * used).sum()
        losses.append(1 - overlap / total)
    return float(np.mean(losses))


def one_hot(labels: Tensor) -> np.ndarray:
    return np.stack([(labels == k).numpy().astype(float) for k in range(3)], 1)


def test_mc_net(parity):
    batch = slices(2)
    logits = [wave((4, 3, *SIZE), 0.3 + 0.1 * i, 0.7 * i, 1.5) for i in range(3)]
    model = build("mc_net", weight=0.7)
    asked = []
    model.build(lambda decoders: asked.append(decoders) or Tables(*logits))
    assert asked == [("trilinear", "transposed", "nearest")]
    found = model.loss(batch, LAST)

    p = [softmax(z.numpy()) for z in logits]
    sharp = [q**10 / (q**10 + (1 - q) ** 10) for q in p]
    assert max(abs(q.sum(1) - 1).max() for q in sharp) > 0.1, "classes are sharpened one by one"
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    consistency = sum(np.mean((p[i] - sharp[j]) ** 2) for i, j in pairs)
    # The code has no factor 2: 1 - I / U = 1/2 + (1 - 2 I / U) / 2 for each decoder.
    y = one_hot(batch.y)
    without_factor = sum(0.5 + squared_dice(q[:2], y) / 2 for q in p)
    formulas = {"supervised": without_factor, "consistency": 0.7 * consistency}
    parity("mc_net (2-D)", found, formulas, within=1e-9)


def test_mc_net_sharpening_has_a_finite_gradient_at_certain_voxels():
    p = torch.tensor([0.0, 1e-9, 0.5, 1 - 1e-7, 1.0], requires_grad=True)
    sharp = module("mc_net").sharpened_each(p, 0.1)
    assert sharp.tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-7)
    sharp.sum().backward()
    assert p.grad.isfinite().all()


def test_ss_net(monkeypatch, parity):
    batch = slices(2)
    model = build("ss_net", weight=0.7, stairs=200, magnitude=6)
    network = Pixelwise([0.8, -1.1, 0.4], [0.6, -0.4, -0.7])
    network.width = 1  # its features are the image
    model.build(lambda: network)
    model.double()
    images = torch.cat([batch.x, batch.u])
    start = wave(images.shape, 1.3, 0.4, 0.5)
    monkeypatch.setattr(torch, "rand_like", lambda image: start + 0.5)
    found = model.loss(batch, LAST)
    ramp = np.exp(-5 * (1 - 199 / 200) ** 2)

    def answer(x: np.ndarray) -> np.ndarray:
        slope = np.reshape([0.8, -1.1, 0.4], (1, 3, 1, 1))
        return softmax(slope * x + np.reshape([0.6, -0.4, -0.7], (1, 3, 1, 1)))

    def unit(d: np.ndarray) -> np.ndarray:
        return d / (np.sqrt((d**2).sum((1, 2, 3), keepdims=True)) + 1e-8)

    x = images.numpy()
    p = answer(x)
    probe = unit(start.numpy())
    gradient = np.zeros_like(probe)
    for index in np.ndindex(*probe.shape):  # central differences, pixel by pixel
        for sign in (1, -1):
            moved = probe.copy()
            moved[index] += sign * 1e-6
            gradient[index] += sign * squared_dice(answer(x + 10 * moved), p) / 2e-6
    perturbed = x + 6 * unit(gradient)
    smoothness = squared_dice(answer(perturbed), p)
    formulas = {
        "dice": squared_dice(p[:2], one_hot(batch.y)),
        "smoothness": 0.7 * ramp * smoothness,
    }
    parity("ss_net (2-D)", {name: found[name] for name in formulas}, formulas, within=1e-6)


def test_bcp(parity):
    batch = slices(4)
    outside = torch.ones(1, *SIZE, dtype=torch.bool)
    outside[:, 2:9, 1:6] = False
    p = softmax(wave((2, 3, *SIZE), 0.4, 0.2, 1.5).numpy())
    logits = torch.from_numpy(np.log(p))
    outer = batch.y
    inner = (batch.y + 1) % 3
    found = module("bcp").mixed_loss(logits, outer, inner, outside, 1, 0.5, "2d")

    mask = np.broadcast_to(outside.numpy(), p[:, 0].shape).astype(float)
    expected = 0.0
    for labels, used, weight in ((outer, mask, 1), (inner, 1 - mask, 0.5)):
        target = one_hot(labels)
        entropy = -(np.log(p) * target).sum(1)
        mean = (entropy * used).sum() / used.sum()
        expected += weight * (squared_dice(p, target, used) + mean) / 2
    parity("bcp (2-D)", {"in_labeled": found}, {"in_labeled": expected}, within=1e-9)


@pytest.mark.parametrize("name", ["bcp", "sdcl"])
def test_both_phases_of_bcp_and_sdcl_use_it(name, monkeypatch):
    model = build(name, keep_optimizer=True)
    model.build(lambda backbone=None: Pixelwise([0.8, -1.1, 0.4], [0.6, -0.4, -0.7]))
    assert not any(phase.fresh_optimizer for phase in model.phases())
    falling = Optim(schedule="poly")
    schedules = {model.optimizer("network", falling, phase).schedule for phase in model.phases()}
    assert schedules == {"poly"}, "one optimizer, one schedule"
    codes = []
    original = module("bcp").dice_and_entropy

    def recorded(logits, labels, mask=None, code="3d"):
        codes.append(code)
        return original(logits, labels, mask, code)

    monkeypatch.setattr(module("bcp"), "dice_and_entropy", recorded)
    if name == "sdcl":  # it imported the function
        monkeypatch.setattr(module(name), "dice_and_entropy", recorded)
    model.loss(slices(4), Clock(0, 1000, phase="pretrain", seed=1))
    model.loss(slices(4), Clock(900, 1000, phase="self_train", seed=1))
    assert len(codes) >= 5 and set(codes) == {"2d"}


def test_ad_mt_blurs_its_views_and_adds_no_noise(monkeypatch):
    model = build("ad_mt")
    model.build(lambda: Pixelwise([0.8, -1.1, 0.4], [0.6, -0.4, -0.7]))
    asked = []
    monkeypatch.setattr(
        module("ad_mt"), "strong_view", lambda x, generator, **shares: asked.append(shares) or x
    )
    step = next(step for step in range(1000) if model.first_moves(Clock(step, 1000, seed=1)))
    model.view(slices().u, Clock(step, 1000, seed=1))
    assert asked == [{"blur": 0.2, "noise": 0.0}]
