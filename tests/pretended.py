"""A pretended second device: tests find what would fail, or wait, on a GPU without having one.

Tensors of the pretended device say that they are on "meta" and hold real values. An operation that
mixes them with tensors of the CPU raises ``MixedDevicesError``; an operation that makes the CPU
wait for the device is counted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from segbench.nn.blocks import _interpolation
from segbench.training import placement

ROOT = Path(__file__).resolve().parents[1]
# Torch computes gradients of its tensors without a driver, which it does for no real device.
DEVICE = "meta"
COPIES = ("aten::_to_copy", "aten::copy_")
# Operations whose result, or its size, must be known to the CPU before it can go on.
WAITING = {
    "aten::_local_scalar_dense",  # item(), float(), bool(), an index, a bound of a slice
    "aten::nonzero",
    "aten::masked_select",
    "aten::repeat_interleave",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
}
MASKED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class MixedDevicesError(Exception):
    """An operation got tensors of both devices."""


@dataclass(frozen=True)
class Wait:
    """One operation that makes the CPU wait."""

    operation: str
    file: str  # of the repository, where the operation was called
    function: str


@dataclass
class Record:
    """What the pretended device has seen."""

    waits: list[Wait] = field(default_factory=list)
    operations: int = 0
    events: int = 0  # recorded and not waited for

    def record(self) -> None:
        """Stand for an event that is recorded after a copy was queued."""
        self.events += 1

    def synchronize(self) -> None:
        """Wait for such an event."""
        self.events -= 1


class OnDevice(Tensor):
    """A tensor of the pretended device."""

    values: Tensor
    record: Record
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, record: Record) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        made.record = record
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice))
        return compute(func, args, kwargs or {}, first.record)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of the pretended device has no numpy array")

    def __deepcopy__(self, memo: Any) -> Any:
        copy = OnDevice(self.values.clone(), self.record)
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(copy, self.requires_grad)
        return copy.requires_grad_(self.requires_grad)


def compute(func: Any, args: Any, kwargs: dict[str, Any], record: Record) -> Any:
    """Compute an operation with the real values; its result is on the pretended device."""
    name = func._schema.name
    record.operations += 1
    _refuse_mixture(name, func, args, kwargs)
    if _waits(name, args, kwargs):
        record.waits.append(_wait(name))

    def real(leaf: Any) -> Any:
        return leaf.values if isinstance(leaf, OnDevice) else leaf

    def pretended(leaf: Any) -> Any:
        return OnDevice(leaf, record) if isinstance(leaf, Tensor) else leaf

    real_kwargs = dict(kwargs)
    if kwargs.get("device") is not None:
        real_kwargs["device"] = torch.device("cpu")
    result = func(*tree_map(real, args), **tree_map(real, real_kwargs))
    if name == "aten::copy_" and not isinstance(args[0], OnDevice):
        return args[0]
    if _is(kwargs.get("device"), "cpu"):
        return result.clone() if name == "aten::_to_copy" else result
    return return_and_correct_aliasing(func, args, kwargs, tree_map(pretended, result))


def _is(device: Any, kind: str) -> bool:
    return device is not None and torch.device(device).type == kind


def _refuse_mixture(name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        raise MixedDevicesError(f"{name} on the device got a generator of the CPU: {_place()}")
    if name in COPIES:
        return
    pointwise = torch.Tag.pointwise in func.tags
    for leaf in tree_leaves((args, kwargs)):
        if not isinstance(leaf, Tensor) or isinstance(leaf, OnDevice):
            continue
        # torch takes a single number of the CPU in an operation that works element by element.
        if pointwise and leaf.ndim == 0:
            continue
        raise MixedDevicesError(f"{name} got a tensor of the CPU: {_place()}")


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name in WAITING:
        return True
    if name in COPIES:
        blocking = not kwargs.get("non_blocking", False)
        if name == "aten::copy_":
            blocking = not (len(args) > 2 and args[2]) and blocking
            return blocking and not all(isinstance(side, OnDevice) for side in args[:2])
        return blocking and _is(kwargs.get("device"), "cpu")  # to the device: see ``Mode``
    if name in MASKED:
        masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
        fills = len(args) > 2 and args[2].numel() == 1  # torch fills by the mask itself then
        return bool(masks) and not fills
    return False


def _wait(name: str) -> Wait:
    file, function = _place()
    return Wait(name, file, function)


def _place() -> tuple[str, str]:
    """Return the file and function of this repository, outside this file, that work is done for."""
    frame: Any = sys._getframe(1)
    while True:
        file = frame.f_code.co_filename
        ours = file.startswith(str(ROOT)) and "site-packages" not in file
        if ours and file != __file__:
            return str(Path(file).relative_to(ROOT)), frame.f_code.co_name
        frame = frame.f_back


class Mode(TorchDispatchMode):
    """While it is active, the pretended device can be named wherever torch takes a device."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, OnDevice) for tensor in tensors)
        if any(tensor.is_meta and not isinstance(tensor, OnDevice) for tensor in tensors):
            raise MixedDevicesError(f"numbers of Python became a tensor of the device: {_place()}")
        goes_there = _is(kwargs.get("device"), DEVICE)
        is_copy = func._schema.name == "aten::_to_copy"
        if is_copy and goes_there and not there and not kwargs.get("non_blocking", False):
            self.record.waits.append(_wait("to the device"))
        if there or goes_there:
            return compute(func, args, kwargs, self.record)
        return func(*args, **kwargs)


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """Make ``DEVICE`` usable; yields what it sees."""
    autocast = torch.autocast

    def without_meta(device_type: str, *args: Any, **kwargs: Any) -> Any:
        # torch has no automatic precision there, not even one that is off.
        return nullcontext() if device_type == DEVICE else autocast(device_type, *args, **kwargs)

    record = Record()
    _interpolation.cache_clear()
    with monkeypatch.context() as patch, Mode(record):
        patch.setattr(torch, "autocast", without_meta)
        patch.setattr(placement, "IN_BACKGROUND", (DEVICE,))
        patch.setattr(torch.cuda, "Event", lambda: record)
        yield record
    _interpolation.cache_clear()  # of tensors that say they are on "meta"
