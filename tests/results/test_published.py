"""The file of published numbers: its rows fit each other, its leaks and warnings are shown."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from segbench import registry
from segbench.cli.literature import published_text
from segbench.cli.main import cli
from segbench.config import load_yaml
from segbench.results.published import (
    LEAKS,
    all_published,
    published,
    published_settings,
)

ALIKE = {"MC-Net": "mc_net"}  # spelled like a plug-in, but not what it does by default


@pytest.fixture(scope="module")
def content():
    file = resources.files("segbench.benchmarks") / "published" / "results.yaml"
    return load_yaml(Path(str(file)))


def key(entry):
    return tuple(entry[name] for name in ("source", "dataset", "labeled", "method"))


def test_every_suspicious_row_exists(content):
    known = {key(row) for row in content["results"]}
    for entry in content["suspicious"]:
        assert key(entry) in known, f"no row for {entry}"


def test_every_row_names_a_source_and_every_source_has_a_row(content):
    used = {row["source"] for row in content["results"]}
    assert used == set(content["sources"])


def test_every_method_with_a_published_row_is_mapped(content):
    def spelled(name):
        return re.sub("[^a-z0-9]", "", name.lower())

    methods = {spelled(name): name for name in registry.names("method")}
    for row in content["results"]:
        name = row["method"]
        like = methods.get(spelled(name))
        if like is None or ALIKE.get(name) == like:
            continue
        assert content["ours"].get(name) == like, f"ours: {name} should be {like}"
    assert set(content["ours"].values()) >= {"supervised", "mean_teacher", "mc_net"}


def test_leaks_are_known_words(content):
    for row in content["results"]:
        assert row.get("leak", "selection_on_test") in LEAKS
    for source in content["sources"].values():
        assert set(source.get("leak", {}).values()) <= set(LEAKS)


def test_selection_on_the_test_cases_is_a_leak():
    checked = 0
    for setting in published_settings():
        for row in all_published(*setting):
            if row["selection"] == "best_on_test":
                assert "selection_on_test" in row["leaks"]
                checked += 1
    assert checked > 30


def test_a_row_that_repeats_numbers_with_a_leak_has_it_too():
    repeated = 0
    for setting in published_settings():
        rows = all_published(*setting)
        for row in rows:
            for other in rows:
                same = all(row[name] == other[name] for name in ("method", "dice", "jaccard"))
                if same and row["jaccard"] is not None and other["leaks"]:
                    assert row["leaks"], f"{row['method']} of {row['source']} on {setting}"
                    repeated += row is not other
    assert repeated > 3


def test_rows_of_validation_patients_do_not_stand_beside_ours():
    rows = [row for row in all_published("acdc", 3) if row["method"] == "CrossMatch"]
    assert [row["dice"] for row in rows] == [88.27, 86.88]
    assert all(row["leaks"] == ["evaluated_on_validation"] for row in rows)
    assert not [row for row in published("acdc", 3) if row["method"] == "CrossMatch"]


def test_labels_of_unlabeled_images_are_named(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = published_text("pancreas_ct", 12).splitlines()
    (row,) = [line for line in lines if line.startswith("DyCON")]
    assert row.startswith("DyCON !") and "labels, selection" in row
    assert "leak labels: its training read labels of images that count as unlabeled" in lines
    assert max(map(len, lines)) <= 80


def test_leaderboard_shows_published_numbers_without_runs(tmp_path):
    command = ["--root", str(tmp_path), "leaderboard", "--published"]
    shown = CliRunner().invoke(cli, [*command, "--dataset", "la"], catch_exceptions=False)
    assert shown.exit_code == 0
    titles = re.findall(r"^(\w+), (\d+) labeled, published numbers$", shown.output, re.MULTILINE)
    assert titles == [("la", str(count)) for count in (1, 4, 8, 16, 80)]
    found = CliRunner().invoke(cli, [*command, "--format", "json"], catch_exceptions=False)
    document = json.loads(found.stdout)
    assert document["boards"] == []
    settings = [(entry["dataset"], entry["labeled"]) for entry in document["published"]]
    assert settings == published_settings()
    none = CliRunner().invoke(cli, [*command, "--dataset", "phantom2d_a"], catch_exceptions=False)
    assert none.exit_code == 0 and "no published numbers for phantom2d_a" in none.output


def test_json_without_the_flag_has_no_published_numbers(tmp_path):
    command = ["--root", str(tmp_path), "leaderboard", "--format", "json"]
    found = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert "published" not in json.loads(found.stdout)
