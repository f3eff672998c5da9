"""The Python API: training, loading, predicting, scoring, comparing, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import PLUGINS

import segbench
from segbench.errors import PluginError, SegbenchError, UsageError


@pytest.fixture
def places(lab):
    """Return the folders that every call needs."""
    return {"root": lab.folder / "out", "data_root": lab.folder / "data", "device": "cpu"}


@pytest.fixture
def train(places):
    """Return a function that trains a method on the tiny data set."""

    def call(method="supervised", dataset="tiny", **choices):
        choices.setdefault("protocol", PLUGINS / "tiny.yaml")
        return segbench.run(method, dataset, **{**places, **choices})

    return call


def test_the_import_is_light():
    code = (
        "import sys, segbench; names = dir(segbench); segbench.SegbenchError; "
        "assert 'run' in names and 'list_methods' in names; "
        "print([name for name in ('torch', 'numpy', 'pydantic', 'click') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_function_and_class_is_documented():
    for name in set(segbench.__all__) - {"__version__", "Field"}:
        public = getattr(segbench, name)
        assert public.__doc__, name
        if isinstance(public, type) and public.__module__.startswith("segbench.api"):
            for attribute, value in vars(public).items():
                assert attribute.startswith("_") or value.__doc__, f"{name}.{attribute}"


def test_a_run_is_trained_once_and_loaded(train, places):
    run = train(seed=3)
    assert (run.method, run.datasets, run.seed) == ("supervised", ["tiny"], 3)
    assert run.metrics["dataset"] == ["tiny"]
    assert run.dice == pytest.approx(run.metrics[0]["dice"])
    assert len(run.cases) == 2
    assert run.log["step"][-1] == run.result["steps"] - 1

    weights = (run.folder / "result.json").stat().st_mtime_ns
    assert train(seed=3).id == run.id
    assert (run.folder / "result.json").stat().st_mtime_ns == weights
    loaded = segbench.load(run.id[:8], **places)
    assert loaded.result["weights_sha256"] == run.result["weights_sha256"]
    assert repr(loaded).startswith(f"Run({run.id[:8]}: supervised on tiny, seed 3")


def test_predictions_are_those_of_the_evaluation(train, places, tmp_path):
    run = train()
    store = segbench.open_dataset("tiny", places["data_root"])
    for row in run.cases:
        case = row["case"]
        found = run.predict(store.image(case), prepared=True)
        scores = segbench.evaluate(
            found.label, store.label(case), {1: "ball"}, spacing=store.cases[case].spacing
        )
        assert scores.dice == pytest.approx(row["dice"])
        assert scores.cases[0]["hd95"] == pytest.approx(row["hd95"])

    file = found.save(tmp_path / "sub" / "label.nii.gz")
    scores = segbench.evaluate(file, file)
    assert scores.dice in (100.0, None)
    image = np.asarray(store.image(case)[0])
    assert np.array_equal(run.predict(image).label, found.label)
    placed = run.predict(image, affine=np.diag([1.0, 1.0, 1.0, 1.0]))
    assert np.array_equal(placed.label, found.label)


def test_two_dimensional_arrays_are_predicted(train, places):
    run = train(dataset="tiny_flat", protocol=PLUGINS / "tiny_flat.yaml")
    store = segbench.open_dataset("tiny_flat", places["data_root"])
    row = run.cases[0]
    found = run.predict(store.image(row["case"]), prepared=True)
    assert found.label.shape == store.label(row["case"]).shape
    scores = segbench.evaluate(found.label, store.label(row["case"]), {1: "ball"})
    assert scores.dice == pytest.approx(row["dice"])


@pytest.mark.parametrize("shape", [(20,), (2, 20, 20, 20), (20, 20)])
def test_an_array_of_another_shape_is_refused(train, shape):
    with pytest.raises(SegbenchError, match="not what the run was trained on"):
        train().predict(np.zeros(shape, np.float32))


def test_leaderboard_and_comparison(train, places):
    first = train()
    second = train("mean_teacher")
    board = segbench.leaderboard(root=places["root"])
    assert set(board["method"]) == {"supervised", "mean_teacher"}
    assert board.where(method="supervised")[0]["dice"] == pytest.approx(first.dice)
    pairs = segbench.compare("mean_teacher", "supervised", root=places["root"])
    dice = pairs.where(metric="dice")[0]
    assert dice["mean"] == pytest.approx(second.dice - first.dice)
    assert "one seed" in dice["verdict"]
    by_run = segbench.compare(second, first, root=places["root"], cases=True).where(metric="dice")
    assert by_run["case"] == first.cases["case"]
    assert np.mean(by_run["difference"]) == pytest.approx(dice["mean"])
    assert sorted(segbench.list_runs(places["root"])["state"]) == ["done", "done"]


def test_what_is_available(places):
    assert "bcp" in segbench.list_methods()["name"]
    assert "tiny" in segbench.list_datasets(places["data_root"])["name"]
    assert "vnet" in segbench.list_backbones()["name"]
    assert "la" in segbench.list_protocols()["name"]


def test_label_maps_are_scored_with_rules():
    ref = np.zeros((6, 6, 6), np.uint8)
    ref[:3] = 1
    pred = ref * 255
    assert segbench.evaluate(pred, ref, pred_map={255: 1}).dice == 100.0
    assert segbench.evaluate(pred, ref, pred_map={255: 1}, ignore=[255]).dice == 100.0
    assert segbench.evaluate(ref > 0, ref > 0).dice == 100.0
    with pytest.raises(SegbenchError, match="differ in shape"):
        segbench.evaluate(pred[1:], ref)
    with pytest.raises(SegbenchError, match="no labels"):
        segbench.evaluate(ref + 0.5, ref)
    with pytest.raises(UsageError, match="not of one kind"):
        segbench.evaluate(ref, "folder")
    with pytest.raises(SegbenchError, match="no label above 0"):
        segbench.evaluate(0 * ref, 0 * ref)


def test_wrong_requests_raise_the_project_s_errors(train, places):
    with pytest.raises(UsageError, match="unknown method"):
        train("superviced")
    with pytest.raises(UsageError, match="one data set at a time"):
        train(dataset="tiny,tiny_bare")
    with pytest.raises(UsageError, match="unknown metric") as caught:
        segbench.leaderboard(sort="dise", root=places["root"])
    assert "dice" in caught.value.details["expected"]
    with pytest.raises(UsageError, match="no run"):
        segbench.load("no_such_run", **places)


def test_a_table_needs_no_other_package(monkeypatch):
    table = segbench.Table([{"a": 1, "b": 2.5}, {"a": 2, "b": None}])
    assert table["a"] == [1, 2]
    assert table[0] == {"a": 1, "b": 2.5}
    assert table[1:].rows == [{"a": 2, "b": None}]
    assert str(table).splitlines() == ["a  b", "1  2.5", "2  –"]
    assert "<td>2.5</td>" in table._repr_html_()
    assert table.to_csv() == "a,b\n1,2.5\n2,\n"
    assert table.select("b").columns == ["b"]
    with pytest.raises(UsageError, match="no column 'c'"):
        table["c"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PluginError, match="pandas is not installed"):
        table.to_pandas()


def test_a_table_becomes_a_data_frame():
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = segbench.Table([{"a": 1, "b": 2.5}]).to_pandas()
    assert list(frame.columns) == ["a", "b"]
    assert frame["b"].sum() == 2.5
