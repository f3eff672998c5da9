"""Training cases that stay on the device, where patches are cut out of them.

A patch then needs no copy from main memory and no time of a CPU core beside the training step. The
draws are those of ``TrainingData``, and so are the patches: to the byte, and with strong
augmentation up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segbench.data.sampling import strong, strong_on_device
from segbench.data.sampling.batches import Item, StoreLike, TrainingCase, TrainingData
from segbench.data.sampling.crops import Cut, nearest, overlap
from segbench.errors import UsageError

SAME_BYTES = ("none", "mirror")  # augmentation with which patches are the same on every device
IN_MAIN_MEMORY = "turn"  # augmentation that no device computes here


class ResidentData(TrainingData):
    """``TrainingData`` whose volumes are copied to a device when they are used first."""

    def __init__(
        self,
        stores: Mapping[str, StoreLike],
        labeled: Mapping[str, int],
        protocol: Any,
        seed: int,
        *,
        device: torch.device,
        share: Callable[[range], range],
    ) -> None:
        """Open the training cases; see ``TrainingData`` for the arguments.

        Raises:
            UsageError: the protocol's augmentation is computed in main memory; or as
                ``TrainingData``.
            DataError: a case cannot be read.
        """
        if protocol.augment == IN_MAIN_MEMORY:
            raise UsageError(
                "patches of this protocol are computed in main memory",
                found=f"augment: {protocol.augment}, and --resident yes",
                expected="augment: none, mirror, strong or strong_mirror",
                fix="--resident auto",
            )
        super().__init__(stores, labeled, protocol, seed, share=share)
        self.device = device
        self._volumes: dict[int, Tensor] = {}  # by the identity of what a case reads from

    def _cut(self, items: list[Item], count: int) -> tuple[Tensor, Tensor]:
        images = torch.zeros((len(items), self.channels, *self.patch), device=self.device)
        labels = torch.empty((count, *self.patch), dtype=torch.int64, device=self.device)
        for i, item in enumerate(items):
            image = self._resident(item.case, "image")
            target = images[i, : len(image)]
            view = self._draw_view(item, len(image))
            take_warped(image, item.cut, view.warp, target, pad=item.case.pad)
            strong_on_device.change_intensities(target, view.changes)
            if i < count:
                label = self._resident(item.case, "label")
                take_warped(label, item.cut, view.warp, labels[i], by_nearest=True)
        return images, labels

    def _resident(self, case: TrainingCase, which: str) -> Tensor:
        """Return an image (C, *S) or a label (*S) on the device."""
        key = id(getattr(case, which))  # slices of one volume share it, and keep it alive
        if key not in self._volumes:
            array = np.array(case.read_volume(which))
            self._volumes[key] = torch.from_numpy(array).to(self.device)
        volume = self._volumes[key]
        return volume if case.plane is None else volume[..., case.plane]


def take_warped(
    volume: Tensor,
    cut: Cut,
    warp: strong.Warp,
    out: Tensor,
    *,
    by_nearest: bool = False,
    pad: Sequence[float] = (),
) -> None:
    """Copy a patch with a warp, as ``strong.take_warped`` does with arrays."""
    if warp.matrix is None:
        cut_out(volume, cut, out, pad)
    else:
        strong_on_device.resample(volume, cut, warp.matrix, out, by_nearest=by_nearest, pad=pad)
    if warp.mirrored:
        first = out.ndim - len(cut.corner)
        out.copy_(out.flip([first + axis for axis in warp.mirrored]))


def cut_out(volume: Tensor, cut: Cut, out: Tensor, pad: Sequence[float] = ()) -> None:
    """Copy a patch into ``out`` (..., *P), as ``crops.take`` does with arrays.

    Args:
        volume: image (C, *S) or label (*S).
        cut: where the patch comes from; without an angle.
        out: the patch, one dtype for all volumes.
        pad: value outside the volume for each channel; empty means 0.
    """
    first = 1 if len(cut.corner) < volume.ndim else 0  # the first spatial axis
    if cut.turns:
        volume = torch.rot90(volume, cut.turns, (first, first + 1))
    if cut.mirror is not None:
        volume = volume.flip(first + cut.mirror)
    patch = out.shape[first:]
    if cut.zoom:
        for axis, edge in enumerate(patch, first):
            kept = torch.from_numpy(nearest(volume.shape[axis], edge)).to(volume.device)
            volume = volume.index_select(axis, kept)
        out.copy_(volume)
        return
    part = overlap(volume.shape[first:], cut, patch)
    if not part.whole:
        out.zero_()
        for channel, value in enumerate(pad):
            out[channel].fill_(value)
    leading = (slice(None),) * first
    out[leading + part.of_patch] = volume[leading + part.of_volume]


def resident_bytes(stores: Mapping[str, StoreLike], labeled: Mapping[str, int]) -> int:
    """Return the size of the training images and of the labels of the labeled cases, in bytes."""
    total = 0
    for name, store in stores.items():
        for position, case in enumerate(store.train):
            total += store.image(case).nbytes
            if position < labeled[name]:
                total += store.label(case).nbytes
    return total
