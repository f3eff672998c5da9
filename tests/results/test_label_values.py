"""Label values that do not meet: warnings with the likely reason, --map and --ignore."""

import json

import numpy as np
import pytest
from small_folders import ball, save, scan, shifted_balls

from segbench.data.formats.volume import looks_like_image
from segbench.evaluation.label_folders import evaluate_arrays
from segbench.evaluation.label_values import CaseValues, value_warnings

PRED, REF = shifted_balls()
BAND = np.zeros_like(REF)
BAND[:6] = 1


@pytest.fixture
def evaluated(lab):
    """Return a function that scores pairs of label maps; each is one case."""

    def score(pairs, *options, ending=".nii.gz"):
        for number, (pred, ref) in enumerate(pairs):
            save(lab.folder / f"pred/c{number}{ending}", np.asarray(pred, np.uint8))
            save(lab.folder / f"ref/c{number}{ending}", np.asarray(ref, np.uint8))
        shown = lab.call("evaluate", "--pred", "pred", "--ref", "ref", "--json", *options)
        if shown.returncode:
            return shown.returncode, shown.stdout + shown.stderr
        document = json.loads(shown.stdout)
        found = {row["class"]: row["columns"] for row in document["metrics"]}
        return found, "\n".join(document["warnings"])

    return score


def is_right(columns):
    values = (columns["dice"]["mean"], columns["hd95_mm"]["mean"], columns["asd_mm"]["mean"])
    return np.allclose(values, (0.8427, 0.5, 0.30), atol=0.005)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".h5"])
@pytest.mark.parametrize(
    "pred, ref, option",
    [
        (PRED, 255 * REF, "ref:255=1"),
        (255 * PRED, REF, "ref:1=255"),
        (PRED, 2 * REF, "ref:2=1"),
    ],
    ids=["0/255", "255/0", "shifted"],
)
def test_other_numbers_are_pointed_out_and_mapped(evaluated, pred, ref, option, ending):
    found, said = evaluated([(pred, ref)], ending=ending)
    assert len(found) == 2
    assert f"--map {option}" in said
    found, said = evaluated([(pred, ref)], "--map", option, ending=ending)
    assert "--map" not in said
    (columns,) = found.values()
    assert np.isclose(columns["dice"]["mean"], 0.8427, atol=1e-4)
    assert ending == ".h5" or is_right(columns)


def test_one_map_serves_both_folders(evaluated):
    found, said = evaluated([(PRED, 255 * REF)], "--map", "255=1")
    assert not said
    assert is_right(found["1"])


def test_shifted_classes_are_mapped_one_by_one(evaluated):
    other = ball((5, 5, 4), 3)
    pred, ref = PRED + 2 * other * (PRED == 0), 2 * REF + 3 * other * (REF == 0)
    _, said = evaluated([(pred, ref)])
    assert "--map ref:2=1,ref:3=2" in said
    found, said = evaluated([(pred, ref)], "--map", "ref:2=1,ref:3=2")
    assert not said
    assert is_right(found["1"])
    assert found["2"]["dice"]["mean"] == 1


def test_values_to_leave_out(evaluated):
    ref = np.where(BAND, 255, REF)
    found, said = evaluated([(PRED, ref)])
    assert set(found) == {"1", "255"}
    assert "--ignore 255" in said
    found, said = evaluated([(PRED, ref)], "--ignore", "255")
    assert set(found) == {"1"}
    assert is_right(found["1"])
    assert not said


def test_predictions_inside_ignored_voxels_do_not_count(evaluated):
    wrong = np.where(BAND, 1, PRED)
    found, said = evaluated([(wrong, np.where(BAND, 7, REF)), (PRED, REF)], "--ignore", "7")
    assert is_right(found["1"])
    assert not said
    _, said = evaluated([(PRED, REF)], "--ignore", "9")
    assert "--ignore 9: no reference holds this value" in said


def test_ignored_voxels_in_two_dimensions(evaluated):
    pred, ref = np.where(BAND, 1, PRED)[..., 8:9], np.where(BAND, 7, REF)[..., 8:9]
    inside = ~BAND[..., 8:9].astype(bool)
    overlap = 2 * np.sum((PRED & REF)[..., 8:9] * inside)
    expected = overlap / (np.sum(PRED[..., 8:9] * inside) + np.sum(REF[..., 8:9] * inside))
    found, _ = evaluated([(pred, ref)], "--ignore", "7", "--labels", "1=organ")
    assert np.isclose(found["organ"]["dice"]["mean"], expected)


def test_classes_of_the_command_line_that_no_file_has(evaluated):
    found, said = evaluated([(PRED, REF)], "--labels", "2=organ")
    assert found["organ"]["dice"]["mean"] is None
    assert "class 2 (organ) of --labels is in no file; the files hold 1" in said
    assert "these voxels count as background" in said


def test_the_number_of_cases_stands_beside_the_mean(lab, evaluated):
    small = ball((4, 4, 4), 2)
    pairs = [
        (PRED + 2 * small * (PRED == 0), REF + 2 * small * (REF == 0)),
        (PRED, REF),
        (PRED + 2 * small * (PRED == 0), REF),
        (PRED, REF + 2 * small * (REF == 0)),
        (0 * PRED, REF),
    ]
    found, said = evaluated(pairs)
    assert found["2"]["dice"]["n"] == 3
    assert "class 2: 2 of 5 cases have it in neither file" in said
    table = lab.call("evaluate", "--pred", "pred", "--ref", "ref").stdout
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert "33.33 (n=3)" in lines["2"]
    assert "n=" not in lines["1"]


def test_a_gray_scan_given_as_reference_is_pointed_out(evaluated):
    image, label = scan(0)
    gray = np.clip(image, 0, 255).astype(np.uint8)
    _, said = evaluated([(label, gray)])
    assert "ref/c0.nii.gz looks like a gray scan" in said
    assert len(said.splitlines()) < 10, "one line for all values, not one for each"
    _, said = evaluated([(gray, label)])
    assert "pred/c0.nii.gz looks like a gray scan" in said


def test_label_maps_of_many_classes_are_no_gray_scans():
    blocks = np.arange(1, 65, dtype=np.uint8).reshape(4, 4, 4)
    labels = blocks.repeat(5, 0).repeat(5, 1).repeat(5, 2)
    assert not looks_like_image(labels)
    assert not looks_like_image(labels[..., 0])
    noise = np.random.default_rng(0).integers(0, 200, (20, 20), dtype=np.uint8)
    assert looks_like_image(noise)
    assert not looks_like_image(np.zeros((4, 4), np.uint8))


def cases(**values):
    return {
        name: CaseValues(frozenset(pred), frozenset(ref)) for name, (pred, ref) in values.items()
    }


@pytest.mark.parametrize(
    "found, said",
    [
        (cases(a=({1}, {1}), b=({1}, {1, 2})), ["2 is in references only (b): no prediction"]),
        (cases(a=({1}, {1}), b=({1}, {255})), ["255 is in references only (b)", "--map ref:255="]),
        (cases(a=({1, 3}, {1})), ["3 is in predictions only (a)", "--map pred:3="]),
        (cases(a=((), {1})), ["no prediction holds"]),
        (cases(a=({1}, ())), ["no reference holds"]),
        (cases(a=({1, 2}, {127, 255})), ["--map ref:127=1,ref:255=2"]),
        (cases(a=({1, 2, 3}, {85, 170, 255})), ["ref:85=1,ref:170=2,ref:255=3"]),
        (cases(a=({1, 2}, {2, 3})), ["--map ref:2=1,ref:3=2"]),
        (cases(a=({1, 2}, {1, 4})), ["4 is in references only", "2 is in predictions only"]),
    ],
)
def test_likely_reasons(found, said):
    warnings = "\n".join(value_warnings(found, None))
    for text in said:
        assert text in warnings


def test_values_that_meet_need_no_warning():
    assert value_warnings(cases(a=({1, 2}, {1, 2}), b=({1}, {1, 2})), {1: "a", 2: "b"}) == []


OTHER_PRED = ball((4, 4, 4), 3)
OTHER_REF = ball((4, 5, 4), 3)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".h5"])
@pytest.mark.parametrize(
    "pred, ref, option",
    [
        (PRED + 2 * OTHER_PRED, 2 * REF + OTHER_REF, "pred:1=2,pred:2=1"),
        (PRED + 2 * OTHER_PRED, 3 * REF + OTHER_REF, "pred:1=3,pred:2=1"),
        (PRED, 1 - REF, "pred:0=1,pred:1=0"),
        (PRED, REF + 1, "pred:0=1,pred:1=2"),
        ((PRED + 2 * OTHER_PRED)[..., 6], (2 * REF + OTHER_REF)[..., 6], "pred:1=2,pred:2=1"),
    ],
    ids=["swapped", "permuted", "inverted", "background 1", "two axes"],
)
def test_exchanged_classes_are_pointed_out_and_mapped(evaluated, pred, ref, option, ending):
    if pred.ndim == 2 and ending in (".nrrd", ".mha"):
        pytest.skip("their writer here is for three axes")
    _, said = evaluated([(pred, ref), (pred, ref)], ending=ending)
    assert "label values are exchanged" in said and f"--map {option}" in said
    found, said = evaluated([(pred, ref), (pred, ref)], "--map", option, ending=ending)
    assert "exchanged" not in said
    assert all(columns["dice"]["mean"] > 0.6 for columns in found.values())


def test_poor_predictions_are_not_called_exchanged(evaluated):
    elsewhere = ball((5, 18, 4), 3)
    large = np.ones_like(REF)
    large[:4] = 0
    for pred, ref in ((elsewhere, REF), (elsewhere, large * (elsewhere == 0)), (large, REF)):
        assert "exchanged" not in evaluated([(pred, ref)])[1]


def test_exchanged_arrays_are_pointed_out():
    _, warnings = evaluate_arrays(PRED + 2 * OTHER_PRED, 2 * REF + OTHER_REF)
    assert any("--map pred:1=2,pred:2=1" in text for text in warnings)
    assert evaluate_arrays(PRED, REF)[1] == []


@pytest.mark.parametrize(
    "options",
    [
        ("--map", "300=1"),
        ("--map", "1"),
        ("--map", "1=2,ref:1=3"),
        ("--map", "mask:1=2"),
        ("--map", "7=1", "--ignore", "7"),
        ("--ignore", "0"),
        ("--labels", "7=organ", "--ignore", "7"),
    ],
)
def test_options_that_cannot_be_used(evaluated, options):
    code, _ = evaluated([(PRED, REF)], *options)
    assert code == 2


@pytest.mark.parametrize(
    "option, said",
    [
        ("7=1", ["--map 7=1: no prediction and no reference holds 7"]),
        ("ref:1=2,pred:9=1", ["--map 9=1: no prediction holds 9"]),
        ("1=1", []),
    ],
)
def test_a_change_of_a_value_in_no_file_is_named(evaluated, option, said):
    _, warnings = evaluated([(PRED, REF)], "--map", option)
    assert [text for text in warnings.splitlines() if "holds" in text and "--map" in text] == said


def test_a_side_without_the_value_is_named(evaluated):
    _, warnings = evaluated([(PRED, 2 * REF)], "--map", "pred:2=1")
    assert "--map 2=1: no prediction holds 2" in warnings


def test_map_and_labels_may_be_repeated(evaluated):
    other = ball((5, 5, 4), 3) * (PRED == 0) * (REF == 0)
    pair = (PRED + 2 * other, 255 * REF + 128 * other)
    options = ["--map", "ref:255=1", "--map", "ref:128=2", "--labels", "1=a", "--labels", "2=b"]
    found, warnings = evaluated([pair], *options)
    assert not warnings
    assert is_right(found["a"])
    assert found["b"]["dice"]["mean"] == 1


def test_a_value_is_changed_once_even_in_two_options(lab):
    save(lab.folder / "pred/a.nii.gz", PRED)
    save(lab.folder / "ref/a.nii.gz", REF)
    folders = ["--pred", "pred", "--ref", "ref"]
    result = lab.call("evaluate", *folders, "--map", "1=2", "--map", "1=3")
    assert result.returncode == 2 and "--map: '1=3'" in result.stderr


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("value", [-1, 300])
def test_values_that_are_no_bytes_are_left_out(lab, ending, value):
    wide = PRED.astype(np.int16)
    save(lab.folder / f"pred/a{ending}", np.where(BAND, 1, wide))
    save(lab.folder / f"ref/a{ending}", np.where(BAND, value, REF.astype(np.int16)))
    command = ["evaluate", "--pred", "pred", "--ref", "ref", "--json"]
    refused = lab.call(*command)
    assert refused.returncode == 3
    assert f"--ignore {value}" in refused.stdout + refused.stderr
    document = json.loads(lab.call(*command, "--ignore", value).stdout)
    assert document["warnings"] == [] or ending == ".mha"
    assert is_right(document["metrics"][0]["columns"])
    document = json.loads(lab.call(*command, "--ignore", value, "--map", "0=2").stdout)
    assert {row["class"] for row in document["metrics"]} == {"1", "2"}
