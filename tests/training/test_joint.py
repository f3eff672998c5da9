"""One training over data sets that differ in size, spacing, channels and number of classes."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from segbench import registry
from segbench.data.open import derived
from segbench.data.sampling.batches import TrainingData
from segbench.data.store.checks import require_apart
from segbench.errors import DataError

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
TOGETHER = """name: together
steps: 4
patch: [16, 16, 16]
batch: {labeled: 2, unlabeled: 2}
downsample: {tiny: [2, 2, 1]}
inference: {stride: [8, 8, 8]}
backbone: {name: vnet, params: {width: 4, depth: 3}}
labeled: [2]
"""


@pytest.fixture
def together(lab):
    registry.add_file(PLUGINS / "scans.py")
    (lab.folder / "together.yaml").write_text(TOGETHER)
    return lab


@pytest.mark.parametrize("sampling", ["proportional", "balanced"])
def test_volumes_of_every_kind_meet_in_one_batch(together, sampling):
    """Both data sets give batches of their own shape and channels, padded to the patch.

    tiny: 20 x 20 x 20, halved in plane, 1 channel; scans_two: 12 x 10 x 8 cubes of 2 mm, 2
    channels; padded to 16.
    """
    run = together.prepared(
        "versemi",
        dataset="tiny,scans_two",
        protocol=together.folder / "together.yaml",
        overrides=[f"sampling={sampling}"],
    )
    protocol, (tiny, two) = run.experiment.protocol, run.stores
    views = {s.name: derived(s, protocol.factors(s.name, s.dims)) for s in run.stores}
    assert [v.cases[v.train[0]].shape for v in views.values()] == [(10, 10, 20), (12, 10, 8)]
    data = TrainingData(views, run.experiment.labeled, protocol, 0)
    shares = []
    for step in range(40):
        batch = data.batch(0, step, 2, 2)
        assert batch.x.shape == batch.u.shape == (2, 2, 16, 16, 16) and batch.y.shape == (
            2,
            16,
            16,
            16,
        )
        names = data.cases(0, step, 2, 2)
        for item, (name, source) in enumerate(zip(names, batch.source.tolist(), strict=True)):
            store = (tiny, two)[source]
            image = (batch.x, batch.u)[item // 2][item % 2].numpy()
            view, case = views[store.name], name.partition("/")[2]
            assert name.startswith(f"{store.name}/") and case in store.train
            # Every voxel of a short axis is there, around it zeros; channels that a data set lacks
            # are zero.
            assert image[0].any() and bool(image[1].any()) == (source == 1)
            values = np.unique(view.image(case)[0])
            assert np.isin(image[0][image[0] != 0], values).all()
            assert batch.y[item].max() <= len(store.classes) if item < 2 else True
        shares += batch.source.tolist()
    first = shares.count(0) / len(shares)
    # Pools: 2 of 4 labeled cases, 4 of 6 unlabeled ones are tiny's: (1/2 + 2/3) / 2; balanced: 1/2.
    assert abs(first - (7 / 12 if sampling == "proportional" else 1 / 2)) < 0.09


def test_one_command_compares_a_joint_method_with_one_network_a_data_set(together):
    data = ("--dataset", "tiny,scans_two", "--protocol", "together.yaml", "--json")
    joint = json.loads(together.call("run", "versemi", *data).stdout)
    alone = json.loads(together.call("run", "supervised", *data).stdout)
    assert set(joint["metrics"]) == set(alone["metrics"]) == {"tiny", "scans_two"}
    assert "runs" not in joint and len(alone["runs"]) == 2
    boards = json.loads(together.call("leaderboard", "--format", "json").stdout)["boards"]
    assert {b["dataset"]: sorted(r["method"] for r in b["rows"]) for b in boards} == {
        "scans_two": ["supervised", "versemi (joint)"],
        "tiny": ["supervised", "versemi (joint)"],
    }
    with h5py.File(together.folder / "scan.h5", "w") as file:
        file["image"] = np.zeros((20, 20, 20), np.float32)
    call = ("predict", joint["run_id"], "scan.h5", "-o", "out")
    asked = together.call(*call)
    assert asked.returncode == 2 and "--dataset tiny" in asked.stderr
    assert together.call(*call, "--dataset", "tiny").returncode == 0
    assert (
        together.call(*call, "--dataset", "scans_two", "--overwrite").returncode == 3
    )  # two channels are wanted
    steps = {
        json.loads(f.read_text())["method"]: json.loads(f.read_text())["steps"]
        for f in together.folder.glob("segbench-out/runs/*/*/*/result.json")
    }
    assert steps == {"versemi": 8, "supervised": 4}  # the same budget for each data set


def test_a_joint_run_over_data_with_and_without_a_spacing_can_be_read_back(together):
    """One table has distances in mm, the other in voxels alone."""
    protocol = PLUGINS / "tiny.yaml"
    done = together.call(
        "run", "versemi", "--dataset", "tiny,tiny_bare", "--protocol", protocol, "--json"
    )
    metrics = json.loads(done.stdout)["metrics"]
    assert "hd95_mm" in metrics["tiny"]["ball"] and "hd95_mm" not in metrics["tiny_bare"]["ball"]
    assert together.call("runs", "verify", json.loads(done.stdout)["run_id"]).returncode == 0
    board = together.call("leaderboard", "--format", "json")
    assert {b["dataset"]: b["unit"] for b in json.loads(board.stdout)["boards"]} == {
        "tiny": "mm",
        "tiny_bare": "vox",
    }
    assert "left out" not in board.stderr


SWAPPED = """
import sys
from segbench import Split, dataset

@dataset("swapped")
class Swapped(sys.modules["segbench_plugin_tiny"].Tiny):
    labeled = 1

    def split(self):
        whole = super().split()
        return Split(whole.test, whole.train[2:])
"""


def test_what_one_data_set_tests_must_not_be_what_another_trains_on(together):
    (together.folder / "swapped.py").write_text(SWAPPED)
    done = together.call(
        "--plugin",
        "swapped.py",
        "run",
        "versemi",
        "--dataset",
        "tiny,swapped",
        "--protocol",
        PLUGINS / "tiny.yaml",
        "--dry-run",
    )
    assert done.returncode == 3, done.stderr
    assert "swapped/case2: a test case, and the training case tiny/case2" in done.stderr
    assert "tiny/case6: a test case, and the training case swapped/case6" in done.stderr


def test_patients_of_one_collection_have_one_name(together):
    """Voxels differ where a scan was cut in two ways; the name tells."""
    tiny = together.prepared("supervised").stores[0]
    infos = {i: replace(info, voxels=f"other {i}") for i, info in tiny.cases.items()}
    one = replace(tiny, name="pancreas_ct")
    other = replace(
        tiny, name="pancreas_ct_mcnet", cases=infos, train=tiny.train[:3], test=tiny.train[3:]
    )
    require_apart([replace(one, name="tiny"), replace(other, name="la")])
    with pytest.raises(DataError, match="data sets share cases") as found:
        require_apart([one, other])
    assert [p.case for p in found.value.problems] == [
        "pancreas_ct_mcnet/case3",
        "pancreas_ct_mcnet/case4",
        "pancreas_ct_mcnet/case5",
    ]
