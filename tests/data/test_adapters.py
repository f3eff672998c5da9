"""Adapters on tiny files in the real layouts: prepared as a user would, trained on for one step."""

import gzip
import hashlib
import os
import shutil
import tarfile
import zipfile

import h5py
import nibabel
import nrrd
import numpy as np
import pytest

from segbench import registry
from segbench.data.open import open_store
from segbench.data.open import prepare as prepare_store
from segbench.data.store.checks import check_store
from segbench.data.store.problem import DataProblems
from segbench.errors import DataError
from segbench.training.run import execute

RNG = np.random.default_rng(0)
DIGESTS = {  # sha256 over train, val and test, one id per line, an empty line between the lists
    "acdc": "5039b4b268bbe9c9d264aca2bc8123bae25f9c426f0e3ac8d9c13fcca818dcce",
    "msd_spleen": "67357d0dd0433085926ea148ac242cd01cda467419ce7448aaf26eb4c1da580e",
    "msd_lung": "a1ea6ee22ebb8bb7d35bab7f7ab5d4d699db5b1b16a099719e7325e9a753ac7e",
    "pancreas_ct": "21d0a44cb118a1c12c472326991977fb7d0dad3acaf963d0050ce339cfb0142a",
    "pancreas_ct_mcnet": "7f45ffda334fa4ba0100da2cff46082f876fc195b8b8fee656311e69c6c4b434",
    "brats2019": "d1059ce53eb9b2b6840972f23cee68bcd4fd96306111386dce525550ed5ab9b6",
    "amos": "c0620a525c9fa71cb8ef0f5b5c01cd9d45cec6a2a16dda4fd7f153daa78c4408",
    "amos_2p": "664fb3d0ff6251316db1f84b9cd3f526c5be5b81b374afed8654e5b074ef7473",
    "amos_10p": "85a21ac3e2a9e0ce5e832a09fa9181d827f8ea3558f083a8b532dc77416fdbb6",
}


def split(name):
    return registry.get("dataset", name).cls().split()


def some(name, cases=2):
    """Return ids of a small partial copy: the first training cases and the first test case."""
    lists = split(name)
    return (*lists.train[:cases], *lists.test[:1])


def write_lists(source, name, cases=2):
    source.mkdir(parents=True, exist_ok=True)
    (source / "train.list").write_text("".join(f"{i}\n" for i in some(name, cases)[:-1]))
    (source / "test.list").write_text(f"{some(name, cases)[-1]}\n")


def blob(shape=(20, 18, 12), value=80, background=-1000):
    """Return a body of soft tissue with a slightly different target: image int16, label uint8."""
    label = np.zeros(shape, np.uint8)
    label[8:13, 7:11, 4:8] = 1
    image = np.full(shape, background, np.int16)
    image[2:-2, 2:-2, 1:-1] = 40
    image[label > 0] = value
    return image + RNG.integers(0, 5, shape).astype(np.int16), label


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def train_a_step(lab, name, labeled=1, method="mean_teacher", **choices):
    run = lab.prepared(
        method,
        name,
        labeled=labeled,
        steps=1,
        overrides=[
            "batch.labeled=1",
            "batch.unlabeled=1",
            "patch=32x32x32",
            "inference.stride=32x32x32",
        ],
        **choices,
    )
    result = execute(run, lab.machine())
    assert result["status"] == "done" and result["labeled"] == {name: labeled}
    return result


@pytest.mark.parametrize("name", DIGESTS)
def test_splits_are_those_published(name):
    lists = split(name)
    text = "\n".join([*lists.train, "", *lists.val, "", *lists.test])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGESTS[name]


def test_sizes_of_the_splits():
    sizes = {
        n: tuple(len(x) for x in (split(n).train, split(n).val, split(n).test)) for n in DIGESTS
    }
    assert sizes == {
        "acdc": (140, 20, 40),
        "msd_spleen": (30, 0, 11),
        "msd_lung": (50, 0, 13),
        "pancreas_ct": (62, 0, 18),
        "pancreas_ct_mcnet": (61, 0, 19),
        "brats2019": (250, 25, 60),
        "amos": (216, 24, 120),
        "amos_2p": (216, 24, 120),
        "amos_10p": (216, 24, 120),
    }
    assert split("acdc").train[:3] == (
        "patient099_frame01",
        "patient099_frame02",
        "patient038_frame01",
    )
    assert split("msd_spleen").train[:6] == tuple(f"spleen_{i}" for i in (2, 3, 6, 8, 9, 10))
    for name in ("pancreas_ct", "pancreas_ct_mcnet"):
        assert not {"0025", "0070"} & {*split(name).train, *split(name).test}
    assert split("msd_lung_thorax") == split("msd_lung")
    assert split("brats2019_regions") == split("brats2019")
    assert len({frozenset(split(name).train) for name in ("amos", "amos_2p", "amos_10p")}) == 1


# -- ACDC ----------------------------------------------------------------------------------------


def frame(shape=(20, 24, 6)):
    label = np.zeros(shape, np.uint8)
    for value in (1, 2, 3):
        label[4 * value : 4 * value + 4, 6:14, 1:5] = value
    return (label * 60 + RNG.integers(0, 40, shape)).astype(np.int16), label


@pytest.fixture
def acdc_raw(tmp_path):
    """Two training patients and one test patient; frames are numbered as in the cine."""
    source = tmp_path / "raw" / "database" / "training"
    for case in some("acdc", 4)[::2]:
        folder = source / case[:10]
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text(
            "ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        )
        for number in (1, 12):
            image, label = frame()
            for end, array in (("", image), ("_gt", label)):
                save(
                    folder / f"{case[:10]}_frame{number:02d}{end}.nii.gz",
                    array,
                    np.diag([1.5, 1.5, 10, 1]),
                )
        save(folder / f"{case[:10]}_4d.nii.gz", np.zeros((4, 4, 2, 3), np.int16), np.eye(4))
    (tmp_path / "raw" / "train.list").write_text(
        "".join(f"{c[:10]}\n" for c in some("acdc", 4)[:4:2])
    )
    (tmp_path / "raw" / "test.list").write_text(f"{some('acdc')[-1][:10]}\n")
    return tmp_path / "raw"


def test_acdc_raw(acdc_raw, lab):
    store = prepare_store("acdc", acdc_raw, lab.folder / "data")
    assert store.train == some("acdc", 4)[:4] and len(store.test) == 2
    assert (
        store.patients == (store.train[0][:10], store.train[2][:10])
        and store.labeled(1) == store.train[:2]
    )
    info = store.cases[store.train[1]]
    assert (
        info.shape == (20, 24, 6)
        and info.spacing == (1.5, 1.5, 10)
        and info.group == store.train[0][:10]
    )
    image = store.image(store.train[1])
    assert image.min() == 0 and image.max() == 1 and info.made["source_shape"] == [20, 24, 6]
    assert info.source["from"]["recipe"]["gray"] == [{"window": None, "scale": "minmax"}]
    assert [p.level for p in check_store(store)] == []
    result = train_a_step(lab, "acdc", labeled=1)
    assert result["train"] == {"acdc": 2} and {m["class"] for m in result["metrics"]} == set(
        store.classes
    )
    assert all(m["counts"]["n"] == 2 and m["columns"]["hd95_mm"] for m in result["metrics"])


def test_acdc_behind_a_link(acdc_raw, tmp_path):
    (acdc_raw / "database" / "training").rename(tmp_path / "elsewhere")
    (acdc_raw / "database" / "training").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(acdc_raw)
    assert prepare_store("acdc", acdc_raw, tmp_path / "data").train == some("acdc", 4)[:4]


def test_two_different_files_of_one_case_are_refused(acdc_raw, pancreas_raw, tmp_path):
    originals = [
        ("acdc", acdc_raw, next(acdc_raw.rglob("Info.cfg")).parent),
        ("pancreas_ct", pancreas_raw, next(pancreas_raw.rglob("label0001.nii.gz"))),
        ("pancreas_ct", pancreas_raw, next(pancreas_raw.rglob("PANCREAS_0001"))),
    ]
    volume = np.zeros((3, 20, 24), np.float32)
    for name, adapter, content in (
        ("patient001_frame01.h5", "acdc", volume),
        ("0001.h5", "pancreas_ct", volume),
        ("patient001_frame01_slice_1.h5", "acdc", volume[0]),
    ):
        source = tmp_path / name.removesuffix(".h5")
        h5(source / "one" / name, content, content)
        originals.append((adapter, source, source / "one" / name))
    for adapter, source, original in originals:
        find = registry.get("dataset", adapter).cls().find
        second = source / "zz_backup" / original.name
        second.parent.mkdir(exist_ok=True)
        second.symlink_to(original)
        find(source)  # a link to the same file counts once
        second.unlink()
        copy = shutil.copytree if original.is_dir() else shutil.copy
        copy(original, second)
        with pytest.raises(DataError, match="twice") as caught:
            find(source)
        assert str(original) in str(caught.value) and str(second) in str(caught.value)
        remove = shutil.rmtree if second.is_dir() else os.remove
        remove(second)


def test_acdc_refuses_nan_and_an_info_file_that_is_a_folder(acdc_raw, tmp_path):
    image, label = next(acdc_raw.rglob("*_frame01.nii.gz")), frame()[0].astype(np.float32)
    label[3, 4, 5] = np.nan
    save(image, label, np.diag([1.5, 1.5, 10, 1]))
    with pytest.raises(DataProblems, match=r"_frame01: NaN or infinite gray values: 1 voxels"):
        prepare_store("acdc", acdc_raw, tmp_path / "data")
    (image.parent / "Info.cfg").unlink()
    (image.parent / "Info.cfg").mkdir()
    with pytest.raises(DataError, match="file cannot be read") as caught:
        prepare_store("acdc", acdc_raw, tmp_path / "data")
    assert str(image.parent) in str(caught.value)


def h5(path, image, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label


def test_acdc_h5_volumes_and_slices(tmp_path, lab):
    """Slices are stacked by number, not by text; a volume is preferred if both exist."""
    source = tmp_path / "ssl4mis"
    slices = source / "data" / "slices"
    write_lists(source, "acdc", 4)
    first = some("acdc")[0]
    volumes = {}
    for case in some("acdc", 4):
        gray, mask = frame((20, 24, 11))
        image = gray.T.astype(np.float32) / 300
        label = mask.T
        volumes[case] = image
        if case.endswith("frame01"):
            h5(source / "data" / f"{case}.h5", image, label)
        if case == first:  # beside its volume, with other values
            for z in range(11):
                h5(slices / f"{case}_slice_{z + 1}.h5", 0 * image[z], label[z])
        if case.endswith("frame02"):
            for z in range(11):
                h5(slices / f"{case}_slice_{z + 1}.h5", image[z], label[z])
    store = prepare_store("acdc", source, lab.folder / "data")
    for case in some("acdc", 4):
        np.testing.assert_array_equal(store.image(case)[0], volumes[case].T)
    assert store.cases[store.train[0]].spacing is None
    assert "hd95_mm" not in train_a_step(lab, "acdc", labeled=2)["metrics"][0]["columns"]
    second = some("acdc")[1]
    (slices / f"{second}_slice_5.h5").unlink()
    with pytest.raises(DataError, match=f"slices of {second} are missing"):
        prepare_store("acdc", source, lab.folder / "data")


def test_predictions_of_h5_files_lie_on_the_grid_of_the_file(tmp_path, lab):
    """Predictions have axes (slices, rows, columns), as the labels in the files."""
    import torch

    from segbench.contracts.method import Setting, Source
    from segbench.evaluation.new_scans import Predictor
    from segbench.evaluation.scan_files import Scan

    source = tmp_path / "ssl4mis"
    write_lists(source, "acdc", 2)
    for case in some("acdc"):
        image, label = (a.T for a in frame())
        h5(source / f"{case}.h5", image.astype(np.float32) / 300, label)
    prepare_store("acdc", source, lab.folder / "data")
    run = lab.prepared(
        "supervised", "acdc", labeled=1, overrides=["patch=32x32x32", "inference.stride=32x32x32"]
    )
    seen = []

    class Bright(torch.nn.Module):
        setting = Setting((Source("acdc", ("a", "b", "c")),), 1, (32, 32, 32))

        def predict(self, image, source=0):
            seen.append(image.abs().sum((0, 1)).nonzero())
            return torch.cat(
                [image[:, :1] <= 0.5, image[:, :1] > 0.5, *[image[:, :1] < 0] * 2], 1
            ).float()

    found = Predictor(Bright(), run.experiment, run.stores[0], 0, "cpu")(
        Scan("a", (source / f"{case}.h5",))
    )
    np.testing.assert_array_equal(found.label, image / 300 > 0.5)
    assert found.probabilities.shape == (4, 6, 24, 20) == (4, *label.shape)
    np.testing.assert_array_equal(
        np.ptp(seen[0].numpy(), axis=0), (19, 23, 5)
    )  # the network sees the axes of training


def test_acdc_info_without_frames_and_two_layouts(acdc_raw, tmp_path):
    h5(
        acdc_raw / "patient001_frame01.h5",
        np.zeros((2, 3, 4), np.float32),
        np.zeros((2, 3, 4), np.uint8),
    )
    with pytest.raises(DataError, match="two layouts"):
        prepare_store("acdc", acdc_raw, tmp_path / "data")
    (acdc_raw / "patient001_frame01.h5").unlink()
    info = next(acdc_raw.rglob("Info.cfg"))
    info.write_text("ED: 1\n")
    with pytest.raises(DataError, match="does not name the ES frame") as caught:
        prepare_store("acdc", acdc_raw, tmp_path / "data")
    assert str(info) in str(caught.value)


def test_every_bad_frame_of_acdc_is_listed_unless_no_list_needs_it(acdc_raw, tmp_path, lab):
    *infos, good = sorted(acdc_raw.rglob("Info.cfg"))
    for info in infos:
        info.write_text("Group: DCM\n")
    (good.parent.parent / "patient101").mkdir()
    (good.parent.parent / "patient101" / "Info.cfg").mkdir()
    shown = lab.call("data", "check", "acdc", "--from", acdc_raw).stdout
    assert shown.count("does not name the") == 4 and "patient101" not in shown


def test_acdc_slices_that_are_missing_or_of_another_size_are_all_listed(tmp_path, lab):
    source = tmp_path / "in"
    write_lists(source, "acdc", 8)
    one, two, three, four = (case[:10] for case in some("acdc", 8)[:8:2])
    test = some("acdc")[-1][:10]
    array = np.random.default_rng(0).random((5, 20, 24)).astype(np.float32)
    for number, patient in enumerate((one, two, three, four, test, "patient101")):
        for frame_number in (1, 2):
            image = array + 2 * number + frame_number
            for z in range(5):
                name = f"{patient}_frame0{frame_number}_slice_{z + 1}.h5"
                h5(source / name, image[z], array[z] > 0.5)
    for gone in (f"{one}_frame01_slice_2", f"{two}_frame02_slice_5", "patient101_frame01_slice_3"):
        (source / f"{gone}.h5").unlink()
    h5(source / f"{three}_frame01_slice_4.h5", array[0, 1:], array[0, 1:] > 0.5)
    for z in range(5):
        (source / f"{four}_frame01_slice_{z + 1}.h5").unlink()
    deep = np.tile(array, (2, 1, 1))
    h5(source / f"{four}_frame01.h5", deep, deep > 0.5)
    output = lab.call("data", "check", "acdc", "--from", "in").stdout
    shown = [line for line in output.splitlines() if "patient" in line]
    for case, text in (
        (f"{one}_frame01", "numbers 1, 3, 4, 5"),
        (f"{two}_frame02", "4 slices | expected 5"),
        (f"{three}_frame01", "slice_4.h5"),
        (f"{four}_frame02", "5 slices | expected 10"),
    ):
        assert any(f" {case}: " in line and text in line for line in shown), (case, shown)
    assert sum("slice" in line for line in shown) == 4


@pytest.mark.real
def test_acdc_on_real_volumes(real_data, tmp_path, lab):
    """Three real patients as h5 files; trained in 2D as in the literature, scored on volumes."""
    source = tmp_path / "some"
    (source / "data").mkdir(parents=True)
    patients = (real_data / "acdc" / "train.list").read_text().split()[:2]
    test = (real_data / "acdc" / "test.list").read_text().split()[:1]
    for patient in (*patients, *test):
        for file in (real_data / "acdc" / "data").glob(f"{patient}_*.h5"):
            (source / "data" / file.name).symlink_to(file)
    (source / "train.list").write_text("\n".join(patients))
    (source / "test.list").write_text("\n".join(test))
    store = prepare_store("acdc", source, lab.folder / "data")
    assert store.partial and store.train == tuple(
        f"{p}_frame0{k}" for p in patients for k in (1, 2)
    )
    with h5py.File(source / "data" / f"{patients[0]}_frame02.h5") as file:
        np.testing.assert_array_equal(store.image(f"{patients[0]}_frame02")[0], file["image"][()].T)
        np.testing.assert_array_equal(store.label(f"{patients[0]}_frame02"), file["label"][()].T)
    volumes = [store.cases[f"{patients[0]}_frame0{k}"].labels[3] for k in (1, 2)]
    assert volumes[0] > volumes[1]  # frame01 is end diastole
    run = lab.prepared(
        "supervised",
        "acdc",
        protocol="acdc",
        labeled=1,
        steps=1,
        overrides=["patch=64x64", "inference.stride=64x64", "backbone.width=4", "backbone.depth=3"],
    )
    result = execute(run, lab.machine())
    rows = (run.folder.path / "cases.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 and all(
        "x".join(map(str, store.cases[c].shape)) in "\n".join(rows) for c in store.test
    )
    assert result["metrics"][0]["counts"]["n"] == 2


# -- Decathlon -----------------------------------------------------------------------------------

MIRRORED = np.array([[-0.8, 0, 0, 50], [0, 0.8, 0, -20], [0, 0, 2.5, 10], [0, 0, 0, 1.0]])


@pytest.fixture
def spleen_tar(tmp_path):
    """A partial copy of the official tar, with side files of macOS and unlabeled cases."""
    task = tmp_path / "made" / "Task09_Spleen"
    for case in some("msd_spleen"):
        image, label = blob()
        save(task / "imagesTr" / f"{case}.nii.gz", image, MIRRORED)
        save(task / "labelsTr" / f"{case}.nii.gz", label, MIRRORED)
        (task / "labelsTr" / f"._{case}.nii.gz").write_bytes(b"side file")
    save(task / "imagesTs" / "spleen_1.nii.gz", blob()[0], MIRRORED)
    (task / "dataset.json").write_text('{"name": "Spleen"}')
    write_lists(tmp_path / "made", "msd_spleen")
    path = tmp_path / "Task09_Spleen.tar"
    with tarfile.open(path, "w") as tar:
        for entry in sorted((tmp_path / "made").iterdir()):
            tar.add(entry, entry.name)
    return path


@pytest.mark.parametrize("depth", [1, 2])
def test_data_below_single_folders_are_found(spleen_tar, tmp_path, lab, depth):
    around = tmp_path / "a" / "b" / "c"
    around.parent.mkdir(parents=True)
    (tmp_path / "made").rename(around)
    (around.parent / "__MACOSX").mkdir()
    source = around.parents[depth - 1]
    assert lab.call("data", "check", "msd_spleen", "--from", source).returncode == 0
    store = prepare_store("msd_spleen", source, tmp_path / "data")
    assert (*store.train, *store.test) == some("msd_spleen")
    refused = lab.call("data", "check", "msd_spleen", "--from", spleen_tar)
    assert refused.returncode == 3 and "expected a folder" in refused.stdout
    assert f"segbench data prepare msd_spleen --from {spleen_tar}" in refused.stdout


def test_decathlon_tar(spleen_tar, lab):
    store = prepare_store("msd_spleen", spleen_tar, lab.folder / "data")
    assert (*store.train, *store.test) == some("msd_spleen")
    assert not list(
        (lab.folder / "data" / "msd_spleen").glob("source*")
    )  # extracted files are removed
    info = store.cases["spleen_2"]
    # 20 x 18 x 12 voxels of 0.8 x 0.8 x 2.5 mm become 16 x 14 x 30 of 1 mm.
    # The box is widened to 96 and filled with 0.
    assert (
        info.shape == (96, 96, 96)
        and info.spacing == pytest.approx((1, 1, 1))
        and info.made["crop_offset"] == [0, 0, 0]
    )
    assert info.made["resampled_shape"] == [16, 14, 30]
    np.testing.assert_allclose(info.made["source_affine"], MIRRORED, rtol=1e-6)
    assert np.allclose(
        np.array(info.affine)[:3, 3], [50 - 0.8 * 19, -20, 10]
    )  # the first voxel after turning to RAS
    image, label = store.image("spleen_2")[0], store.label("spleen_2")
    assert image.min() == 0 and not image[16:].any()
    inside = image[label > 0] * 400 - 125
    assert 60 < np.median(inside) < 90
    assert label.sum() == pytest.approx(5 * 4 * 4 * 0.8 * 0.8 * 2.5, rel=0.3)
    assert info.source["from"]["recipe"]["gray"] == [{"window": [-125, 275], "scale": "unit"}]
    train_a_step(lab, "msd_spleen")


def test_extracted_files_are_kept_for_the_next_attempt(spleen_tar, lab, monkeypatch):
    adapter = registry.get("dataset", "msd_spleen").cls
    load, calls = adapter.load, []

    def fail_once(self, raw):
        calls.append(raw.id)
        if len(calls) == 2:
            raise RuntimeError("the disk hiccuped")
        return load(self, raw)

    monkeypatch.setattr(adapter, "load", fail_once)
    with pytest.raises(DataProblems, match="the disk hiccuped"):
        prepare_store("msd_spleen", spleen_tar, lab.folder / "data")
    monkeypatch.setattr(
        "segbench.data.preparation.pipeline.extract", None
    )  # not needed a second time
    store = prepare_store("msd_spleen", spleen_tar, lab.folder / "data")
    assert calls == [*some("msd_spleen"), calls[1]] and len(store.cases) == 3  # good cases are kept
    assert not list((lab.folder / "data" / "msd_spleen").glob("source*"))


def test_decathlon_finds_what_is_missing_or_wrong(spleen_tar, tmp_path):
    data = tmp_path / "data"
    spleen_tar.write_bytes(spleen_tar.read_bytes()[:-9000])
    with pytest.raises(DataError, match="damaged or cut short"):
        prepare_store("msd_spleen", spleen_tar, data)
    folder = tmp_path / "made"
    file = folder / "Task09_Spleen" / "labelsTr" / "spleen_2.nii.gz"
    save(file, blob()[1], np.diag([0.8, 0.8, 2.5, 1]))  # mirrored relative to its image
    with pytest.raises(DataProblems, match="axes RAS"):
        prepare_store("msd_spleen", folder, data)
    save(file, np.zeros((20, 18, 12), np.uint8), MIRRORED)
    with pytest.raises(DataProblems, match="it is empty"):
        prepare_store("msd_spleen", folder, data)
    file.write_bytes(gzip.compress(b"no volume"))
    with pytest.raises(DataProblems, match="damaged or cut short"):
        prepare_store("msd_spleen", folder, data)
    (folder / "train.list").unlink()
    with pytest.raises(DataError, match="38 of 41 cases are missing") as caught:
        prepare_store("msd_spleen", folder, data)
    for fact in (
        "Task09_Spleen.tar",
        "md5:410d4a301da4e5b2f6f86ec3ddba524e",
        "medicaldecathlon.com",
        "CC BY-SA",
    ):
        assert fact in str(caught.value)


def test_lung_in_both_variants(tmp_path, lab):
    task = tmp_path / "Task06_Lung"
    write_lists(tmp_path, "msd_lung")
    for case in some("msd_lung"):
        image, label = blob((40, 40, 40))
        save(task / "imagesTr" / f"{case}.nii.gz", image, np.diag([1.0, 1, 1, 1]))
        label[(label == 0) & (image == 44)] = 2
        save(task / "labelsTr" / f"{case}.nii.gz", label, np.diag([1.0, 1, 1, 1]))
    box = prepare_store("msd_lung", tmp_path, lab.folder / "data")
    body = prepare_store("msd_lung_thorax", tmp_path, lab.folder / "data")
    case = some("msd_lung")[0]
    assert box.cases[case].shape == (96, 96, 96) and body.cases[case].shape == (36, 36, 38)
    assert (
        set(box.cases[case].labels) == {0, 1} == set(body.cases[case].labels)
    )  # 2 and up are background
    assert any(w.startswith(f"{case}: label values used as background: 2: ") for w in box.warnings)
    assert box.cases[case].labels[1] == body.cases[case].labels[1] == 5 * 4 * 4
    assert body.image(case).min() == pytest.approx((40 + 1024) / 1349) and body.cases[case].made[
        "crop_offset"
    ] == [2, 2, 1]
    for name in ("msd_lung", "msd_lung_thorax"):
        train_a_step(lab, name)


@pytest.mark.parametrize("value", [0.6, np.nan, -1, 256])
def test_decathlon_labels_are_whole_numbers(spleen_tar, tmp_path, value):
    file = tmp_path / "made" / "Task09_Spleen" / "labelsTr" / "spleen_2.nii.gz"
    label = blob()[1].astype(np.float32)
    label[0, 0, 0] = value
    save(file, label, MIRRORED)
    with pytest.raises(DataProblems, match="not whole numbers") as caught:
        prepare_store("msd_spleen", tmp_path / "made", tmp_path / "data")
    assert str(file) in str(caught.value)


# -- Left atrium: more in test_la.py -------------------------------------------------------------


def test_left_atrium_raw(tmp_path, lab):
    source = tmp_path / "raw"
    write_lists(source, "la")
    for case in some("la"):
        image, label = frame((40, 44, 20))
        (source / case).mkdir()
        nrrd.write(
            str(source / case / "lgemri.nrrd"), image.astype(np.uint8), {"spacings": [0.625] * 3}
        )
        nrrd.write(
            str(source / case / "laendo.nrrd"), np.where(label > 0, np.uint8(255), np.uint8(0))
        )
    assert prepare_store("la", source, lab.folder / "data").cases[case].shape == (40, 44, 20)
    assert train_a_step(lab, "la")["metrics"][0]["columns"]["hd95_mm"]


# -- Pancreas ------------------------------------------------------------------------------------


@pytest.fixture
def pancreas_raw(tmp_path, write_dicom):
    """Series with real headers, and labels that match by index and not by header."""
    source = tmp_path / "tcia"
    write_lists(source, "pancreas_ct")
    for case in (*some("pancreas_ct"), "0003"):
        image, label = blob((30, 28, 40), value=100)
        write_dicom(
            source / "Pancreas-CT" / f"PANCREAS_{case}",
            image + 1024,
            (0.5, 0.5, 1.0),
            (0.0, 0.0, 0.0),
            intercept=-1024.0,
        )
        save(
            source / "TCIA_pancreas_labels" / f"label{case}.nii.gz",
            label,
            np.diag([0.5, -0.5, 1.0, 1.0]),
        )
    save(
        source / "TCIA_pancreas_labels" / "label0025.nii.gz",
        np.zeros((3, 3, 3), np.uint8),
        np.eye(4),
    )  # withdrawn
    return source


def test_pancreas_raw_protocol_a(pancreas_raw, lab):
    store = prepare_store("pancreas_ct", pancreas_raw, lab.folder / "data")
    assert (*store.train, *store.test) == some("pancreas_ct")
    info = store.cases["0001"]
    assert info.made["resampled_shape"] == [15, 14, 20] and info.spacing == pytest.approx(
        (1, 1, 2)
    )  # one factor: 0.5
    assert info.shape == (96, 96, 96) and info.source["from"]["recipe"]["in_plane"] is True
    inside = store.image("0001")[0][np.asarray(store.label("0001")) > 0] * 400 - 125
    assert 60 < inside.mean() < 105
    train_a_step(lab, "pancreas_ct")


def test_pancreas_raw_protocol_b(pancreas_raw, lab):
    (pancreas_raw / "train.list").write_text("0002\n0003\n")
    (pancreas_raw / "test.list").write_text("0001\n")
    save(
        pancreas_raw / "TCIA_pancreas_labels" / "label0064.nii.gz",
        np.zeros((3, 3, 3), np.uint8),
        np.eye(4),
    )
    store = prepare_store("pancreas_ct_mcnet", pancreas_raw, lab.folder / "data")
    info = store.cases["0003"]
    assert (
        info.made["resampled_shape"] == [15, 14, 40] == list(info.shape)
    )  # smaller than the box; all slices stay
    assert info.intensity["mean"] == pytest.approx(0, abs=1e-5) and info.intensity[
        "std"
    ] == pytest.approx(1, abs=1e-5)
    assert any("0025 and 0070" in w for w in store.warnings)
    train_a_step(lab, "pancreas_ct_mcnet")


@pytest.mark.parametrize("top", ["", "outer/"])
def test_pancreas_in_a_zip_made_on_a_mac_with_lists_beside_the_data(
    pancreas_raw, tmp_path, lab, top
):
    path = lab.folder / "tcia.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for file in (f for f in pancreas_raw.rglob("*") if f.is_file()):
            name = file.relative_to(pancreas_raw)
            packed.write(file, f"{top}{name}")
            for side in (
                f"__MACOSX/{top}{name.parent}/._{name.name}",
                f"{top}{name.parent}/._{name.name}",
            ):
                packed.writestr(side, b"\0\5\x16\7")
            if name.name.startswith("label") and not top:
                packed.writestr(f"__MACOSX/{top}{name}", b"no label")
    store = prepare_store("pancreas_ct", path, lab.folder / "data")
    assert (*store.train, *store.test) == some("pancreas_ct")
    with zipfile.ZipFile(path) as packed:
        packed.extractall(lab.folder / "in")
    assert lab.call("data", "check", "pancreas_ct", "--from", "in").returncode == 0


@pytest.mark.parametrize(
    "name, pattern",
    [
        ("pancreas_ct", "{}.h5"),
        ("pancreas_ct", "data{}.h5"),
        ("pancreas_ct_mcnet", "image{}_norm.h5"),
    ],
)
def test_pancreas_h5_files(tmp_path, name, pattern):
    source = tmp_path / "h5"
    write_lists(source, name)
    for case in (*some(name), "0025", "0070"):
        image, label = blob()
        h5(source / pattern.format(case), image.astype(np.float32), label.astype(np.float32))
    store = prepare_store(name, source, tmp_path / "data")
    assert (*store.train, *store.test) == some(name)
    assert store.label(store.train[0]).dtype == np.uint8
    assert store.cases[store.train[0]].spacing == (None if name == "pancreas_ct" else (1, 1, 1))
    h5(source / pattern.format(store.train[0]), image.astype(np.float32), label * 0.5)
    with pytest.raises(DataProblems, match="unknown label values"):
        prepare_store(name, source, tmp_path / "data")


@pytest.mark.parametrize("low", [3, 0])  # 40 to 44 HU; a corner in the air
def test_unusual_gray_values_inside_the_pancreas_are_a_warning(pancreas_raw, tmp_path, low):
    label = blob((30, 28, 40))[1] * np.uint8(low == 0)
    label[low : low + 2, low : low + 2, 4:5] = 1
    save(pancreas_raw / "TCIA_pancreas_labels" / "label0001.nii.gz", label, np.eye(4))
    store = prepare_store("pancreas_ct", pancreas_raw, tmp_path / "data")
    warnings = [w for w in store.warnings if "HU inside" in w]
    assert len(warnings) == 1 and warnings[0].startswith("0001: ")


def test_pancreas_labels_that_are_mirrored_or_missing(pancreas_raw, tmp_path):
    label = pancreas_raw / "TCIA_pancreas_labels" / "label0001.nii.gz"
    mirrored = np.zeros((30, 28, 40), np.uint8)
    mirrored[0:2, 0:2, 4:8] = 1  # in the air
    save(label, mirrored, np.eye(4))
    with pytest.raises(DataProblems, match="does not lie on soft tissue"):
        prepare_store("pancreas_ct", pancreas_raw, tmp_path / "data")
    label.unlink()
    with pytest.raises(DataError, match="1 series have no label file"):
        prepare_store("pancreas_ct", pancreas_raw, tmp_path / "data")
    with pytest.raises(DataError, match="no case of the pancreas data"):
        prepare_store("pancreas_ct", label.parent, tmp_path / "data")


def test_the_error_for_unprepared_data_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="not prepared") as caught:
        open_store("msd_spleen", tmp_path)
    assert "Task09_Spleen" in str(caught.value)


# -- BraTS 2019 ----------------------------------------------------------------------------------

SEQUENCES = ("t1", "t1ce", "t2", "flair")


def brats_case(folder, case):
    """Write the files of one case: a brain in air, with the challenge's label values."""
    folder.mkdir(parents=True)
    label = np.zeros((20, 22, 18), np.int16)
    for place, value in ((6, 1), (9, 2), (12, 4)):
        label[place : place + 3, 8:14, 6:12] = value
    brain = np.zeros(label.shape, bool)
    brain[2:-1, 3:-2, 1:-2] = True
    for number, name in enumerate(SEQUENCES):
        image = brain * (100 + 50 * number + 30 * label + RNG.integers(0, 9, label.shape))
        save(folder / f"{case}_{name}.nii.gz", image.astype(np.int16), np.diag([-1.0, -1, 1, 1]))
    save(folder / f"{case}_seg.nii.gz", label, np.diag([-1.0, -1, 1, 1]))


@pytest.fixture
def brats_raw(tmp_path):
    source = tmp_path / "MICCAI_BraTS_2019_Data_Training"
    write_lists(source, "brats2019")
    for number, case in enumerate(some("brats2019")):
        brats_case(source / ("HGG" if number else "LGG") / case, case)
    return source


def test_brats_whole_tumor_and_regions(brats_raw, lab):
    cases = some("brats2019")
    whole = prepare_store("brats2019", brats_raw, lab.folder / "data")
    regions = prepare_store("brats2019_regions", brats_raw, lab.folder / "data")
    assert (*whole.train, *whole.test) == (*regions.train, *regions.test) == cases
    assert whole.image(cases[0]).shape == (1, 17, 17, 15), "the box of the brain"
    assert regions.image(cases[0]).shape == (4, 17, 17, 15)
    assert set(np.unique(whole.label(cases[0]))) == {0, 1}
    assert set(np.unique(regions.label(cases[0]))) == {0, 1, 2, 3}
    np.testing.assert_array_equal(regions.label(cases[0]) > 0, whole.label(cases[0]) == 1)
    np.testing.assert_array_equal(regions.image(cases[0])[3], whole.image(cases[0])[0])
    flair = np.asarray(whole.image(cases[0])[0])
    assert abs(flair.mean()) < 1e-5 and flair.std() == pytest.approx(1, abs=1e-4)
    train_a_step(lab, "brats2019_regions")


def test_brats_h5_files_are_used_as_they_are(tmp_path, lab):
    write_lists(tmp_path, "brats2019")
    for case in some("brats2019"):
        image, label = blob()
        h5(tmp_path / "data" / f"{case}.h5", image.astype(np.float32), label)
    store = prepare_store("brats2019", tmp_path, lab.folder / "data")
    np.testing.assert_array_equal(store.image(case)[0], image)
    np.testing.assert_array_equal(store.label(case), label)
    assert store.cases[case].spacing is None
    with pytest.raises(DataError, match="cannot be read as brats2019_regions"):
        prepare_store("brats2019_regions", tmp_path, lab.folder / "data")


def test_brats_faults(brats_raw, tmp_path):
    case = some("brats2019")[0]
    file = next(brats_raw.rglob(f"{case}_seg.nii.gz"))
    label = np.zeros((20, 22, 18), np.int16)
    label[6:9, 8:14, 6:12] = 3
    save(file, label, np.diag([-1.0, -1, 1, 1]))
    with pytest.raises(DataProblems, match="label values that the challenge does not have"):
        prepare_store("brats2019", brats_raw, tmp_path / "data")
    file.with_name(f"{case}_t2.nii.gz").unlink()
    with pytest.raises(DataProblems, match=f"{case}_t2"):
        prepare_store("brats2019_regions", brats_raw, tmp_path / "data")
    with pytest.raises(DataError, match="no case of the BraTS 2019 data"):
        prepare_store("brats2019", brats_raw.parent / "data", tmp_path / "data")


# -- AMOS22 --------------------------------------------------------------------------------------


def organs(shape=(20, 18, 12)):
    """Return a body with all 15 organs as columns."""
    label = np.zeros(shape, np.uint8)
    for value in range(1, 16):
        row, column = divmod(value - 1, 4)
        label[2 + 4 * row : 5 + 4 * row, 1 + 4 * column : 4 + 4 * column, 2:-2] = value
    image = np.where(label > 0, 10 * label.astype(np.int16), np.int16(-1000))
    return image + RNG.integers(0, 5, shape).astype(np.int16), label


@pytest.mark.parametrize("name", ["amos", "amos_2p", "amos_10p"])
def test_amos_files_of_the_challenge(name, tmp_path, lab):
    source = tmp_path / "amos22"
    write_lists(source, name)
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    for case in some(name):
        part = "Va" if case in split(name).test else "Tr"
        image, label = organs()
        save(source / f"images{part}" / f"{case}.nii.gz", image, affine)
        save(source / f"labels{part}" / f"{case}.nii.gz", label, affine)
    save(source / "imagesTs" / "amos_0002.nii.gz", image, affine)
    store = prepare_store(name, source, lab.folder / "data")
    assert (*store.train, *store.test) == some(name) and len(store.classes) == 15
    assert store.cases[case].spacing == (2.0, 2.0, 5.0)
    assert set(np.unique(store.label(case))) == set(range(16))
    # Stored from left to right; the nearest RAS axes go the other way.
    np.testing.assert_array_equal(store.label(case), label[::-1, ::-1])
    gray = np.asarray(store.image(case)[0])
    assert gray.min() == 0 and 0 < gray.max() <= 1
    if name == "amos":
        result = train_a_step(lab, "amos")
        assert [entry["class"] for entry in result["metrics"]] == list(store.classes)


def test_amos_arrays_of_dhc(tmp_path, lab):
    write_lists(tmp_path, "amos")
    for case in some("amos"):
        image, label = organs()
        (tmp_path / "npy").mkdir(exist_ok=True)
        np.save(tmp_path / "npy" / f"{case}_image.npy", image.T.astype(np.float32))
        np.save(tmp_path / "npy" / f"{case}_label.npy", label.T.astype(np.float32))
    store = prepare_store("amos", tmp_path, lab.folder / "data")
    np.testing.assert_array_equal(store.label(case), label)
    gray = np.asarray(store.image(case)[0])
    clipped = np.clip(image.astype(np.float32), -75, 275)
    np.testing.assert_allclose(gray, (clipped + 75) / (clipped.max() + 75), rtol=1e-6)
    assert store.cases[case].spacing is None

    (tmp_path / "npy" / f"{case}_label.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataProblems, match="damaged or cut short"):
        prepare_store("amos", tmp_path, tmp_path / "data")


def test_amos_labels_have_15_values(tmp_path):
    write_lists(tmp_path, "amos")
    for case in some("amos"):
        image, label = organs()
        label[0, 0, 0] = 16
        part = "Va" if case in split("amos").test else "Tr"
        save(tmp_path / f"images{part}" / f"{case}.nii.gz", image, np.eye(4))
        save(tmp_path / f"labels{part}" / f"{case}.nii.gz", label, np.eye(4))
    with pytest.raises(DataProblems, match="16"):
        prepare_store("amos", tmp_path, tmp_path / "data")
