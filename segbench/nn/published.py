"""Load weights that others published, whose tensors have other names than ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

__all__ = ["load_named"]


def load_named(net: nn.Module, state: Mapping[str, Tensor], name_of: Callable[[str], str]) -> None:
    """Load published weights.

    Args:
        net: network to load them into.
        state: tensors by their published names.
        name_of: returns the published name of a key of the network's state dict.

    Raises:
        RuntimeError: tensors are missing, differ in shape, or have no place in the network.
    """
    left = dict(state)
    own = {}
    for key in net.state_dict():
        name = name_of(key)
        if name in left:
            own[key] = left.pop(name)
    net.load_state_dict({**own, **left})
