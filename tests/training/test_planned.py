"""Plans of prepared data sets: facts, memory, the stored file, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import small_folders as small
import torch

from segbench.config import load_protocol, resolve
from segbench.config.planning import GIB, Device, Topology
from segbench.data.open import case_counters, open_store, prepare
from segbench.errors import UsageError
from segbench.nn.inspect import cost
from segbench.training import planned
from segbench.training.planned import (
    MemoryCounter,
    device_to_plan_for,
    facts_of,
    find_plan,
    keep_plan,
    plan_of,
    planner,
    stored_plan,
)

SHAPE = (24, 20, 6)


def thin(image, label):
    return image[: SHAPE[0], : SHAPE[1], : SHAPE[2]], label[: SHAPE[0], : SHAPE[1], : SHAPE[2]]


@pytest.fixture
def folder(tmp_path):
    own = small.OwnFolder(tmp_path / "Dataset007_Mine")
    own.fill(change=thin)
    return own


@pytest.fixture
def store(lab, folder):
    return prepare(folder.name, None, lab.folder / "segbench-data")


def resolved(store, **choices):
    def opened(name):
        return open_store(name, store.root.parent)

    plan = planner(opened, lambda: "cpu", pytest.fail)
    return resolve(
        choices.pop("method", "supervised"),
        dataset=store.name,
        plan=plan,
        **case_counters(opened),
        **choices,
    )


# -- facts and memory ------------------------------------------------------------------------------


def test_facts_are_medians_of_the_training_cases(store):
    found = facts_of(store)
    assert (found.name, found.channels, found.classes) == (store.name, 1, 2)
    assert (found.cases, found.labeled) == (len(store.train), 4)
    shapes = [store.cases[case].shape for case in store.train]
    assert found.shape == tuple(int(edge) for edge in np.median(shapes, axis=0))
    assert found.spacing == (1.0, 1.0, 1.5)
    case = store.train[0]
    unknown = replace(store.cases[case], spacing=None)
    assert facts_of(replace(store, cases={**store.cases, case: unknown})).spacing is None


def test_memory_per_voxel_is_that_of_the_counter_of_whole_patches(store):
    found = facts_of(store)
    params = Topology(((2, 2, 1), (2, 2, 2)), ((3, 3, 1), (3, 3, 3), (3, 3, 3))).params(4)
    per_voxel = MemoryCounter(found).bytes_per_voxel(params, 3)
    network = planned._network(params, found, 3)
    patch = (48, 40, 12)
    assert cost(network, 1, patch).activation_bytes == pytest.approx(
        per_voxel * np.prod(patch), rel=0.01
    )


def test_devices_to_plan_for():
    assert device_to_plan_for("cpu") == Device("cpu")
    assert device_to_plan_for("mps") == Device("cpu")
    assert device_to_plan_for("cuda", 8 * GIB) == Device("gpu", 8 * GIB)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="memory of the GPU"):
            device_to_plan_for("cuda")


def test_a_step_that_does_not_fit_makes_the_plan_smaller(store, monkeypatch):
    tried = []

    def fits(network, protocol, facts, device):
        tried.append(protocol.planned)
        return len(tried) == 3

    monkeypatch.setattr(planned, "_fits", fits)
    plan_of(store, Device("gpu", 20 * GIB), try_on="cuda")
    assert [text.rpartition("GPU with ")[2][:6] for text in tried] == ["20 GiB", "16 GiB", "13 GiB"]


def test_a_dry_step_runs_the_networks_and_notices_full_memory(store, monkeypatch):
    found = facts_of(store)
    protocol = plan_of(store, Device("cpu")).protocol()
    network = planned._network(protocol.backbone.params, found, len(protocol.patch))
    assert planned._fits(network, protocol, found, "cpu")

    def full(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(network), "forward", full)
    assert not planned._fits(network, protocol, found, "cpu")


# -- the stored plan -------------------------------------------------------------------------------


def test_the_first_run_plans_and_later_ones_keep_it(store):
    assert find_plan(store) is None
    first = resolved(store)
    file = find_plan(store).file
    assert file.stem == f"{store.name}_cpu" and file.is_relative_to(store.root)
    (experiment,) = first.experiments
    assert experiment.protocol == load_protocol(file)
    assert experiment.modified == ()
    assert first.sources["protocol"] == f"planned for data set {store.name}"
    written = file.read_bytes()
    other = resolved(store, method="mean_teacher", overrides=["steps=3"])
    assert file.read_bytes() == written
    assert other.experiments[0].modified == ("steps",)
    assert other.experiments[0].protocol.patch == experiment.protocol.patch


def test_a_changed_plan_is_used_and_is_another_protocol(store):
    before = resolved(store).experiments[0].protocol
    file = find_plan(store).file
    file.write_text(file.read_text().replace("lr: 0.003", "lr: 0.001"))
    after = resolved(store).experiments[0].protocol
    assert (before.optim.lr, after.optim.lr) == (0.003, 0.001)


def test_other_data_are_planned_again(lab, folder, store):
    first = stored_plan(store, "cpu").file
    folder.case("c99", 99)
    small_lists = small.drawn_lists(lab.folder / "segbench-data", store.name)
    folder.lists(**{**small_lists, "unlabeled": [*small_lists["unlabeled"], "c99"]})
    again = prepare(folder.name, None, lab.folder / "segbench-data")
    assert stored_plan(again, "cpu").file.parent != first.parent


def test_a_protocol_that_is_named_wins_and_nothing_is_planned(store):
    named = resolved(store, protocol="phantom", overrides=["steps=3"])
    assert named.experiments[0].protocol.name == "phantom"
    assert find_plan(store) is None


def test_a_data_set_with_a_protocol_keeps_it():
    (experiment,) = resolve("supervised", dataset="la", plan=pytest.fail).experiments
    assert experiment.protocol == load_protocol("la")


def test_a_plan_for_another_device_is_kept_with_a_warning(store):
    keep_plan(store, plan_of(store, Device("gpu", 8 * GIB)))
    warnings = []
    file = planner(lambda name: store, lambda: "cpu", warnings.append)(store.name)
    assert file.stem == f"{store.name}_gpu"
    assert f"protocol new --dataset {store.name} --device cpu --store" in warnings[0]
    keep_plan(store, plan_of(store, Device("cpu")))
    assert [file.stem for file in file.parent.glob("*.yaml")] == [f"{store.name}_cpu"]


# -- the commands ----------------------------------------------------------------------------------


def test_run_prepares_a_new_folder_and_says_that_it_planned(lab, folder):
    folder.case("small", 9, labeled=False, change=lambda *pair: (pair[0][:12, :12, :6], None))
    done = lab.call("run", "supervised", "--dataset", folder.name, "-o", "steps=1")
    assert done.returncode == 0, done.stderr
    assert "will be padded" not in done.stderr
    assert "cases prepared in" in done.stdout and "  lists: " in done.stdout
    header = " ".join(done.stderr.split())
    assert "protocol planned from the data, a small one for a CPU" in header
    store = open_store(folder.name, lab.folder / "segbench-data")
    assert load_protocol(find_plan(store).file).patch[0] > store.cases["small"].shape[0]
    assert f"segbench protocol new --dataset {store.name} -o mine.yaml" in header


def test_suites_use_the_plan(lab, store):
    suite = f"schema: 1\nname: own\nmatrix: {{method: [supervised], dataset: [{store.name}]}}\n"
    (lab.folder / "own.yaml").write_text(suite)
    done = lab.call("bench", "plan", "own.yaml")
    assert done.returncode == 0, done.stderr
    assert find_plan(store) is not None


def test_protocol_new_writes_a_file_of_ones_own(lab, store):
    words = ("protocol", "new", "--dataset", store.name)
    shown = lab.call(*words)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("# A SMALL plan for a CPU")
    assert find_plan(store) is None
    written = lab.call(*words, "-o", "mine.yaml")
    assert written.returncode == 0, written.stderr
    mine = load_protocol(lab.folder / "mine.yaml")
    assert mine.name == "mine"
    stored = load_protocol(stored_plan(store, "cpu").file)
    assert mine == stored.model_copy(update={"name": "mine"})
    own = resolved(store, protocol=lab.folder / "mine.yaml").experiments[0]
    assert own.protocol == mine


def test_protocol_new_copies_the_plan_in_force(lab, store):
    file = stored_plan(store, "cpu").file
    file.write_text(file.read_text().replace("lr: 0.003", "lr: 0.001"))
    lab.call("protocol", "new", "--dataset", store.name, "-o", "copy.yaml")
    assert load_protocol(lab.folder / "copy.yaml").optim.lr == 0.001


def test_protocol_new_stores_a_plan_for_a_gpu_elsewhere(lab, store):
    words = ("protocol", "new", "--dataset", store.name, "--memory", "8", "--store", "--json")
    document = json.loads(lab.call(*words).stdout)
    assert document["title"].endswith("6,000 steps (GPU with 8 GiB)")
    assert find_plan(store).kind == "gpu"


@pytest.mark.parametrize(
    ("file", "message"),
    [("mine.txt", "is a .yaml file"), ("la.yaml", "another protocol"), ("old.yaml", "exists")],
)
def test_protocol_new_refuses_names(lab, store, file, message):
    (lab.folder / "old.yaml").write_text("name: old\n")
    done = lab.call("protocol", "new", "--dataset", store.name, "-o", file)
    assert done.returncode == 2 and message in done.stderr
