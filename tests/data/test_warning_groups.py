"""Warnings that differ only in numbers are shown once, and are no problems."""

import numpy as np
import pytest
from small_folders import OwnFolder, save, scan

from segbench.data.store.problem import Problem
from segbench.data.store.warning_groups import grouped


def warnings(*texts, **details):
    return [
        Problem(f"case_{number}", f"file_{number}", text, level="warning", **details)
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    "texts, found",
    [
        (["slices 5 mm apart, 0.8 mm in plane", "slices 4 mm apart, 0.8 mm in plane"],
         "slices 4 to 5 mm apart, 0.8 mm in plane"),
        (["shape 18x20x16", "shape 20x20x9"], "shape 18-20x20x9-16"),
        (["1,204 voxels", "96 voxels"], "96 to 1,204 voxels"),
        (["no spacing", "no spacing"], "no spacing"),
    ],
)  # fmt: skip
def test_numbers_become_ranges(texts, found):
    (problem,) = grouped(warnings(*texts), 7)
    assert problem.found == found
    assert problem.case == "2 of 7 cases (case_0, case_1)"
    assert problem.file == ""


def test_other_words_names_and_advice_are_other_kinds():
    assert len(grouped(warnings("a 1", "b 1"), 2)) == 2
    assert len(grouped(warnings("T1 is bad", "T2 is bad"), 2)) == 2
    assert len(grouped(warnings("like case_1", "like case_2"), 2)) == 2
    assert len(grouped([*warnings("a 1"), *warnings("a 2", fix="x")], 2)) == 2


def test_errors_and_warnings_of_the_whole_data_set_stay_as_they_are():
    errors = [Problem("a", found="value 3"), Problem("b", found="value 4")]
    whole = [Problem("*", found="1 case", level="warning"), Problem("*", found="2 case", level="x")]
    assert grouped([*errors, *whole], 2) == [*errors, *whole]


def test_many_cases_are_counted():
    (problem,) = grouped(warnings(*["thin"] * 9), 20)
    assert problem.case == "9 of 20 cases (case_0, case_1, case_2 and 6 more)"


def test_thick_slices_are_one_warning_with_advice_and_no_problem(lab):
    folder = OwnFolder(lab.folder / "thick")
    for number in range(6):
        image, label = scan(number)
        affine = np.diag([1, 1, 4 + 0.2 * number, 1])
        save(folder.root / "imagesTr" / f"c{number}_0000.nii.gz", image, affine)
        save(folder.root / "labelsTr" / f"c{number}.nii.gz", label, affine)
    checked = lab.call("data", "check", folder.name)
    assert checked.returncode == 0, checked.stderr
    assert "6 cases checked, 0 problems, 1 warning\n" in checked.stdout
    assert "6 of 6 cases (c0, c1, c2 and 3 more): slices 4 to 5 mm apart" in checked.stdout
    assert checked.stdout.count("-o patch=96x96x16") == 1
    prepared = lab.call("data", "prepare", folder.name)
    assert prepared.stderr.count("slices 4 to 5 mm apart, 1 mm in plane") == 1
    described = lab.call("data", "info", "thick")
    assert described.stdout.count("mm apart") == 1
    assert "spacing_mm   1 x 1 x 4." in described.stdout
    planned = "planned from the data: segbench protocol new --dataset thick"
    assert planned in " ".join(described.stdout.split())


def test_many_spacings_are_shown_as_a_range():
    from segbench.cli.documents import spacing_ranges

    spacings = [(1.0, 0.5), (1.0, 0.7), (1.5, 0.6)]
    assert spacing_ranges(spacings) == spacings
    assert spacing_ranges([*spacings, (0.9, 0.9)]) == {"from": [0.9, 0.5], "to": [1.5, 0.9]}
