"""The user's own folders: both layouts, unlabeled cases, settings, names, and every mistake."""

import json

import nibabel
import nrrd
import numpy as np
import pytest
from small_folders import OwnFolder, drawn_lists

from segbench import registry
from segbench.data.links import load_links
from segbench.data.open import open_store
from segbench.data.open import prepare as prepare_store
from segbench.data.store.problem import DataProblems
from segbench.errors import DataError, SegbenchError, UsageError
from segbench.training.run import execute

RNG = np.random.default_rng(0)


def metaimage(array, affine):
    grid = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]  # the format's axes point left and posterior
    spacing = np.linalg.norm(grid[:, :3], axis=0)
    values = {
        "NDims": 3,
        "TransformMatrix": (grid[:, :3] / spacing).T,
        "Offset": grid[:, 3],
        "ElementSpacing": spacing,
        "DimSize": array.shape,
    }
    lines = [
        f"{key} = {' '.join(map(str, np.ravel(value).tolist()))}\n" for key, value in values.items()
    ]
    kind = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[str(array.dtype)]
    return "".join(
        [*lines, f"ElementType = {kind}\nElementDataFile = LOCAL\n"]
    ).encode() + array.tobytes(order="F")


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".mha"):
        path.write_bytes(metaimage(array, affine))
    elif path.name.endswith(".nrrd"):
        nrrd.write(
            str(path),
            array,
            {
                "space": "right-anterior-superior",
                "space directions": affine[:3, :3].T,
                "space origin": affine[:3, 3],
            },
        )
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine), path)


def volume(shape=(18, 20, 16)):
    label = np.zeros(shape, np.uint8)
    label[4:9, 5:10, 4:9] = 1
    label[10:14, 11:15, 8:12] = 2
    image = RNG.normal(100, 5, shape) + 60 * label
    image[:2] = 0
    return image.astype(np.int16), label


class Mine:
    """A folder in the layout of nnU-Net v2 that a test may break."""

    def __init__(self, root, ending=".nii.gz", channels=("MRI",), cases=6, bare=2, unlabeled=1):
        self.root, self.ending, self.channels = root, ending, channels
        names = [f"case_{i}" for i in (1, 2, 10, 3, 21, 4, 100, 5)[:cases]]
        for i, name in enumerate(names):
            self.case(name, "imagesTr", label=i >= bare)
        for i in range(unlabeled):
            self.case(f"un_{i}", "imagesUn", label=False)
        self.case("later_1", "imagesTs", label=False)
        self.json(
            channel_names={str(i): c for i, c in enumerate(channels)},
            labels={"background": 0, "big": 1, "small": 2},
            numTraining=cases,
            file_ending=ending,
            name="Mine",
            license="mine alone",
        )

    def case(self, name, place="imagesTr", label=True, affine=None, shape=(18, 20, 16)):
        affine = np.diag([1.0, 1, 1.5, 1]) if affine is None else affine
        image, mask = volume(shape)
        for c in range(len(self.channels)):
            save(
                self.root / place / f"{name}_{c:04d}{self.ending}",
                image + np.int16(c) * (image > 0),
                affine,
            )
        if label:
            save(self.root / "labelsTr" / f"{name}{self.ending}", mask, affine)

    def json(self, **content):
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "dataset.json").write_text(json.dumps(content))

    def lists(self, **lists):
        (self.root / "splits_ssl.json").write_text(json.dumps(lists))

    @property
    def name(self):
        return f"folder:{self.root}"


@pytest.fixture
def mine(tmp_path):
    return Mine(tmp_path / "Dataset007-Mine")


@pytest.mark.parametrize(
    "ending, channels", [(".nii.gz", ("MRI",)), (".nrrd", ("T1", "T2")), (".mha", ("T1",))]
)
def test_nnunet_folder_is_prepared_and_trained_on(tmp_path, lab, ending, channels):
    mine = Mine(tmp_path / "Dataset007-Mine", ending, channels)
    store = prepare_store(mine.name, None, lab.folder / "data")
    assert (
        store.name == "dataset007_mine"
        and store.classes == ("big", "small")
        and store.channels == len(channels)
    )
    # Labeled before unlabeled; numbers in ids sort by value; one fifth is for testing.
    assert (
        len(store.test) == 1
        and store.train[-3:] == ("case_1", "case_2", "un_0")
        and not store.partial
    )
    assert sorted((*store.train[:-3], *store.test)) == ["case_10", "case_21", "case_3", "case_4"]
    assert (
        "later_1" not in store.cases
        and not store.cases["un_0"].has_label
        and store.cases["case_10"].has_label
    )
    assert not (mine.root / "splits_ssl.json").exists()
    written = drawn_lists(lab.folder / "data", store.name)
    assert written["labeled"] == list(store.train[:-3]) and written["unlabeled"] == [
        "case_1",
        "case_2",
        "un_0",
    ]
    image = store.image("case_10")
    assert (
        image.shape == (len(channels), 16, 20, 16)
        and store.cases["case_10"].made["crop_offset"][0] == 2
    )  # not 0
    assert image[0].mean() == pytest.approx(0, abs=1e-5) and image[0].std() == pytest.approx(
        1, abs=1e-5
    )
    run = lab.prepared("mean_teacher", mine.name, steps=1)
    assert run.experiment.datasets == ("dataset007_mine",) and run.experiment.labeled == {
        "dataset007_mine": 3
    }
    result = execute(run, lab.machine())
    assert {m["class"] for m in result["metrics"]} == {"big", "small"} and "hd95_mm" in result[
        "metrics"
    ][0]["columns"]
    if channels == ("MRI",):
        scan = mine.root / "imagesTs" / "later_1_0000.nii.gz"
        found = lab.call(
            "predict",
            run.folder.path,
            scan,
            "-o",
            "out",
            "--dataset",
            mine.name,
            "--data-root",
            lab.folder / "data",
        )
        assert found.returncode == 0 and (lab.folder / "out" / "later_1_seg.nii.gz").is_file(), (
            found.stderr
        )


def test_decathlon_folder_with_channels_in_one_file(tmp_path):
    root = tmp_path / "Task99_Own"
    for i in (1, 2, 3):
        image, label = volume()
        save(
            root / "imagesTr" / f"own_{i}.nii.gz",
            np.stack([image, image + 7], -1),
            np.diag([-1.0, 1, 2, 1]),
        )
        save(root / "labelsTr" / f"own_{i}.nii.gz", label, np.diag([-1.0, 1, 2, 1]))
    (root / "imagesTr" / "._own_1.nii.gz").write_bytes(b"side file")
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "name": "Own",
                "modality": {"0": "CT", "1": "noNorm"},
                "labels": {"0": "background", "1": "a", "2": "b"},
                "numTraining": 3,
                "training": [],
                "test": [],
            }
        )
    )
    store = prepare_store(f"folder:{root}", None, tmp_path / "data")
    case = store.cases["own_1"]
    assert (
        store.channels == 2
        and case.spacing == pytest.approx((1, 1, 2))
        and case.affine[0][0] == pytest.approx(1)
    )
    ct, raw = store.image("own_1")
    low, high = case.source["from"]["recipe"]["gray"][0]["window"]
    assert 140 < low < 160 and 225 < high < 240 and ct.min() == 0 and raw.max() > 200
    assert ct.max() == pytest.approx(1)
    labeled = [np.asarray(store.label(c)) for c in store.train]
    inside = np.concatenate(
        [store.image(c)[1][y > 0] - 7 for c, y in zip(store.train, labeled, strict=True)]
    )
    np.testing.assert_allclose(
        (low, high), np.percentile(inside, (0.5, 99.5)), atol=1e-3
    )  # training cases only


def test_spacing_is_the_median_of_the_training_images(tmp_path):
    mine = Mine(tmp_path / "m", cases=4, bare=0, unlabeled=0)
    for name, step in (("case_1", 1.0), ("case_2", 1.0), ("case_3", 2.0), ("case_10", 4.0)):
        turned = np.array(
            [[0, 0, step, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]]
        )  # the file's third axis is R
        mine.case(name, affine=turned)
    mine.lists(labeled=["case_1", "case_3", "case_2"], unlabeled=[], val=[], test=["case_10"])
    store = prepare_store(mine.name, None, tmp_path / "data")
    assert store.train == ("case_1", "case_3", "case_2") and store.cases[
        "case_10"
    ].spacing == pytest.approx((1, 1, 1))
    assert store.cases["case_10"].made["source_affine"][0] == [0, 0, 4, 0]
    assert any("slices 4 mm apart" in w for w in store.warnings)


def test_labels_of_cases_listed_as_unlabeled_are_not_read(mine, tmp_path):
    mine.lists(
        labeled=["case_3"],
        unlabeled=["case_10", "un_0", "later_1"],
        val=["case_4"],
        test=["case_21"],
    )
    store = prepare_store(mine.name, None, tmp_path / "data")
    assert store.train == ("case_3", "case_10", "un_0", "later_1") and store.test == ("case_21",)
    assert not store.cases["case_10"].has_label and "case_4" not in store.cases
    assert not any("left out" in w and "case_4" in w for w in store.warnings)  # known as validation
    assert any("case_10" in w and "not read" in w for w in store.warnings)
    assert any(
        "1 cases of the list val" in w and "holds out training cases" in w for w in store.warnings
    )


def test_lists_are_kept_after_preparation_and_not_by_a_check(mine, tmp_path, lab):
    """A forgotten label must not be frozen into the lists."""

    def kept():
        return "drawn" in (tmp_path / "data" / "dataset007_mine" / "link.json").read_text()

    forgotten = mine.root / "labelsTr" / "case_21.nii.gz"
    content = forgotten.read_bytes()
    forgotten.unlink()
    assert lab.call("data", "check", mine.name).returncode == 0
    broken = mine.root / "imagesTr" / "case_4_0000.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    with pytest.raises(DataError):
        prepare_store(mine.name, None, tmp_path / "data")
    assert not kept()
    broken.write_bytes(whole)
    forgotten.write_bytes(content)
    assert prepare_store(mine.name, None, tmp_path / "data").cases["case_21"].has_label
    assert kept() and not (mine.root / "splits_ssl.json").exists()


def test_a_crop_by_the_label_leaves_room_around_it(tmp_path):
    mine = Mine(tmp_path / "Dataset001_Wide", bare=0, unlabeled=0)
    registry.add_link(
        "wide", registry.Link("folder", str(mine.root), {"crop": "label", "spacing": [1, 1, 1]})
    )
    store = prepare_store("wide", None, tmp_path / "data")
    assert all(min(info.shape) >= 96 for info in store.cases.values())


def test_data_without_a_test_case_is_refused_before_training(mine, lab):
    for lists, empty in (
        ({"labeled": ["case_3", "case_10"], "unlabeled": ["un_0"]}, "test"),
        ({"labeled": [], "test": ["case_3"]}, "labeled"),
    ):
        mine.lists(**lists)
        for call in (
            ("link", mine.root, "--as", "mine"),
            ("prepare", mine.name),
            ("check", mine.name),
        ):
            refused = lab.call("data", *call)
            assert refused.returncode == 3, call
            assert f"no case in the list '{empty}'" in refused.stderr, (call, refused.stderr)


@pytest.mark.parametrize(
    "lists, found",
    [
        ({"labeled": ["case_3", "case_3"], "test": ["case_21"]}, "listed twice"),
        ({"labeled": ["case_3"], "unlabeled": ["case_21"], "test": ["case_21"]}, "listed twice"),
        ({"labeled": ["case_7"], "test": ["case_21"]}, "not on disk"),
        ({"labeled": ["case_03"], "test": ["case_21"]}, "not on disk"),
        ({"labeled": ["case_3"], "test": ["case_1"]}, "without a label"),
        (
            {"labeled": ["case_3"], "unlabled": ["un_0"], "test": ["case_21"]},
            "'unlabled'. Did you mean 'unlabeled'?",
        ),
        ({"labeled": [3], "test": ["case_21"]}, "list of texts"),
    ],
)
def test_lists_that_cannot_be_used(mine, tmp_path, lists, found):
    mine.lists(**lists)
    with pytest.raises(DataError, match=found) as caught:
        prepare_store(mine.name, None, tmp_path / "data")
    assert "splits_ssl.json" in str(caught.value)


@pytest.mark.parametrize(
    "content, found",
    [
        ({"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": [1, 2]}}, "regions"),
        (
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ignore": 1, "a": 2}},
            "ignore",
        ),
        ({"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 2}}, "without a gap"),
        ({"channel_names": {"1": "CT"}, "labels": {"background": 0, "a": 1}}, "without a gap"),
        ({"labels": {"background": 0, "a": 1}}, "channels or labels are missing"),
        (
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "a": 1},
                "file_ending": ".png",
            },
            r"\.png",
        ),
        (
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "dataset": {}},
            "not supported",
        ),
        (
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": float("inf")}},
            "without a gap",
        ),
        ({"channel_names": {"0": "CT"}, "labels": {"background": 0, "": 1}}, "a name of its own"),
        (
            {"channel_names": {"0": "CT"}, "labels": {"background": 0, "\ud800": 1}},
            "surrogates not allowed",
        ),
        (
            {"channel_names": {"0": "A", "1": "B"}, "labels": {"background": 0, "a": 1}},
            "no case_.*_0001",
        ),
    ],
)
def test_a_dataset_json_that_cannot_be_used(mine, tmp_path, content, found):
    mine.json(**content)
    with pytest.raises(DataError, match=found):
        prepare_store(mine.name, None, tmp_path / "data")


def test_a_deeply_nested_dataset_json_is_refused(mine, tmp_path):
    (mine.root / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"dataset\.json cannot be read"):
        prepare_store(mine.name, None, tmp_path / "data")


@pytest.mark.parametrize(
    "image, label, found, missing",
    [
        ("c{}_0000.nii.gz", "d{}.nii.gz", "6 files in labelsTr", "channel_names"),
        ("c{}.nii", "c{}.nii", "c1.nii", ".nii"),
    ],
)
def test_the_error_for_unread_files_says_what_dataset_json_needs(
    tmp_path, image, label, found, missing
):
    root = tmp_path / "in"
    for i in range(6):
        save(root / "imagesTr" / image.format(i), volume()[0], np.eye(4))
        save(root / "labelsTr" / label.format(i), volume()[1], np.eye(4))
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "numTraining": 6,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="too few cases with a label") as caught:
        registry.get("dataset", f"folder:{root}")
    assert found in caught.value.details["found"] and f'"{missing}"' in caught.value.details["fix"]
    if "_0000" in image:
        for i in range(6):  # as the fix says
            (root / "labelsTr" / f"d{i}.nii.gz").rename(root / "labelsTr" / f"c{i}.nii.gz")
    else:
        content["file_ending"] = ".nii"
    (root / "dataset.json").write_text(json.dumps(content))
    assert registry.get("dataset", f"folder:{root}").cls.labeled == 5


def nan(mine):
    image = volume()[0].astype(np.float32)
    image[3, 3, 3] = np.nan
    save(mine.root / "imagesTr" / "case_3_0000.nii.gz", image, np.diag([1.0, 1, 1.5, 1]))


def half(mine):
    save(
        mine.root / "labelsTr" / "case_3.nii.gz",
        volume()[1] * np.float32(0.5),
        np.diag([1.0, 1, 1.5, 1]),
    )


def undeclared(mine):
    save(
        mine.root / "labelsTr" / "case_3.nii.gz",
        volume()[1] * np.uint8(3),
        np.diag([1.0, 1, 1.5, 1]),
    )


def other_spacing(mine):
    save(mine.root / "labelsTr" / "case_3.nii.gz", volume()[1], np.diag([1.0, 1, 2, 1]))


def other_shape(mine):
    save(
        mine.root / "labelsTr" / "case_3.nii.gz", volume((18, 20, 15))[1], np.diag([1.0, 1, 1.5, 1])
    )


def cut(mine):
    file = mine.root / "imagesTr" / "case_3_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-500])


@pytest.mark.parametrize(
    "breaking, found",
    [
        (nan, "NaN or infinite"),
        (half, "0, 0.5, 1"),
        (undeclared, "3: 125 voxels, 6: 64 voxels"),
        (other_spacing, "1.5"),
        (other_shape, "(18, 20, 15)"),
        (cut, "damaged or cut short"),
    ],
)
def test_a_bad_case_is_named(mine, tmp_path, breaking, found):
    breaking(mine)
    with pytest.raises(DataProblems) as caught:
        prepare_store(mine.name, None, tmp_path / "data")
    (problem,) = caught.value.problems
    assert problem.case == "case_3" and found in str(problem)


def test_a_bad_case_of_ct_is_named_although_all_cases_share_a_window(tmp_path):
    mine = Mine(tmp_path / "Dataset008_Ct", channels=("CT",))
    other_shape(mine)
    with pytest.raises(DataProblems) as caught:
        prepare_store(mine.name, None, tmp_path / "data")
    (problem,) = caught.value.problems
    assert problem.case == "case_3" and "(18, 20, 15)" in str(problem)


def test_an_error_of_a_reader_names_the_case_before_any_is_loaded(tmp_path, monkeypatch):
    import importlib

    mine = Mine(tmp_path / "Dataset009_Ct", channels=("CT",))
    registry.get("dataset", "folder")
    module = importlib.import_module("segbench.data.preparation.folder_images")
    read = module.read_volume

    def strange(path, *key):
        if "case_3" in path.name:
            raise ArithmeticError("of some reader")
        return read(path, *key)

    monkeypatch.setattr(module, "read_volume", strange)
    with pytest.raises(DataProblems, match="case_3: ArithmeticError: of some reader"):
        prepare_store(mine.name, None, tmp_path / "data")


def test_a_shifted_label_and_a_lost_spacing_are_warnings(mine, tmp_path):
    save(
        mine.root / "labelsTr" / "case_3.nii.gz",
        volume()[1],
        np.diag([1.0, 1, 1.5, 1]) + np.eye(4, k=3) * 4,
    )
    mine.case("case_4", affine=np.eye(4))
    warnings = prepare_store(mine.name, None, tmp_path / "data").warnings
    assert any("case_3" in w and "differ in origin, 4 mm apart" in w for w in warnings)
    assert any("case_4" in w and "exactly 1 x 1 x 1" in w for w in warnings)


def files_below(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_nothing_is_written_to_the_folder_unless_asked(mine, lab):
    before = files_below(mine.root)
    prepared = lab.call("data", "prepare", mine.name)
    assert prepared.returncode == 0 and files_below(mine.root) == before, prepared.stderr
    assert "drawn: one in 5" in prepared.stdout and "--write-lists" in prepared.stdout
    data_root = lab.folder / "segbench-data"
    drawn = drawn_lists(data_root, "dataset007_mine")
    first = open_store("dataset007_mine", data_root)
    for number in range(30, 40):  # with these, other cases would be drawn
        mine.case(f"case_{number}")
    registry.reset()  # as in a new process
    again = lab.call("data", "prepare", mine.name)
    assert again.returncode == 0, again.stderr
    assert "11 cases of the source are in no list" in again.stderr
    assert open_store("dataset007_mine", data_root).test == first.test
    lab.call("data", "link", mine.root, "--as", "dataset007_mine", "--crop", "none")
    assert drawn_lists(data_root, "dataset007_mine") == drawn
    written = lab.call("data", "prepare", mine.name, "--write-lists")
    assert "written to" in written.stdout, written.stderr
    assert json.loads((mine.root / "splits_ssl.json").read_text()) == drawn
    assert open_store("dataset007_mine", data_root).test == first.test
    (mine.root / "splits_ssl.json").unlink()
    lab.call("data", "link", mine.root, "--as", "dataset007_mine", "--new-lists")
    renewed = lab.call("data", "prepare", "dataset007_mine")
    assert renewed.returncode == 0, renewed.stderr
    assert len(open_store("dataset007_mine", data_root).test) == 2


def test_kept_lists_whose_cases_are_gone(mine, tmp_path):
    prepare_store(mine.name, None, tmp_path / "data")
    (mine.root / "imagesTr" / "case_3_0000.nii.gz").unlink()
    with pytest.raises(DataError, match="not on disk") as caught:
        registry.get("dataset", "dataset007_mine").cls().split()
    assert "--new-lists" in caught.value.details["fix"]


def test_labeled_cases_of_images_ts_are_the_test_set(mine, tmp_path):
    for name in ("later_2", "later_3"):
        mine.case(name, "imagesTs")
        (mine.root / "labelsTs").mkdir(exist_ok=True)
        label = mine.root / "labelsTr" / f"{name}.nii.gz"
        label.rename(mine.root / "labelsTs" / label.name)
    store = prepare_store(mine.name, None, tmp_path / "data")
    assert store.test == ("later_2", "later_3")
    assert len(store.train) == 7 and store.cases["case_3"].has_label
    assert "later_1" not in store.cases  # has no label
    dataset = registry.get("dataset", mine.name).cls()
    assert "labelsTs" in dataset.split().source
    mine.lists(labeled=["case_3", "later_2"], unlabeled=["later_3"], test=["case_4"])
    store = prepare_store(mine.name, None, tmp_path / "data")
    assert store.train == ("case_3", "later_2", "later_3") and store.test == ("case_4",)
    assert not store.cases["later_3"].has_label


def test_the_first_fold_of_nnunet(tmp_path):
    folder = OwnFolder(tmp_path / "Dataset011_Folds")
    folder.fill(labeled=5, unlabeled=1)
    cases = [f"c{number:02d}" for number in range(5)]
    folder.folds((cases[:3], cases[3:]), (cases[2:], cases[:2]))
    split = registry.get("dataset", folder.name).cls().split()
    assert split.train == ("c00", "c01", "c02", "c05") and split.test == ("c03", "c04")
    assert split.val == () and "fold 0" in split.source
    folder.folds((cases[:3], ["c09"]))
    with pytest.raises(DataError, match="not on disk") as caught:
        registry.get("dataset", folder.name).cls().split()
    assert "splits_final.json" in str(caught.value)
    folder.folds((cases[:3], cases[3:]), (cases[2:], cases[:2]))
    folder.case("t0", 9, place="imagesTs")
    (folder.root / "labelsTs").mkdir()
    (folder.root / "labelsTr" / "t0.nii.gz").rename(folder.root / "labelsTs" / "t0.nii.gz")
    split = registry.get("dataset", folder.name).cls().split()
    assert split.train == ("c00", "c01", "c02", "c03", "c04", "c05") and split.test == ("t0",)
    assert split.val == () and "labelsTs" in split.source


def test_a_dataset_json_of_nnunet_v1(tmp_path):
    folder = OwnFolder(tmp_path / "Task050_First")
    folder.fill(labeled=3, unlabeled=1)
    content = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "organ"},
        "numTraining": 4,
        "training": [],
    }
    (folder.root / "dataset.json").write_text(json.dumps(content))
    dataset = registry.get("dataset", folder.name).cls()
    assert list(dataset.cases()) == ["c00", "c01", "c02", "c03"]
    assert dataset.labeled == 2 and dataset.split().train[-1] == "c03"


def test_names(mine, tmp_path):
    """A prepared folder is known by its own name, in other processes too; names are unique."""
    store = prepare_store(mine.name, None, tmp_path / "data")
    registry.reset()  # as in a new process
    with pytest.raises(UsageError, match="unknown dataset"):
        open_store("dataset007_mine", tmp_path / "data")
    assert load_links(tmp_path / "data") == []
    assert open_store("dataset007-mine", tmp_path / "data").fingerprint == store.fingerprint
    assert registry.get(
        "dataset", mine.name
    ).name == "dataset007_mine" and "dataset007_mine" in registry.names("dataset")
    other = Mine(tmp_path / "elsewhere" / "Dataset007-Mine")
    with pytest.raises(UsageError, match="exists already"):
        registry.get("dataset", other.name)
    registry.reset()  # even if the links have not been loaded
    with pytest.raises(UsageError, match="exists already"):
        prepare_store(other.name, None, tmp_path / "data")
    with pytest.raises(UsageError, match="has no variants"):
        registry.get("dataset", "la:somewhere")
    with pytest.raises(UsageError, match="folder:PATH"):
        open_store("folder", tmp_path / "data")
    with pytest.raises(DataError, match="no such folder"):
        registry.get("dataset", "folder:nowhere")
    assert not list((tmp_path / "data").glob("nowhere*"))


def test_link_prepare_run_on_the_command_line(mine, lab):
    made = lab.call(
        "data", "link", mine.root, "--as", "mine", "--spacing", "2x2x3", "--crop", "none"
    )
    assert made.returncode == 0 and "6 train cases, 3 of them labeled, 1 test" in made.stdout, (
        made.stderr
    )
    assert (
        "mine" in lab.call("list", "datasets").stdout and "mine" in lab.call("data", "list").stdout
    )
    done = lab.call("data", "prepare", "mine")
    assert done.returncode == 0, done.stderr
    store = open_store("mine", lab.folder / "segbench-data")
    assert store.cases["case_10"].shape == (9, 10, 8) and store.cases[
        "case_10"
    ].spacing == pytest.approx((2, 2, 3))
    for args in (
        ("data", "check", "mine"),
        ("data", "info", "mine"),
        ("describe", "dataset", "mine"),
    ):
        assert lab.call(*args).returncode == 0
    again = lab.call("data", "link", mine.root.parent, "--as", "mine")
    assert again.returncode == 3 and "dataset.json" in again.stderr
    assert lab.call("data", "link", mine.root, "--as", "la").returncode == 2
    assert lab.call("data", "link", mine.root, "--as", "../x").returncode == 2
    assert lab.call("data", "link", mine.root, "--as", "x", "--window", "7").returncode == 2
    infinite = lab.call("data", "link", mine.root, "--as", "x", "--window", "-inf:inf")
    assert infinite.returncode == 2 and "finite" in infinite.stderr
    assert lab.call("data", "prepare", "folder").returncode == 2
    refused = lab.call("data", "link", mine.root, "--as", "boxed", "--crop", "label")
    assert (
        refused.returncode == 0 and lab.call("data", "prepare", "boxed").returncode == 3
    )  # unlabeled cases


def test_a_store_is_refused_after_a_change_until_it_is_prepared_again(mine, lab):
    def link(spacing):
        return lab.call("data", "link", mine.root, "--as", "mine", "--spacing", spacing).returncode

    assert link("2x2x3") == 0 and lab.call("data", "prepare", "mine").returncode == 0
    data_root = lab.folder / "segbench-data"
    first = open_store("mine", data_root)
    assert first.adapter["inputs"].keys() == {"settings", "lists", "dataset.json"}
    content = json.loads((mine.root / "dataset.json").read_text())
    for name, change in (
        ("settings", lambda: link("2x2x2")),
        (
            "lists",
            lambda: mine.lists(labeled=["case_3"], unlabeled=["un_0"], val=[], test=["case_4"]),
        ),
        ("dataset.json", lambda: mine.json(**{**content, "channel_names": {"0": "T2"}})),
    ):
        change()
        registry.reset()  # as in a new process
        refused = lab.call("run", "supervised", "--dataset", "mine", "--steps", "1", "--dry-run")
        assert refused.returncode == 3, refused.stderr
        assert f"changed: {name}" in refused.stderr
        assert "segbench data prepare mine" in refused.stderr
        done = lab.call("data", "prepare", "mine")
        assert (
            done.returncode == 0 and open_store("mine", data_root).fingerprint != first.fingerprint
        ), done.stderr
    file = data_root / "mine" / "store.json"
    old = json.loads(file.read_text())
    del old["adapter"]["inputs"]  # as written before anything was compared
    file.write_text(json.dumps(old))
    assert link("3x3x3") == 0 and open_store("mine", data_root).adapter == old["adapter"]


@pytest.mark.parametrize(
    "args", ["prepare folder", "prepare folder --from x", "check folder --from x", "check folder"]
)
def test_a_family_is_not_a_data_set(lab, args):
    refused = lab.call("data", *args.split())
    assert refused.returncode == 2 and "folder:PATH" in refused.stderr
    assert "--from DIR" not in refused.stderr


def test_a_damaged_link_does_not_stop_other_commands(lab):
    (lab.folder / "segbench-data" / "bad").mkdir(parents=True)
    (lab.folder / "segbench-data" / "bad" / "link.json").write_text("{")
    result = lab.call("list", "protocols")
    assert result.returncode == 0 and "a link is damaged" in result.stderr
    assert isinstance(load_links(lab.folder / "segbench-data")[0], SegbenchError)


def test_prepared_data_can_be_used_without_the_folder(mine, lab):
    store = prepare_store(mine.name, None, lab.folder / "segbench-data")
    mine.root.rename(mine.root.with_name("unmounted"))
    registry.reset()
    assert load_links(lab.folder / "segbench-data") == []
    assert open_store(store.name, lab.folder / "segbench-data").fingerprint == store.fingerprint
    patch = ("-o", "patch=16x16x16", "-o", "inference.stride=16x16x16")
    usual = lab.call("run", "supervised", "--dataset", mine.name, "--dry-run", *patch)
    assert usual.returncode == 0 and "3 of 6 labeled" in usual.stderr + usual.stdout, (
        usual.stderr
    )  # as with the folder
    described = lab.call("describe", "dataset", store.name)
    assert described.returncode == 3 and "the folder is not available" in described.stderr
    plan = lab.call(
        "run", "supervised", "--dataset", store.name, "--labeled", "2", "--dry-run", *patch
    )
    assert plan.returncode == 0 and "2 of 6 labeled" in plan.stderr + plan.stdout, plan.stderr
    again = lab.call("data", "prepare", store.name)
    assert again.returncode == 3 and "no such folder" in again.stderr
    assert open_store(store.name, lab.folder / "segbench-data").fingerprint == store.fingerprint


def test_the_folds_of_nnunet_are_those_of_the_folder(mine, tmp_path):
    from segbench.data.sampling.folds import fold_facts, with_fold

    file = mine.root / "splits_final.json"
    folds = [
        {"train": ["case_3"], "val": ["case_10", "case_21"]},
        {"train": ["case_10", "case_21"], "val": ["case_3"]},
    ]
    file.write_text(json.dumps(folds))
    store = prepare_store(mine.name, None, tmp_path / "prepared")
    assert set(with_fold(store, 0).test) == {"case_10", "case_21"}
    assert with_fold(store, 1).test == ("case_3",)
    for fold in (0, 1):
        view = with_fold(store, fold)
        assert "case_4" not in view.train + view.test, "it has a label, but is in no fold"
        assert {"case_1", "case_2", "un_0"} < set(view.train), "unlabeled cases are"
    assert fold_facts(store)["count"] == 2
    with pytest.raises(UsageError, match="no fold 2"):
        with_fold(store, 2)

    file.write_text(json.dumps(folds[::-1]))
    with pytest.raises(DataError, match="has changed since it was prepared"):
        open_store(mine.name, tmp_path / "prepared")
    store = prepare_store(mine.name, None, tmp_path / "prepared")
    assert with_fold(store, 0).test == ("case_3",)
