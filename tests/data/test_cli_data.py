"""``segbench data``, through its group alone."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from segbench.cli.data import data
from segbench.cli.settings import Settings
from segbench.data.store.problem import DataProblems
from segbench.errors import DataError, UsageError


@pytest.fixture
def call(toy):
    """Runs a command; gives the result and the settings with the JSON document."""

    def run(*args, **flags):
        settings = Settings(chosen_data_root=str(toy.data_root), **flags)
        result = CliRunner().invoke(data, [str(a) for a in args], obj=settings)
        if result.exit_code == 0 and flags.get("json"):
            json.dumps(settings.document, allow_nan=False)
        return result, settings.document

    return run


def test_prepare_says_what_it_made(toy, call):
    toy.fill()
    result, _ = call("prepare", "toy", "--from", toy.source)
    assert result.exit_code == 0, result.exception
    assert "toy: 3 train + 2 test cases prepared" in result.stdout
    assert "5/5" in result.stderr and "5/5" not in result.stdout
    result, _ = call("prepare", "toy", "--from", toy.source, quiet=1)
    assert result.stderr == ""


def test_prepare_shows_warnings_of_a_partial_copy_and_of_leaks(toy, call):
    toy.fill()
    toy.case("c4", 1)
    toy.lists(["c0", "c1"], ["c4"])
    result, _ = call("prepare", "toy", "--from", toy.source)
    assert (
        "(partial copy)" in result.stdout
        and "3 of 5" in result.stderr
        and "same voxels as case c1" in result.stderr
    )


def test_prepare_needs_a_folder_and_reports_bad_cases(toy, call):
    toy.fill()
    result, _ = call("prepare", "toy")
    assert isinstance(result.exception, UsageError) and "--from DIR" in str(result.exception)
    toy.case("c2", 2, label=np.full((5, 6, 4), 7, np.uint8))
    result, document = call("prepare", "toy", "--from", toy.source, json=True)
    assert isinstance(result.exception, DataProblems) and document is None and result.stdout == ""
    (problem,) = result.exception.to_dict()["problems"]
    assert problem["case"] == "c2" and "7: 120 voxels" in problem["found"]
    json.dumps(result.exception.to_dict())


def test_a_file_that_is_no_archive_says_what_is_read(toy, call):
    (toy.folder / "toy.7z").write_bytes(b"7z")
    answer, _ = call("prepare", "toy", "--from", toy.folder / "toy.7z")
    assert answer.exception.code == 3 and ".tar.xz" in str(answer.exception)


def test_json_is_one_document_with_a_status(toy, call):
    toy.fill()
    for args in (
        ("prepare", "toy", "--from", toy.source),
        ("check", "toy"),
        ("info", "toy"),
        ("list",),
    ):
        result, document = call(*args, json=True)
        assert result.exit_code == 0, (args, result.exception)
        assert (
            result.stdout == ""
            and document["status"] == "done"
            and document["schema"].startswith("segbench.data.")
        )
        toy_document = next(d for d in document["datasets"] if d["name"] == "toy")
    assert toy_document["state"] == "prepared, 3 train + 2 test cases"


def test_check_lists_every_problem_and_fails(toy, call):
    toy.fill()
    call("prepare", "toy", "--from", toy.source)
    result, _ = call("check", "toy")
    assert result.exit_code == 0 and "5 cases checked" in result.stdout
    assert "no case, patient or identical" in result.stdout
    for case in ("c0", "c3"):
        (toy.data_root / "toy" / "cases" / case / "image.npy").write_bytes(b"x")
    result, _ = call("check", "toy")
    assert isinstance(result.exception, DataProblems) and result.exception.code == 3
    assert (
        "✗ c0" in result.stdout
        and "✗ c3" in result.stdout
        and "2 problems" in str(result.exception)
    )
    result, document = call("check", "toy", json=True)
    assert document is None and [p["case"] for p in result.exception.to_dict()["problems"]] == [
        "c0",
        "c3",
    ]
    result, _ = call("check", "toy", "--case", "c1")
    assert result.exit_code == 0 and "1 case checked" in result.stdout
    result, _ = call("check", "toy", "--case", "c9")
    assert isinstance(result.exception, UsageError)


def test_check_warns_of_cases_smaller_than_the_protocol_s_patch(toy, call):
    toy.fill()
    call("prepare", "toy", "--from", toy.source)
    result, document = call("check", "toy", json=True)
    assert {p["level"] for p in document["datasets"][0]["problems"]} == {
        "warning"
    } and result.exit_code == 0


def test_check_and_info_of_what_is_not_prepared(toy, call):
    toy.fill()
    result, _ = call("check", "toy")
    assert isinstance(result.exception, DataError) and "not prepared" in str(result.exception)
    result, _ = call("info", "toy")
    assert (
        result.exit_code == 0
        and "is not prepared" in result.stdout
        and "example.org" in result.stdout
    )
    result, _ = call("info", "tooy")
    assert isinstance(result.exception, UsageError) and "Did you mean 'toy'" in str(
        result.exception
    )


def test_info_shows_facts_and_measurements(toy, call):
    toy.fill()
    call("prepare", "toy", "--from", toy.source)
    _, document = call("info", "toy", json=True)
    (facts,) = document["datasets"]
    assert facts["shape"] == {"min": [5, 6, 4], "median": [5, 6, 4], "max": [5, 6, 4]}
    assert (
        facts["spacing_mm"] == [(1.0, 1.0, 2.0)]
        and facts["copy"] == "whole"
        and len(facts["fingerprint"]) == 64
    )
    assert (
        sum(v["voxels"] for v in facts["voxels"].values()) == 5 * 120
        and facts["voxels"]["b"]["cases"] == 5
    )
    assert (facts["license"], facts["citation"]) == ("none", "no one")
    result, _ = call("info", "toy")
    assert facts["fingerprint"] in result.stdout and "5 x 6 x 4" in result.stdout


def test_info_of_an_embedded_data_set_makes_nothing(toy, call):
    toy.fill()
    toy.code(embedded=True)
    result, _ = call("info", "toy")
    assert "generated on first use" in result.stdout and toy.loads() == []
    result, _ = call("prepare", "toy")
    assert result.exit_code == 0 and len(toy.loads()) == 5


def test_list_shows_broken_plug_ins_too(toy, call):
    toy.plugin.write_text(toy.plugin.read_text().replace("import json", "import no_such_module"))
    result, _ = call("list")
    line = next(x for x in result.stdout.splitlines() if x.startswith("toy "))
    assert "broken" in line and "no_such_module" in line
    assert any(x.startswith("la ") for x in result.stdout.splitlines())


def test_a_poor_terminal_gets_plain_marks(toy):
    toy.fill()
    result = CliRunner(charset="ascii").invoke(
        data,
        ["prepare", "toy", "--from", str(toy.source)],
        obj=Settings(chosen_data_root=str(toy.data_root)),
    )
    assert result.exit_code == 0 and result.stdout.startswith("ok toy")


def test_a_bar_on_a_terminal_takes_any_name(toy, call, monkeypatch):
    import io
    import sys

    from segbench.cli.reporter import counting

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with counting(Settings(), "prepare [bold]x[/]") as progress:
        progress(1, 2, "x[/]\x1b[31m")
    assert "\x1b[31mx" not in sys.stderr.getvalue()
