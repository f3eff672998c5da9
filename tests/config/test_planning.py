"""Plans: rules from a fingerprint to a protocol. The cases are typical data sets of the field."""

from __future__ import annotations

from math import ceil, prod

import pytest

from segbench.config.planning import (
    CPU_VOXELS,
    GIB,
    DataFacts,
    Device,
    fitted_patch,
    has_thick_slices,
    make_plan,
    reduction,
    topology,
)
from segbench.config.protocol import Protocol, load_protocol
from segbench.identity.run_id import protocol_content

CPU = Device("cpu")


def facts(name: str, shape, spacing, channels: int = 1) -> DataFacts:
    return DataFacts(name, "f" * 64, shape, spacing, channels, 2, 20, 8)


ATRIUM = facts("atrium", (190, 140, 88), (0.625, 0.625, 0.625))
HEART = facts("heart", (256, 216, 9), (1.52, 1.52, 10.0))
SAGITTAL = facts("sagittal", (20, 256, 256), (4.0, 0.8, 0.8))
HIPPOCAMPUS = facts("hippocampus", (36, 50, 35), (1.0, 1.0, 1.0))
BODY = facts("body", (512, 512, 300), (0.8, 0.8, 2.5))
PHOTOS = facts("photos", (384, 288), None, 3)
ONE_SLICE = facts("one_slice", (256, 256, 1), (1.0, 1.0, 1.0))
ALL = [ATRIUM, HEART, SAGITTAL, HIPPOCAMPUS, BODY, PHOTOS, ONE_SLICE]


def plan_for(found: DataFacts, device: Device):
    return make_plan(found, device, lambda params, axes: 50.0 * params["width"])


@pytest.mark.parametrize("memory", [0, 4, 8, 24, 80])
@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_every_plan_is_a_protocol_whose_patch_fits_its_network(found, memory):
    device = Device("gpu", memory * GIB) if memory else CPU
    plan = plan_for(found, device)
    protocol = plan.protocol()
    params = protocol.backbone.params
    axes = len(protocol.patch)
    pooling = params.get("pooling", [[2] * axes] * (params["depth"] - 1))
    for axis, edge in enumerate(protocol.patch):
        assert edge % prod(factors[axis] for factors in pooling) == 0
    assert protocol.inference.stride == tuple(edge // 2 for edge in protocol.patch)
    assert len(found.shape) - axes in (0, 1)


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
@pytest.mark.parametrize("device", [CPU, Device("gpu", 8 * GIB)], ids=["cpu", "gpu"])
def test_the_file_is_the_plan(tmp_path, found, device):
    plan = plan_for(found, device)
    file = tmp_path / "mine.yaml"
    file.write_text(plan.text("mine"))
    assert load_protocol(file) == plan.protocol("mine")
    lines = plan.text().splitlines()
    assert all(plan.reasons[key] for key in ("steps", "patch", "batch.labeled", "optim.lr"))
    assert sum(line.lstrip().startswith("# ") for line in lines) > 15


def test_a_cpu_gets_a_small_plan_that_says_so():
    plan = plan_for(ATRIUM, CPU)
    protocol = plan.protocol()
    assert plan.text().startswith("# A SMALL plan for a CPU")
    assert "(CPU)" in protocol.title
    assert "for a CPU" in protocol.planned
    assert prod(protocol.patch) <= CPU_VOXELS[3]
    assert protocol.steps < plan_for(ATRIUM, Device("gpu", 8 * GIB)).protocol().steps


def test_a_plan_is_a_function_of_its_facts():
    assert plan_for(BODY, CPU).text() == plan_for(BODY, CPU).text()


@pytest.mark.parametrize("found", ALL, ids=lambda found: found.name)
def test_the_patch_of_a_cpu_covers_a_quarter_of_the_volume(found):
    protocol = plan_for(found, CPU).protocol()
    axes = len(protocol.patch)
    factors = protocol.factors(found.name, axes)
    reduced = [ceil(n / f) for n, f in zip(found.shape[:axes], factors, strict=True)]
    covered = prod(min(p / n, 1) for p, n in zip(protocol.patch, reduced, strict=True))
    assert covered > 0.2 or max(factors) == 8


def test_more_memory_gives_a_larger_patch_up_to_24_gib():
    patches = [prod(plan_for(BODY, Device("gpu", n * GIB)).protocol().patch) for n in (4, 8, 24)]
    assert patches == sorted(set(patches))
    largest = plan_for(BODY, Device("gpu", 80 * GIB)).protocol()
    assert prod(largest.patch) == patches[-1]


def test_the_memory_of_two_networks_stays_below_four_fifths():
    per_voxel = 50.0 * 32
    for found in ALL:
        protocol = plan_for(found, Device("gpu", 8 * GIB)).protocol()
        items = protocol.batch.labeled + protocol.batch.unlabeled
        assert 2 * items * prod(protocol.patch) * per_voxel <= 0.8 * 8 * GIB


# -- single rules ----------------------------------------------------------------------------------


def test_topology_of_thick_slices_as_published():
    """nnU-Net's network for ACDC: 20x256x224 at 5 x 1.56 x 1.56 mm, first axis coarse."""
    net = topology((256, 224, 20), (1.5625, 1.5625, 5.0), 6)
    assert net.pooling == ((2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))
    assert net.kernels == ((3, 3, 1), *[(3, 3, 3)] * 5)
    assert net.multiple == (32, 32, 4)


def test_topology_of_short_isotropic_axes():
    """nnU-Net's network for the hippocampus: 40x56x40 at 1 mm, three poolings."""
    net = topology((40, 56, 40), (1.0, 1.0, 1.0), 6)
    assert net.pooling == ((2, 2, 2),) * 3
    assert net.kernels == ((3, 3, 3),) * 4


def test_topology_ends_at_the_levels_of_the_network_and_at_small_maps():
    assert len(topology((256, 256, 256), (1.0,) * 3, 4).kernels) == 4
    assert topology((7, 7), (1.0, 1.0), 5).pooling == ()
    assert topology((8, 3), (1.0, 1.0), 5).pooling == ()  # a single axis needs twelve voxels
    assert topology((12, 3), (1.0, 1.0), 5).pooling == ((2, 1),)


def test_thick_slices_are_much_coarser_and_fewer():
    assert has_thick_slices(HEART)
    assert not has_thick_slices(BODY)  # 300 slices are not few
    assert not has_thick_slices(ATRIUM)
    assert not has_thick_slices(SAGITTAL)  # not the last axis
    assert not has_thick_slices(PHOTOS)
    assert not has_thick_slices(facts("unknown", (256, 216, 9), None))


def test_the_finest_axis_is_reduced_first():
    assert reduction((100, 100, 10), (1.0, 1.0, 5.0), 10_000 * 10) == (1, 1, 1)
    assert reduction((100, 90, 10), (1.0, 1.0, 5.0), 50 * 45 * 10) == (2, 2, 1)
    assert reduction((64, 64, 64), (1.0, 1.0, 1.0), 32**3) == (2, 2, 2)
    assert reduction((5000, 5000), (1.0, 1.0), 10) == (8, 8)  # no more than a protocol allows


def test_a_patch_that_cannot_fit_is_the_smallest_one():
    patch, net = fitted_patch((64, 64), (1.0, 1.0), 4, lambda patch, net: False)
    assert prod(patch) <= 64
    assert all(edge % unit == 0 for edge, unit in zip(patch, net.multiple, strict=True))


def test_thick_slices_are_trained_in_two_axes_on_a_cpu_only():
    on_cpu = plan_for(HEART, CPU).protocol()
    on_gpu = plan_for(HEART, Device("gpu", 8 * GIB)).protocol()
    assert (len(on_cpu.patch), len(on_gpu.patch)) == (2, 3)
    assert on_gpu.backbone.params["pooling"][0] == [2, 2, 1]
    assert on_gpu.backbone.params["kernels"][0] == [3, 3, 1]


# -- what of a plan is identity --------------------------------------------------------------------


def test_where_a_plan_comes_from_is_no_part_of_identity_but_its_values_are():
    protocol = plan_for(ATRIUM, CPU).protocol()
    other_origin = protocol.model_copy(update={"planned": "", "title": "another"})
    assert protocol_content(other_origin) == protocol_content(protocol)
    other_steps = protocol.model_copy(update={"steps": protocol.steps + 1})
    assert protocol_content(other_steps) != protocol_content(protocol)
    assert protocol_content(plan_for(ATRIUM, CPU).protocol("mine")) != protocol_content(protocol)


def test_factors_per_axis_hold_for_every_data_set():
    base = load_protocol("default").model_dump()
    protocol = Protocol(**{**base, "downsample": (4, 4, 1)})
    assert protocol.factors("any", 3) == (4, 4, 1)
    with pytest.raises(ValueError, match="expected 3 factors"):
        Protocol(**{**base, "downsample": (4, 4)})
    in_slices = {**base, "patch": (64, 64), "downsample": (4, 2)}
    in_slices["inference"] = {"stride": (32, 32)}
    assert Protocol(**in_slices).factors("any", 3) == (4, 2, 1)
