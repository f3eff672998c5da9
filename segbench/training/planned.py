"""The plan of a prepared data set: its facts, the memory of its network, and where it is kept.

``<data_root>/<data set>/plan/<fingerprint>/<protocol>.yaml`` is the one plan of a data set: the
first run that names no protocol writes it, and all later runs read it, whatever their method. Other
data have another fingerprint, and so another plan. A changed file is another protocol, because all
its values are part of the identity of a run.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch

from segbench import registry
from segbench.config.planning import (
    BACKBONE,
    NETWORKS,
    DataFacts,
    Device,
    PlannedProtocol,
    make_plan,
)
from segbench.config.protocol import Protocol, load_protocol
from segbench.contracts.backbone import Backbone
from segbench.data.store.store import Store
from segbench.errors import UsageError
from segbench.nn.inspect import cost, dry_run
from segbench.storage import atomic_write, lock, make_folder

WAIT = 900.0  # seconds to wait while another process plans
SMALLER = 0.8  # of the memory, after a step of the plan did not fit
SAMPLE = 4  # multiples of the coarsest stride along each axis of the patch that is measured


@dataclass(frozen=True)
class StoredPlan:
    """The plan of a data set on disk."""

    file: Path
    kind: str  # of device: "cpu" or "gpu"


def facts_of(store: Store) -> DataFacts:
    """Return what a plan depends on, from the training cases of a prepared data set."""
    cases = [store.cases[case] for case in store.train]
    shape = _medians([case.shape for case in cases])
    spacings = [case.spacing for case in cases if case.spacing is not None]
    return DataFacts(
        name=store.name,
        fingerprint=store.fingerprint,
        shape=tuple(round(edge) for edge in shape),
        spacing=_medians(spacings) if len(spacings) == len(cases) else None,
        channels=store.channels,
        classes=len(store.classes) + 1,
        cases=len(cases),
        labeled=sum(case.has_label for case in cases),
    )


def _medians(rows: list[tuple[Any, ...]]) -> tuple[float, ...]:
    return tuple(statistics.median(column) for column in zip(*rows, strict=True))


def device_to_plan_for(device: str, memory: int | None = None) -> Device:
    """Return what is known of a device.

    Args:
        device: cpu, mps, cuda or cuda:N. Of mps no memory is known: it gets the plan of a CPU.
        memory: bytes, for a GPU that is not in this machine.

    Raises:
        UsageError: the memory of the GPU is not known.
    """
    if memory is not None:
        return Device("gpu", memory)
    if not device.startswith("cuda"):
        return Device("cpu")
    if torch.cuda.is_available():
        return Device("gpu", torch.cuda.get_device_properties(device).total_memory)
    raise UsageError(
        "the memory of the GPU is not known",
        found="no GPU in this machine",
        expected="its memory in GiB",
        fix="--device cuda --memory 24",
    )


def plan_of(store: Store, device: Device, try_on: str = "") -> PlannedProtocol:
    """Return the plan of a prepared data set, whose network can be built.

    Args:
        store: the data set.
        device: what to plan for.
        try_on: the GPU on which one step is tried; the plan is made smaller until it fits.
    """
    facts = facts_of(store)
    memory = MemoryCounter(facts)
    while True:
        plan = make_plan(facts, device, memory.bytes_per_voxel)
        protocol = plan.protocol()
        network = _network(protocol.backbone.params, facts, len(protocol.patch))
        dry_run(network, facts.channels, protocol.patch)
        if not try_on or _fits(network, protocol, facts, try_on):
            return plan
        device = replace(device, memory=int(device.memory * SMALLER))


class MemoryCounter:
    """Counts the activations of the planned network, with the counter of ``describe backbone``."""

    def __init__(self, facts: DataFacts) -> None:
        self.facts = facts
        self._known: dict[str, float] = {}  # by parameters and number of axes

    def bytes_per_voxel(self, params: dict[str, Any], axes: int) -> float:
        """Return the bytes that training keeps per voxel of an image, the same for all patches."""
        key = f"{axes} {params}"
        if key not in self._known:
            network = _network(params, self.facts, axes)
            patch = tuple(SAMPLE * unit for unit in network.multiple(network.p, axes))
            found = cost(network, self.facts.channels, patch)
            self._known[key] = found.activation_bytes / prod(patch)
        return self._known[key]


def _network(params: dict[str, Any], facts: DataFacts, axes: int) -> Backbone:
    backbone_class = registry.get("backbone", BACKBONE).cls
    network: Backbone = backbone_class(
        backbone_class.Params(**params), facts.channels, axes, (facts.classes,)
    )
    return network


def _fits(network: Backbone, protocol: Protocol, facts: DataFacts, device: str) -> bool:
    """Return whether the activations of a batch fit, for as many networks as a method may train."""
    batch = protocol.batch.labeled + protocol.batch.unlabeled
    try:
        networks = [copy.deepcopy(network).to(device) for _ in range(NETWORKS)]
        image = torch.zeros(batch, facts.channels, *protocol.patch, device=device)
        outputs = [each(image) for each in networks]
        sum(output.square().mean() for output in outputs).backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return True


def wrong_device(plan: StoredPlan, name: str, device: str) -> str:
    """Return a warning if a data set's plan was made for another kind of device, else nothing."""
    kind = "gpu" if device.startswith("cuda") else "cpu"
    if plan.kind == kind:
        return ""
    planned, used = ("a CPU", "a GPU") if kind == "gpu" else ("a GPU", "a CPU")
    option = "--device cuda" if kind == "gpu" else "--device cpu"
    return (
        f"the protocol {plan.file} was planned for {planned}, and this is {used}. All runs of the "
        "data set keep it, so that methods are compared under one protocol; to plan again: "
        f"segbench protocol new --dataset {name} {option} --store"
    )


# -- the plan on disk ------------------------------------------------------------------------------


def plan_folder(store: Store) -> Path:
    """Return the folder that holds the plan of a data set."""
    return store.root / "plan" / store.fingerprint[:12]


def planned_file(store: Store, protocol: Protocol) -> Path | None:
    """Return the file of a protocol if it is the stored plan of the data set."""
    file = plan_folder(store) / f"{protocol.name}.yaml"
    return file if protocol.planned and file.is_file() else None


def stored_plan(store: Store, device: str) -> StoredPlan:
    """Return the plan of a data set; make it for a device if there is none.

    Raises:
        StorageError: it cannot be written.
        BusyError: another process has been planning for too long.
    """
    found = find_plan(store)
    if found is not None:
        return found
    with lock(store.root / "plan" / "lock", wait=WAIT):
        found = find_plan(store)  # another process may have made it while this one waited
        if found is not None:
            return found
        target = device_to_plan_for(device)
        plan = plan_of(store, target, device if target.kind == "gpu" else "")
        return keep_plan(store, plan)


def keep_plan(store: Store, plan: PlannedProtocol) -> StoredPlan:
    """Make a plan the one that runs of the data set use if they name no protocol."""
    folder = plan_folder(store)
    make_folder(folder)
    file = folder / f"{plan.name}.yaml"
    atomic_write(file, plan.text().encode())
    for other in folder.glob("*.yaml"):
        if other != file:
            other.unlink()
    return StoredPlan(file, _kind(file))


def find_plan(store: Store) -> StoredPlan | None:
    """Return the plan of a data set, None if there is none yet.

    Raises:
        UsageError: its file is damaged.
    """
    for file in sorted(plan_folder(store).glob("*.yaml")):
        load_protocol(file)  # refuses a damaged file
        return StoredPlan(file, _kind(file))
    return None


def _kind(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def planner(
    opened: Callable[[str], Store], device: Callable[[], str], warn: Callable[[str], None]
) -> Callable[[str], Path]:
    """Return the function with which ``config.resolve`` plans for a data set without a protocol.

    Args:
        opened: opens a data set by its name.
        device: returns the device of the runs; it is asked only if a plan is needed.
        warn: called if the plan was made for another kind of device.
    """

    @cache
    def file_of(name: str) -> Path:
        chosen = device()
        found = stored_plan(opened(name), chosen)
        problem = wrong_device(found, name, chosen)
        if problem:
            warn(problem)
        return found.file

    return file_of
