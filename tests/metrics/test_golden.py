"""Fixed pairs with values from MedPy and brute force, the edge cases and the policies."""

from math import isnan
from pathlib import Path

import numpy as np
import pytest
import yaml

from segbench.metrics import aggregate, evaluate_pair, surface_distances

GOLDEN = yaml.safe_load(Path(__file__).with_name("golden.yaml").read_text(encoding="utf-8"))
TOLERANCE = GOLDEN["tolerance_abs"]
COLUMNS = ("dice", "jaccard", "hd95", "asd", "assd")
EXTRA = ("hd", "hd95_max", "masd")


def named(cases):
    return [pytest.param(case, id=case["id"]) for case in cases]


def mask(formula, shape):
    i, j, k = np.indices(shape)
    return eval(formula, {"i": i, "j": j, "k": k})  # our own file, integer formulas


def values_of(result, names):
    return {name: getattr(result, name) for name in names}


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_golden_pair(case):
    pred, ref = (mask(case[name], case["shape"]) for name in ("pred", "ref"))
    result = evaluate_pair(pred, ref, case["spacing"], nsd_tolerances=(1.0, 2.0), extra=EXTRA)
    to_ref, to_pred = surface_distances(pred, ref, case["spacing"])
    voxels = result.pred_voxels + result.ref_voxels
    counts = {
        "pred_voxels": result.pred_voxels,
        "ref_voxels": result.ref_voxels,
        "intersection": round(result.dice * voxels / 2),
        "pred_surface": to_ref.size,
        "ref_surface": to_pred.size,
    }
    assert counts == case["counts"]
    found = values_of(result, (*COLUMNS, *EXTRA))
    found["asd_ref_to_pred"] = to_pred.mean()
    found["nsd_1"] = result.nsd[1.0]
    found["nsd_2"] = result.nsd[2.0]
    assert found == pytest.approx(case["expected"], abs=TOLERANCE)
    assert result.status == "ok"


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_medpy_gives_the_same_pair(case):
    reason = "medpy is GPL and no dependency; install it by hand to check against it"
    medpy = pytest.importorskip("medpy.metric.binary", reason=reason)
    pred, ref = (mask(case[name], case["shape"]) for name in ("pred", "ref"))
    spacing = case["spacing"]
    result = evaluate_pair(pred, ref, spacing, extra=("hd",))
    assert result.dice == pytest.approx(medpy.dc(pred, ref), abs=1e-9)
    assert result.jaccard == pytest.approx(medpy.jc(pred, ref), abs=1e-9)
    for name in ("hd95", "asd", "assd", "hd"):
        of_medpy = getattr(medpy, name)
        expected = of_medpy(pred, ref, voxelspacing=spacing)
        assert getattr(result, name) == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("case", named(GOLDEN["edge_cases"]))
def test_golden_edge_case(case):
    pred, ref = (mask(case[name], GOLDEN["edge_shape"]) for name in ("pred", "ref"))
    result = evaluate_pair(pred, ref, GOLDEN["edge_spacing"], extra=EXTRA)
    found = values_of(result, (*COLUMNS, "hd"))
    found["nsd_1"] = result.nsd[1.0]
    assert found == pytest.approx(case["expected"], abs=TOLERANCE, nan_ok=True)
    assert result.status == case["status"]
    record = result.to_dict()
    assert record["pred_voxels"] == pred.sum()
    assert record["ref_voxels"] == ref.sum()
    assert record["shape"] == GOLDEN["edge_shape"]
    assert record["spacing"] == GOLDEN["edge_spacing"]
    assert record["hd95_mm"] is None
    assert record["hd95_max_mm"] is None


@pytest.mark.parametrize("policy", GOLDEN["aggregation"]["expected"])
def test_golden_aggregation(policy):
    grid = {"shape": GOLDEN["edge_shape"], "spacing": GOLDEN["edge_spacing"]}
    records = [case | grid for case in GOLDEN["aggregation"]["rows"]]
    row = aggregate(records, policy=policy)
    expected = GOLDEN["aggregation"]["expected"][policy]
    found = {}
    for name in ("dice", "hd95"):
        found[name] = row[name].mean
        found[f"n_{name}"] = row[name].n
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert row.counts == GOLDEN["aggregation"]["counts"]
    assert row.policy == policy


def test_worst_distance_is_the_volume_diagonal():
    empty = mask("i < 0", GOLDEN["edge_shape"])
    ref = mask("i < 4", GOLDEN["edge_shape"])
    result = evaluate_pair(empty, ref, GOLDEN["edge_spacing"])
    row = aggregate([result])
    for name in ("hd95_mm", "asd_mm", "assd_mm"):
        assert row[name].mean == pytest.approx(GOLDEN["edge_worst_distance"], abs=TOLERANCE)
    assert row["dice"].mean == row["nsd_1_mm"].mean == 0
    assert isnan(row["dice"].sd) and row.to_dict()["columns"]["dice"]["sd"] is None
