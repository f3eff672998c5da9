"""Checkpoints: exact round trip, damage noticed, the newest good one found."""

import json

import pytest
import torch

from segbench.errors import IntegrityError, StorageError, TrainingError
from segbench.training import checkpoint

STATE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": {3: {"step": torch.tensor(2.0), "flag": True}, "t": (1, 2.5, None)},
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "list": [1, "x"],
}


def test_round_trip(tmp_path):
    checkpoint.save(tmp_path, 7, STATE, {"run": "x"})
    step, state, header, warnings = checkpoint.load(tmp_path)
    assert (step, header, warnings) == (7, {"run": "x"}, [])
    assert (
        state["b"]["t"] == (1, 2.5, None)
        and list(state["b"]) == [3, "t"]
        and state["list"] == [1, "x"]
    )
    assert torch.equal(state["half"], STATE["half"]) and state["empty"].shape == (0, 3)
    assert checkpoint.digest(state) == checkpoint.digest(STATE)


def test_digest_sees_one_bit():
    changed = {**STATE, "a": STATE["a"].clone()}
    changed["a"].view(torch.int32)[0, 1] ^= 1
    assert checkpoint.digest(changed) != checkpoint.digest(STATE)


def test_two_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(step)}, {})
    assert sorted(int(f.name[3:11]) for f in tmp_path.glob("*.st")) == [3, 4]
    assert checkpoint.load(tmp_path)[1]["x"] == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_newest_falls_back_and_says_so(tmp_path, damage):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(100)}, {})
    newest = checkpoint.save(tmp_path, 2, {"x": torch.zeros(100)}, {})
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-5] ^= 4
    newest.write_bytes({"flip": bytes(data), "truncate": bytes(data[:-7]), "empty": b""}[damage])
    step, _, _, warnings = checkpoint.load(tmp_path)
    assert step == 1 and len(warnings) == 1 and newest.name in warnings[0]


@pytest.mark.parametrize("pointer", [None, "{", "[]", '[{"file": "../../etc/passwd"}]'])
def test_lost_pointer_is_rebuilt(tmp_path, pointer):
    checkpoint.save(tmp_path, 1, {"x": torch.ones(3)}, {})
    checkpoint.save(tmp_path, 2, {"x": torch.ones(3)}, {})
    if pointer is None:
        (tmp_path / "last.json").unlink()
    else:
        (tmp_path / "last.json").write_text(pointer)
    assert checkpoint.load(tmp_path)[0] == 2


def test_all_damaged_is_an_error(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"x": torch.ones(3)}, {})
    for file in tmp_path.glob("*.st"):
        file.write_bytes(b"no")
    with pytest.raises(IntegrityError, match="no usable checkpoint"):
        checkpoint.load(tmp_path)


def test_never_saved_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "nothing") is None


def test_other_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SCHEMA", "segbench.checkpoint/99")
    checkpoint.save(tmp_path, 1, {"x": torch.ones(3)}, {})
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="no usable"):
        checkpoint.load(tmp_path)


def test_what_it_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"\.bank.* set"):
        checkpoint.save(tmp_path, 0, {"bank": {1, 2}}, {})


def test_not_finite_is_never_stored(tmp_path):
    with pytest.raises(TrainingError, match="not finite"):
        checkpoint.save(tmp_path, 0, {"w": torch.tensor([1.0, float("nan")])}, {})
    assert not list(tmp_path.iterdir())


def test_full_disk_keeps_the_old_one(tmp_path, monkeypatch):
    import errno
    import os

    checkpoint.save(tmp_path, 1, {"x": torch.ones(3)}, {})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("segbench.storage.os.fsync", full)
    with pytest.raises(StorageError, match="full"):
        checkpoint.save(tmp_path, 2, {"x": torch.ones(3)}, {})
    monkeypatch.undo()
    assert checkpoint.load(tmp_path)[0] == 1
    assert not list(tmp_path.glob(".*tmp"))
    assert json.loads((tmp_path / "last.json").read_text())[0]["step"] == 1


def test_a_step_that_is_done_again_replaces_its_file(tmp_path):
    for value, step in enumerate((1, 2, 2)):
        checkpoint.save(tmp_path, step, {"x": torch.tensor(value)}, {}, keep=5)
    assert [f.name[3:11] for f in checkpoint.files(tmp_path)] == ["00000001", "00000002"]
    assert checkpoint.load(tmp_path)[1]["x"] == 2
