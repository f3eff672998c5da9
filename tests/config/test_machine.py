"""Machine settings: precedence, types, and the refusal of anything that decides numbers."""

from pathlib import Path

import pytest

from segbench.config.machine import SETTINGS, machine_settings
from segbench.errors import UsageError


@pytest.fixture
def user(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return file

    return write


def test_defaults(tmp_path):
    machine = machine_settings({}, tmp_path / "none.yaml")
    assert (machine.root, machine.data_root) == (Path("segbench-out"), Path("segbench-data"))
    assert (machine.device, machine.workers, machine.threads) == ("auto",) * 3
    assert machine.sources == dict.fromkeys(SETTINGS, "default")


def test_file_then_environment_then_flags(user):
    file = user("root: a\ndevice: cpu\nworkers: 1\n")
    machine = machine_settings(
        {"SEGBENCH_DEVICE": "cuda:1", "SEGBENCH_WORKERS": "2"}, file, workers=3, threads=None
    )
    assert (machine.root, machine.device, machine.workers) == (Path("a"), "cuda:1", 3)
    assert machine.sources == {
        "root": f"{file}:1",
        "data_root": "default",
        "device": "SEGBENCH_DEVICE",
        "workers": "--workers",
        "threads": "default",
        "recompute": "default",
        "compile": "default",
        "cuda_graphs": "default",
        "resident": "default",
    }


def test_home_is_expanded_and_an_empty_variable_is_none(tmp_path):
    machine = machine_settings(
        {"SEGBENCH_DATA_ROOT": "~/data", "SEGBENCH_ROOT": ""}, tmp_path / "x", root=None
    )
    assert machine.data_root == Path.home() / "data" and machine.root == Path("segbench-out")


def test_a_numeric_folder_name_stays_text(tmp_path):
    assert machine_settings({"SEGBENCH_ROOT": "2026"}, tmp_path / "x").root == Path("2026")


@pytest.mark.parametrize(
    "key",
    [
        "seed",
        "steps",
        "labeled",
        "method",
        "dataset",
        "backbone",
        "protocol",
        "precision",
        "optim_lr",
        "lr",
        "patch",
        "batch",
        "largest_component",
    ],
)
def test_a_science_key_in_the_environment_is_refused(tmp_path, key):
    variable = f"SEGBENCH_{key.upper()}"
    with pytest.raises(UsageError, match="decides a run's numbers") as caught:
        machine_settings({variable: "1"}, tmp_path / "x")
    assert caught.value.details["where"] == variable and caught.value.code == 2


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 1", "1:7"),
        ("root: a\noptim:\n  lr: 1", "3:7"),
        ("optim.lr: 1", "1:11"),
        ("backbone: {width: 8}", "1:19"),
    ],
)
def test_a_science_key_in_the_user_s_file_is_refused(user, text, place):
    file = user(text)
    with pytest.raises(UsageError, match="decides a run's numbers") as caught:
        machine_settings({}, file)
    assert caught.value.details["where"] == f"{file}:{place}"


def test_other_variables_of_ours_are_left_alone(tmp_path):
    assert machine_settings(
        {"SEGBENCH_PATH": "x", "SEGBENCH_FAILPOINT": "y", "SEED": "1"}, tmp_path / "x"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devise: cpu", r"unknown setting 'devise'. Did you mean 'device'\?"),
        (
            "device: gpu",
            r"device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu' \(.*config.yaml:1\)",
        ),
        ("workers: -1", r"workers: expected 'auto' or int in \[0, 256\], got -1"),
        ("threads: 0", r"threads: expected 'auto' or int in \[1, 1024\], got 0"),
        ("workers: many", r"workers: expected 'auto' or int in \[0, 256\], got 'many'"),
        ("root: 3", r"root: expected path, got 3"),
        ("root: {a: 1}", r"unknown setting 'root.a'"),
    ],
)
def test_wrong_settings(user, text, message):
    with pytest.raises(UsageError, match=message):
        machine_settings({}, user(text))


def test_wrong_settings_of_the_environment_and_flags(tmp_path):
    with pytest.raises(UsageError, match=r"got 'x' \(SEGBENCH_THREADS\)"):
        machine_settings({"SEGBENCH_THREADS": "x"}, tmp_path / "x")
    with pytest.raises(UsageError, match=r"got 'tpu' \(--device\)"):
        machine_settings({}, tmp_path / "x", device="tpu")
