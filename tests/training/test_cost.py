"""Cost: what is counted, that counting changes nothing, and that stops lose nothing of it."""

import sys
from types import SimpleNamespace

import pytest
import torch

from segbench.contracts.backbone import Backbone
from segbench.errors import Interrupted
from segbench.training import checkpoint
from segbench.training.cost import Cost, _energy
from segbench.training.run import execute

CPU = torch.device("cpu")


def volumes(lab, method):
    execute(lab.prepared(method), lab.machine())
    return lab.prepared(method).folder.manifest()["phases"]


@pytest.mark.parametrize(
    "method, expected",
    [
        ("supervised", [("train", 6, 4)]),  # four labeled patches
        ("mean_teacher", [("train", 6, 6)]),  # four by the student, two by the teacher
        ("cps", [("train", 6, 8)]),  # four by each of two networks
    ],
)
def test_volumes_of_a_step(lab, method, expected):
    assert [(p["name"], p["steps"], p["volumes"]) for p in volumes(lab, method)] == expected


def test_each_phase_is_counted(lab):
    phases = volumes(lab, "bcp")
    assert len(phases) == 2 and sum(p["steps"] for p in phases) == 6
    assert all(p["volumes"] > 0 for p in phases)


def test_counting_leaves_the_classes_as_they_were(lab):
    def methods():
        return {
            (c, n): vars(c).get(n)
            for c in [Backbone, *Backbone.__subclasses__()]
            for n in ("forward", "encode")
        }

    from segbench import registry

    registry.get("backbone", "vnet")
    before = methods()
    execute(lab.prepared("mean_teacher"), lab.machine())
    assert methods() == before


def test_counting_ends_when_a_step_fails(lab):
    from segbench.training.build import build

    run = lab.prepared("supervised")
    method, cost = build(run.experiment, run.stores), Cost(CPU)
    kind = type(next(m for m in method.modules() if isinstance(m, Backbone)))
    own = kind.forward
    with pytest.raises(ValueError), cost.counted(method, "train"):
        assert kind.forward is not own
        raise ValueError
    assert kind.forward is own and cost.volumes == {}


def test_a_stop_loses_nothing(lab):
    run = lab.prepared("mean_teacher")

    def stop(progress):
        if progress.step == 4:
            raise Interrupted("stop", 130)

    with pytest.raises(Interrupted):
        execute(run, lab.machine(), lab.reporter(train=stop))
    _, _, header, _ = checkpoint.load(run.folder.path / "ckpt")
    assert header["cost"]["volumes"] == {"train": 6} and header["cost"]["cpu_seconds"] > 0
    folder = run.folder.path / "ckpt"
    step, state, _, _ = checkpoint.load(folder)
    checkpoint.save(
        folder,
        step,
        state,
        {
            **header,
            "cost": {
                **header["cost"],
                "cpu_seconds": 1000.0,
                "energy_joules": 5.0,
                "peak_memory_bytes": 1 << 50,
            },
        },
    )
    execute(run, lab.machine())
    manifest = run.folder.manifest()
    assert 1000 < manifest["cpu_seconds"] < 1100 and manifest["peak_memory_bytes"] == 1 << 50
    assert manifest["energy_joules"] is None, (
        "this attempt was not measured: a part is not the whole"
    )


def test_energy_adds_up_over_attempts(monkeypatch):
    counter = iter([100.0, 130.0, 1000.0, 1007.5])
    monkeypatch.setattr("segbench.training.cost._energy", lambda device: next(counter))
    first = Cost(CPU)
    stored = first.to_dict()
    assert stored["energy_joules"] == 30.0
    second = Cost(CPU)
    second.restore(stored)
    assert second.to_dict()["energy_joules"] == 37.5


def test_what_an_old_checkpoint_does_not_know_stays_unknown():
    cost = Cost(CPU)
    cost.restore(None)
    assert cost.to_dict()["cpu_seconds"] is None and cost.to_dict()["peak_memory_bytes"] > 0


def test_energy_is_read_from_nvml_in_joules_by_uuid(monkeypatch):
    class NVMLError(Exception):
        pass

    def total(handle):
        if handle != "handle of GPU-1234":
            raise NVMLError
        return 2500  # mJ

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetTotalEnergyConsumption=total,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    gpu = torch.device("cuda", 0)
    for uuid, joules in (("1234", 2.5), ("5678", None)):
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device, uuid=uuid: SimpleNamespace(uuid=uuid),
        )
        assert _energy(gpu) == joules
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert _energy(gpu) is None and _energy(CPU) is None
