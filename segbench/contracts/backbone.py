"""The contract of a backbone: an encoder giving a feature pyramid, decoders giving full-resolution features, heads on top.

A method asks for what it needs when it builds its networks::

    network()                                        one head with K outputs
    network(heads=(1, 2))                            two heads on the same features (SASSNet, DTC)
    network(heads=())                                features only, through encode and decode (VerSemi)
    network(decoders=("transposed", "trilinear"))    several decoders, one head each (MC-Net)
    network(side_outputs=True)                       one prediction a scale, all at full size (URPC)

``forward`` gives logits: one tensor, or a tuple in the order of heads, decoders or scales when several were asked for.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from segbench.contracts.params import BackboneParams
from segbench.errors import UsageError

__all__ = ["Backbone", "BackboneParams"]


class Backbone(nn.Module):
    """Base of every backbone.

    Attributes set by the constructor: ``channels`` and ``strides`` of the pyramid, fine to coarse (strides per axis,
    relative to the input), ``width`` of the full-resolution features a head reads.
    """

    Params: ClassVar[type[BackboneParams]] = BackboneParams
    provides: ClassVar[frozenset[str]] = (
        frozenset()
    )  # of {"heads", "decoders", "side_outputs", "features", "dropout"}
    variants: ClassVar[
        tuple[str, ...]
    ] = ()  # of a family: some of its members; the family itself is no network
    name: ClassVar[str]

    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    width: int

    def __init__(
        self,
        params: BackboneParams,
        channels: int,
        dims: int,
        heads: tuple[int, ...],
        decoders: tuple[str, ...] = ("transposed",),
        side_outputs: bool = False,
    ) -> None:
        """``channels`` input channels, ``dims`` 2 or 3, ``heads`` outputs of each head, ``decoders`` up-sampling of each."""
        super().__init__()
        self.p: Any = params

    def encode(self, image: Tensor) -> list[Tensor]:
        """Feature pyramid of (B, C, *S), fine to coarse; the last entry is the bottleneck (before any dropout)."""
        raise NotImplementedError

    def decode(self, pyramid: list[Tensor], decoder: int = 0) -> list[Tensor]:
        """Decoder features, fine to coarse; entry 0 has full resolution and is what a head reads (after dropout)."""
        raise NotImplementedError

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        """Logits of one head from full-resolution features."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits (B, K, *S), or a tuple of them (module docstring)."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """Parts whose activations may be computed again going backward: by default what lists and dictionaries hold."""
        return [
            m
            for box in self.modules()
            if isinstance(box, (nn.ModuleList, nn.ModuleDict))
            for m in box.children()
            if not isinstance(m, (nn.ModuleList, nn.ModuleDict))
        ]

    @classmethod
    def variant(cls, name: str) -> type[Backbone]:
        """The class of ``family:name``.

        Raises:
            UsageError: there is no such member.
        """
        raise UsageError(
            f"backbone '{cls.name}' has no variants",
            found=f"{cls.name}:{name}",
            fix=f"--backbone {cls.name}",
        )

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """What each edge of an input must be a multiple of."""
        raise NotImplementedError

    @classmethod
    def check_patch(cls, params: Any, patch: tuple[int, ...]) -> None:
        """Refuse inputs of a size the network cannot take.

        Raises:
            UsageError: with the nearest sizes, and the depth, that would fit.
        """
        unit = cls.multiple(params, len(patch))
        if not any(n % m for n, m in zip(patch, unit, strict=True)):
            return
        near = [
            sorted({max(m, n // m * m), -(-n // m) * m}, key=lambda e, n=n: abs(e - n))[0]  # type: ignore[misc]
            for n, m in zip(patch, unit, strict=True)
        ]
        if near == list(unit):  # one voxel at the bottleneck, which few networks can normalize
            near = [2 * m for m in unit]
        fix = f"-o patch={'x'.join(map(str, near))}"
        for depth in range(getattr(params, "depth", 2) - 1, 1, -1):
            smaller = cls.multiple(params.model_copy(update={"depth": depth}), len(patch))
            if not any(n % m for n, m in zip(patch, smaller, strict=True)):
                fix += f", or -o backbone.depth={depth}"
                break
        raise UsageError(
            f"the patch does not fit backbone '{cls.name}'",
            found="x".join(map(str, patch)),
            expected=f"edges that are multiples of {'x'.join(map(str, unit))}",
            fix=fix,
        )
