"""The table of formats, faults and commands on the page about geometry is what the code does."""

import geometry_table
import pytest
from grids import FAULTS, FORMATS


@pytest.mark.parametrize("kind", [*FORMATS, "dicom"])
def test_the_page_shows_what_every_command_does(kind):
    shown = [line for line in geometry_table.stored_lines() if line.startswith(f"| {kind} |")]
    assert geometry_table.lines_of(kind) == shown, "python tests/geometry_table.py"


def test_no_number_is_wrong_without_a_word():
    lines = geometry_table.stored_lines()
    assert len(lines) >= 50 and not any("WRONG" in line for line in lines)
    for name in ("sheared grid", "no orientation", "identity matrix", "implausible spacing"):
        cells = [line.split(" | ")[2:] for line in lines if line.split(" | ")[1] == name]
        assert cells
        for check, prepare, _, predict, evaluate in cells:
            for cell in (check, prepare, predict, evaluate.removesuffix(" |")):
                assert cell.endswith(name) or cell == geometry_table.NONE
    assert {line.split(" | ")[1] for line in lines} == set(FAULTS)
