"""Suites handed to a cluster: batch files, printed commands, and the file that describes it."""

import json
import os
import pickle
import shlex
import sys
from pathlib import Path

import pytest

from segbench.errors import PluginError, UsageError
from segbench.results.attempts import new_lease, record_kill, record_start, write_lease
from segbench.suites.engines import load_cluster
from segbench.suites.member import SlurmMember, train_member

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
        "--array=0-1%2",
        "--requeue",
        "--signal=USR2@120",
        "--time=24:00:00",
        "--partition=gpu",
        "--exclusive",
    ):
        assert f"#SBATCH {line}" in lines
    assert "module load cuda" in lines and "gres" not in first
    words = shlex.split(lines[-1])
    assert words[0] == "srun" and "submitit.core._submit" in words
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


FAKE_SLURM = """#!/bin/sh
echo "$(basename "$0")" >> {calls}
case $(basename "$0") in
    scontrol) echo "MaxArraySize = 3" ;;
    squeue) cat {known} ;;
    sbatch)
        [ -e {refuses} ] && echo "invalid partition" >&2 && exit 1
        echo "Submitted batch job $(grep -c sbatch {calls})" ;;
esac
"""


class FakeSlurm:
    """Programs with the names of SLURM's, which note that they were called."""

    def __init__(self, folder):
        self.programs = folder / "bin"
        self.known = folder / "known"
        self.refuses = folder / "refuses"
        self._calls = folder / "calls"
        self.programs.mkdir()
        self.known.write_text("")
        text = FAKE_SLURM.format(calls=self._calls, known=self.known, refuses=self.refuses)
        for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
            (self.programs / name).write_text(text)
            (self.programs / name).chmod(0o755)

    def know(self, *jobs):
        """Set the jobs that wait or run."""
        self.known.write_text("\n".join(jobs))

    def calls(self):
        """Return the names of the programs that changed or asked something, without squeue."""
        names = self._calls.read_text().split()
        return [name for name in names if name != "squeue"]


@pytest.fixture
def fake_slurm(lab, monkeypatch):
    found = FakeSlurm(lab.folder)
    monkeypatch.setenv("PATH", f"{found.programs}:{os.environ['PATH']}")
    return found


def test_submitted_runs_are_left_out_the_next_time(lab, suite, fake_slurm):
    words = ("--json", "bench", "submit", suite, "--device", "cpu")
    first = json.loads(lab.call(*words).stdout)
    assert first["submitted"] == 4 and fake_slurm.calls() == ["scontrol", "sbatch", "sbatch"]
    assert first["jobs"] == ["1_0", "1_1", "1_2", "2"]  # submitit makes no array of one call
    fake_slurm.know(*first["jobs"])
    status = json.loads(lab.call("--json", "bench", "status", suite).stdout)
    assert status["counts"]["queued"] == 4
    assert json.loads(lab.call(*words).stdout)["submitted"] == 0
    fake_slurm.know(*first["jobs"][1:])  # one ended without a result and without a word
    again = json.loads(lab.call(*words).stdout)
    assert again["submitted"] == 1
    known = [*first["jobs"][1:], *again["jobs"]]
    fake_slurm.know(*known)
    canceled = json.loads(lab.call("--json", "bench", "cancel", suite).stdout)
    assert sorted(canceled["jobs"]) == sorted(known) and fake_slurm.calls()[-1] == "scancel"
    fake_slurm.know()
    status = json.loads(lab.call("--json", "bench", "status", suite).stdout)
    assert status["counts"]["to do"] == 4 and status["counts"]["lost"] == 0


def test_each_run_names_its_log_and_its_call(lab, suite, fake_slurm):
    lab.call("bench", "submit", suite, "--device", "cpu", "--limit", "3")
    files = sorted((lab.folder / "segbench-out/runs").glob("*/*/*/job.json"))
    assert len(files) == 3
    for file in files:
        job = json.loads(file.read_bytes())
        log = Path(job["log"])
        with log.with_name(f"{job['job']}_submitted.pkl").open("rb") as stream:
            call = pickle.load(stream)
        assert call.function is train_member and call.args[0] == str(file.parent)
        assert call.args[1] == 3 and "--device cpu" in " ".join(call.args[2])
        assert log.name == f"{job['job']}_0_log.out"


def test_a_refused_submission_keeps_the_reasons_of_failures(lab, suite, fake_slurm):
    fake_slurm.refuses.touch()
    printed = ("--json", "bench", "submit", suite, "--engine", "print", "--device", "cpu")
    commands = json.loads(lab.call(*printed).stdout)["texts"]
    words = shlex.split(commands[0])
    folder = Path(words[words.index("resume") + 1])
    (folder / "failed.json").write_text("{}")
    refused = lab.call("bench", "submit", suite, "--device", "cpu", "--retry")
    assert refused.returncode == PluginError.code and "invalid partition" in refused.stderr
    assert (folder / "failed.json").exists()


def test_without_submitit_the_next_step_is_named(lab, suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "segbench.suites.array_executor", raising=False)
    found = lab.call("bench", "submit", suite, "--device", "cpu", "--dry-run")
    assert found.returncode == PluginError.code and "segbench[slurm]" in found.stderr


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
