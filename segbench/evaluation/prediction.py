"""Predict whole volumes with a trained method, in the way a protocol prescribes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segbench.config import Protocol
from segbench.contracts.method import Method
from segbench.data.open import derived
from segbench.data.sampling.crops import nearest
from segbench.data.store.store import Store
from segbench.evaluation.checks import require_probabilities, require_shape
from segbench.evaluation.precision import autocast
from segbench.evaluation.sliding_window import labels_from, predict_probabilities
from segbench.metrics import largest_component
from segbench.nn.compiled import begin_pass

LabelMap = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Inference:
    """A trained method, in eval mode, and how it predicts."""

    method: Method
    protocol: Protocol
    device: str = "cpu"
    precision: str = "fp32"
    # Data sets whose first prediction has been checked.
    checked: set[int] = field(default_factory=set, compare=False, repr=False)

    def windows(self, windows: Tensor, source: int) -> Tensor:
        """Return class probabilities (B, K, *P) of windows (B, C, *P) of a data set.

        Raises:
            TrainingError: the method returned anything else.
        """
        begin_pass(self.method)
        with autocast(self.device, self.precision):
            output = self.method.predict(windows, source)
        probabilities = require_shape(output, windows, self.method, source)
        if source not in self.checked:  # once, because it waits for the device
            require_probabilities(probabilities, self.method)
            self.checked.add(source)
        return probabilities

    def slices(self, windows: Tensor, source: int) -> Tensor:
        """Return class probabilities (B, K, *P, 1) of windows (B, C, *P, 1), one voxel thick.

        The network is one for slices (B, C, *P).
        """
        probabilities = self.windows(windows[..., 0], source)
        return probabilities[..., None]


def predict_labels(inference: Inference, store: Store, case: str, source: int) -> LabelMap:
    """Return the label map (*S) of a case, on the grid of its reference label."""
    probabilities = predict_case(inference, store, case, source)
    label = labels_from(probabilities)
    return postprocess(label, inference.protocol)


def predict_case(inference: Inference, store: Store, case: str, source: int) -> Tensor:
    """Return class probabilities (K, *S) of a case on the grid of its label, on the device."""
    factors = inference.protocol.factors(store.name, store.dims)
    downsampled = derived(store, factors)
    image = np.array(downsampled.image(case))
    shape = store.cases[case].shape
    return predict_image(inference, image, shape, source, store.name, store.pad(case))


def predict_image(
    inference: Inference,
    small: np.ndarray[Any, Any],
    full: Sequence[int],
    source: int,
    dataset: str,
    pad: Sequence[float] = (),
) -> Tensor:
    """Return class probabilities (K, *full), on the device, of one volume.

    A protocol with a patch of two axes predicts a volume slice by slice; the result is the volume.

    Args:
        small: image (C, *S), already downsampled as the protocol says for ``dataset``.
        full: shape of the image before downsampling.
        source: index of the data set in the method's ``Setting.sources``.
        pad: value per channel outside the image; empty for zeros.
    """
    protocol = inference.protocol
    channels = inference.method.setting.channels
    image, pad = _with_all_channels(torch.from_numpy(small), pad, channels)
    shape = tuple(image.shape[1:])
    if protocol.crop.labeled == "zoom":
        patch_axes = len(protocol.patch)
        image = _resized(image, (*protocol.patch, *shape[patch_axes:]))

    patch = tuple(protocol.patch)
    stride = tuple(protocol.inference.stride)
    predict = inference.windows
    if len(patch) < len(shape):  # a network for slices: windows are one voxel thick
        patch = (*patch, 1)
        stride = (*stride, 1)
        predict = inference.slices
    probabilities = predict_probabilities(
        lambda windows: predict(windows, source),
        image,
        patch,
        stride,
        batch=protocol.inference.batch,
        device=inference.device,
        pad=pad,
    )

    if protocol.crop.labeled == "zoom":
        probabilities = _resized(probabilities, shape)
    return _upsampled(probabilities, protocol.factors(dataset, len(full)), full)


def postprocess(label: LabelMap, protocol: Protocol) -> LabelMap:
    """Keep the largest component of each class if the protocol says so, in place."""
    if not protocol.largest_component:
        return label
    for value in np.unique(label[label > 0]):
        mask = label == value
        label[mask & ~largest_component(mask)] = 0
    return label


def _with_all_channels(
    image: Tensor, pad: Sequence[float], channels: int
) -> tuple[Tensor, tuple[float, ...]]:
    """Append channels of zeros, as joint training does for data sets with fewer channels."""
    missing = channels - len(image)
    if not missing:
        return image, tuple(pad)
    image = torch.cat([image, image.new_zeros(missing, *image.shape[1:])])
    if not pad:
        return image, ()
    return image, (*pad, *[0.0] * missing)


def _resized(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Resize (C, *S) to (C, *shape) by the nearest neighbor, as the training loader does."""
    for axis, size in enumerate(shape, start=1):
        if volume.shape[axis] != size:
            index = torch.from_numpy(nearest(volume.shape[axis], size))
            volume = volume.index_select(axis, index.to(volume.device))
    return volume


def _upsampled(probabilities: Tensor, factors: Sequence[int], full: Sequence[int]) -> Tensor:
    """Interpolate (K, *S) to the grid before downsampling."""
    if max(factors) == 1:
        return probabilities
    mode = "trilinear" if len(full) == 3 else "bilinear"
    probabilities = functional.interpolate(
        probabilities[None], scale_factor=list(factors), mode=mode, align_corners=False
    )[0]
    # The last block of an axis may reach beyond the volume.
    inside = tuple(slice(size) for size in full)
    return probabilities[(slice(None), *inside)]
