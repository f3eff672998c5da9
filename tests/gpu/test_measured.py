"""What is stored about the checkouts that were measured."""

from __future__ import annotations

import json
import subprocess

from segbench.benchmarks.speed import measured


def checkout(folder):
    """Make a repository with one commit and return the commit."""
    folder.mkdir()
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    show = ["git", "log", "--format=%H"]
    done = subprocess.run(show, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_of_the_other_checkout_is_stored(tmp_path):
    other = tmp_path / "other"
    commit = checkout(other)
    file = tmp_path / "rows.json"
    measured.save(file, [{"ratio": 2}], "a note", other)
    found = json.loads(file.read_text())
    assert found["other_commit"] == commit != found["commit"]
    measured.save(file, [{"ratio": 2}], "a note")
    assert "other_commit" not in json.loads(file.read_text())


def test_a_folder_inside_a_checkout_has_no_commit_of_its_own(tmp_path):
    other = tmp_path / "other"
    checkout(other)
    unpacked = other / "unpacked"
    unpacked.mkdir()
    assert measured.commit_of(unpacked) == ""
    assert measured.commit_of(tmp_path) == ""
