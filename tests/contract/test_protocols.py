"""Every protocol that comes with segbench: complete, frozen, and fit for its backbone."""

import hashlib

import pytest

from segbench import registry
from segbench.config import load_protocol, protocol_names
from segbench.config.protocol import SPEED_KEYS
from segbench.storage import json_bytes

# A changed protocol is another protocol: raise its version and enter the new digest. Old results keep their version.
FROZEN = {
    ("acdc", 1): "47a031b87b00f979",
    ("acdc-3d", 1): "36cdbfd992125c3a",
    ("default", 1): "b0a64c2fe3a1d457",
    ("heart-mini", 1): "a18070c21c0b56ed",
    ("heart-mini", 2): "d18bad6a6a477c3d",
    ("la", 1): "06362d4a6ecaf3c7",
    ("la-mini", 1): "69e3559b4fdb4ae7",
    ("msd", 1): "bb3151fa0c602f0c",
    ("msd_thorax", 1): "d87538ac86beb5d8",
    ("pancreas_ct", 1): "3529e8c94112c7bb",
    ("pancreas_ct_mcnet", 1): "cfa616bed813e8cb",
    ("phantom", 1): "0a40ec6c7e13e1d6",
    ("versemi", 1): "598f23dc5f496f56",
}


def content_digest(protocol):
    content = protocol.model_dump(mode="json", exclude={"title", "datasets"})
    for key in SPEED_KEYS:
        outer, inner = key.split(".")
        del content[outer][inner]
    return hashlib.sha256(json_bytes(content)).hexdigest()[:16]


@pytest.mark.parametrize("name", protocol_names())
def test_frozen(name):
    protocol = load_protocol(name)
    assert content_digest(protocol) == FROZEN[name, protocol.version], (
        "a value changed: raise the version"
    )


@pytest.mark.parametrize("name", protocol_names())
def test_complete(name):
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.title and protocol.labeled
    assert protocol.selection == "last", "test labels never choose a checkpoint"
    backbone = registry.get("backbone", protocol.backbone.name).cls
    multiple = backbone.multiple(backbone.Params(**protocol.backbone.params), len(protocol.patch))
    assert not any(p % m for p, m in zip(protocol.patch, multiple, strict=True))
