"""Headers from public bug reports, and their neighbors: the right number, or a word about it."""

import nrrd
import numpy as np
import pytest
from grids import PLAIN, SHAPE, brute_force, grid, mha, nifti, rotation, stored, write

from segbench.data.formats.limits import Limits, limited
from segbench.data.formats.read import read_volume
from segbench.data.formats.same_grid import match
from segbench.data.formats.volume import Volume
from segbench.data.store.problem import DataProblems
from segbench.errors import DataError
from segbench.evaluation.label_folders import evaluate_folders


def ball(shape, center, radius):
    offsets = np.indices(shape) - np.reshape(center, (-1, *[1] * len(shape)))
    return ((offsets**2).sum(axis=0) <= radius**2).astype(np.uint8)


PRED = ball((24, 24, 16), (12, 12, 8), 5)
REF = ball((24, 24, 16), (13, 12, 8), 5)
HALF = grid((0.5, 0.5, 2.0))
RIGHT = (0.5, 0.30)  # HD95 and ASD of these two on this grid, in mm


def scaled(factor):
    return HALF @ np.diag([factor, factor, factor, 1.0])


def evaluated(folder, pred, ref, name="a.nii.gz", **header):
    """Write two label maps, each an array and a matrix, and return the row and the warnings."""
    for which, (array, matrix) in (("pred", pred), ("ref", ref)):
        write(folder / which / name, array, matrix, **header)
    (row,), warnings = evaluate_folders(folder / "pred", folder / "ref")
    return row, " ".join(warnings)


def distances(row, unit="mm"):
    return row[f"hd95_{unit}"], row[f"asd_{unit}"]


def refused(folder):
    with pytest.raises(DataProblems) as caught:
        evaluate_folders(folder / "pred", folder / "ref")
    (problem,) = caught.value.problems
    return str(problem)


# -- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "per_mm"),
    [
        ("a.nii.gz", "micron", 1000),
        ("a.nii.gz", "meter", 0.001),
        ("a.nii", "micron", 1000),
        ("a.nii", "unknown", 1),
        ("a.nrrd", "um", 1000),
        ("a.nrrd", "meters", 0.001),
        ("a.nrrd", "cm", 0.1),
        ("a.nrrd", "nm", 1e6),
        ("a.mha", "um", 1000),
        ("a.mha", "cm", 0.1),
        ("a.mha", "?", 1),
    ],
)
def test_units_become_millimeters(tmp_path, name, unit, per_mm):
    matrix = scaled(per_mm)
    row, said = evaluated(tmp_path, (PRED, matrix), (REF, matrix), name, unit=unit)
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3) and said == ""


def test_the_unit_of_spacings_without_directions(tmp_path):
    pair = [(labels, scaled(1000)) for labels in (PRED, REF)]
    row, said = evaluated(tmp_path, *pair, "a.nrrd", space=None, unit="um")
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3) and "no orientation" in said


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_micrometers_spelled_with_their_own_letter(tmp_path, encoding):
    pair = [(labels, scaled(1000)) for labels in (PRED, REF)]
    evaluated(tmp_path, *pair, "a.nrrd", unit="um")
    for name in ("pred", "ref"):
        file = tmp_path / name / "a.nrrd"
        file.write_bytes(file.read_bytes().replace(b'"um"', '"\u00b5m"'.encode(encoding)))
    (row,), _ = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3)


def test_units_of_a_single_axis(tmp_path):
    for name, labels in (("pred", PRED), ("ref", REF)):
        (tmp_path / name).mkdir()
        header = {
            "space": "right-anterior-superior",
            "space directions": np.diag([0.5, 0.5, 2000.0]),
            "space origin": [0, 0, 0],
            "space units": ["mm", "mm", "um"],
        }
        nrrd.write(str(tmp_path / name / "a.nrrd"), labels, header)
    (row,), _ = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3)


def test_an_unknown_code_of_a_unit_is_refused(tmp_path):
    write(tmp_path / "a.nii", PRED, HALF)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[123] = 5  # xyzt_units
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match="xyzt_units code 5"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(("name", "unit"), [("a.nrrd", "furlong"), ("a.mha", "inch")])
def test_an_unknown_unit_is_refused(tmp_path, name, unit):
    write(tmp_path / name, PRED, HALF, unit=unit)
    with pytest.raises(DataError, match="unit of length is not known") as caught:
        read_volume(tmp_path / name)
    assert unit in str(caught.value) and "mm" in str(caught.value)


def test_a_unit_that_cannot_be_right_is_pointed_out(tmp_path):
    write(tmp_path / "a.nii", PRED, HALF, unit="micron")  # 0.0005 mm between voxels
    write(tmp_path / "b.nii", PRED, HALF, unit="meter")
    for name in ("a.nii", "b.nii"):
        assert any("implausible spacing" in text for text in read_volume(tmp_path / name).warnings)


# -- two statements of one grid ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sform", "qform"), [((1, 1, 1), (0.5, 0.5, 2)), ((0.5, 0.5, 0.8), (0.5, 0.5, 0.6))]
)
def test_sform_and_qform_of_different_spacing_are_refused(tmp_path, sform, qform):
    for name, labels in (("pred", PRED), ("ref", REF)):
        (tmp_path / name).mkdir()
        nifti(tmp_path / name / "a.nii.gz", labels, grid(sform), grid(qform), codes=(1, 1))
    text = refused(tmp_path)
    assert "two spacings in one header" in text and "sform" in text and "qform and pixdim" in text
    assert f"{sform[2]} mm" in text and f"{qform[2]} mm" in text
    assert "--allow-affine-mismatch" in text
    with limited(Limits(other_spacing=True)):
        (row,), warnings = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert distances(row) == pytest.approx(brute_force(PRED, REF, grid(sform)))
    assert any("two spacings" in text and "sform counts" in text for text in warnings)


def test_the_option_reaches_evaluate_and_predict(lab, tmp_path):
    for name, labels in (("pred", PRED), ("ref", REF)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "a.nii"
        nifti(path, labels, np.eye(4), grid((0.5, 0.5, 2.0)), codes=(1, 1))
    folders = ("--pred", tmp_path / "pred", "--ref", tmp_path / "ref")
    assert lab.call("evaluate", *folders).returncode == 3
    done = lab.call("evaluate", *folders, "--allow-affine-mismatch")
    assert done.returncode == 0 and "two spacings" in done.stderr, done.stderr
    assert "--allow-affine-mismatch" in lab.call("predict", "--help").stdout


def test_an_sform_beside_a_pixdim(tmp_path):
    nifti(tmp_path / "same.nii", PRED, HALF)
    assert read_volume(tmp_path / "same.nii").warnings == ()
    nifti(tmp_path / "unset.nii", PRED, HALF, pixdim=(1, 1, 1))
    (warning,) = read_volume(tmp_path / "unset.nii").warnings
    assert "two spacings" in warning and "sform counts" in warning
    nifti(tmp_path / "rounded.nii", PRED, HALF, pixdim=(0.5, 0.502, 2))
    (warning,) = read_volume(tmp_path / "rounded.nii").warnings
    assert "two spacings" in warning
    nifti(tmp_path / "other.nii", PRED, HALF, pixdim=(0.5, 0.5, 2.5))
    with pytest.raises(DataError, match="two spacings"):
        read_volume(tmp_path / "other.nii")


def test_a_qform_alone_counts(tmp_path):
    nifti(tmp_path / "a.nii", PRED, np.eye(4), HALF, codes=(0, 1))
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.affine, HALF, atol=1e-6)
    assert volume.warnings == () and volume.oriented


def test_directions_that_are_not_of_length_one(tmp_path):
    mha(tmp_path / "a.mha", PRED, HALF, TransformMatrix="2 0 0 0 1 0 0 0 1")
    with pytest.raises(DataError, match="two spacings"):
        read_volume(tmp_path / "a.mha")


# -- identity matrices ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(4),
        np.diag([-1.0, -1.0, 1.0, 1.0]),
        np.eye(4)[:, [2, 0, 1, 3]],
        grid((1, 1, 1), (90, -126, -72)),
    ],
    ids=["plain", "mirrored", "permuted", "moved"],
)
def test_an_identity_matrix_is_pointed_out(tmp_path, name, matrix):
    row, said = evaluated(tmp_path, (PRED, matrix), (REF, matrix), name)
    assert "identity matrix" in said and "if the true one was lost" in said
    assert distances(row) == distances(row, "vox")


def test_a_spacing_that_someone_chose_is_not(tmp_path):
    matrix = grid((1, 1, 1.5))
    assert evaluated(tmp_path, (PRED, matrix), (REF, matrix))[1] == ""
    turned = grid((1, 1, 1), turn=rotation(30))
    assert evaluated(tmp_path, (PRED, turned), (REF, turned))[1] == ""


# -- volumes of one slice ------------------------------------------------------------------------

DISC, OTHER_DISC = (ball((64, 64), center, 14) for center in ((32, 32), (35, 32)))
FLAT = (3.0, 1.81)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha", "a.h5"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_in_any_axis(tmp_path, name, axis):
    pair = [(np.expand_dims(disc, axis), np.eye(4)) for disc in (DISC, OTHER_DISC)]
    row, _ = evaluated(tmp_path, *pair, name)
    assert distances(row, "vox") == pytest.approx(FLAT, abs=5e-3)
    assert row["surface_rule"] == 2


def test_an_image_against_a_volume_of_one_slice(tmp_path):
    write(tmp_path / "pred" / "a.h5", DISC, None)
    write(tmp_path / "ref" / "a.nii.gz", OTHER_DISC[..., None], grid((0.5, 0.5, 6.0)))
    (row,), warnings = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert distances(row) == pytest.approx((1.5, 0.905), abs=5e-3)
    assert "no orientation" in " ".join(warnings)
    (tmp_path / "pred" / "a.h5").unlink()
    write(tmp_path / "pred" / "a.nrrd", DISC, grid((0.5, 0.5, 1.0)), space=None)
    (row,), _ = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert distances(row) == pytest.approx((1.5, 0.905), abs=5e-3)


def test_the_thickness_of_a_slice_has_no_say(tmp_path):
    pred, ref = (disc[..., None] for disc in (DISC, OTHER_DISC))
    row, said = evaluated(tmp_path, (pred, grid((0.5, 0.5, 1.0))), (ref, grid((0.5, 0.5, 9.0))))
    assert distances(row) == pytest.approx((1.5, 0.905), abs=5e-3) and said == ""


# -- the same space, stored otherwise ------------------------------------------------------------


def test_left_posterior_against_right_anterior(tmp_path):
    turned = stored(PRED, HALF, (0, 1, 2), (-1, -1, 1))
    row, said = evaluated(tmp_path, turned, (REF, HALF))
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3)
    assert "axes LPS, the reference with RAS" in said and "without loss" in said


@pytest.mark.parametrize("degrees", [0, 44.99, 45, 45.01, 90])
def test_every_order_of_axes_comes_back(degrees):
    from itertools import permutations, product

    array = np.random.default_rng(0).integers(0, 9, SHAPE)
    matrix = grid((0.7, 0.8, 2.5), (-3, 9, 1), rotation(degrees) @ rotation(degrees, 0))
    first = Volume(array, matrix)
    for axes in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turned, warnings = match(first, Volume(*stored(array, matrix, axes, signs)), "f")
            np.testing.assert_array_equal(turned.array, array)
            np.testing.assert_allclose(turned.affine, matrix, atol=1e-9)
            assert len(warnings) == (axes != (0, 1, 2) or min(signs) < 0)


def test_a_mirrored_label_that_lies_elsewhere_is_refused():
    array = np.zeros(SHAPE)
    first = Volume(array, PLAIN)
    mirrored, place = stored(array, PLAIN, (0, 1, 2), (-1, 1, 1))
    place[0, 3] += 2.0
    for allowed in (False, True):
        with limited(Limits(other_spacing=allowed)), pytest.raises(DataError, match="axes LAS"):
            match(first, Volume(mirrored, place), "f")


def test_a_tilted_label():
    array = np.zeros(SHAPE)
    first = Volume(array, grid((1, 1, 2)))

    def tilted(degrees):
        return match(first, Volume(array, grid((1, 1, 2), turn=rotation(degrees))), "f")[1]

    assert tilted(0.01) == []
    (warning,) = tilted(0.5)
    assert "differ in direction" in warning
    with pytest.raises(DataError, match="do not match") as caught:
        tilted(5)
    assert "--allow-affine-mismatch" in str(caught.value)
    with limited(Limits(other_spacing=True)):
        (warning,) = tilted(5)
    assert "as allowed" in warning


# -- no orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.nii.gz", {"codes": (0, 0)}),
        ("a.nii", {"codes": (0, 0)}),
        ("a.nrrd", {"space": None}),
        ("a.nrrd", {"space": "3D-right-handed"}),
        ("a.mha", {"oriented": False}),
    ],
)
def test_files_without_orientation_are_compared_by_index(tmp_path, name, header):
    row, said = evaluated(tmp_path, (PRED, HALF), (REF, HALF), name, **header)
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3) and "no orientation" in said
    volume = read_volume(tmp_path / "ref" / name)
    np.testing.assert_allclose(volume.affine, np.diag([0.5, 0.5, 2, 1]), atol=1e-6)
    assert not volume.oriented


def test_an_orientation_on_one_side_only(tmp_path):
    write(tmp_path / "pred" / "a.nrrd", PRED, HALF, space=None)
    write(tmp_path / "ref" / "a.nii", REF, HALF)
    (row,), warnings = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert distances(row) == pytest.approx(RIGHT, abs=5e-3)
    assert "only the prediction has no orientation" in " ".join(warnings)
    write(tmp_path / "ref" / "a.nii", REF, grid((0.5, 0.5, 3.0)))
    assert "do not match" in refused(tmp_path)


def test_a_spacing_that_is_stated_nowhere(tmp_path):
    nrrd.write(str(tmp_path / "a.nrrd"), PRED)
    mha(tmp_path / "a.mha", PRED, HALF)
    content = (tmp_path / "a.mha").read_bytes().replace(b"ElementSpacing", b"ElementSpacinx")
    (tmp_path / "a.mha").write_bytes(content)
    for name in ("a.nrrd", "a.mha"):
        volume = read_volume(tmp_path / name)
        assert volume.affine is None and not volume.oriented


def test_equal_warnings_are_one_line(tmp_path):
    for case in ("a", "b", "c"):
        for which, labels in (("pred", PRED), ("ref", REF)):
            write(tmp_path / which / f"{case}.nii", labels, np.eye(4))
    _, warnings = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert len(warnings) == 1 and warnings[0].startswith("a, b, c: reference: identity matrix")
