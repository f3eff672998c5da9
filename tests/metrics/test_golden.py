"""Fixed pairs with values from MedPy and brute force, the edge cases and the policies."""

from math import isnan
from pathlib import Path

import numpy as np
import pytest
import yaml

from segbench.metrics import aggregate, evaluate_pair, surface_distances

GOLDEN = yaml.safe_load(Path(__file__).with_name("golden.yaml").read_text(encoding="utf-8"))
TOLERANCE = GOLDEN["tolerance_abs"]
EXTRA = ("hd", "hd95_max", "masd")


def named(cases):
    return [pytest.param(case, id=case["id"]) for case in cases]


def mask(formula, shape):
    i, j, k = np.meshgrid(*(np.arange(size, dtype=np.int64) for size in shape), indexing="ij")
    return eval(formula, {"i": i, "j": j, "k": k})  # our own file, integer formulas


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_golden_pair(case):
    pred, ref = (mask(case[name], case["shape"]) for name in ("pred", "ref"))
    result = evaluate_pair(pred, ref, case["spacing"], nsd_tolerances=(1.0, 2.0), extra=EXTRA)
    d_p, d_r = surface_distances(pred, ref, case["spacing"])
    counts = {
        "pred_voxels": result.pred_voxels,
        "ref_voxels": result.ref_voxels,
        "intersection": round(result.dice * (result.pred_voxels + result.ref_voxels) / 2),
        "pred_surface": d_p.size,
        "ref_surface": d_r.size,
    }
    assert counts == case["counts"]
    found = {name: getattr(result, name) for name in ("dice", "jaccard", "hd95", "asd", "assd")}
    found |= {name: getattr(result, name) for name in EXTRA}
    found |= {"asd_ref_to_pred": d_r.mean(), "nsd_1": result.nsd[1.0], "nsd_2": result.nsd[2.0]}
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
        expected = getattr(medpy, name)(pred, ref, voxelspacing=spacing)
        assert getattr(result, name) == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("case", named(GOLDEN["edge_cases"]))
def test_golden_edge_case(case):
    pred, ref = (mask(case[name], GOLDEN["edge_shape"]) for name in ("pred", "ref"))
    result = evaluate_pair(pred, ref, GOLDEN["edge_spacing"], extra=EXTRA)
    found = {name: getattr(result, name) for name in ("dice", "jaccard", "hd95", "asd", "assd")}
    found |= {"hd": result.hd, "nsd_1": result.nsd[1.0]}
    assert found == pytest.approx(case["expected"], abs=TOLERANCE, nan_ok=True)
    assert result.status == case["status"]
    record = result.to_dict()
    assert record["pred_voxels"] == pred.sum() and record["ref_voxels"] == ref.sum()
    assert record["shape"] == GOLDEN["edge_shape"] and record["spacing"] == GOLDEN["edge_spacing"]
    assert record["hd95_mm"] is None and record["hd95_max_mm"] is None


@pytest.mark.parametrize("policy", GOLDEN["aggregation"]["expected"])
def test_golden_aggregation(policy):
    grid = {"shape": GOLDEN["edge_shape"], "spacing": GOLDEN["edge_spacing"]}
    row = aggregate([case | grid for case in GOLDEN["aggregation"]["rows"]], policy=policy)
    expected = GOLDEN["aggregation"]["expected"][policy]
    found = {name: row[name].mean for name in ("dice", "hd95")}
    found |= {f"n_{name}": row[name].n for name in ("dice", "hd95")}
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert row.counts == GOLDEN["aggregation"]["counts"]
    assert row.policy == policy


def test_worst_distance_is_the_volume_diagonal():
    empty, ref = (mask(formula, GOLDEN["edge_shape"]) for formula in ("i < 0", "i < 4"))
    row = aggregate([evaluate_pair(empty, ref, GOLDEN["edge_spacing"])])
    for name in ("hd95_mm", "asd_mm", "assd_mm"):
        assert row[name].mean == pytest.approx(GOLDEN["edge_worst_distance"], abs=TOLERANCE)
    assert row["dice"].mean == row["nsd_1_mm"].mean == 0
    assert isnan(row["dice"].sd) and row.to_dict()["columns"]["dice"]["sd"] is None
