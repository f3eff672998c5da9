"""Evaluation: what is scored, on which grid, and that training never reads test labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from segbench.contracts.method import Method, Setting, Source
from segbench.data.open import derived, open_store
from segbench.data.sampling.crops import zoom
from segbench.evaluation.case_rows import cases_csv, summarize
from segbench.evaluation.prediction import Inference, predict_case
from segbench.evaluation.test_set import evaluate
from segbench.training.build import build
from segbench.training.run import execute


class Oracle(Method):
    """Predict foreground where the image is bright."""

    name = "oracle"

    def __init__(self, level=0.5):
        super().__init__(Method.Params(), Setting((Source("tiny", ("ball",)),), 1, (16, 16, 16)))
        self.level = level

    def predict(self, image, source=0):
        p = torch.sigmoid(20 * (image[:, :1] - self.level))
        return torch.cat([1 - p, p], 1)


def rows_of(method, store, protocol, folder):
    return evaluate(Inference(method, protocol), [store], folder / "rows", "stamp")


def test_scores_are_those_of_the_metrics(lab):
    from segbench.metrics import evaluate_pair

    protocol = lab.prepared("supervised").experiment.protocol
    store = open_store("tiny", lab.folder / "data")
    rows = rows_of(Oracle(), store, protocol, lab.folder)
    assert [r["case"] for r in rows] == list(store.test)
    for row in rows:
        image, label = np.asarray(store.image(row["case"]))[0], np.asarray(store.label(row["case"]))
        expected = evaluate_pair(image > 0.5, label, spacing=(1, 1, 1))
        assert row["dice"] == pytest.approx(expected.dice) and row["hd95_mm"] == pytest.approx(
            expected.hd95
        )
        assert row["hd95_vox"] == row["hd95_mm"], "spacing is 1 mm"


@pytest.mark.parametrize("crop", ["random", "zoom"])
def test_a_network_for_slices_is_scored_on_volumes(lab, crop):
    """Slices of 20x20 are cut into windows of 16 or resized to 16; the volume keeps its shape."""
    run = lab.prepared(
        "supervised",
        protocol=Path(__file__).parents[1] / "plugins" / "tiny_flat.yaml",
        overrides=[f"crop.labeled={crop}", f"crop.unlabeled={crop}"],
    )
    store = open_store("tiny", lab.folder / "data")
    image = np.asarray(store.image("case6"))[0]
    seen = zoom(zoom(image, (16, 16, 20)), image.shape) if crop == "zoom" else image
    p = predict_case(Inference(Oracle(), run.experiment.protocol), store, "case6", 0)
    np.testing.assert_array_equal(np.asarray(p.argmax(0)), seen > 0.5)
    result = execute(run, lab.machine())
    with open(run.folder.path / "cases.csv") as file:
        assert [(r["case"], r["shape"]) for r in csv.DictReader(file)] == [
            ("case6", "20x20x20"),
            ("case7", "20x20x20"),
        ]
    assert result["metrics"][0]["counts"]["n"] == 2


def test_empty_prediction_scores_the_worst(lab):
    protocol = lab.prepared("supervised").experiment.protocol
    rows = rows_of(Oracle(level=99), open_store("tiny", lab.folder / "data"), protocol, lab.folder)
    mean = summarize(rows, "worst_distance")[0]
    assert mean["counts"]["empty_prediction"] == 2 and mean["columns"]["dice"]["mean"] == 0
    assert mean["columns"]["hd95_vox"]["mean"] == pytest.approx(np.sqrt(3 * 20**2))


def test_downsampled_protocol_is_scored_on_the_full_grid(lab):
    run = lab.prepared(
        "supervised", overrides=["downsample=2", "patch=8x8x8", "inference.stride=4x4x4"]
    )
    store = open_store("tiny", lab.folder / "data")
    p = predict_case(Inference(Oracle(), run.experiment.protocol), store, "case6", 0)
    assert p.shape == (2, 20, 20, 20)
    assert derived(store, 2).cases["case6"].shape == (10, 10, 10)
    result = execute(run, lab.machine())
    assert result["metrics"][0]["counts"]["n"] == 2
    with (run.folder.path / "cases.csv").open() as file:
        assert {r["shape"] for r in csv.DictReader(file)} == {"20x20x20"}


def test_images_with_fewer_channels_are_filled_up(lab):
    protocol = lab.prepared("supervised").experiment.protocol
    method = Oracle()
    method.setting = Setting((Source("tiny", ("ball",)),), 3, (16, 16, 16))
    store = open_store("tiny", lab.folder / "data")
    assert predict_case(Inference(method, protocol), store, "case6", 0).shape == (2, 20, 20, 20)


def test_one_unknown_spacing_leaves_out_the_millimeters(lab):
    from dataclasses import replace

    protocol = lab.prepared("supervised").experiment.protocol
    store = open_store("tiny", lab.folder / "data")
    cases = {**store.cases, "case7": replace(store.cases["case7"], spacing=None)}
    rows = rows_of(Oracle(), replace(store, cases=cases), protocol, lab.folder)
    assert len(rows) == 2 and not any("hd95_mm" in row for row in rows)
    assert summarize(rows, "worst_distance")[0]["counts"]["n"] == 2


def test_largest_component_is_kept_per_class(lab):
    protocol = lab.prepared("supervised", overrides=["largest_component=true"]).experiment.protocol
    store = open_store("tiny", lab.folder / "data")
    kept = rows_of(Oracle(), store, protocol, lab.folder)
    without = protocol.model_copy(update={"largest_component": False})
    plain = evaluate(Inference(Oracle(), without), [store], lab.folder / "other", "stamp")
    assert all(k["pred_voxels"] < p["pred_voxels"] for k, p in zip(kept, plain, strict=True))


def test_rows_of_other_weights_are_not_taken_over(lab):
    protocol = lab.prepared("supervised").experiment.protocol
    store = open_store("tiny", lab.folder / "data")
    first = evaluate(Inference(Oracle(), protocol), [store], lab.folder / "rows", "one")
    again = evaluate(Inference(Oracle(level=99), protocol), [store], lab.folder / "rows", "one")
    other = evaluate(Inference(Oracle(level=99), protocol), [store], lab.folder / "rows", "two")
    assert again == first != other


def test_case_table_is_plain_text():
    text = cases_csv(
        [{"case": "a,b", "dice": None, "shape": [3, 4]}, {"case": "c", "dice": 0.5, "extra": 1}]
    ).decode()
    assert text.splitlines() == ["case,dice,shape,extra", '"a,b",,3x4,', "c,0.5,,1"]


def test_training_never_reads_unlabeled_labels_or_the_test_split(lab, tmp_path, monkeypatch):
    """Garbage in labels of unlabeled cases and in test images does not change the weights."""
    monkeypatch.setattr(
        "segbench.training.run.require_intact_once", lambda *_: None
    )  # it would refuse them
    from segbench.training import checkpoint

    clean = lab.prepared("mean_teacher")
    execute(clean, lab.machine())
    other = type(lab)(tmp_path / "other")
    spoiled = other.prepared("mean_teacher")
    store = spoiled.stores[0]
    for case in (*store.train[2:], *store.test):
        files = ["label"] + (["image"] if case in store.test else [])
        for name in files:
            file = store.root / "cases" / case / f"{name}.npy"
            array = np.load(file)
            np.save(file, np.zeros_like(array))
    execute(spoiled, other.machine())
    weights = [
        checkpoint.digest(checkpoint.load(r.folder.path / "ckpt")[1]) for r in (clean, spoiled)
    ]
    assert weights[0] == weights[1]


def test_predictions_may_have_a_precision_of_their_own(lab):
    """A training in fp32 is predicted in bf16; without the key, a run keeps its identity."""
    plain = lab.prepared("supervised")
    half = lab.prepared("supervised", overrides=["inference.precision=bf16"])
    assert half.run_id != plain.run_id
    assert "precision" not in plain.science["protocol"]["inference"]
    method = build(plain.experiment, plain.stores, fresh=True).eval()
    windows = torch.rand(1, 1, 16, 16, 16)
    exact = plain.inference(method, "cpu").windows(windows, 0)
    rounded = half.inference(method, "cpu").windows(windows, 0)
    assert half.inference(method, "cpu").precision == "bf16"
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.02, rtol=0, check_dtype=False)
