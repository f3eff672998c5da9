"""Leaderboards: what shares a table, what is ranked, how failures and missed targets show."""

import csv
import io
import json

import pytest

from segbench.errors import IntegrityError, UsageError
from segbench.identity.run_id import run_id
from segbench.report.write import report
from segbench.results import export
from segbench.results.latex import as_latex
from segbench.results.leaderboard import boards
from segbench.results.names import find_run
from segbench.results.published import published
from segbench.results.rundir import all_runs
from segbench.training.run import execute


@pytest.fixture
def finished(lab):
    """Runs of two methods, one with three seeds."""
    for method, seeds in (("supervised", (0, 1, 2)), ("mean_teacher", (0,))):
        for seed in seeds:
            execute(lab.prepared(method, seed=seed, steps=2), lab.machine())
    return lab


def tables(lab):
    return boards(all_runs(lab.folder / "out"))


def test_three_seeds_are_ranked_one_is_not(finished):
    (board,), warnings = tables(finished)
    rows = {r.method: r for r in board.rows}
    assert warnings == [] and (board.dataset, board.labeled, board.train, board.cases) == (
        "tiny",
        2,
        6,
        2,
    )
    assert rows["supervised"].seeds == 3 and rows["supervised"].rank == 1
    assert rows["mean_teacher"].rank is None and "1 seed" in rows["mean_teacher"].note
    assert board.rows[0].method == "supervised", (
        "a row that is not ranked never stands above one that is"
    )


def test_mean_over_seeds_is_the_mean_of_the_runs(finished):
    results = [
        r.result() for r in all_runs(finished.folder / "out") if "/supervised/" in str(r.path)
    ]
    dice = [100 * r["metrics"][0]["columns"]["dice"]["mean"] for r in results]
    row = next(r for r in tables(finished)[0][0].rows if r.method == "supervised")
    assert row.dice == pytest.approx(sum(dice) / 3)
    assert row.dice_sd == pytest.approx((sum((d - row.dice) ** 2 for d in dice) / 2) ** 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"labeled": 3},
        {"overrides": ["patch=8x8x8", "inference.stride=8,8,8"]},
        {"precision": "bf16"},
        {"dataset": "tiny_classes"},
    ],
)
def test_what_differs_never_shares_a_table(finished, change):
    execute(finished.prepared("supervised", steps=2, **change), finished.machine())
    assert len(tables(finished)[0]) == 2


def test_plain_and_strong_runs_have_tables_of_their_own(study):
    for seed in range(3):
        study.add("supervised", seed, [0.7, 0.8])
        study.add("supervised", seed, [0.8, 0.9], overrides=["augment=strong"])
        study.add("supervised", seed, [0.9, 0.9], labeled=6, overrides=["augment=strong"])
        study.add("supervised", seed, [0.6, 0.6], overrides=["augment=strong", "steps=3"])
    found, warnings = boards(all_runs(study.root))
    assert warnings == []
    rows = {board.protocol: [row.method for row in board.rows] for board in found}
    assert rows == {
        "tiny 1": ["supervised"],
        "tiny 1 +strong": ["supervised", "oracle"],
        "tiny 1 +strong (modified: steps)": ["supervised"],
    }
    page, _ = report(all_runs(study.root), "A title", None)
    assert page.count("protocol tiny 1 +strong ·") and "modified: augment = strong" in page


def test_changed_parameters_are_another_row(finished):
    execute(finished.prepared("mean_teacher", steps=2, overrides=["decay=0.5"]), finished.machine())
    assert {r.method for r in tables(finished)[0][0].rows} == {
        "supervised",
        "mean_teacher",
        "mean_teacher[decay=0.5]",
    }


def test_other_networks_are_other_rows(finished):
    for width in (2, 6):
        execute(
            finished.prepared("supervised", steps=2, overrides=[f"backbone.width={width}"]),
            finished.machine(),
        )
    labels = {r.method for b in tables(finished)[0] for r in b.rows}
    assert {"supervised[backbone.width=2]", "supervised[backbone.width=6]"} <= labels


def test_runs_of_changed_code_are_not_averaged(finished):
    run = next(r for r in all_runs(finished.folder / "out") if "/supervised/" in str(r.path))
    result = json.loads((run.path / "result.json").read_text())
    result["science"]["sources"]["method"] = "of another time"
    result["run_id"] = run_id(result["science"])
    (run.path / "result.json").write_text(json.dumps(result))
    rows = [r for r in tables(finished)[0][0].rows if r.method.startswith("supervised @")]
    assert sorted(r.seeds for r in rows) == [1, 2] and all(r.rank is None for r in rows)


def test_published_numbers_only_beside_the_standard_protocol(finished):
    assert all(not b.standard for b in tables(finished)[0])
    found, _ = tables(finished)
    assert "published" not in export.as_json(found, published)["boards"][0]


def test_failed_and_half_done_runs(finished):
    run = finished.prepared("versemi", steps=2)
    run.folder.write_config(run.run_id, run.experiment, run.science, [])
    assert tables(finished)[0][0].failures == []
    run.folder.fail(RuntimeError("no"), "training")
    assert (
        len(tables(finished)[0][0].failures) == 1
        and "versemi" in tables(finished)[0][0].failures[0]
    )


def test_tampered_case_table_is_left_out_with_a_warning(finished):
    run = next(r for r in all_runs(finished.folder / "out") if "/supervised/" in str(r.path))
    with (run.path / "cases.csv").open("a") as file:
        file.write("tiny,case6,ball,ok,1.0\n")
    (board,), warnings = tables(finished)
    assert len(warnings) == 1 and next(r for r in board.rows if r.method == "supervised").seeds == 2
    with pytest.raises(IntegrityError, match="changed after"):
        run.result()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": "segbench.run/99"}', '{"schema": 3}'])
def test_broken_result_file_is_left_out(finished, content):
    run = next(r for r in all_runs(finished.folder / "out") if "/mean_teacher/" in str(r.path))
    (run.path / "result.json").write_text(content)
    (board,), warnings = tables(finished)
    assert len(warnings) == 1 and [r.method for r in board.rows] == ["supervised"]


def test_exports_agree(finished):
    found, _ = tables(finished)
    rows = list(csv.DictReader(io.StringIO(export.as_csv(found))))
    document = export.as_json(found, None)
    json.dumps(document, allow_nan=False)
    assert [r["method"] for r in rows] == [r["method"] for r in document["boards"][0]["rows"]]
    assert float(rows[0]["dice"]) == document["boards"][0]["rows"][0]["dice"]
    assert r"mean\_teacher" in as_latex(found) and r"\toprule" in as_latex(found)
    assert r"mean\_teacher" in export.as_markdown(found)


def test_export_escapes(finished):
    found, _ = tables(finished)
    found[0].rows[0].method = "=1+1|&%"
    assert "'=1+1" in export.as_csv(found)
    assert r"=1+1\|" in export.as_markdown(found)
    assert r"\&\%" in as_latex(found)


def test_runs_are_found_by_the_start_of_their_id(finished, monkeypatch):
    run = next(all_runs(finished.folder / "out"))
    assert find_run(finished.folder / "out", run.run_id[:6]).path == run.path
    assert find_run(finished.folder / "out", str(run.path)).path == run.path
    monkeypatch.chdir(run.path / "ckpt")
    assert find_run(finished.folder / "out", "..").path == run.path
    assert finished.call("runs", "show", run.path.relative_to(finished.folder)).returncode == 0
    with pytest.raises(UsageError, match="no run"):
        find_run(finished.folder / "out", "zzzz")


def test_published_numbers_have_source_and_selection():
    rows = published("la", 8)
    bcp = [r for r in rows if r["method"] == "BCP"]
    assert any(r["dice"] == 89.62 and r["selection"] == "best_on_test" for r in bcp)
    assert all(r["source"] and r["selection"] for r in rows) and published("tiny", 2) == []
    assert {r["protocol"] for r in published("pancreas_ct", 12)} == {
        "coranet"
    }  # other files, other test cases
