"""Commands on results, from small runs to the leaderboard of another user."""

import json
import re
from pathlib import Path

import pytest

from segbench import registry

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
RUN = (
    "run",
    "supervised",
    "--dataset",
    "tiny",
    "--protocol",
    PLUGINS / "tiny.yaml",
    "--steps",
    "2",
    "--seeds",
    "0-2",
)


@pytest.fixture
def trained(lab):
    document = json.loads(lab.call(*RUN, "--json").stdout)
    return [r["run_id"] for r in document["runs"]]


def test_from_training_to_the_leaderboard_of_another_user(lab, trained):
    for i, run in enumerate(trained):
        exported = lab.call("runs", "export", run, "-o", f"{i}.zip")
        assert exported.returncode == 0 and "predictions.zip" in exported.stdout, exported.stderr
    assert lab.call("runs", "export", trained[0], "-o", "0.zip").returncode == 2, (
        "an existing file is not replaced"
    )
    taken = lab.call("--root", "theirs", "runs", "import", "0.zip", "1.zip", "2.zip")
    assert taken.returncode == 0 and taken.stdout.count(": verified") == 3
    ours, theirs = (
        json.loads(lab.call("--root", r, "leaderboard", "--json").stdout)
        for r in ("segbench-out", "theirs")
    )
    kept = ("method", "dice", "rank", "seeds", "intervals")
    assert [[row[k] for k in kept] for b in ours["boards"] for row in b["rows"]] == [
        [row[k] for k in kept] for b in theirs["boards"] for row in b["rows"]
    ]
    listed = json.loads(lab.call("--root", "theirs", "runs", "ls", "--json").stdout)["runs"]
    assert {r["origin"] for r in listed} == {"verified"}
    assert lab.call("--root", "theirs", "runs", "verify", trained[0][:8]).returncode == 0
    assert lab.call("--root", "theirs", "resume", "--all").returncode == 0


def test_verify_finds_other_weights_and_predictions(lab, trained):
    whole = lab.call("runs", "verify", trained[0], "--json")
    assert json.loads(whole.stdout)["verified"] is False and "no predictions" in whole.stdout
    folder = {
        r["run_id"]: lab.folder / r["dir"]
        for r in json.loads(lab.call("runs", "ls", "--json").stdout)["runs"]
    }
    first, second = (folder[r[:8]] for r in trained[:2])
    for file in (first / "ckpt").iterdir():
        file.unlink()
    for file in (second / "ckpt").iterdir():
        (first / "ckpt" / file.name).write_bytes(file.read_bytes())
    changed = lab.call("runs", "verify", trained[0])
    assert changed.returncode == 8 and "weights are not those" in changed.stderr


def test_list_show_tail_and_prune(lab, trained):
    lines = lab.call("runs", "ls", "--state", "done").stdout.splitlines()
    assert len(lines) == 5 and trained[0][:8] in lines[2] and "own" in lines[2]
    assert lab.call("runs", "ls", "--state", "failed").stdout == ""
    shown = lab.call("runs", "show", trained[0]).stdout
    assert (
        "supervised on tiny, 2 labeled, seed 0" in shown
        and "Dice" in shown
        and "modified: steps" in shown
    )
    assert json.loads(lab.call("runs", "show", trained[0], "--json").stdout)["result"]["seed"] == 0
    assert re.match(
        r"step 1  phase train", lab.call("runs", "tail", trained[0], "-n", "1", "-f").stdout
    )
    preview = lab.call("runs", "prune", "--weights")
    assert "would be freed" in preview.stdout and lab.call("evaluate", trained[0]).returncode == 0
    freed = json.loads(lab.call("runs", "prune", "--weights", "--yes", "--json").stdout)
    assert freed["removed"] is True and freed["bytes"] > 1000 and len(freed["runs"]) == 3
    assert lab.call("evaluate", trained[0]).returncode == 8
    assert (
        json.loads(lab.call("leaderboard", "--json").stdout)["boards"][0]["rows"][0]["seeds"] == 3
    )
    assert lab.call("runs", "prune").returncode == 2


def test_runs_are_listed_by_group_and_exported_into_a_new_folder(lab, trained, monkeypatch):
    monkeypatch.setattr(registry.get("dataset", "phantom").cls, "members", ("tiny",))
    assert (
        len(json.loads(lab.call("runs", "ls", "--dataset", "phantom", "--json").stdout)["runs"])
        == 3
    )
    wrong = lab.call("runs", "ls", "--dataset", "phantm")
    assert wrong.returncode == 2 and "Did you mean 'phantom'?" in wrong.stderr
    done = lab.call(
        "runs", "export", trained[0], "-o", lab.folder / "new/place/x.zip", "--no-predictions"
    )
    assert done.returncode == 0 and (lab.folder / "new/place/x.zip").is_file(), done.stderr
    place = lab.folder / "new/place"
    done = lab.call("runs", "export", trained[0], "-o", place, "--no-predictions")
    assert done.returncode == 0 and (place / f"{trained[0][:8]}.zip").is_file(), done.stderr


def test_all_finished_runs_of_a_suite_are_exported(lab, trained):
    protocol = (PLUGINS / "tiny.yaml").read_text().replace("steps: 6", "steps: 2")
    (lab.folder / "tiny.yaml").write_text(protocol)
    (lab.folder / "mine.yaml").write_text(
        "schema: 1\nname: mine\nprotocol: tiny.yaml\nmatrix:\n  method: [supervised]\n"
        "  dataset: [tiny]\n  seed: [0, 1, 7]\n"
    )
    suite = ("runs", "export", "mine.yaml", "-o", "bundles", "--no-predictions")
    done = lab.call(*suite)
    assert done.returncode == 0 and "bundles: 2 runs exported" in done.stdout, done.stderr
    assert "not finished: supervised on tiny, 2 labeled, seed 7: to do" in done.stdout
    names = {file.name for file in (lab.folder / "bundles").iterdir()}
    assert names == {f"{run[:8]}.zip" for run in trained[:2]}
    again = json.loads(lab.call(*suite, "--json").stdout)
    assert again["files"] == [] and len(again["kept"]) == 2

    folder = next((lab.folder / "segbench-out/runs/tiny/supervised").glob("*s0*"))
    for file in (folder / "ckpt").iterdir():
        file.unlink()
    done = lab.call("runs", "export", "mine.yaml", "--weights", "-o", "models")
    assert done.returncode == 5 and "1 of 2 runs could not be exported" in done.stderr
    assert [file.name for file in (lab.folder / "models").iterdir()] == [
        f"{trained[1][:8]}-weights.zip"
    ]
    assert lab.call("runs", "export", "no.yaml").returncode == 2


def test_failed_runs_are_listed_and_pruned(lab, trained):
    folder = next((lab.folder / "segbench-out/runs/tiny/supervised").iterdir())
    (folder / "result.json").unlink()
    (folder / "failed.json").write_text("{}")
    listed = json.loads(lab.call("runs", "ls", "--state", "failed", "--json").stdout)["runs"]
    assert len(listed) == 1 and listed[0]["run_id"] == folder.name[-8:]
    elsewhere = folder.rename(lab.folder / folder.name)
    folder.symlink_to(elsewhere)
    assert lab.call("runs", "prune", "--failed", "--yes").returncode == 0
    assert elsewhere.exists(), "a link goes, not what it leads to"
    elsewhere.rename(folder)
    assert lab.call("runs", "prune", "--failed", "--yes").returncode == 0
    assert (
        not folder.exists()
        and len(json.loads(lab.call("runs", "ls", "--json").stdout)["runs"]) == 2
    )


def test_compare_says_what_it_may(lab, trained):
    single = lab.call("compare", *trained[:2])
    assert (
        single.returncode == 0 and "one seed" in single.stdout and "2 cases paired" in single.stdout
    )
    document = json.loads(lab.call("compare", *trained, "--json").stdout)
    assert len(document["tables"][0]["pairs"]) == 6 and set(
        document["tables"][0]["pairs"][0]["cases"]
    ) == {"case6", "case7"}
    for args, says in (
        (("supervised", "supervsed"), "Did you mean 'supervised'?"),
        (("supervised",), "two different"),
        (("supervised", trained[0], "--labeled", "9"), "they share no table"),
    ):
        wrong = lab.call("compare", *args)
        assert wrong.returncode == 2
        assert says in " ".join(wrong.stderr.split())  # long lines are wrapped


def test_compare_takes_methods_by_their_name_and_shows_the_name_of_the_row(lab, trained):
    other = ("run", "mean_teacher", *RUN[2:], "-o", "decay=0.9")
    run_id = json.loads(lab.call(*other, "--json").stdout)["runs"][0]["run_id"]
    shown = "mean_teacher[decay=0.9]"
    document = json.loads(lab.call("compare", "supervised", "mean_teacher", "--json").stdout)
    (table,) = document["tables"]
    assert table["names"] == {"supervised": "supervised", "mean_teacher": shown}
    assert table["seeds"] == {"supervised": 3, shown: 3}
    assert {(pair["a"], pair["b"]) for pair in table["pairs"]} == {("supervised", shown)}
    text = lab.call("compare", "mean_teacher", trained[0]).stdout
    run_shown = f"supervised {trained[0][:8]}"
    assert f"{shown} minus {run_shown}: 2 cases paired, 3 and 1 seeds" in text
    assert lab.call("compare", "mean_teacher", run_shown).stdout == text
    assert lab.call("compare", "mean_teacher", f"dtc {trained[0][:8]}").returncode == 2
    part = lab.call("compare", "mean_teacher", run_id)
    assert part.returncode == 2 and "one is part of the other" in " ".join(part.stderr.split())


def test_a_report_of_nothing_is_refused(lab):
    empty = lab.call("report", "--no-images")
    assert empty.returncode == 2 and "no finished run to report" in empty.stderr
    assert not list(lab.folder.rglob("*.html"))


def test_cite_names_method_backbone_data_and_segbench(lab, trained):
    text = lab.call("cite", trained[0]).stdout
    assert [m[0] for m in re.findall(r"^@(\w+)\{(\w+)", text, re.MULTILINE)] == [
        "software",
        "misc",
        "article",
        "misc",
    ]
    assert "Milletari and Navab and Ahmadi" in text and text.count("{") == text.count("}")
