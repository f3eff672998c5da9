"""Label values of a user's own folder: other numbers (--map) and voxels to leave out (--ignore)."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small_folders import OwnFolder

from segbench import registry
from segbench.contracts.dataset import IGNORED
from segbench.data.open import open_store
from segbench.data.sampling.batches import TrainingData
from segbench.data.store.problem import DataProblems
from segbench.evaluation.test_set import score
from segbench.training.run import execute


@pytest.fixture
def own(lab):
    """Return a function that makes a folder; test labels have a band of a value to leave out."""

    def make(value=255, cases=("c03",), **options):
        folder = OwnFolder(lab.folder / "own", **options)
        for number in range(4):
            name = f"c{number:02d}"

            def add_band(image, label, marked=name in cases):
                if marked:
                    label = np.where(np.indices(label.shape)[0] > 18, value, label)
                return image, label.astype(np.uint8)

            folder.case(name, number, change=add_band)
        folder.case("c04", 4, labeled=False)
        folder.lists(labeled=["c00", "c01", "c02"], unlabeled=["c04"], test=["c03"])
        return folder

    return make


def link(lab, folder, *options):
    made = lab.call("data", "link", folder.root, "--as", "own", "--data-root", "data", *options)
    assert made.returncode == 0, made.stderr


def prepare(lab):
    return lab.call("data", "prepare", "own", "--data-root", "data")


def test_an_unknown_value_is_refused_with_what_to_type(lab, own):
    folder = own()
    checked = lab.call("data", "check", folder.name)
    assert checked.returncode == 3
    assert "c03: label values 255:" in checked.stdout
    assert "--map OLD=NEW" in checked.stdout
    assert "--ignore OLD" in checked.stdout
    assert lab.call("data", "prepare", folder.name).returncode == 3


@pytest.mark.parametrize("value", [255, 7, 128])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_voxels_are_left_out_of_metrics(lab, own, value, ending):
    link(lab, own(value, ending=ending), "--ignore", value)
    assert prepare(lab).returncode == 0
    assert lab.call("data", "check", "own", "--data-root", "data").returncode == 0
    store = open_store("own", lab.folder / "data")
    reference = np.asarray(store.label("c03"))
    assert set(np.unique(reference)) == {0, 1, IGNORED}
    known = reference != IGNORED
    perfect = np.where(known, reference, 1).astype(np.uint8)
    (row,) = score(perfect, store, "c03")
    assert (row["dice"], row["hd95_mm"], row["asd_mm"]) == (1.0, 0.0, 0.0)
    assert row["ref_voxels"] == np.count_nonzero(reference == 1)
    guess = np.random.default_rng(0).integers(0, 2, reference.shape).astype(np.uint8)
    (row,) = score(guess, store, "c03")
    inside = guess[known] == 1
    truth = reference[known] == 1
    assert row["dice"] == pytest.approx(2 * (inside & truth).sum() / (inside.sum() + truth.sum()))
    info = json.loads(lab.call("data", "info", "own", "--json", "--data-root", "data").stdout)
    assert info["datasets"][0]["voxels"]["(left out)"]["cases"] == 1


def test_a_run_tests_on_such_cases(lab, own):
    link(lab, own(), "--ignore", "255")
    assert prepare(lab).returncode == 0
    result = execute(lab.prepared("mean_teacher", "own", steps=1), lab.machine())
    (row,) = result["metrics"]
    assert row["counts"]["n"] == 1


@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_trains_on_such_cases(lab, own, method):
    link(lab, own(cases=("c00", "c01", "c03")), "--ignore", "255")
    assert prepare(lab).returncode == 0
    result = execute(lab.prepared(method, "own", steps=4), lab.machine())
    assert result["status"] == "done"


METHOD_WITHOUT_A_WORD = """
from segbench import Method, method
from segbench.nn.losses import dice_ce

@method("silent_method")
class Silent(Method):
    def build(self, network):
        self.network = network()

    def loss(self, batch, t):
        return {"supervised": dice_ce(self.network(batch.x), batch.y)}

    def predict(self, image, source=0):
        return self.network(image).softmax(1)
"""


def test_a_method_that_does_not_say_so_is_not_trained_on_them(lab, own):
    (lab.folder / "silent.py").write_text(METHOD_WITHOUT_A_WORD)
    registry.add_file(lab.folder / "silent.py")
    link(lab, own(cases=("c01", "c03")), "--ignore", "255")
    assert prepare(lab).returncode == 0
    with pytest.raises(DataProblems, match="does not say that its losses leave voxels") as caught:
        lab.prepared("silent_method", "own", steps=1)
    assert "c01" in str(caught.value)
    assert "skips_ignored = True" in str(caught.value.details["fix"])
    execute(lab.prepared("silent_method", "own", steps=1, labeled="1"), lab.machine())


def test_what_the_files_hold_under_them_does_not_matter(lab):
    weights = []
    for number, under in enumerate(((7, 8), (8, 7), (-1, 200))):
        folder = OwnFolder(lab.folder / f"own{number}")

        def mark(image, label, under=under):
            left_out = np.indices(label.shape)[0]
            label = np.where(left_out > 18, under[0], label.astype(np.int16))
            return image, np.where(left_out > 20, under[1], label)

        folder.fill(4, 1, change=mark)
        folder.lists(labeled=["c00", "c01", "c02"], unlabeled=["c04"], test=["c03"])
        options = [part for value in under for part in ("--ignore", str(value))]
        name = f"own{number}"
        data = ["--data-root", "data"]
        linked = lab.call("data", "link", folder.root, "--as", name, *data, *options)
        assert linked.returncode == 0, linked.stderr
        assert lab.call("data", "prepare", name, *data).returncode == 0
        result = execute(lab.prepared("mean_teacher", name, steps=3), lab.machine())
        weights.append(result["weights_sha256"])
    assert len(set(weights)) == 1


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("value", [-1, -1024, 300])
def test_values_that_are_no_bytes_are_left_out(lab, ending, value):
    folder = OwnFolder(lab.folder / "own", ending=ending)

    def mark(image, label):
        label = np.where(np.indices(label.shape)[0] > 18, value, label.astype(np.int16))
        return image.astype(np.int16), label

    folder.fill(4, 1, change=mark)
    refused = lab.call("data", "check", folder.name)
    assert refused.returncode == 3
    assert f"--ignore {value}" in refused.stdout
    link(lab, folder, "--ignore", value, "--crop", "none")
    assert prepare(lab).returncode == 0
    store = open_store("own", lab.folder / "data")
    assert set(store.cases["c00"].labels) == {0, 1, IGNORED}
    reference = np.asarray(store.label("c00"))
    assert (reference[19:] == IGNORED).all()
    assert not (reference[:19] == IGNORED).any()


def test_foreground_crops_are_not_drawn_around_them(lab, own):
    link(lab, own(cases=("c00", "c01", "c02", "c03")), "--ignore", "255", "--crop", "none")
    assert prepare(lab).returncode == 0
    store = open_store("own", lab.folder / "data")
    patch = SimpleNamespace(
        patch=(2, 2, 2),
        sampling="proportional",
        augment="none",
        crop=SimpleNamespace(
            labeled="random", unlabeled="random", pad=0, last_offset=True, foreground=1
        ),
    )
    data = TrainingData({"own": store}, {"own": 3}, patch, seed=0)
    for step in range(20):
        assert (data.batch(0, step, 2, 0).y == 1).flatten(1).any(1).all()


def test_the_ignore_label_of_nnunet(lab, own):
    labels = {"background": 0, "organ": 1, "ignore": 2}
    folder = own(2, labels=labels)
    assert lab.call("data", "check", folder.name).returncode == 0
    link(lab, folder)
    assert prepare(lab).returncode == 0
    store = open_store("own", lab.folder / "data")
    assert store.classes == ("organ",)
    assert IGNORED in store.cases["c03"].labels


def test_a_second_unknown_value_is_not_left_out_with_the_first(lab, own):
    link(lab, own(255), "--ignore", "7")
    refused = prepare(lab)
    assert refused.returncode == 3
    assert "a label value has no meaning: 255" in refused.stderr


def test_other_numbers_are_mapped(lab):
    folder = OwnFolder(lab.folder / "own")
    folder.fill(4, 1, change=lambda image, label: (image, 255 * label))
    assert lab.call("data", "check", folder.name).returncode == 3
    link(lab, folder, "--map", "255=1")
    assert prepare(lab).returncode == 0
    store = open_store("own", lab.folder / "data")
    assert all(set(store.cases[case].labels) == {0, 1} for case in ("c00", "c03"))


def test_a_change_of_the_rules_prepares_again(lab, own):
    folder = own()
    link(lab, folder, "--ignore", "255")
    assert prepare(lab).returncode == 0
    before = open_store("own", lab.folder / "data")
    link(lab, folder, "--map", "255=0")
    stale = lab.call("data", "check", "own", "--data-root", "data")
    assert "has changed since it was prepared" in stale.stderr
    assert prepare(lab).returncode == 0
    after = open_store("own", lab.folder / "data")
    assert IGNORED not in after.cases["c03"].labels
    assert after.fingerprint != before.fingerprint


def test_percentiles_leave_these_voxels_out(lab, own):
    link(lab, own(channel="CT"), "--ignore", "255", "--crop", "none")
    assert prepare(lab).returncode == 0
    first = open_store("own", lab.folder / "data").cases["c00"].made["clipped"][0]["window"]
    assert 100 < first[0] < first[1] < 220


@pytest.mark.parametrize(
    "options",
    [
        ("--map", "255"),
        ("--map", "255=2"),
        ("--map", "300=1"),
        ("--map", "255=1,255=0"),
        ("--ignore", "1"),
        ("--ignore", "255", "--map", "255=1"),
    ],
)
def test_options_that_cannot_be_used(lab, own, options):
    folder = own()
    refused = lab.call("data", "link", folder.root, "--as", "own", *options)
    assert refused.returncode == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_gray_scan_given_as_label_is_called_by_its_name(lab, ending, dtype):
    folder = OwnFolder(lab.folder / "own", ending=ending)
    low = 0 if dtype == np.uint8 else -300

    def exchange(image, label):
        gray = np.clip(image + (image != 0) * low, low, 255).astype(dtype)
        return gray, gray

    folder.fill(4, 1, change=exchange)
    for command in ("check", "prepare"):
        refused = lab.call("data", command, folder.name)
        said = refused.stdout + refused.stderr
        assert refused.returncode == 3
        assert "looks like a gray scan" in said
        assert "--ignore" not in said
