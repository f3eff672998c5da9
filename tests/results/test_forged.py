"""Forged result files, and names that attack the program that shows them."""

import hashlib
import json
import re

import pytest

from segbench.config import dump_yaml
from segbench.errors import IntegrityError
from segbench.identity.run_id import run_id
from segbench.results import export
from segbench.results.latex import as_latex
from segbench.results.leaderboard import boards
from segbench.results.rundir import all_runs
from segbench.storage import json_bytes

HOSTILE = [
    "<script>alert(1)</script>",
    "[red]",
    "a\nb",
    "\x1b[31mred",
    "x[/]",
    "=cmd()",
    "a|b",
    r"\input{x}",
    "ü" * 300,
]


def edited(run, change):
    result = json.loads((run.path / "result.json").read_text())
    change(result)
    run.write_json("result.json", result)
    return run


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda r: r.pop("metrics"), "not of its schema"),
        (lambda r: r.update(metrics=[]), "not of its schema"),
        (lambda r: r.update(datasets="tiny"), "not of its schema"),
        (lambda r: r.update(seed="0"), "not of its schema"),
        (lambda r: r.update(seed=True), "not of its schema"),
        (lambda r: r.update(method=["x"]), "not of its schema"),
        (lambda r: r.update(run_id="../../etc"), "not of its schema"),
        (lambda r: r.update(science={}), "not of its schema"),
        (lambda r: r["labeled"].clear(), "incomplete"),
        (lambda r: r["science"]["protocol"].clear(), "contradicts itself|incomplete"),
        (lambda r: r.update(seed=5), "contradicts itself"),
        (lambda r: r.update(method="versemi"), "contradicts itself"),
        (lambda r: r["labeled"].update(tiny=1), "contradicts itself"),
        (lambda r: r["science"]["params"].update(extra=1), "contradicts itself"),
        (lambda r: r.update(protocol_sha256="0" * 64), "contradicts itself"),
        (lambda r: r["metrics"][0].update(policy="literature_zero"), "contradicts itself"),
    ],
)
def test_a_result_that_does_not_fit_together_is_refused(study, change, says):
    run = edited(study.add("supervised", 0, [0.8, 0.9]), change)
    with pytest.raises(IntegrityError, match=says):
        run.result()
    found, warnings = boards([run])
    assert found == [] and len(warnings) == 1


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda r: r["science"]["protocol"].pop("name"), "incomplete"),
        (lambda r: r["science"]["protocol"].update(version=7), "contradicts itself"),
        (
            lambda r: r["science"]["protocol"].update(deep=json.loads(300 * "[" + 300 * "]")),
            "incomplete",
        ),
        (lambda r: r["science"]["datasets"][0].update(name=["x"]), "incomplete"),
        (lambda r: r["metrics"][0].update(both_empty="reward"), "not of its schema"),
    ],
)
def test_an_identity_that_was_forged_along_does_not_help(study, lab, change, says):
    def forge(result):
        change(result)
        result["protocol_sha256"] = hashlib.sha256(
            json_bytes(result["science"]["protocol"])
        ).hexdigest()
        result["run_id"] = run_id(result["science"])

    run = edited(study.add("supervised", 0, [0.8, 0.9]), forge)
    with pytest.raises(IntegrityError, match=says):
        run.result()
    for command in (
        ("leaderboard",),
        ("runs", "ls"),
        ("runs", "show", run.run_id),
        ("report", "--no-images"),
    ):
        assert lab.call(*command).returncode == 0, command


@pytest.mark.parametrize("name", ["manifest.json", "leak.json", "failed.json", "log.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"train_seconds": "x", "last": 1e999, "step": 0}',
        '{"train_seconds": null}',
        '{"train_seconds": 1' + 400 * "0" + "}",
        "[" * 100_000,
    ],
)
def test_a_strange_file_beside_the_result_stops_no_command(study, lab, name, content):
    study.methods(supervised=0.8)
    run = next(all_runs(study.root))
    (run.path / name).write_text(content)
    for command in (
        ("leaderboard",),
        ("report", "--no-images"),
        ("runs", "show", run.run_id),
        ("runs", "tail", run.run_id),
        ("runs", "export", run.run_id, "--no-predictions", "--yes"),
    ):
        result = lab.call(*command)
        assert result.returncode == 0, (command, result.stderr)
    assert len(boards(all_runs(study.root))[0][0].rows) == 1


@pytest.mark.parametrize("metric", ["asd_mm", "hd95_vox"])
def test_a_case_table_without_a_metric_is_refused(study, metric):
    run = edited(
        study.add("supervised", 0, [0.8]), lambda r: r["metrics"][0]["columns"].pop(metric)
    )
    study.rewrite(run, (run.path / "cases.csv").read_text().replace(metric, "note"))
    with pytest.raises(IntegrityError, match="not written by segbench"):
        run.cases()


def test_columns_that_the_case_table_does_not_have_are_refused(study):
    run = edited(
        study.add("supervised", 0, [0.8]),
        lambda r: r["metrics"][0]["columns"].update(hd_mm={"mean": None}),
    )
    with pytest.raises(IntegrityError, match="means of its cases"):
        run.cases()


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_bytes(f.read_bytes() + b"\r\n"), lambda f: f.unlink()]
)
def test_a_finished_run_that_was_changed_is_not_pruned(study, damage):
    from segbench.cli.main import run as program

    run = study.add("supervised", 0, [0.8, 0.9])
    (run.path / "ckpt").mkdir()
    (run.path / "ckpt/last.st").touch()
    damage(run.path / "cases.csv")
    assert run.state == "failed" and len(boards([run])[1]) == 1
    assert (
        program(["--root", str(study.root), "runs", "prune", "--failed", "--half-done", "--yes"])
        == 0
    )
    assert (run.path / "result.json").exists()


def test_a_reported_run_does_not_decide_which_cases_there_are(study):
    def forge(result):
        result["train"]["tiny"] = 99
        for name in ("hd95_mm", "asd_mm", "assd_mm"):
            del result["metrics"][0]["columns"][name]

    study.methods(supervised=0.8)
    run = study.add("bcp", 0, [0.9] * 13, change=forge)
    study.rewrite(
        run, (run.path / "cases.csv").read_text().replace("1.0x1.0x1.0", "")
    )  # no size of a voxel, no mm
    run.write_json("import.json", {"verified": False})
    (board,), warnings = boards(all_runs(study.root))
    assert not warnings and (board.cases, board.train, board.unit, board.rows[0].rank) == (
        12,
        6,
        "mm",
        1,
    )
    assert "not verified" in board.rows[1].note and board.rows[1].hd95 != board.rows[1].hd95
    (alone,), _ = boards([run])
    assert (alone.cases, alone.unit) == (13, "vox")


@pytest.mark.parametrize(
    "change, codes",
    [
        (lambda c: c.clear(), (8, 8, 8)),
        (lambda c: c.pop("experiment"), (8, 8, 8)),
        (lambda c: c.update(science=[]), (8, 8, 8)),
        (lambda c: c["experiment"].pop("protocol"), (8, 8, 0)),
        (lambda c: c["experiment"].update(new=1), (0, 8, 0)),
        (lambda c: c["science"].update(method=["x"]), (0, 2, 8)),
        (lambda c: c.update(plugins=[3]), (8, 8, 8)),
    ],
)
def test_a_finished_run_with_a_broken_configuration(study, lab, change, codes):
    study.methods(supervised=0.8)
    run = next(all_runs(study.root))
    config = dict(run.config())
    change(config)
    (run.path / "config.yaml").write_text(dump_yaml(config))
    for command, code in zip((("runs", "show"), ("evaluate",), ("cite",)), codes, strict=True):
        assert lab.call(*command, run.run_id).returncode == code, command
    cited, page = lab.call("cite"), lab.call("report")
    assert cited.returncode == page.returncode == 0 and "@software" in cited.stdout
    assert ("left out" in cited.stderr) == (codes[2] == 8) and ("left out" in page.stderr) == (
        8 in (codes[0], codes[2])
    )


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda r: r["metrics"][0]["columns"]["dice"].update(mean=0.99), "means of its cases"),
        (lambda r: r["metrics"][0]["columns"]["hd95_mm"].update(mean=None), "means of its cases"),
        (lambda r: r["metrics"][0]["columns"].pop("jaccard"), "means of its cases"),
        (
            lambda r: r["metrics"][0]["counts"].update(empty_prediction=0, ok=3),
            "means of its cases",
        ),
        (lambda r: r["metrics"][0].update({"class": "other"}), "case table"),
    ],
)
def test_means_must_be_those_of_the_cases(study, change, says):
    run = edited(study.add("supervised", 0, [0.8, 0.9, 0.0]), change)
    with pytest.raises(IntegrityError, match=says):
        run.cases()
    assert boards([run])[0] == []


@pytest.mark.parametrize(
    "old, new",
    [
        ("0.8,", "1.8,"),
        ("0.8,", "-0.1,"),
        ("0.8,", "nan,"),
        ("0.8,", "inf,"),
        ("0.8,", "0.95,"),
        ("0.8,", "x,"),
        (",ok,", ",empty_prediction,"),
        (",ok,", ",perfect,"),
        ("20x20x20", "2x2x2"),
        ("20x20x20", "-20x20x20"),
        ("20x20x20", ""),
        ("1000,1000", "0,1000"),
        ("case1", "case0"),
        ("tiny,case0", '"tiny,case0'),
        (",4.9", ",94.9"),
    ],
)
def test_a_case_table_with_values_that_cannot_be_is_refused(study, old, new):
    """The digest was forged, too, so only the values show it."""
    run = study.add("supervised", 0, [0.8, 0.8])
    text = (run.path / "cases.csv").read_text()
    assert old in text
    study.rewrite(run, text.replace(old, new, 1))
    with pytest.raises(IntegrityError):
        run.cases()
    assert boards([run])[0] == [] and len(boards([run])[1]) == 1


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 100_000, b'{"schema": "segbench.run/2"}', b"null", b"{}"]
)
def test_a_file_that_is_no_result_is_an_error_and_no_crash(study, content):
    run = study.add("supervised", 0, [0.8])
    (run.path / "result.json").write_bytes(content)
    with pytest.raises(IntegrityError):
        run.result()


@pytest.mark.parametrize(
    "schema, says", [("segbench.run/2", "a newer"), ("segbench.run/0", "another"), (7, "another")]
)
def test_other_schemas_are_named_and_left_alone(study, schema, says):
    study.methods(supervised=0.8)
    run = edited(study.add("mean_teacher", 0, [0.9] * 12), lambda r: r.update(schema=schema))
    before = (run.path / "result.json").read_bytes()
    (board,), warnings = boards(all_runs(study.root))
    assert [r.method for r in board.rows] == ["supervised"] and f"need {says} segbench" in warnings[
        0
    ]
    assert (run.path / "result.json").read_bytes() == before


def test_results_from_before_some_keys_existed_still_count(study):
    def older(result):
        for key in (
            "without",
            "changed_params",
            "selection",
            "test_evaluations",
            "partial",
            "steps",
        ):
            del result[key]

    for seed in range(3):
        study.add("supervised", seed, [0.8, 0.9], change=older)
    (board,), warnings = boards(all_runs(study.root))
    assert not warnings and board.rows[0].rank == 1


@pytest.mark.parametrize(
    "config",
    [
        "{}",
        "a: [",
        "science: 3\nexperiment: {modified: []}",
        "science: {datasets: [{name: tiny}]}\nexperiment: {modified: [1]}",
    ],
)
def test_a_failed_run_with_a_broken_configuration_is_left_out(study, config):
    study.methods(supervised=0.8)
    run = study.add("mean_teacher", 0, [0.9] * 12)
    (run.path / "result.json").unlink()
    (run.path / "failed.json").write_text("[]")
    (run.path / "config.yaml").write_text(config)
    (board,), warnings = boards(all_runs(study.root))
    assert len(warnings) == 1 and board.rows[0].failed == 0 and board.failures == []


def test_a_failed_run_whose_names_are_lists_is_left_out(study):
    study.methods(supervised=0.8)
    run = study.add("mean_teacher", 0, [0.9] * 12)
    (run.path / "result.json").unlink()
    (run.path / "failed.json").write_text("{}")
    config = run.config()
    config["science"]["datasets"][0]["fingerprint"] = ["f"]
    (run.path / "config.yaml").write_text(dump_yaml(dict(config)))
    assert len(boards(all_runs(study.root))[1]) == 1


def hostile_study(study, name):
    """Put the name wherever a result can hold one: case, method, parameter."""

    def change(result):
        result["method"] = result["science"]["method"] = name
        result["changed_params"] = {name: name}
        result["protocol"]["modified"] = [name]
        result["run_id"] = run_id(result["science"])

    for seed in range(3):
        study.add("supervised", seed, [0.8, 0.9], cases=[name, "b"], change=change)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_inert_wherever_they_are_shown(study, name):
    from segbench.cli.boards import board_text

    if len(name) > 200:
        name = name[:200]
    hostile_study(study, name)
    found, warnings = boards(all_runs(study.root))
    assert not warnings and len(found) == 1 and found[0].case_ids == [name, "b"]
    texts = {
        "table": board_text(found[0], wide=True),
        "csv": export.as_csv(found),
        "md": export.as_markdown(found),
        "latex": as_latex(found),
        "html": export.as_html(found),
    }
    for kind, text in texts.items():
        assert "\x1b" not in text and "a\nb" not in text, kind
    assert "<script" not in texts["html"] and not re.search(r"(?<!\\)<script", texts["md"])
    assert r"\input" not in texts["latex"] and "[red]" not in texts["md"]
    assert not any(
        cell.startswith("=") for line in texts["csv"].splitlines()[1:] for cell in line.split(",")
    )
    json.dumps(export.as_json(found, None), allow_nan=False)


@pytest.mark.parametrize("name", HOSTILE[:4], ids=range(4))
def test_hostile_case_names_in_the_commands(study, lab, name):
    for method, dice in (("supervised", 0.8), ("mean_teacher", 0.9)):
        for seed in range(3):
            study.add(
                method, seed, [dice, dice - 0.01, dice - 0.03 - seed / 100], cases=[name, "b", "c"]
            )
    for command in (
        ("leaderboard",),
        ("compare", "supervised", "mean_teacher", "--cases"),
        ("runs", "ls"),
        ("cite",),
    ):
        result = lab.call(*command)
        assert result.returncode == 0, result.stderr
        assert "\x1b" not in result.stdout and "a\nb" not in result.stdout
