"""Policies for empty masks, marks in table cells, means over classes and seeds."""

import json
from math import isnan

import numpy as np
import pytest

from segbench.metrics import aggregate, evaluate_labels, evaluate_pair, mean_over

BLOCK = np.zeros((6, 5, 4), dtype=bool)
BLOCK[1:4, 1:4, 1:3] = True
SHIFTED = np.roll(BLOCK, 1, axis=0)
EMPTY = np.zeros_like(BLOCK)


def cases(*pairs, spacing=None):
    return [evaluate_pair(pred, ref, spacing) for pred, ref in pairs]


def test_numbers_of_a_row():
    row = aggregate([{"status": "ok", "hd95": value} for value in (1.0, 2.0, 3.0, 6.0)])
    column = row["hd95"]
    assert (column.n, column.mean, column.median) == (4, 3.0, 2.5)
    assert (column.q1, column.q3) == (1.75, 3.75)
    assert column.sd == pytest.approx(np.std([1, 2, 3, 6], ddof=1))


def test_results_and_their_stored_records_give_the_same_row():
    results = cases((BLOCK, BLOCK), (SHIFTED, BLOCK), (EMPTY, BLOCK), spacing=(1, 2, 3))
    stored = json.loads(json.dumps([result.to_dict() for result in results]))
    assert aggregate(stored) == aggregate(results)


def test_both_units_in_one_record_have_their_own_diagonal():
    vox, mm = (evaluate_pair(EMPTY, BLOCK, spacing) for spacing in (None, (1, 2, 3)))
    row = aggregate([vox.to_dict() | mm.to_dict()])
    assert row["hd95_vox"].mean == pytest.approx(np.sqrt(36 + 25 + 16))
    assert row["hd95_mm"].mean == pytest.approx(np.sqrt(36 + 100 + 144))
    with pytest.raises(ValueError, match="needs the shape"):
        aggregate([mm.to_dict() | vox.to_dict()])


def test_silence_never_improves_a_distance():
    spoken, silent = cases((SHIFTED, BLOCK)), cases((EMPTY, BLOCK))
    assert aggregate(silent)["hd95_vox"].mean > aggregate(spoken)["hd95_vox"].mean
    assert aggregate(silent, "literature_zero")["hd95_vox"].mean == 0


def test_both_empty_is_left_out_or_rewarded():
    results = cases((BLOCK, SHIFTED), (EMPTY, EMPTY))
    left_out = aggregate(results)
    rewarded = aggregate(results, both_empty="reward")
    assert left_out["dice"].n == left_out["hd95_vox"].n == 1
    assert rewarded["dice"].mean == pytest.approx((left_out["dice"].mean + 1) / 2)
    assert rewarded["nsd_1_vox"].mean == pytest.approx((left_out["nsd_1_vox"].mean + 1) / 2)
    assert rewarded["hd95_vox"].mean == pytest.approx(left_out["hd95_vox"].mean / 2)


def test_a_row_of_nothing_but_empties_is_undefined():
    row = aggregate(cases((EMPTY, EMPTY)))
    assert row["dice"].n == 0 and isnan(row["dice"].mean)


def test_empties_are_shown_beside_distances():
    row = aggregate(cases((BLOCK, BLOCK), (EMPTY, BLOCK)), "defined_only")
    assert row.cell("hd95_vox") == "0.00 (1/2 empty)"
    assert row.cell("dice", digits=1) == "0.5"
    assert aggregate(cases((BLOCK, BLOCK))).cell("hd95_vox") == "0.00"
    marked = aggregate(cases((BLOCK, BLOCK), (EMPTY, EMPTY)), "literature_zero")
    assert marked.cell("dice") == "0.50 (1/2 empty)"


def test_mean_over_classes_is_not_over_pooled_cases():
    ref = BLOCK.astype(int)
    with_second = ref.copy()
    with_second[5, 0, 0] = 2
    pairs = [(ref, ref), (ref, ref), (with_second * (with_second < 2), with_second)]
    results = [evaluate_labels(pred, truth, classes=(1, 2)) for pred, truth in pairs]
    rows = [aggregate(per_class) for per_class in zip(*results, strict=True)]
    assert [row["dice"].n for row in rows] == [3, 1]
    spread = mean_over(rows)["dice"]
    assert (spread.n, spread.mean) == (2, 0.5)
    assert spread.sd == pytest.approx(np.std([1, 0], ddof=1))


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "no results"),
        ([{"status": "ok", "dice": 1.0}], {"policy": "best"}, "unknown policy 'best'"),
        ([{"status": "ok", "dice": 1.0}], {"both_empty": "ok"}, "unknown both_empty 'ok'"),
        (
            [{"status": "ok", "dice": 1.0}],
            {"policy": "literature_zero", "both_empty": "reward"},
            "cannot reward",
        ),
        (
            [{"status": "empty_reference", "dice": 0.0}],
            {"policy": "literature_zero"},
            "the published code fails",
        ),
        ([{"status": "fine", "dice": 1.0}], {}, "unknown status of case 0 'fine'"),
        ([{"status": "ok", "dice": None}], {}, "status ok but no value"),
        ([{"status": "ok", "dice": 1.0}, {"status": "ok", "hd95": 1.0}], {}, "other columns"),
        (
            [{"status": "ok", "dice": 1.0, "label": value} for value in (1, 2)],
            {},
            "several classes",
        ),
    ],
)
def test_what_cannot_be_aggregated_says_why(records, options, message):
    with pytest.raises(ValueError, match=message):
        aggregate(records, **options)


def test_rows_that_differ_in_kind_are_not_averaged():
    row = aggregate(cases((BLOCK, BLOCK)))
    with pytest.raises(ValueError, match="different policies"):
        mean_over([row, aggregate(cases((BLOCK, BLOCK)), "defined_only")])
    with pytest.raises(ValueError, match="same columns"):
        mean_over([row, aggregate(cases((BLOCK, BLOCK), spacing=(1, 1, 1)))])
    with pytest.raises(ValueError, match="no rows"):
        mean_over([])
