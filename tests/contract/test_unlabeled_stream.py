"""With its weights at 0, a method of a CPU protocol learns nothing from unlabeled images.

Batch normalization broke this: labeled and unlabeled images of one pass shared their statistics.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch

from segbench import Batch, Clock, registry
from segbench.config import load_protocol, protocol_names
from segbench.contracts.method import Setting, Source
from segbench.training.build import network_factory

# The protocols for the CPU: a training takes seconds or minutes there.
PROTOCOLS = [name for name in protocol_names() if load_protocol(name).expected.seconds is not None]
# Parameters that are the weights of all terms on unlabeled images, where they are not ``weight``.
WEIGHTS = {
    "uncl": ("weight", "uncertainty_weight"),
    "unimatch": ("image_weight", "feature_weight"),
}
# Methods that show unlabeled images in labeled terms too, so that no weight takes them out.
MIXING = {
    "bcp": "parts of unlabeled images are pasted into labeled ones",
    "sdcl": "as bcp",
    "versemi": "the synthetic task is on unlabeled images too",
}
METHODS = [name for name in registry.names("method") if name not in ("supervised", *MIXING)]


def small_patch(protocol):
    return (16,) * len(protocol.patch)


def build(name, protocol, weights=True, **changes):
    """Return a method with a protocol's network and parameters, without dropout."""
    cls = registry.get("method", name).cls
    params = dict(protocol.methods.get(name, {}))
    if not weights:
        params.update(dict.fromkeys(WEIGHTS.get(name, ("weight",)), 0.0))
    setting = Setting((Source("set", ("organ",)),), 1, small_patch(protocol))
    torch.manual_seed(0)
    method = cls(cls.Params(**params), setting)
    own = {**protocol.backbone.params, "dropout": 0.0, **changes}
    Params = registry.get("backbone", protocol.backbone.name).cls.Params
    known = {key: value for key, value in own.items() if key in Params.model_fields}
    backbone = Params(**known).model_dump()  # with the defaults, as a run passes them
    network = network_factory(protocol.backbone.name, backbone, setting, cls.needs, cls.backbones)
    method.build(network)
    return method.train()


def losses(method, protocol):
    """Return the sum of a method's terms beside two different pairs of unlabeled images."""
    patch = small_patch(protocol)
    noise = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, *patch, generator=noise)
    labels = torch.zeros(2, *patch, dtype=torch.int64)
    labels[:, 3:9, 4:11] = 1
    images[:2] += 3 * labels[:, None]
    clock = Clock(9, 10, method.phases()[-1].name)  # where ramps have ended
    found = []
    for unlabeled in (images[2:4], 5 + 4 * images[4:]):
        batch = Batch(images[:2], labels, unlabeled, torch.zeros(4, dtype=torch.int64))
        torch.manual_seed(2)
        found.append(sum(method.loss(batch, clock).values()).item())
    return found


@pytest.mark.parametrize(("protocol", "name"), list(product(PROTOCOLS, METHODS)))
def test_without_its_weights_unlabeled_images_change_no_loss(protocol, name):
    settings = load_protocol(protocol)
    one, other = losses(build(name, settings, weights=False), settings)
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("changes", [{"norm": "batch"}, {"weights": True}])
def test_an_influence_would_be_found(changes):
    settings = load_protocol("phantom2d")
    method = build("mean_teacher", settings, **{"weights": False, **changes})
    one, other = losses(method, settings)
    assert one != pytest.approx(other, rel=1e-4)
