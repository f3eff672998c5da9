"""Recipes: orientation, resampling, gray values and crops, against other implementations."""

import itertools

import nibabel
import numpy as np
import pytest

from segbench.data.formats.volume import Volume
from segbench.data.geometry import reorient
from segbench.data.preparation.recipe import (
    Gray,
    Recipe,
    apply,
    crop_box,
    normalize,
    resample,
)
from segbench.errors import DataError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_orientation_gives_the_same_volume_in_the_same_place(axes, flips):
    gray = RNG.standard_normal((3, 4, 5)).astype(np.float32)
    affine = np.array([[1.1, 0.1, 0, 3], [-0.1, 2, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
    stored = gray.transpose(axes)[tuple(slice(None, None, f) for f in flips)]
    move = np.zeros((4, 4))
    move[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        move[old, new], move[old, 3] = flip, 0 if flip > 0 else gray.shape[old] - 1
    array, back = reorient(stored, affine @ move, "RAS")
    np.testing.assert_array_equal(array, gray)
    np.testing.assert_allclose(back, affine, atol=1e-12)
    assert nibabel.aff2axcodes(back) == ("R", "A", "S")


def test_resampling_agrees_with_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    array = RNG.standard_normal((12, 11, 9)).astype(np.float32)
    factors = (0.8, 0.8, 2.5)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(factors)
    for order, kind in ((1, sitk.sitkLinear), (0, sitk.sitkNearestNeighbor)):
        ours = resample(array, factors, order)
        theirs = sitk.Resample(
            image, [int(n) for n in ours.shape], sitk.Transform(), kind, (0, 0, 0), (1, 1, 1)
        )
        inside = tuple(
            slice(0, int((n - 1) * f)) for n, f in zip(array.shape, factors, strict=True)
        )
        got, expected = ours[inside], sitk.GetArrayFromImage(theirs).transpose(2, 1, 0)[inside]
        if order:
            np.testing.assert_allclose(got, expected, atol=1e-5)
        else:
            assert (got == expected).mean() > 0.9  # ties between two voxels are broken otherwise
    assert ours.shape == (9, 8, 22)  # cut to whole voxels


def test_a_spacing_that_asks_for_a_giant_is_refused():
    volume = Volume(np.zeros((10, 10, 10), np.int16), np.diag([200.0, 200, 200, 1.0]))
    with pytest.raises(DataError, match="2000x2000x2000"):
        apply(Recipe(spacing=(1.0, 1.0, 1.0)), volume)


def test_in_plane_scaling_leaves_the_slice_step_in_proportion():
    volume = Volume(np.zeros((10, 10, 10), np.int16), np.diag([0.5, 0.5, 1.0, 1.0]))
    made = apply(Recipe(spacing=(1.0, 1.0, 1.0), in_plane=True), volume)
    assert made.image.shape == (1, 5, 5, 5) and made.spacing == pytest.approx((1.0, 1.0, 2.0))
    assert apply(Recipe(spacing=(1.0, 1.0, 1.0)), volume).image.shape == (1, 5, 5, 10)
    with pytest.raises(DataError, match="spacing"):
        apply(Recipe(spacing=(1.0, 1.0, 1.0)), Volume(volume.array, None))


def test_gray_values():
    image = np.array([[-1000.0, -125, 75, 275, 3000]])[None]
    np.testing.assert_allclose(
        normalize(image, [Gray((-125, 275), "unit")])[0, 0], [0, 0, 0.5, 1, 1]
    )
    np.testing.assert_allclose(
        normalize(image, [Gray(None, "minmax")])[0, 0], [0, 0.21875, 0.26875, 0.31875, 1]
    )
    score = normalize(image, [Gray(None, "zscore")])
    assert score.mean() == pytest.approx(0, abs=1e-6) and score.std() == pytest.approx(1)
    masked = normalize(np.array([[0.0, 0, 1, 3]])[None], [Gray(None, "zscore_nonzero")])
    np.testing.assert_allclose(masked[0, 0], [0, 0, -1, 1])
    assert not normalize(np.full((1, 2, 2), 7.0), [Gray(None, "zscore")]).any()
    two = normalize(np.stack([image[0], image[0]]), [Gray((-125, 275), "unit"), Gray()])
    assert two[0].max() == 1 and two[1].max() == 3000 and two.dtype == np.float32


def label_at(shape, *ranges):
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(a, b) for a, b in ranges)] = 1
    return label


@pytest.mark.parametrize(
    "low, high, n, box",
    [
        (100, 200, 400, (75, 225)),  # 25 on both sides
        (10, 200, 400, (0, 225)),
        (100, 390, 400, (75, 400)),  # cut by the volume
        (200, 210, 400, (157, 253)),  # 60 is less than 96: 18 more on both sides
        (0, 10, 400, (0, 96)),
        (395, 400, 400, (304, 400)),  # shifted into the volume
        (3, 10, 40, (0, 96)),  # the volume is shorter: zeros at the far end
    ],
)
def test_label_box(low, high, n, box):
    recipe = Recipe(crop="label", margin=(25, 25), least=96)
    label = label_at((n, 1, 1), (low, high), (0, 1), (0, 1))
    side = crop_box(recipe, label[None], label)[0]
    assert (side.start, side.stop) == box


def test_label_box_in_x_and_y_only():
    """MC-Net: extent 59 is 37 short of 96; half of it is 18; the size is 59 + 2 * (25 + 18)."""
    recipe = Recipe(crop="label_xy", margin=(25, 24), least=96)
    label = label_at((300, 300, 20), (100, 160), (50, 200), (8, 9))
    box = crop_box(recipe, label[None], label)
    assert [(s.start, s.stop) for s in box] == [(57, 202), (25, 224), (0, 20)]


def test_crop_moves_the_affine_and_pads_with_zero():
    volume = Volume(np.full((40, 50, 30), 100, np.int16), np.diag([1.0, 1, 1, 1]))
    label = label_at((40, 50, 30), (20, 25), (20, 25), (10, 15))
    made = apply(
        Recipe(crop="label", margin=(5, 5), least=32, gray=(Gray((0, 100), "unit"),)), volume, label
    )
    assert made.image.shape == (1, 32, 32, 32) and made.label.shape == (32, 32, 32)
    assert made.facts["crop_offset"] == [7, 7, 0] and made.affine[:3, 3].tolist() == [7, 7, 0]
    assert not made.image[..., 30:].any() and made.image[..., :30].all()
    assert made.label[13:18, 13:18, 10:15].all() and made.label.sum() == 125
    assert made.facts["source_shape"] == [40, 50, 30]


def test_the_crop_may_come_before_gray_values_that_need_one_voxel_only():
    gray = RNG.integers(-1000, 1000, (30, 30, 30)).astype(np.int16)
    label = label_at(gray.shape, (10, 14), (9, 12), (20, 25))
    volume, window = Volume(gray, np.eye(4)), (-125.0, 275.0)
    early = apply(
        Recipe(crop="label", margin=(3, 3), least=8, gray=(Gray(window, "unit"),)), volume, label
    )
    box = tuple(
        slice(o, o + n)
        for o, n in zip(early.facts["crop_offset"], early.image.shape[1:], strict=True)
    )
    np.testing.assert_array_equal(
        early.image[0], normalize(gray[None], [Gray(window, "unit")])[0][box]
    )
    late = apply(
        Recipe(crop="label", margin=(3, 3), least=8, gray=(Gray(window, "zscore"),)), volume, label
    )
    np.testing.assert_array_equal(
        late.image[0], normalize(gray[None], [Gray(window, "zscore")])[0][box]
    )


def test_crops_by_the_image():
    gray = np.full((20, 20, 20), -1000, np.int16)
    gray[4:15, 5:16, 3:18] = 50
    gray[0, 0, 0] = 50  # a speck
    volume = Volume(gray, np.eye(4))
    assert apply(Recipe(crop="body"), volume).image.shape == (1, 11, 11, 15)
    assert apply(
        Recipe(crop="nonzero"), Volume(np.where(gray > 0, gray, 0), np.eye(4))
    ).image.shape == (1, 15, 16, 18)
    assert apply(Recipe(crop="body"), Volume(gray - 2000, np.eye(4))).image.shape == (1, 20, 20, 20)


@pytest.mark.parametrize("scale", ["none", "unit", "minmax", "zscore", "zscore_nonzero"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_voxel_that_is_no_number_is_refused_before_it_spoils_the_rest(value, scale):
    gray = np.ones((4, 5, 6))
    gray[1, 2, 3] = value
    with pytest.raises(DataError, match=r"1 voxels, the first at \(1, 2, 3\)"):
        apply(Recipe(gray=(Gray(None, scale),)), Volume(gray, np.eye(4)))


@pytest.mark.parametrize(
    "label, found", [(None, "there is none"), (np.zeros((4, 4, 4), np.uint8), "empty")]
)
def test_a_crop_by_the_label_needs_one(label, found):
    with pytest.raises(DataError, match=found):
        apply(Recipe(crop="label"), Volume(np.zeros((4, 4, 4)), None), label)


def test_what_a_recipe_loses_of_a_label_is_told_or_refused():
    """Two legs in air: a crop to the larger part must not decide what is scored."""
    gray = np.full((30, 40, 20), -1000, np.int16)
    gray[5:15, 5:15], gray[18:26, 25:33] = 40, 40
    label = label_at(gray.shape, (8, 12), (8, 12), (0, 20)) | label_at(
        gray.shape, (20, 24), (28, 30), (0, 20)
    )
    with pytest.raises(DataError, match="cuts labeled voxels away") as found:
        apply(Recipe(crop="body"), Volume(gray, np.eye(4)), label)
    assert "160 of 480 voxels of class 1" in str(found.value)
    stray = label_at(gray.shape, (8, 12), (8, 12), (0, 20))
    stray[29, 39, 0] = 1
    assert apply(Recipe(crop="body"), Volume(gray, np.eye(4)), stray).warnings == [
        "1 of 321 voxels of class 1 lie outside the crop 'body'"
    ]
    label[29, 39, 19] = 2
    spacing = np.diag([0.5, 0.5, 0.5, 1.0])
    made = apply(Recipe(spacing=(1.0, 1.0, 1.0)), Volume(gray, spacing), label)
    assert made.warnings == ["class 2: 1 voxels in the file, none after resampling"]
    assert not apply(Recipe(), Volume(gray, spacing), label).warnings


def test_air_is_recorded_where_it_is_not_0():
    gray = np.stack(
        [RNG.integers(-1077, -772, (6, 6, 6)), RNG.integers(5, 9, (6, 6, 6))], -1
    ).astype(np.int16)
    made = apply(Recipe(gray=(Gray(), Gray(None, "minmax"))), Volume(gray, np.eye(4)))
    assert made.facts["pad"] == [gray[..., 0].min(), 0.0]
    assert "pad" not in apply(Recipe(gray=(Gray(None, "zscore"),)), Volume(gray, np.eye(4))).facts
