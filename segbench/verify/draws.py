"""Give two programs the same random draws, and compute both in the same precision."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

NORMAL = (torch.randn, torch.randn_like)
UNIFORM = (torch.rand, torch.rand_like)
DROPOUT = (F.dropout, F.dropout2d, F.dropout3d)


class EqualDraws(TorchFunctionMode):
    """Makes random draws functions of the step, their kind, and their number within the step.

    Kinds have separate streams, so programs may make draws of different kinds in any order. With
    ``wide``, what asks for float32 gets float64. Tensors stay in main memory.
    """

    def __init__(self, wide: bool, axes: int = 3, dropout: bool = True) -> None:
        super().__init__()
        self.wide = wide
        self.dropout = dropout  # whether anything is dropped
        self.axes = axes  # of the images
        self.step = 0
        self.counts: Counter[str] = Counter()
        self.group: list[int] = []  # sizes of the draws of the current corners

    def __enter__(self) -> EqualDraws:
        self.usual_type = torch.get_default_dtype()
        if self.wide:
            torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self.usual_type)

    def begin(self, step: int) -> None:
        """Start a step."""
        self.step = step
        self.counts.clear()
        self.group.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, or draw in its place."""
        kwargs = kwargs or {}
        if self.wide:
            args = tuple(map(_widened, args))
            kwargs = {name: _widened(value) for name, value in kwargs.items()}
        if func is Tensor.cuda:
            return args[0]
        if func is Tensor.float and self.wide:
            return args[0].double()
        if func in NORMAL or func in UNIFORM:
            return self._values(func, args, kwargs)
        if func is torch.randint:
            return self._corners(args[0], args[1])
        if func in DROPOUT and _drops(args, kwargs):
            return self._dropped(func, args, kwargs)
        return func(*args, **kwargs)

    def _dropped(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """Return the input times a mask that does not depend on its layout in memory.

        If nothing is dropped, the input itself is returned.
        """
        image: Tensor = args[0]
        if not self.dropout:
            return image
        ones = torch.ones(image.shape, dtype=image.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed("dropout"))
            mask: Tensor = func(ones, *args[1:], **kwargs)
        return image * mask

    def integer(self, low: int, high: int | None = None) -> int:
        """Return a number from {low, ..., high - 1}, or {0, ..., low - 1}, as numpy's randint."""
        if high is None:
            low, high = 0, low
        number = self.counts["integer"]
        self.counts["integer"] += 1
        return low + self._integer(number, high - low)

    def fraction(self) -> float:
        """Return a number from [0, 1)."""
        return self._seed("fraction") / 2**63

    def between(self, low: float, high: float) -> float:
        """Return a number from [low, high)."""
        return low + (high - low) * self.fraction()

    def _corners(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Return numbers below ``high``: one axis of the corners of several boxes.

        The authors draw box after box, our methods axis after axis. Both get the same corners.
        """
        (count,) = shape
        if len(self.group) == self.axes:
            self.counts["integer"] += sum(self.group)
            self.group.clear()
        first = self.counts["integer"] + len(self.group)
        self.group.append(count)
        values = [self._integer(first + self.axes * item, high) for item in range(count)]
        return torch.tensor(values)

    def _values(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        like = args[0] if args and isinstance(args[0], Tensor) else None
        shape = like.shape if like is not None else _shape(args)
        if shape == torch.Size([]):
            return torch.tensor(self.fraction())
        kind = "normal" if func in NORMAL else "uniform"
        draw = torch.randn if func in NORMAL else torch.rand
        generator = torch.Generator().manual_seed(self._seed(kind))
        values = draw(shape, generator=generator, dtype=torch.float64)
        wanted = kwargs.get("dtype") or (like.dtype if like is not None else None)
        return values.to(wanted or torch.get_default_dtype())

    def _seed(self, kind: str) -> int:
        number = self.counts[kind]
        self.counts[kind] += 1
        return _hashed(self.step, kind, number)

    def _integer(self, number: int, count: int) -> int:
        return _hashed(self.step, "integer", number) % max(count, 1)


def _hashed(*key: object) -> int:
    """Return a number below 2^63 that depends on ``key`` only."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _shape(args: Any) -> torch.Size:
    sizes = args[0] if args and not isinstance(args[0], int) else args
    return torch.Size(sizes)


def _drops(args: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a call of a dropout function drops anything: (input, p, training)."""
    p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    training = args[2] if len(args) > 2 else kwargs.get("training", True)
    return bool(training and p > 0)
