"""Arrays that are evaluated: other kinds of values, arguments that contradict each other."""

import numpy as np
import pytest
from small_folders import ball, save, shifted_balls

import segbench
from segbench.errors import DataError, UsageError

PRED, REF = shifted_balls()


@pytest.mark.parametrize("kind", [bool, np.int8, np.uint16, np.int64, np.float16, np.float64, list])
def test_any_type_of_whole_numbers_gives_the_same_scores(kind):
    pred, ref = (array.tolist() if kind is list else array.astype(kind) for array in (PRED, REF))
    (row,) = segbench.evaluate(pred, ref, spacing=(0.5, 0.5, 2)).rows
    assert row["dice"] == pytest.approx(0.8427, abs=1e-4)
    assert row["hd95_mm"] == 0.5


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda array: array.astype(complex), "complex128"),
        (lambda array: array.astype(object), "type object"),
        (lambda array: array.astype(str), "type <U"),
        (lambda array: array[:0], "shape (0,"),
        (lambda array: array[None], "shape (1,"),
        (lambda array: np.where(array, np.nan, 0), "nan"),
        (lambda array: array * 0.3, "0.3"),
        (lambda array: array.astype(np.uint16) * 65535, "65535"),
        (lambda array: np.stack([1 - array, array])[:, :, 0], "along axis 1, each place has one 1"),
        (lambda array: np.stack([1 - array, array], -1)[0], "along axis 3"),
    ],
)
def test_arrays_that_are_no_label_maps(change, said):
    with pytest.raises(DataError) as caught:
        segbench.evaluate(change(PRED), change(REF))
    assert said in str(caught.value)


def test_white_of_sixteen_bits_is_not_called_voxels_to_leave_out():
    with pytest.raises(DataError) as caught:
        segbench.evaluate(PRED, REF.astype(np.uint16) * 65535)
    assert "write 1 instead of it" in caught.value.details["fix"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"ignore": [255], "ref_map": {255: 1}},
        {"ignore": [0]},
        {"ignore": "255"},
        {"ignore": 255},
        {"ignore": [1.5]},
        {"pred_map": {300: 1}},
        {"pred_map": {1: 300}},
        {"ref_map": {1: -1}},
        {"ref_map": {1.0: 1}},
        {"labels": {0: "background"}},
        {"labels": {"1": "organ"}},
        {"labels": {300: "organ"}},
        {"labels": {1: "organ", 2: "organ"}},
        {"labels": ["background", "organ"]},
        {"labels": {1: "organ"}, "ignore": [1]},
        {"spacing": (1, 1)},
        {"spacing": 2.0},
        {"spacing": (1, 1, -1)},
        {"spacing": (1, np.nan, 1)},
    ],
)
def test_arguments_that_cannot_be_used(arguments):
    with pytest.raises(UsageError):
        segbench.evaluate(PRED, REF, **arguments)


def test_numbers_of_numpy_are_values():
    found = segbench.evaluate(PRED, REF, {np.int64(1): "organ"}, ignore=np.array([9]))
    assert [row["class"] for row in found.rows] == ["organ"]


def test_rules_that_change_nothing_and_gray_scans_are_named():
    found = segbench.evaluate(PRED, REF, ignore=(value for value in [200]), pred_map={9: 1})
    assert any("--ignore 200: no reference" in text for text in found.warnings)
    assert any("no prediction holds 9" in text for text in found.warnings)
    noise = np.random.default_rng(0).integers(0, 200, REF.shape)
    found = segbench.evaluate(PRED, noise, {1: "organ"})
    assert any("ref looks like a gray scan" in text for text in found.warnings)


ORGAN = ball((6, 14), 4, (24, 24)) | ball((16, 4), 3, (24, 24))


@pytest.mark.parametrize(
    "turn, said",
    [
        (lambda array: array.T, "axes in the order 2, 1"),
        (lambda array: array[::-1], "mirrored along axis 1"),
        (lambda array: array[:, ::-1], "mirrored along axis 2"),
        (lambda array: array[::-1, ::-1], "mirrored along axis 1 and 2"),
        (np.rot90, "axes in the order 2, 1"),
    ],
)
@pytest.mark.parametrize("slices", [None, 1, 3])
def test_predictions_that_fit_when_they_are_turned(turn, said, slices):
    pred, ref = turn(ORGAN), ORGAN
    if slices:
        pred, ref = (np.stack([array] * slices, axis=-1) for array in (pred, ref))
    (warning,) = segbench.evaluate(pred, ref).warnings
    assert said in warning and "has Dice 100.0 instead of" in warning
    assert segbench.evaluate(ref, ref).warnings == []


@pytest.mark.parametrize("ending", [".png", ".h5", ".nii.gz"])
def test_files_that_fit_when_they_are_turned(lab, ending):
    from PIL import Image

    for number in range(3):
        for side, array in (("pred", ORGAN.T), ("ref", ORGAN)):
            file = lab.folder / side / f"c{number}{ending}"
            file.parent.mkdir(exist_ok=True)
            if ending == ".png":
                Image.fromarray(array).save(file)
            else:
                save(file, array[..., None])
    shown = lab.call("evaluate", "--pred", "pred", "--ref", "ref")
    assert "axes in the order 2, 1" in shown.stderr and "(cases: 3)" in shown.stderr


def test_poor_and_empty_predictions_are_not_called_turned():
    elsewhere = ball((20, 20), 3, (24, 24))
    for pred, ref in ((elsewhere, ORGAN), (0 * ORGAN, ORGAN), (ORGAN, 0 * ORGAN)):
        found = segbench.evaluate(pred, ref, {1: "organ"})
        assert not any("other axes" in text for text in found.warnings)
