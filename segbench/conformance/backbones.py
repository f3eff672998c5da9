"""Checks of a backbone: shapes, gradients, state, and the options that it says it provides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from segbench import registry
from segbench.conformance.methods import Drill, Trial
from segbench.contracts.backbone import Backbone
from segbench.errors import PLUGIN_FAILURES, UsageError

CAPABILITIES = frozenset({"heads", "decoders", "side_outputs", "features", "dropout"})
BATCH = 2
# Arguments that ask for an option, and the number of outputs then; 0: more than one.
REQUESTS: dict[str, tuple[dict[str, Any], int]] = {
    "heads": ({"heads": (1, 2)}, 2),
    "decoders": ({"decoders": ("transposed", "trilinear")}, 2),
    "side_outputs": ({"side_outputs": True}, 0),
}


@dataclass(frozen=True)
class BackboneTrial:
    """A small network of a backbone, in 2-D or 3-D."""

    name: str
    dims: int

    def build(self, channels: int = 1, heads: tuple[int, ...] = (2,), **options: Any) -> Backbone:
        """Return a network with the same weights always."""
        backbone_class = registry.get("backbone", self.name).cls
        params = backbone_class.Params(**Trial("", self.name).params)
        torch.manual_seed(0)
        network: Backbone = backbone_class(params, channels, self.dims, heads, **options)
        return network

    def image(self, channels: int = 1) -> Tensor:
        """Return noise (B, C, *S) of a size that fits the network."""
        patch = Trial("", self.name, dims=self.dims).patch
        generator = torch.Generator().manual_seed(1)
        return torch.rand(BATCH, channels, *patch, generator=generator)


BackboneCheck = Callable[[BackboneTrial], None]


def logits(trial: BackboneTrial) -> None:
    """``forward`` returns finite logits, one channel per class, on the grid of the image."""
    for channels, classes in ((1, 2), (2, 4)):
        image = trial.image(channels)
        output = trial.build(channels, (classes,))(image)
        assert isinstance(output, Tensor), f"a {type(output).__name__}, expected one tensor"
        expected = (BATCH, classes, *image.shape[2:])
        assert tuple(output.shape) == expected, f"shape {tuple(output.shape)}, expected {expected}"
        assert output.isfinite().all(), "the logits are not finite"


def gradients(trial: BackboneTrial) -> None:
    """A gradient reaches every parameter."""
    network = trial.build().train()
    output = network(trial.image())
    weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"


def determinism(trial: BackboneTrial) -> None:
    """In eval mode two calls give the same, and in train mode chance comes from torch alone."""
    network = trial.build()
    image = trial.image()
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(image), network(image)), (
            "two calls in eval mode differ: something random is active"
        )
        network.train()
        outputs = []
        for _ in range(2):
            torch.manual_seed(3)
            outputs.append(network(image))
    assert torch.allclose(*outputs), (
        "two calls with the same seed differ in train mode: use torch's generators"
    )


def state(trial: BackboneTrial) -> None:
    """The state dict holds everything: a second network with it gives the same."""
    network = trial.build()
    image = trial.image()
    with torch.no_grad():
        network.train()(image)  # moves running means, if there are any
        expected = network.eval()(image)
        other = type(network)(network.p, 1, trial.dims, (2,)).eval()
        other.load_state_dict(network.state_dict())
        found = other(image)
    assert torch.equal(found, expected), "a network with the same state dict gives other logits"


def options(trial: BackboneTrial) -> None:
    """Each option that is provided works, and each other one is refused with a UsageError."""
    provides = registry.get("backbone", trial.name).cls.provides
    for name, (arguments, count) in REQUESTS.items():
        if name in provides:
            _check_outputs(trial, name, arguments, count)
            continue
        try:
            trial.build(**arguments)
        except UsageError:
            continue
        raise AssertionError(f"'{name}' is not in `provides`, but a request for it is not refused")


def _check_outputs(trial: BackboneTrial, name: str, arguments: dict[str, Any], count: int) -> None:
    image = trial.image()
    outputs = trial.build(**arguments)(image)
    assert isinstance(outputs, tuple), f"{name}: a {type(outputs).__name__}, expected a tuple"
    assert len(outputs) == count or (count == 0 and len(outputs) > 1), (
        f"{name}: {len(outputs)} outputs, expected {count or 'several'}"
    )
    channels = arguments.get("heads", (2,) * len(outputs))
    for output, classes in zip(outputs, channels, strict=True):
        expected = (BATCH, classes, *image.shape[2:])
        assert tuple(output.shape) == expected, (
            f"{name}: shape {tuple(output.shape)}, expected {expected}"
        )


def features(trial: BackboneTrial) -> None:
    """``encode``, ``decode`` and ``head`` together give what ``forward`` gives."""
    network = trial.build().eval()
    image = trial.image()
    if "features" not in network.provides:
        return
    with torch.no_grad():
        pyramid = network.encode(image)
        assert len(pyramid) == len(network.channels) == len(network.strides), (
            f"{len(pyramid)} maps, but channels {network.channels} and strides {network.strides}"
        )
        maps = network.decode(pyramid)
        assert maps[0].shape[1:] == (network.width, *image.shape[2:]), (
            f"the first map of `decode` has shape {tuple(maps[0].shape)}, "
            f"expected {network.width} channels at full resolution"
        )
        assert torch.equal(network.head(maps[0]), network(image)), (
            "`head` of the decoded features differs from `forward`"
        )


def other_sizes(trial: BackboneTrial) -> None:
    """An image whose size does not fit is refused with a UsageError that says what to do."""
    network = trial.build().eval()
    unit = network.multiple(network.p, trial.dims)
    assert len(unit) == trial.dims, f"`multiple` returns {unit}, expected {trial.dims} numbers"
    if max(unit) == 1:
        return
    shape = []
    for size, multiple in zip(trial.image().shape[2:], unit, strict=True):
        shape.append(size + (multiple > 1))
    try:
        network(torch.zeros(1, 1, *shape))
    except UsageError as error:
        assert error.details["fix"], "the error has no `fix`"
        return
    except PLUGIN_FAILURES as error:
        raise AssertionError(f"{type(error).__name__}, expected a UsageError") from error
    raise AssertionError(f"an image of {shape} is accepted, but `multiple` is {unit}")


def training(trial: BackboneTrial) -> None:
    """Supervised training makes finite steps."""
    Drill(Trial("supervised", trial.name, dims=trial.dims)).run()


CHECKS: dict[str, BackboneCheck] = {
    "logits": logits,
    "gradients": gradients,
    "determinism": determinism,
    "state": state,
    "options": options,
    "features": features,
    "other sizes": other_sizes,
    "training": training,
}


def documented(name: str) -> None:
    """The class and every parameter have a description, and numbers have a range."""
    backbone_class = registry.get("backbone", name).cls
    assert backbone_class.__doc__, "the class has no docstring"
    unknown = sorted(backbone_class.provides - CAPABILITIES)
    assert not unknown, f"`provides` names {unknown[0]}, expected some of {sorted(CAPABILITIES)}"
    fields = backbone_class.Params.model_fields
    schema = backbone_class.Params.model_json_schema().get("properties", {})
    for key, info in fields.items():
        assert info.description, f"parameter '{key}' has no description"
        is_number = schema[key].get("type") in ("integer", "number")
        has_limit = bool({"minimum", "exclusiveMinimum"} & schema[key].keys())
        assert has_limit or not is_number, f"parameter '{key}' has no range (ge=, gt=, le=, lt=)"


def supported_axes(name: str) -> list[int]:
    """Return the numbers of axes that a backbone accepts.

    Raises:
        UsageError: it accepts none.
    """
    found = []
    refusal: UsageError | None = None
    for dims in (2, 3):
        try:
            BackboneTrial(name, dims).build()
            found.append(dims)
        except UsageError as error:
            refusal = error
        except SystemExit:  # the checks will find it
            found.append(dims)
    if not found and refusal is not None:
        raise refusal
    return found


def backbone_trials(name: str) -> list[tuple[str, Callable[[], None]]]:
    """Return all checks of a backbone as (description, function to call)."""
    found: list[tuple[str, Callable[[], None]]] = [("documented", partial(documented, name))]
    for dims in supported_axes(name):
        trial = BackboneTrial(name, dims)
        for what, function in CHECKS.items():
            found.append((f"{what} ({dims}-D)", partial(function, trial)))
    return found
