"""A run that is killed at any time and resumed ends with the same bytes as one never stopped."""

import json
import multiprocessing
import os
import signal

import pytest

from segbench import registry
from segbench.config.machine import Cadence
from segbench.errors import DataError
from segbench.training import checkpoint
from segbench.training.run import execute
from segbench.training.stored import restore

METHODS = registry.names("method")
KEPT = ("result.json", "cases.csv")


def forked(function):
    """Run a function in a fork of this process, where torch is imported; return its exit code."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def killed_after(lab, run, machine, step):
    """Train until ``step`` steps are done and die at once, before anything is saved or closed."""

    def train(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return forked(lambda: execute(run, machine, lab.reporter(train=train)))


def files(run):
    return {name: (run.folder.path / name).read_bytes() for name in KEPT}


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_step(lab, method, tmp_path):
    straight = lab.prepared(method)
    execute(straight, lab.machine())
    other = type(lab)(tmp_path / "other")
    for step in (
        1,
        2,
        3,
        4,
        5,
        6,
    ):  # one run, killed again and again; a checkpoint every second step
        machine = other.machine(save_every=Cadence(steps=2 if step % 2 else 1, seconds=None))
        assert killed_after(other, other.prepared(method), machine, step) == -signal.SIGKILL
    again = other.prepared(method)
    execute(again, other.machine())
    assert files(again) == files(straight)
    steps = [
        json.loads(line)["step"]
        for line in (again.folder.path / "log.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(6))


def test_cadence_and_workers_do_not_change_the_result(lab, tmp_path):
    one, two = type(lab)(tmp_path / "one"), type(lab)(tmp_path / "two")
    a, b = one.prepared("mean_teacher"), two.prepared("mean_teacher")
    execute(a, one.machine(save_every=Cadence(steps=1, seconds=None)))
    execute(b, two.machine(save_every=Cadence(seconds=None), workers=2))
    assert files(a) == files(b)


POINTS = ["before fsync", "before rename", "after rename", "before folder sync"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_killed_while_writing(lab, tmp_path, point, count):
    """Die in the middle of write number ``count``: configuration, log, checkpoint or results."""
    straight = lab.prepared("supervised")
    execute(straight, lab.machine())
    other = type(lab)(tmp_path / "other")
    run = other.prepared("supervised")

    def die_there():
        from segbench import storage as module

        name = {
            "before fsync": "fsync",
            "before rename": "replace",
            "after rename": "replace",
            "before folder sync": "open",
        }[point]
        real, seen = getattr(module.os, name), [0]

        def dying(*args, **kwargs):
            seen[0] += 1
            if point == "after rename":
                result = real(*args, **kwargs)
            if seen[0] >= count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result if point == "after rename" else real(*args, **kwargs)

        setattr(module.os, name, dying)
        execute(run, other.machine())

    assert forked(die_there) == -signal.SIGKILL
    execute(other.prepared("supervised"), other.machine())
    assert files(run) == files(straight)


def test_killed_during_evaluation_keeps_finished_cases(lab):
    run = lab.prepared("supervised")

    def evaluate(done, total, case):
        os.kill(os.getpid(), signal.SIGKILL)

    assert (
        forked(lambda: execute(run, lab.machine(), lab.reporter(evaluate=evaluate)))
        == -signal.SIGKILL
    )
    partial = run.folder.path / "evaluation.jsonl"
    assert len(partial.read_text().splitlines()) == 1
    with partial.open("a") as file:
        file.write('{"torn')
    result = execute(run, lab.machine())
    assert result["metrics"][0]["counts"]["n"] == 2
    assert not partial.exists()


def test_stop_signal_saves_and_resumes(lab, tmp_path):
    from segbench.errors import Interrupted

    other = type(lab)(tmp_path / "other")
    run = lab.prepared("supervised")

    def train(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        execute(run, lab.machine(save_every=Cadence(seconds=None)), lab.reporter(train=train))
    assert stop.value.code == 143
    assert checkpoint.load(run.folder.path / "ckpt")[0] == 3
    assert not (run.folder.path / "failed.json").exists()
    execute(run, lab.machine())
    straight = other.prepared("supervised")
    execute(straight, other.machine())
    assert files(run) == files(straight)


def test_nohup_stays_in_force():
    from segbench.training.signals import StopRequest

    def ignoring():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.code is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.code == 143

    assert forked(ignoring) == 0


def test_another_machine_is_noted(lab):
    run = lab.prepared("supervised")
    assert killed_after(lab, run, lab.machine(), 4) == -signal.SIGKILL
    step, state, header, _ = checkpoint.load(run.folder.path / "ckpt")
    checkpoint.save(run.folder.path / "ckpt", step, state, {**header, "torch": "1.0"})
    warnings = []
    execute(run, lab.machine(), lab.reporter(warn=warnings.append))
    assert any("torch 1.0 ->" in text for text in warnings)


def test_restart_replaces_a_damaged_result(lab):
    run = lab.prepared("supervised")
    execute(run, lab.machine())
    (run.folder.path / "result.json").write_text("{")
    with pytest.raises(Exception, match="cannot be read"):
        execute(run, lab.machine())
    assert execute(run, lab.machine(), restart=True)["status"] == "done"


def test_finished_run_is_reused(lab):
    run = lab.prepared("supervised")
    first = execute(run, lab.machine())
    stamp = (run.folder.path / "result.json").stat().st_mtime_ns
    second = execute(lab.prepared("supervised"), lab.machine())
    assert second["cached"] and second["weights_sha256"] == first["weights_sha256"]
    assert (run.folder.path / "result.json").stat().st_mtime_ns == stamp
    assert not execute(run, lab.machine(), restart=True).get("cached")


def test_changed_data_are_told_case_by_case(lab, tmp_path):
    run = lab.prepared("supervised")
    assert killed_after(lab, run, lab.machine(), 3) == -signal.SIGKILL
    folder = run.stores[0].root / "cases"
    victim = folder / run.stores[0].train[0] / "image.npy"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)  # as long as before, and no time would tell
    with pytest.raises(DataError, match="have changed since they were prepared") as found:
        execute(lab.prepared("supervised"), lab.machine())
    assert found.value.code == 3 and str(victim) in str(found.value)
    content[-1] ^= 1
    victim.write_bytes(content)
    stored = json.loads((run.folder.path / "data.json").read_bytes())["tiny"]
    first, second, *_ = stored
    del stored[first]
    (run.folder.path / "data.json").write_text(
        json.dumps({"tiny": {**stored, second: "0" * 16, "lost": "1" * 16}})
    )
    config = run.folder.path / "config.yaml"
    config.write_text(config.read_text().replace(run.run_id, "0" * len(run.run_id)))
    with pytest.raises(DataError, match="its data have changed") as found:
        restore(run.folder, lab.machine())
    assert {p.case: p.found for p in found.value.problems} == {
        first: "new",
        second: "changed",
        "lost": "gone",
    }
