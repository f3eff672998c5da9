"""Random pairs against a float64 reference, invariances, kinds of input, refused input."""

import json
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segbench.metrics import (
    aggregate,
    distances,
    evaluate_labels,
    evaluate_pair,
    is_of_older_rule,
    largest_component,
    score_labels,
    surface_distances,
)
from segbench.metrics.aggregate import diagonal
from segbench.metrics.grid import are_skewed

EXTRA = ("hd", "hd95_max", "masd")
DISTANCES = ("hd95", "asd", "assd", *EXTRA)
ALL = ("dice", "jaccard", *DISTANCES)
SYMMETRIC = ("dice", "jaccard", "hd95", "assd", "hd", "hd95_max", "masd")
EXACT = 1e-9

seeds = st.integers(0, 2**32 - 1)
some = settings(max_examples=60, deadline=None, derandomize=True)


def values(result, names=ALL):
    return {name: getattr(result, name) for name in names} | {"nsd": result.nsd[1.0]}


def evaluate(pred, ref, spacing=None):
    return evaluate_pair(pred, ref, spacing, extra=EXTRA)


def same(found, expected):
    return values(found) == pytest.approx(values(expected), abs=EXACT)


@pytest.fixture(params=["by cost", "_by_scan", "_by_tree", "_by_transform"])
def far_method(request, monkeypatch):
    """Small pairs would always be scanned; force each method to answer the far queries."""
    if request.param != "by cost":
        monkeypatch.setattr(distances, "_nearest_far", getattr(distances, request.param))


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_pairs_equal_the_oracle(oracle, far_method, ndim):
    for seed in range(200):
        pred, ref, spacing = oracle.random_pair(seed, ndim)
        result = evaluate_pair(pred, ref, spacing, nsd_tolerances=(1.0, 2.5), extra=EXTRA)
        expected, nsd = oracle.values(pred, ref, spacing, (1.0, 2.5))
        found = {name: getattr(result, name) for name in ALL}
        assert found == pytest.approx(expected, abs=EXACT), seed
        assert result.nsd == pytest.approx(nsd, abs=EXACT), seed


def test_random_pairs_equal_medpy(oracle):
    reason = "medpy is GPL and no dependency; install it by hand to check against it"
    medpy = pytest.importorskip("medpy.metric.binary", reason=reason)
    for seed in range(40):
        pred, ref, spacing = oracle.random_pair(seed)
        result = evaluate(pred, ref, spacing)
        pred, ref, spacing = oracle.extended(pred, ref, spacing)  # medpy keeps axes of length 1
        assert result.dice == pytest.approx(medpy.dc(pred, ref), abs=EXACT)
        for name in ("hd95", "asd", "assd", "hd"):
            expected = getattr(medpy, name)(pred, ref, voxelspacing=spacing)
            assert getattr(result, name) == pytest.approx(expected, abs=EXACT), (seed, name)


@pytest.mark.parametrize("spacing", [None, (0.7, 0.8, 2.5), (3.0, 0.5, 0.5), (1.0, 1.0, 0.01)])
def test_lists_are_those_of_the_oracle_in_raster_order(oracle, spacing):
    rng = np.random.default_rng(5)
    pred, ref = np.zeros((2, 40, 34, 30), dtype=bool)
    pred[4:22, 5:20, 3:15] = rng.random((18, 15, 12)) < 0.9
    pred[35:39, 28:33, 24:29] = True
    ref[6:20, 3:18, 5:17] = True
    for found, expected in zip(
        surface_distances(pred, ref, spacing),
        (oracle.directed(pred, ref, spacing), oracle.directed(ref, pred, spacing)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_lists_of_an_empty_pair_are_undefined():
    block = np.ones((3, 3, 3), dtype=bool)
    d_p, d_r = surface_distances(block, ~block)
    assert d_p.size == 26 and np.isnan(d_p).all() and d_r.size == 0


@some
@given(seeds)
def test_swapping_the_masks(oracle, seed):
    pred, ref, spacing = oracle.random_pair(seed)
    there, back = evaluate(pred, ref, spacing), evaluate(ref, pred, spacing)
    assert values(there, SYMMETRIC) == pytest.approx(values(back, SYMMETRIC), abs=EXACT)


@some
@given(seeds)
def test_flipping_and_permuting_the_axes(oracle, seed):
    pred, ref, spacing = oracle.random_pair(seed)
    expected = evaluate(pred, ref, spacing)
    for axis in range(3):
        assert same(evaluate(np.flip(pred, axis), np.flip(ref, axis), spacing), expected)
    for order in permutations(range(3)):
        turned = [spacing[axis] for axis in order]
        assert same(evaluate(pred.transpose(order), ref.transpose(order), turned), expected)


@some
@given(seeds, st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_padding_with_background(oracle, seed, widths):
    pred, ref, spacing = oracle.random_pair(seed)
    pads = list(zip(widths[:3], widths[3:], strict=True))
    for axis, size in enumerate(pred.shape):
        if size == 1:  # a second slice would make it a volume with other surfaces
            pads[axis] = (0, 0)
    padded = evaluate(np.pad(pred, pads), np.pad(ref, pads), spacing)
    assert same(padded, evaluate(pred, ref, spacing))


@some
@given(seeds, st.floats(0.01, 100))
def test_scaling_the_spacing_scales_the_distances(oracle, seed, factor):
    pred, ref, spacing = oracle.random_pair(seed)
    base = evaluate(pred, ref, spacing)
    scaled = evaluate(pred, ref, [factor * step for step in spacing])
    assert (scaled.dice, scaled.jaccard) == (base.dice, base.jaccard)
    for name in DISTANCES:
        assert getattr(scaled, name) == pytest.approx(factor * getattr(base, name), rel=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_an_image(axis):
    disc = np.add.outer(*(np.square(np.arange(-6, 7)),) * 2) <= 30
    moved = np.roll(disc, 2, 0)
    in_plane = (0.7, 1.9)
    spacing = [*in_plane]
    spacing.insert(axis, 5.0)
    slices = [np.expand_dims(mask, axis) for mask in (disc, moved)]
    assert same(evaluate(*slices, spacing), evaluate(disc, moved, in_plane))
    for found, expected in zip(
        surface_distances(*slices, spacing), surface_distances(disc, moved, in_plane), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    (record,) = score_labels(*slices, [1], spacing)
    assert record["surface_rule"] == 2 and not is_of_older_rule(record)
    assert record["shape"][axis] == 1 and record["spacing"][axis] == 5.0
    del record["surface_rule"]
    assert is_of_older_rule(record)


def test_records_of_volumes_carry_no_version_of_the_rule():
    block = np.ones((2, 3, 4), dtype=bool)
    record = evaluate(block, block).to_dict()
    assert "surface_rule" not in record and not is_of_older_rule(record)


def test_lines_and_single_voxels():
    line = np.zeros((1, 9, 1), dtype=bool)
    line[0, 2:6] = True
    moved = np.roll(line, 3, 1)
    (to_ref, to_pred) = surface_distances(line, moved, (9.0, 0.5, 9.0))
    assert to_ref.tolist() == [1.5, 0.0] and to_pred.tolist() == [0.0, 1.5]
    voxel = np.ones((1, 1, 1), dtype=bool)
    assert evaluate(voxel, voxel, (1.0, 2.0, 3.0)).hd == 0


def test_an_empty_mask_of_one_slice_is_as_far_as_the_image_is_long():
    disc = np.ones((30, 40, 1), dtype=bool)
    (record,) = score_labels(~disc, disc, [1], (2.0, 2.0, 50.0))
    row = aggregate([record])
    assert (row["hd95_mm"].mean, row["hd95_vox"].mean) == (100.0, 50.0)
    del record["surface_rule"]  # stored rows of the older rule keep their value
    assert aggregate([record])["hd95_mm"].mean == pytest.approx(np.hypot(100, 50))


def skewed(rng, ndim):
    """Return steps whose axes are far from perpendicular."""
    while True:
        steps = rng.uniform(-1, 1, (3, ndim)) + 1.5 * np.eye(3)[:, :ndim]
        if are_skewed(steps):
            return steps


@pytest.mark.parametrize("ndim", [2, 3])
def test_distances_on_skewed_axes_are_those_between_points_in_space(oracle, ndim):
    for seed in range(60):
        pred, ref, _ = oracle.random_pair(seed, ndim)
        steps = skewed(np.random.default_rng(seed), ndim)
        result = evaluate(pred, ref, steps)
        axes = [axis for axis, size in enumerate(pred.shape) if size > 1] or [ndim - 1]
        flat_pred, flat_ref, _ = oracle.extended(pred, ref, None)
        points = []
        for mask in (flat_pred, flat_ref):
            surface = np.argwhere(mask & ~ndimage.binary_erosion(mask))
            points.append(surface @ steps[:, axes].T)
        between = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
        pooled = np.concatenate([between.min(1), between.min(0)])
        assert result.hd95 == pytest.approx(np.percentile(pooled, 95), abs=EXACT), seed
        assert result.asd == pytest.approx(between.min(1).mean(), abs=EXACT), seed
        record = result.to_dict()
        assert record["hd_mm"] <= diagonal(record, "hd_mm") + EXACT
        if result.skewed is not None:
            assert len(result.skewed) == len(axes) ** 2


def test_perpendicular_axes_given_as_a_matrix_give_the_same_numbers(oracle):
    pred, ref, spacing = oracle.random_pair(7)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert same(evaluate(pred, ref, turn * np.array(spacing)), evaluate(pred, ref, spacing))
    with pytest.raises(ValueError, match="not independent"):
        evaluate(np.ones((2, 3, 4)), np.ones((2, 3, 4)), np.ones((3, 3)))


@pytest.mark.parametrize("seed", range(5))
def test_kinds_of_input_do_not_matter(oracle, seed):
    torch = pytest.importorskip("torch")
    pred, ref, spacing = oracle.random_pair(seed)
    expected = evaluate(pred, ref, spacing)
    strided = np.zeros([2 * size for size in pred.shape], dtype=bool)[::2, ::2, ::2]
    strided[...] = pred
    kinds = [strided, np.asfortranarray(pred), pred[::-1].copy()[::-1], pred.tolist()]
    kinds += [(pred * 3).astype(kind) for kind in ("u1", "i1", "i8", "f2", "f4", "f8")]
    kinds += [torch.from_numpy(pred), torch.from_numpy(pred * 300), torch.from_numpy(pred * 0.5)]
    kinds += [torch.from_numpy(pred.astype("f4")).bfloat16().requires_grad_()]
    for kind in kinds:
        assert evaluate(kind, ref, spacing) == expected
        assert evaluate(kind, torch.from_numpy(ref), spacing) == expected


def test_inputs_stay_as_they_are(oracle):
    pred, ref, spacing = oracle.random_pair(3)
    pred, ref = pred.astype("u1"), ref.astype("u1")
    before = pred.copy(), ref.copy()
    evaluate(pred, ref, spacing)
    evaluate_labels(pred, ref, (1, 2))
    largest_component(pred)
    assert (pred == before[0]).all() and (ref == before[1]).all()


def test_far_corner_of_a_large_volume(oracle):
    rng = np.random.default_rng(7)
    pred, ref = (oracle.random_mask(rng, (9, 8, 11)) for _ in range(2))
    large = np.zeros((2, 150, 140, 130), dtype=bool)
    large[0, -9:, -8:, -11:], large[1, -9:, -8:, -11:] = pred, ref
    assert same(evaluate(*large), evaluate(pred, ref))


def test_voxels_far_from_the_other_surface(oracle):
    pred, ref = np.zeros((2, 60, 50, 40), dtype=bool)
    ref[5:25, 5:25, 5:25] = pred[6:25, 5:24, 5:25] = pred[50:58, 40:48, 30:38] = True
    expected, _ = oracle.values(pred, ref, None)
    found = evaluate(pred, ref)
    assert {name: getattr(found, name) for name in ALL} == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("kind", ["u1", "i4", "i8", "f4", "tensor"])
def test_labels_equal_their_masks(kind):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    pred, ref = rng.integers(0, 5, (2, 12, 11, 10))
    pred[pred == 4] = 3  # class 4: empty prediction; class 7: both empty
    spacing, classes = (1.0, 2.0, 0.5), (0, 2, 3, 4, 7)
    given_maps = [torch.from_numpy(m) if kind == "tensor" else m.astype(kind) for m in (pred, ref)]
    for wanted in (classes, classes[1:]):
        results = evaluate_labels(*given_maps, wanted, spacing, extra=EXTRA)
        assert [result.label for result in results] == list(wanted)
        for result in results:
            expected = evaluate(pred == result.label, ref == result.label, spacing)
            assert result.to_dict() == {"label": result.label} | expected.to_dict()
    assert [result.status for result in results[-2:]] == ["empty_prediction", "both_empty"]


def test_labels_beyond_one_byte_and_empty_maps():
    torch = pytest.importorskip("torch")
    ref = np.zeros((4, 4), dtype=int)
    ref[1:3, 1:3] = 256
    assert evaluate_labels(ref, ref, (256,))[0].dice == 1
    moved = evaluate_labels(torch.from_numpy(ref), ref - 1, (256, 255))
    assert [result.status for result in moved] == ["empty_reference", "empty_prediction"]
    assert evaluate_labels(ref * 0, ref * 0, (1,))[0].status == "both_empty"


def test_record_is_plain_json_with_units():
    block = np.ones((3, 4, 5), dtype=bool)
    record = evaluate_pair(block, block, nsd_tolerances=(1, 0.5), extra=("hd",)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["hd_vox"] == record["hd95_vox"] == 0 and "masd_vox" not in record
    assert record["nsd_0.5_vox"] == 1 and record["spacing"] is None
    assert "hd95_mm" in evaluate_pair(block, block, (1, 1, 1)).to_dict()


@pytest.mark.parametrize(
    ("pred", "ref", "options", "message"),
    [
        (np.ones((2, 3)), np.ones((3, 2)), {}, "must have the same shape"),
        (np.ones((0, 3)), np.ones((0, 3)), {}, "has no elements"),
        (np.ones(3), np.ones(3), {}, "must have 2 or 3 axes"),
        (np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), {}, "must have 2 or 3 axes"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), {}, "prediction holds nan"),
        (np.ones((2, 2)), np.array([["a", "b"]] * 2), {}, "booleans, integers or floats"),
        (np.ones((2, 2)), np.ones((2, 2)), {"spacing": (1, 1, 1)}, "expected one per axis: 2"),
        (np.ones((2, 2)), np.ones((2, 2)), {"spacing": (1, 0)}, "finite and > 0"),
        (np.ones((2, 2)), np.ones((2, 2)), {"spacing": (1, np.inf)}, "finite and > 0"),
        (np.ones((2, 2)), np.ones((2, 2)), {"nsd_tolerances": (-1,)}, "NSD tolerances"),
        (np.ones((2, 2)), np.ones((2, 2)), {"extra": ("hd100",)}, "unknown extra metrics"),
    ],
)
def test_refusals_name_the_fault(pred, ref, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_pair(pred, ref, **options)


def test_nan_in_a_tensor_and_bad_classes_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="reference holds nan"):
        evaluate_pair(torch.ones(2, 2), torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="distinct and at least one"):
        evaluate_labels(np.ones((2, 2)), np.ones((2, 2)), (1, 1))


def test_largest_component_by_connectivity():
    mask = np.zeros((6, 6, 6), dtype=int)
    mask[0, 0, :2] = mask[1, 1, 2] = mask[1, 2, 2] = 1  # joined by a corner and a face
    mask[4, 4, 3:6] = 2
    assert largest_component(mask).sum() == 4
    assert (largest_component(mask, 6) == (mask == 2)).all()
    assert (largest_component(mask, 18) == (mask == 2)).all()
    with pytest.raises(ValueError, match=r"connectivity 8 .* \[6, 18, 26\]"):
        largest_component(mask, 8)


def test_largest_component_of_ties_empties_and_slices():
    mask = np.zeros((5, 5), dtype=bool)
    mask[0, 3] = mask[1, 2] = mask[3, 0] = mask[4, 1] = True
    kept = largest_component(mask)
    assert kept[0, 3] and kept[1, 2] and kept.sum() == 2
    assert largest_component(mask, 4).sum() == 1 and largest_component(mask, 4)[0, 3]
    assert not largest_component(mask & False).any()


@some
@given(seeds, st.booleans(), st.booleans())
def test_both_units_in_one_pass_are_those_of_two_passes(oracle, seed, isotropic, empty):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 14, 3))
    pred, ref = (rng.integers(0, 3, shape).astype(np.uint8) for _ in range(2))
    if empty:
        pred[pred == 1] = 0
    spacing = tuple(rng.uniform(0.3, 3.0, 3))
    if isotropic:
        spacing = (spacing[0],) * 3
    found = score_labels(pred, ref, [1, 2, 3], spacing)
    in_voxels = evaluate_labels(pred, ref, [1, 2, 3])
    in_mm = evaluate_labels(pred, ref, [1, 2, 3], spacing)
    assert found == [a.to_dict() | b.to_dict() for a, b in zip(in_voxels, in_mm, strict=True)]
    assert [list(r) for r in found] == [
        list(a.to_dict() | b.to_dict()) for a, b in zip(in_voxels, in_mm, strict=True)
    ]
    assert score_labels(pred, ref, [1, 2, 3]) == [a.to_dict() for a in in_voxels]


@some
@given(seeds)
def test_isotropic_millimeters_are_voxels_times_the_spacing(oracle, seed):
    pred, ref, _ = oracle.random_pair(seed)
    step = np.random.default_rng(seed).uniform(0.3, 3.0)
    found = surface_distances(pred, ref, (step,) * 3)
    expected = (oracle.directed(pred, ref, (step,) * 3), oracle.directed(ref, pred, (step,) * 3))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
