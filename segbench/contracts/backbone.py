"""Define the interface of a backbone: an encoder, one or more decoders, and output heads.

The encoder returns a feature pyramid, the decoders return full-resolution features, and the heads
return logits. A method requests the parts it needs when it builds its networks::

    network()                                        one head with K output channels
    network(heads=(1, 2))                            two heads on the same features (SASSNet, DTC)
    network(heads=())                                no head: call encode and decode (VerSemi)
    network(decoders=("transposed", "trilinear"))    several decoders, one head each (MC-Net)
    network(side_outputs=True)                       one full-size prediction per scale (URPC)

``forward`` returns logits: one tensor, or a tuple if several heads, decoders or scales were
requested. The tuple follows the order of the heads, decoders or scales.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from segbench.contracts.params import BackboneParams
from segbench.errors import UsageError

__all__ = ["Backbone", "BackboneParams"]


class Backbone(nn.Module):
    """Base class of all backbones.

    The constructor of a subclass sets three attributes:

    - ``channels``: number of channels of each pyramid level, fine to coarse.
    - ``strides``: strides of each level along each axis relative to the input, fine to coarse.
    - ``width``: number of channels of the full-resolution features, which a head takes as input.
    """

    Params: ClassVar[type[BackboneParams]] = BackboneParams
    # Supported options, a subset of {"heads", "decoders", "side_outputs", "features", "dropout"}.
    provides: ClassVar[frozenset[str]] = frozenset()
    # Example members of a family of networks. A family itself cannot be built.
    variants: ClassVar[tuple[str, ...]] = ()
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
        """Build the network.

        Args:
            params: the parameters of the backbone.
            channels: number of input channels.
            dims: number of spatial axes, 2 or 3.
            heads: number of output channels of each head.
            decoders: upsampling method of each decoder.
            side_outputs: whether to return one full-size prediction per decoder scale.
        """
        super().__init__()
        self.p: Any = params

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the feature pyramid of an image (B, C, *S), fine to coarse.

        The last entry is the bottleneck before dropout.
        """
        raise NotImplementedError

    def decode(self, pyramid: list[Tensor], decoder: int = 0) -> list[Tensor]:
        """Return the decoder features, fine to coarse.

        Entry 0 has full resolution, includes dropout, and is the input of the heads.
        """
        raise NotImplementedError

    def head(self, features: Tensor, head: int = 0) -> Tensor:
        """Return the logits of one head, computed from full-resolution features."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (B, K, *S), or a tuple of logits; see the module docstring."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """Return the modules whose activations can be recomputed in the backward pass.

        By default, these are the entries of all module lists and module dictionaries.
        """
        return [
            m
            for box in self.modules()
            if isinstance(box, (nn.ModuleList, nn.ModuleDict))
            for m in box.children()
            if not isinstance(m, (nn.ModuleList, nn.ModuleDict))
        ]

    @classmethod
    def variant(cls, name: str) -> type[Backbone]:
        """Return the class of the backbone ``family:name``.

        Raises:
            UsageError: the family has no member with this name.
        """
        raise UsageError(
            f"backbone '{cls.name}' has no variants",
            found=f"{cls.name}:{name}",
            fix=f"--backbone {cls.name}",
        )

    @classmethod
    def multiple(cls, params: Any, dims: int) -> tuple[int, ...]:
        """Return the number that the input size must be a multiple of, for each axis."""
        raise NotImplementedError

    @classmethod
    def check_patch(cls, params: Any, patch: tuple[int, ...]) -> None:
        """Check that the network can process patches of this size.

        Raises:
            UsageError: the size does not fit; the error suggests a size and a depth that do.
        """
        unit = cls.multiple(params, len(patch))
        if not any(n % m for n, m in zip(patch, unit, strict=True)):
            return
        near = [
            sorted({max(m, n // m * m), -(-n // m) * m}, key=lambda e, n=n: abs(e - n))[0]  # type: ignore[misc]
            for n, m in zip(patch, unit, strict=True)
        ]
        if near == list(unit):  # few networks can normalize a single bottleneck voxel
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
            expected=f"a patch size that is a multiple of {'x'.join(map(str, unit))}",
            fix=fix,
        )
