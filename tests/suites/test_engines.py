"""Suites handed to a cluster: batch files, printed commands, and the file that describes it."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from segbench.errors import PluginError, UsageError
from segbench.results.attempts import new_lease, record_kill, record_start, write_lease
from segbench.suites.engines import load_cluster
from segbench.suites.member import SlurmMember

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
SUITE = """
schema: 1
name: mine
protocol: {protocol}
matrix: {{method: [supervised, mean_teacher], dataset: [tiny], seed: [0, 1]}}
"""
CLUSTER = """
schema: 1
time: "24:00:00"
at_once: 64
gpus: 0
setup: ["module load cuda"]
slurm: {partition: gpu, exclusive: true}
methods: {mean_teacher: {time: "72:00:00", gpus: 2, cpus: 4}}
"""


@pytest.fixture
def suite(lab):
    (lab.folder / "mine.yaml").write_text(SUITE.format(protocol=PLUGINS / "tiny.yaml"))
    (lab.folder / "cluster.yaml").write_text(CLUSTER)
    return "mine.yaml"


def test_a_dry_run_prints_the_batch_files_and_writes_nothing(lab, suite):
    words = ("--json", "bench", "submit", suite, "--cluster", "cluster.yaml", "--dry-run")
    found = lab.call(*words, "--device", "cuda")
    assert found.returncode == 0, found.stderr
    first, second = json.loads(found.stdout)["texts"]
    lines = first.splitlines()
    assert lines[0] == "#!/bin/bash"
    for line in (
        "--job-name=segbench-mine",
        "--array=0-1%64",
        "--requeue",
        "--signal=B:USR2@120",
        "--time=24:00:00",
        "--partition=gpu",
        "--exclusive",
    ):
        assert f"#SBATCH {line}" in lines
    assert "module load cuda" in lines and "gres" not in first
    words = shlex.split(lines[-1])
    assert words[0] == "exec" and words[2:4] == ["-m", "segbench.suites.member"]
    assert "#SBATCH --time=72:00:00" in second and "#SBATCH --gres=gpu:2" in second
    assert not (lab.folder / "segbench-out").exists()


def test_a_run_on_the_cpu_asks_for_no_gpu(lab, suite):
    words = ("--json", "bench", "submit", suite, "--dry-run", "--device", "cpu")
    (text,) = json.loads(lab.call(*words).stdout)["texts"]
    assert "gres" not in text


@pytest.mark.parametrize("key", ["time: '1'", "at_once: 3", "setup: [ls]", "slurm: {qos: a}"])
def test_ray_refuses_settings_that_it_does_not_have(lab, suite, key):
    (lab.folder / "cluster.yaml").write_text(f"schema: 1\n{key}\n")
    words = ("bench", "submit", suite, "--engine", "ray", "--cluster", "cluster.yaml")
    found = lab.call(*words, "--device", "cpu")
    assert found.returncode == 2 and f"{key.partition(':')[0]}: Ray has no such" in found.stderr


def test_a_dry_run_of_ray_says_what_each_run_asks_for(lab, suite):
    (lab.folder / "cluster.yaml").write_text("schema: 1\nmethods: {mean_teacher: {cpus: 4}}\n")
    words = ("--json", "bench", "submit", suite, "--engine", "ray", "--cluster", "cluster.yaml")
    found = lab.call(*words, "--device", "cuda", "--dry-run")
    texts = json.loads(found.stdout)["texts"]
    starts = [text.partition(" /")[0] for text in texts]
    assert sorted(starts) == ["cpus=1 gpus=1"] * 2 + ["cpus=4 gpus=1"] * 2
    assert not (lab.folder / "segbench-out").exists()


def test_without_ray_or_its_cluster_the_next_step_is_named(lab, suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("bench", "submit", suite, "--engine", "ray", "--device", "cpu")
    found = lab.call(*words)
    assert found.returncode == PluginError.code and "segbench[ray]" in found.stderr
    for file in (lab.folder / "segbench-out/runs").glob("*/*/*/config.yaml"):
        (file.parent / "job.json").write_text('{"engine": "ray", "job": "a"}')
    status = json.loads(lab.call("--json", "bench", "status", suite).stdout)
    assert status["counts"]["queued"] == 4  # not lost: no one knows


def test_a_login_node_needs_no_gpu(lab, suite):
    words = ("--json", "bench", "submit", suite, "--engine", "print", "--dry-run")
    for device in ("cuda", "auto"):
        found = lab.call(*words, "--device", device)
        assert found.returncode == 0, found.stderr
        assert all(f"--device {device}" in text for text in json.loads(found.stdout)["texts"])


def test_printed_commands_resume_stored_configurations(lab, suite):
    words = ("bench", "submit", suite, "--engine", "print", "--limit", "3", "--device", "cpu")
    found = lab.call(*words)
    assert found.returncode == 0, found.stderr
    commands = [shlex.split(line) for line in found.stdout.splitlines()]
    folders = [words[words.index("resume") + 1] for words in commands]
    assert len(folders) == 3
    config = (lab.folder / "segbench-out/runs").glob("*/*/*/config.yaml")
    assert sorted(folders) == sorted(str(file.parent) for file in config)


def test_submitted_runs_are_left_out_the_next_time(lab, suite, monkeypatch):
    from segbench.suites import engines

    calls = []

    def call(command):
        calls.append(command[0])
        return "MaxArraySize = 3\n" if command[0] == "scontrol" else f"{len(calls)};cluster\n"

    monkeypatch.setattr(engines, "_call", call)
    known = set()

    monkeypatch.setattr(engines, "slurm_jobs", lambda: known)
    words = ("--json", "bench", "submit", suite, "--device", "cpu")
    first = json.loads(lab.call(*words).stdout)
    assert first["submitted"] == 4 and calls == ["scontrol", "sbatch", "sbatch"]
    known.update(first["jobs"])
    status = json.loads(lab.call("--json", "bench", "status", suite).stdout)
    assert status["counts"]["queued"] == 4
    assert json.loads(lab.call(*words).stdout)["submitted"] == 0
    known.remove(first["jobs"][0])  # it ended without a result and without a word
    again = json.loads(lab.call(*words).stdout)
    assert again["submitted"] == 1
    known.update(again["jobs"])
    canceled = json.loads(lab.call("--json", "bench", "cancel", suite).stdout)
    assert sorted(canceled["jobs"]) == sorted(known) and calls[-1] == "scancel"
    known.clear()
    status = json.loads(lab.call("--json", "bench", "status", suite).stdout)
    assert status["counts"]["to do"] == 4 and status["counts"]["lost"] == 0


def test_a_refused_submission_keeps_the_reasons_of_failures(lab, suite, monkeypatch):
    from segbench.suites import engines

    def refuse(command):
        if command[0] == "scontrol":
            return "MaxArraySize = 3\n"
        raise PluginError("sbatch failed")

    monkeypatch.setattr(engines, "_call", refuse)
    printed = ("--json", "bench", "submit", suite, "--engine", "print", "--device", "cpu")
    commands = json.loads(lab.call(*printed).stdout)["texts"]
    words = shlex.split(commands[0])
    folder = Path(words[words.index("resume") + 1])
    (folder / "failed.json").write_text("{}")
    refused = lab.call("bench", "submit", suite, "--device", "cpu", "--retry")
    assert refused.returncode == PluginError.code
    assert (folder / "failed.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("schema: 1\ntimme: 3", "timme"),
        ("schema: 2", "schema"),
        ("schema: 1\ngpus: two", "gpus"),
        ("schema: 1\nslurm: {--partition: gpu}", "partition"),
        ("schema: 1\nmethods: {bcp: {timme: 3}}", "timme"),
    ],
)
def test_a_wrong_cluster_file_names_its_place(tmp_path, text, says):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        load_cluster(tmp_path / "cluster.yaml")
    assert "cluster.yaml:" in str(error.value)


def test_a_member_leaves_a_run_alone_that_another_process_trains(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        record_start(folder)
        record_kill(folder, 9)
    record_start(folder)
    write_lease(folder, new_lease())
    member = SlurmMember(folder, 3, [])
    monkeypatch.setattr(member, "_attempt", lambda: 0)
    assert member.execute() == 0
    assert not (folder / "failed.json").exists()
