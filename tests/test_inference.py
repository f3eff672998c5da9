"""Sliding-window prediction against a second implementation with one window at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segbench.errors import TrainingError, UsageError
from segbench.evaluation.sliding_window import labels_from, predict_probabilities, windows


def _axes(
    shape: tuple[int, ...], patch: tuple[int, ...], stride: tuple[int, ...]
) -> list[list[int]]:
    found = windows(shape, patch, stride)
    axes = [sorted(set(axis)) for axis in zip(*found, strict=True)]
    assert len(found) == math.prod(map(len, axes)) and found == sorted(found)
    return axes


def test_positions() -> None:
    assert _axes((183, 140, 88), (112, 112, 80), (18, 18, 4)) == [
        [0, 18, 36, 54, 71],
        [0, 18, 28],
        [0, 4, 8],
    ]
    assert _axes((140, 170, 138), (96, 96, 96), (64, 64, 64)) == [[0, 44], [0, 64, 74], [0, 42]]
    assert [len(a) for a in _axes((150, 140, 120), (96, 96, 96), (16, 16, 4))] == [5, 4, 7]
    assert len(windows((150, 140, 120), (96, 96, 96), (16, 16, 4))) == 140
    assert [len(a) for a in _axes((150, 140, 88), (112, 112, 80), (18, 18, 4))] == [4, 3, 3]
    assert [len(a) for a in _axes((150, 140, 120), (96, 96, 96), (16, 16, 16))] == [5, 4, 3]
    assert _axes((20, 8), (8, 8), (4, 4)) == [[0, 4, 8, 12], [0]]
    assert _axes((5, 9), (8, 8), (4, 4)) == [[0], [0, 1]]


@pytest.mark.parametrize("stride", [(0, 4), (4, 9), (-1, 4)])
def test_stride_that_leaves_gaps(stride: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="do not cover"):
        windows((20, 20), (8, 8), stride)


def _network(dims: int, channels: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
    net = nn.Sequential(
        conv(channels, 8, 3, padding=1), norm(8), nn.ReLU(), conv(8, classes, 3, padding=1)
    )
    for _ in range(3):
        net(
            torch.randn(2, channels, *(10,) * dims)
        )  # running statistics that are not the initial ones
    return nn.Sequential(net, nn.Softmax(1)).eval()


def _one_at_a_time(
    net: nn.Module, image: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...], classes: int
) -> np.ndarray:
    """The published test loop: pad, one window at a time, add up, divide, cut back."""
    shape = image.shape[1:]
    lacks = [max(p - n, 0) for n, p in zip(shape, patch, strict=True)]
    image = np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in lacks)])
    total, visits = (
        np.zeros((classes, *image.shape[1:]), np.float32),
        np.zeros(image.shape[1:], np.float32),
    )
    counts = [
        math.ceil((n - p) / s) + 1 for n, p, s in zip(image.shape[1:], patch, stride, strict=True)
    ]
    for index in np.ndindex(*counts):
        start = [
            min(j * s, n - p)
            for j, s, n, p in zip(index, stride, image.shape[1:], patch, strict=True)
        ]
        box = (slice(None), *(slice(a, a + p) for a, p in zip(start, patch, strict=True)))
        with torch.no_grad():
            out = net(torch.from_numpy(image[box][None].copy()))[0].numpy()
        total[box] += out
        visits[box[1:]] += 1
    total /= visits
    box = (slice(None), *(slice(m // 2, m // 2 + n) for m, n in zip(lacks, shape, strict=True)))
    return total[box]


CASES = [
    ((21, 19, 13), (12, 10, 8), (5, 4, 3)),
    ((12, 10, 8), (12, 10, 8), (4, 4, 4)),
    ((7, 30, 5), (12, 10, 8), (5, 4, 3)),
    ((1, 1, 1), (8, 8, 8), (8, 8, 8)),
    ((33, 20), (16, 12), (7, 5)),
    ((11, 20), (16, 12), (16, 12)),
]


@pytest.mark.parametrize("batch", [1, 4, 64])
@pytest.mark.parametrize(("shape", "patch", "stride"), CASES)
def test_equals_one_window_at_a_time(
    shape: tuple[int, ...], patch: tuple[int, ...], stride: tuple[int, ...], batch: int
) -> None:
    net = _network(len(shape))
    image = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    got = predict_probabilities(net, torch.from_numpy(image), patch, stride, batch=batch)
    assert got.dtype == torch.float32 and got.shape == (3, *shape) and not got.requires_grad
    np.testing.assert_allclose(
        got.numpy(), _one_at_a_time(net, image, patch, stride, 3), atol=1e-6, rtol=0
    )
    np.testing.assert_allclose(got.sum(0).numpy(), 1, atol=1e-5)


def test_padding_is_zero_with_the_smaller_half_in_front() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    image = torch.arange(1.0, 4.0).reshape(1, 3, 1)
    result = predict_probabilities(watch, image, (6, 2), (3, 1))
    assert seen[0][0, 0].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0], [0, 0], [0, 0]]
    assert torch.equal(result, image)


def test_windows_are_batched_and_nothing_is_recorded() -> None:
    sizes: list[int] = []
    weight = torch.ones((), requires_grad=True)

    def watch(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        sizes.append(len(x))
        return x.to(torch.bfloat16) * weight.to(
            torch.bfloat16
        )  # half-precision windows are added up in float32

    result = predict_probabilities(watch, torch.ones(1, 20, 20), (8, 8), (4, 4), batch=6)
    assert sizes == [6, 6, 4]
    assert result.dtype == torch.float32 and torch.equal(result, torch.ones(1, 20, 20))
    assert torch.is_grad_enabled()


def test_memory_runs_out_then_smaller_batches() -> None:
    net, sizes = _network(2), []

    def narrow(x: Tensor) -> Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return net(x)

    image = torch.randn(2, 20, 20)
    got = predict_probabilities(narrow, image, (8, 8), (4, 4), batch=8)
    assert sizes == [8, 4, *[2] * 8]
    torch.testing.assert_close(
        got, predict_probabilities(net, image, (8, 8), (4, 4), batch=1), atol=1e-6, rtol=0
    )


def test_memory_too_small_for_one_window() -> None:
    def never(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match="one window"):
        predict_probabilities(never, torch.ones(1, 9, 9), (8, 8), (4, 4))


def test_sum_moves_to_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros, asked = torch.zeros, []

    def scarce(*args: object, **kwargs: object) -> Tensor:
        asked.append(kwargs)
        if "device" in kwargs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "zeros", scarce)
    result = predict_probabilities(lambda x: x, torch.ones(1, 9, 9), (8, 8), (4, 4))
    assert "device" in asked[0] and torch.equal(result, torch.ones(1, 9, 9))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    net, image = _network(3), torch.randn(2, 21, 19, 13)
    expected = predict_probabilities(net, image, (12, 10, 8), (5, 4, 3))
    got = predict_probabilities(net.cuda(), image, (12, 10, 8), (5, 4, 3), device="cuda")
    assert got.device.type == "cuda"
    torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=0)  # cuDNN may use TF32


def test_labels() -> None:
    probabilities = torch.tensor([[0.5, 0.2, 0.1], [0.5, 0.4, 0.45], [0.0, 0.4, 0.45]])[:, None]
    labels = labels_from(probabilities)  # ties go to the lower class
    assert labels.dtype == np.uint8 and labels.tolist() == [[0, 1, 1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 9))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_labels_are_those_of_argmax(seed: int, classes: int, levels: int) -> None:
    """With few levels most voxels have ties; the lower class wins."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.randint(levels, (classes, 5, 4, 3), generator=generator) / levels
    before = probabilities.clone()
    expected = np.argmax(probabilities.numpy(), axis=0)  # the first of several maxima
    np.testing.assert_array_equal(labels_from(probabilities), expected)
    assert torch.equal(probabilities, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_prediction_that_is_not_finite(bad: float) -> None:
    probabilities = torch.full((2, 4, 4), 0.5)
    for channel in (0, 1):
        spoiled = probabilities.clone()
        spoiled[channel, 2, 3] = bad
        with pytest.raises(TrainingError, match="not finite"):
            labels_from(spoiled)


def test_nan_of_one_window_is_found() -> None:
    def poisoned(x: Tensor) -> Tensor:
        return torch.where(x == 7, torch.nan, x)

    image = torch.ones(1, 20, 20)
    image[0, 19, 19] = 7
    with pytest.raises(TrainingError):
        labels_from(predict_probabilities(poisoned, image, (8, 8), (4, 4)))
