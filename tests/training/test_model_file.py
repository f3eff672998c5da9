"""Weights as one file: what predicts without anything else, and what is refused."""

import hashlib
import json
import shutil
import zipfile

import numpy as np
import pytest
from conftest import PLUGINS, Lab
from safetensors.torch import load, save

import segbench
from segbench import registry
from segbench.api.machine import SegbenchWarning
from segbench.errors import IntegrityError, PluginError, UsageError
from segbench.training.model_file import CONFIG, INDEX, WEIGHTS, is_model, read_model, write_model
from segbench.training.run import execute


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train once; return the folder with results and data."""
    lab = Lab(tmp_path_factory.mktemp("trained"))
    with registry.isolated():
        registry.add_file(PLUGINS / "tiny.py")
        execute(lab.prepared("supervised", steps=2), lab.machine(), lab.reporter())
    return lab.folder


@pytest.fixture
def run(lab, trained):
    """Return a trained run in a folder of the test's own, as ``segbench.load`` gives it."""
    shutil.copytree(trained, lab.folder, dirs_exist_ok=True)
    return segbench.load("supervised", lab.folder / "out", lab.folder / "data", "cpu")


@pytest.fixture
def model(run, lab):
    """Return the file of its weights."""
    file = lab.folder / "model.zip"
    write_model(run._folder, file)
    return file


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(0, 1, (1, 20, 20, 20)).astype(np.float32)


def changed(model, **contents):
    """Replace files of a model and correct their digests; returns the new file."""
    with zipfile.ZipFile(model) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files.update({name: content for name, content in contents.items() if name in files})
    index = json.loads(files[INDEX])
    index.update(contents.get("index", {}))
    for name in index["files"]:
        index["files"][name] = hashlib.sha256(files[name]).hexdigest()
    files[INDEX] = json.dumps(index).encode()
    file = model.with_name("changed.zip")
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def content(model, name):
    with zipfile.ZipFile(model) as archive:
        return archive.read(name)


def test_the_run_folder_or_the_file_alone_predicts(run, model, lab, image):
    expected = run.predict(image).probabilities
    alone = lab.folder / "elsewhere"
    shutil.move(run.folder, alone)
    shutil.rmtree(lab.folder / "out")
    shutil.rmtree(lab.folder / "data")
    moved = segbench.load(alone, device="cpu")
    assert np.array_equal(moved.predict(image).probabilities, expected)

    shutil.rmtree(alone)
    loaded = segbench.load_model(model, device="cpu")
    assert np.array_equal(loaded.predict(image).probabilities, expected)
    assert repr(loaded) == f"Model({run.id[:8]}: supervised on tiny)"
    assert loaded.metrics[0]["dice"] == run.metrics[0]["dice"]
    assert not list(lab.folder.glob("segbench-*"))


def test_a_folder_with_the_files_is_a_model(model, lab, image):
    with zipfile.ZipFile(model) as archive:
        archive.extractall(lab.folder / "unpacked")
    from_file = segbench.load_model(model, device="cpu").predict(image).label
    from_folder = segbench.load_model(lab.folder / "unpacked", device="cpu").predict(image).label
    assert np.array_equal(from_file, from_folder)


def test_a_model_file_may_have_any_name(model, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(model.read_bytes())
    assert is_model(file) and is_model(tmp_path / "missing.zip")
    file.write_bytes(b"something else")
    assert not is_model(file) and not is_model(tmp_path)


def test_nothing_in_the_file_names_a_case_or_a_place(model, lab):
    with zipfile.ZipFile(model) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name != WEIGHTS)
    assert b"case0" not in text and str(lab.folder).encode() not in text
    facts = read_model(model).stores[0]
    assert facts.train[0] == "train_0001" and not facts.test
    assert facts.cases["train_0001"].spacing == (1.0, 1.0, 1.0)


def test_the_card_says_what_it_is_and_what_it_is_not_for(run, model):
    card = segbench.load_model(model, device="cpu").card
    assert card.startswith("---\nlibrary_name: segbench\n")
    for part in ("none needed", "not a medical device", f"{run.dice:.1f}", run.id, "@misc{tiny,"):
        assert part in card


def test_every_flipped_byte_and_every_lost_file_is_found(model, lab):
    data = bytearray(model.read_bytes())
    place = data.index(b"PK", 4) - 40  # in the last bytes of the first file
    for position in (place, len(data) // 2):
        damaged = lab.folder / "damaged.zip"
        damaged.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(IntegrityError, match="incomplete or damaged"):
            read_model(damaged)
    with zipfile.ZipFile(model) as archive:
        archive.extractall(lab.folder / "unpacked")
    (lab.folder / "unpacked" / WEIGHTS).unlink()
    with pytest.raises(IntegrityError, match="incomplete or damaged"):
        read_model(lab.folder / "unpacked")
    with pytest.raises(UsageError, match="no model file"):
        read_model(lab.folder / "no.zip")


def test_other_weights_under_the_same_name_are_refused(model):
    tensors = load(content(model, WEIGHTS))
    with zipfile.ZipFile(model) as archive:
        raw = archive.read(WEIGHTS)
    size = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + size])["__metadata__"]
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    with pytest.raises(IntegrityError, match="not those of the result"):
        read_model(changed(model, **{WEIGHTS: save(tensors, metadata)}))


def test_a_bundle_of_results_is_no_model(run, lab):
    from segbench.results import bundle

    bundle.export(run._folder, lab.folder / "bundle.zip", with_predictions=False)
    with pytest.raises(IntegrityError, match="incomplete or damaged") as caught:
        read_model(lab.folder / "bundle.zip")
    assert "--weights" in str(caught.value)


def test_a_schema_of_the_future_is_refused(model):
    with pytest.raises(IntegrityError, match="need another segbench"):
        read_model(changed(model, index={"schema": "segbench.model/9"}))


def test_weights_of_another_network_are_an_error_with_all_its_parts(model, image):
    config = content(model, CONFIG).replace(b"width: 4", b"width: 6")
    other = segbench.load_model(changed(model, **{CONFIG: config}), device="cpu")
    with pytest.raises(IntegrityError, match="do not fit method 'supervised'") as caught:
        other.predict(image)
    details = caught.value.details
    assert "has shape" in details["found"] and "segbench==" in details["fix"]
    assert details["where"] is not None and details["expected"] is not None


def test_a_missing_plug_in_is_named_with_its_file(model):
    config = content(model, CONFIG).replace(b"method: supervised", b"method: theirs")
    file = changed(model, **{CONFIG: config, "index": {"plugins": ["theirs.py"]}})
    with pytest.raises(PluginError, match="needs the method 'theirs'") as caught:
        segbench.load_model(file, device="cpu")
    assert "--plugin theirs.py" in caught.value.details["fix"]


def test_changed_source_of_a_plug_in_is_a_warning(model, image):
    digest = read_model(model).sources["method"].encode()
    config = content(model, CONFIG).replace(digest, b"0" * 64)
    file = changed(model, **{CONFIG: config})
    with pytest.warns(SegbenchWarning, match="source of method 'supervised' is not that"):
        loaded = segbench.load_model(file, device="cpu")
    assert loaded.predict(image).label.shape == (20, 20, 20)


def test_runs_without_weights_or_facts_are_refused(run, lab):
    (run.folder / "stores.json").unlink()
    with pytest.raises(IntegrityError, match="kept no facts"):
        write_model(run._folder, lab.folder / "m.zip")
    shutil.rmtree(run.folder / "ckpt")
    with pytest.raises(IntegrityError, match="has no weights"):
        write_model(run._folder, lab.folder / "m.zip")
    assert not (lab.folder / "m.zip").exists()


def test_the_commands(run, lab, image):
    import nibabel

    nibabel.Nifti1Image(image[0], np.eye(4)).to_filename(lab.folder / "scan.nii.gz")
    done = lab.call("--root", "out", "runs", "export", run.id, "--weights", "-o", "m.zip")
    assert done.returncode == 0 and "segbench predict m.zip" in done.stderr, done.stderr
    shutil.rmtree(lab.folder / "out")
    shutil.rmtree(lab.folder / "data")
    done = lab.call("predict", "m.zip", "scan.nii.gz", "-o", "o", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["scans"][0]["shape"] == [20, 20, 20]
    assert (lab.folder / "o" / "scan_seg.nii.gz").is_file()


def test_options_of_a_bundle_are_refused_with_weights(run, lab):
    done = lab.call("--root", "out", "runs", "export", run.id, "--weights", "--no-predictions")
    assert done.returncode == 2 and "no predictions" in done.stderr
