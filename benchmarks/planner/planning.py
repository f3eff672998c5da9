"""Compare planned protocols with the choices of nnU-Net v2 on the same fingerprints.

    python benchmarks/planner/planning.py

prints the tables of docs/explanation/planning.md. The planner is that of the engine. The part on
nnU-Net is written from its published rules (MIC-DKFZ/nnUNet, Apache-2.0: default_experiment_planner
and network_topology; for the memory, PlainConvUNet of MIC-DKFZ/dynamic-network-architectures);
no code was copied. ``nnunet_plans.py`` stored what nnU-Net's own package chooses: the same in
three axes (held by a test), and the plans in two axes that stand in the table. Nothing is
trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from segbench.config.planning import (
    GIB,
    DataFacts,
    Device,
    Topology,
    has_thick_slices,
    make_plan,
    topology,
)
from segbench.training.planned import MemoryCounter

# Median shapes and spacings after nnU-Net's crop, last axis across slices. Decathlon: Isensee et
# al., arXiv:1809.10486, Table 1, and the data set's own headers. ACDC: the published data; left
# atrium: the circulating crops.
FINGERPRINTS = (
    DataFacts("left atrium", "", (190, 140, 88), (0.625, 0.625, 0.625), 1, 2, 80, 8),
    DataFacts("ACDC", "", (216, 256, 9), (1.52, 1.52, 10.0), 1, 4, 140, 14),
    DataFacts("Decathlon heart", "", (232, 320, 115), (1.25, 1.25, 1.37), 1, 2, 20, 4),
    DataFacts("Decathlon hippocampus", "", (35, 50, 36), (1.0, 1.0, 1.0), 1, 3, 260, 26),
    DataFacts("Decathlon prostate", "", (319, 320, 20), (0.62, 0.62, 3.6), 2, 3, 32, 4),
)
DEVICES = (Device("cpu"), Device("gpu", 8 * GIB), Device("gpu", 24 * GIB))

STORED = Path(__file__).resolve().parents[1] / "results" / "nnunet-plans.json"
BASE = 32  # channels of nnU-Net at full resolution
MOST = 320  # channels of any level
EDGE = 4  # least edge of a pooled map
REFERENCE = 560_000_000  # values of feature maps that nnU-Net allows for 8 GB and a batch of 2
START = 256**3  # voxels of the first patch


@dataclass(frozen=True)
class NnunetPlan:
    """What nnU-Net v2 chooses for its configuration 3d_fullres and a memory of 8 GB."""

    patch: tuple[int, ...]
    batch: int
    net: Topology


def nnunet_plan(facts: DataFacts) -> NnunetPlan:
    """Return nnU-Net's choices for a fingerprint that is already at the target spacing."""
    spacing = facts.known_spacing
    scale = (START * prod(spacing)) ** (1 / 3)
    patch = [min(round(scale / s), n) for s, n in zip(spacing, facts.shape, strict=True)]
    patch, net = _pooled(patch, spacing)
    while feature_values(patch, net, facts.classes) > REFERENCE:
        covered = [edge / n for edge, n in zip(patch, facts.shape, strict=True)]
        axis = covered.index(max(covered))
        # The step is that of the patch shortened once, so that no size is skipped.
        shorter = list(patch)
        shorter[axis] -= net.multiple[axis]
        step = topology(shorter, spacing, UNLIMITED).multiple[axis]
        patch[axis] -= step
        patch, net = _pooled(patch, spacing)
    batch = round(REFERENCE / feature_values(patch, net, facts.classes) * 2)
    most = round(prod(facts.shape) * facts.cases * 0.05 / prod(patch))  # 5 % of all voxels
    return NnunetPlan(tuple(patch), max(min(batch, most), 2), net)


UNLIMITED = 99


def _pooled(patch: Sequence[int], spacing: Sequence[float]) -> tuple[list[int], Topology]:
    """Return a patch rounded up to what its own topology needs."""
    net = topology(patch, spacing, UNLIMITED)
    rounded = [-(-edge // unit) * unit for edge, unit in zip(patch, net.multiple, strict=True)]
    return rounded, net


def feature_values(patch: Sequence[int], net: Topology, classes: int) -> int:
    """Return the number of values in the outputs of all convolutions, nnU-Net's memory estimate.

    Two convolutions per level in the encoder and in the decoder, a transposed convolution per
    level of the decoder, and the prediction.
    """
    sizes = [list(patch)]
    for factors in net.pooling:
        sizes.append([-(-edge // f) for edge, f in zip(sizes[-1], factors, strict=True)])
    total = classes * prod(patch)
    for level, size in enumerate(sizes):
        channels = min(BASE * 2**level, MOST)
        convolutions = 2 if level == len(sizes) - 1 else 5
        total += convolutions * channels * prod(size)
    return total


def _by(edges: Sequence[int]) -> str:
    return "x".join(map(str, edges))


def poolings(pooling: Sequence[Sequence[int]]) -> str:
    """Return how often each axis is pooled."""
    axes = range(len(pooling[0]))
    return ", ".join(str(sum(factors[axis] == 2 for factors in pooling)) for axis in axes)


def package_plan(name: str, configuration: str) -> dict[str, Any]:
    """Return the plan of nnU-Net's own package for a fingerprint, as it was stored."""
    plans: list[dict[str, Any]] = json.loads(STORED.read_text())["plans"]
    (found,) = [
        plan for plan in plans if (plan["data"], plan["configuration"]) == (name, configuration)
    ]
    return found


def rows(facts: DataFacts) -> Iterator[list[str]]:
    """Return the rows of one fingerprint: planner, patch, share, batch, poolings."""
    theirs = nnunet_plan(facts)
    spacing = _by_mm(facts.known_spacing)
    yield [
        f"{facts.name}, {_by(facts.shape)}, {spacing}",
        "nnU-Net v2, 8 GB",
        _by(theirs.patch),
        str(theirs.batch),
        poolings(theirs.net.pooling),
        "1",
    ]
    if has_thick_slices(facts):
        flat = package_plan(facts.name, "2d")
        pooled = ", ".join(map(str, flat["poolings"]))
        patch = _by(flat["patch"])
        yield ["", "nnU-Net v2, 8 GB, slices", patch, str(flat["batch"]), pooled, "1"]
    memory = MemoryCounter(facts)
    for device in DEVICES:
        protocol = make_plan(facts, device, memory.bytes_per_voxel).protocol()
        axes = len(protocol.patch)
        params = protocol.backbone.params
        default = [[2] * axes] * (params["depth"] - 1)
        batch = protocol.batch
        yield [
            "",
            f"segbench, {device.title}",
            _by(protocol.patch),
            f"{batch.labeled} + {batch.unlabeled}",
            poolings(params.get("pooling", default)),
            _by(protocol.factors(facts.name, axes)),
        ]


def _by_mm(spacing: Sequence[float]) -> str:
    return f"{'x'.join(f'{s:.3g}' for s in spacing)} mm"


def table() -> str:
    """Return the table of all fingerprints in Markdown."""
    columns = ("data: median shape, spacing", "plan", "patch", "batch", "poolings", "downsampled")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for facts in FINGERPRINTS:
        for row in rows(facts):
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
