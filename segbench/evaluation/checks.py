"""Check what a method's ``predict`` returns, before a number is computed from it."""

from __future__ import annotations

import torch
from torch import Tensor

from segbench.contracts.method import Method
from segbench.errors import TrainingError

TOLERANCE = 1e-3  # of the sum over the classes
COARSE_TOLERANCE = 1e-2  # the same for numbers of 16 bits
FIX = (
    "return class probabilities from predict, such as self.network(image).softmax(1); "
    "segbench test NAME|FILE checks a method before it is trained"
)


def require_shape(output: object, windows: Tensor, method: Method, source: int) -> Tensor:
    """Return a prediction if it is a tensor of one channel per class on the grid of the windows.

    Args:
        output: what ``predict`` returned for ``windows`` (B, C, *P) of data set ``source``.

    Raises:
        TrainingError: it is anything else.
    """
    classes = 1 + len(method.setting.sources[source].classes)
    shape = (len(windows), classes, *windows.shape[2:])
    expected = f"a floating-point tensor of shape {shape}: batch, classes, axes"
    if not isinstance(output, Tensor):
        raise _broken(method, f"a {type(output).__name__}", expected)
    if tuple(output.shape) != shape:
        found = f"shape {tuple(output.shape)}{_likely_reason(output, shape)}"
        raise _broken(method, found, expected)
    if not output.is_floating_point():
        raise _broken(method, f"numbers of type {output.dtype}", expected)
    if output.device != windows.device:
        raise _broken(method, f"a tensor on {output.device}", f"a tensor on {windows.device}")
    return output


def _likely_reason(output: Tensor, shape: tuple[int, ...]) -> str:
    """Return a guess at the mistake that leads to a shape, or an empty text."""
    found = tuple(output.shape)
    batch, _, *axes = shape
    without_classes = (batch, *axes)
    one_channel = (batch, 1, *axes)
    if found in (without_classes, one_channel):
        if output.is_floating_point():
            return " (one channel for all classes, as after a sigmoid?)"
        return " (a map of class numbers, as after argmax?)"
    if len(found) == len(shape) and found[2:] != shape[2:]:
        return " (a map of another size than the image?)"
    return ""


def require_probabilities(probabilities: Tensor, method: Method) -> None:
    """Check that a prediction (B, K, *P) holds class probabilities.

    They sum to 1 over the classes. Methods that answer one question per class may instead return
    independent probabilities with 1 - (the largest of them) as the background's.

    Raises:
        TrainingError: a value is not finite or outside 0 to 1, or the sum is wrong.
    """
    values = probabilities.detach()
    tolerance = TOLERANCE if values.element_size() > 2 else COARSE_TOLERANCE
    values = values.float()
    expected = "class probabilities: finite, from 0 to 1, with the sum 1 over the classes"
    if not bool(values.isfinite().all()):
        raise _broken(method, "values that are not finite", expected)
    low = values.min().item()
    high = values.max().item()
    if low < -tolerance or high > 1 + tolerance:
        found = f"values from {low:.4g} to {high:.4g} (logits, without a softmax?)"
        raise _broken(method, found, expected)
    sums = values.sum(1)
    if _is_near(sums, torch.ones_like(sums), tolerance):
        return
    background = values[:, 0]
    highest_foreground = values[:, 1:].amax(1)
    if _is_near(background, 1 - highest_foreground, tolerance):
        return
    found = f"sums over the classes from {sums.min().item():.4g} to {sums.max().item():.4g}"
    raise _broken(method, found, expected)


def _is_near(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool((first - second).abs().max() <= tolerance)


def _broken(method: Method, found: str, expected: str) -> TrainingError:
    return TrainingError(
        f"predict of {method.name} does not return class probabilities",
        where=f"class {type(method).__name__}, predict",
        found=found,
        expected=expected,
        fix=FIX,
    )
