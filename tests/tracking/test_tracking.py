"""Trackers get the records of log.jsonl while they are written, and never decide about a run."""

import json
import signal
import sys
from types import SimpleNamespace

import pytest

from segbench.config.machine import Machine
from segbench.errors import PluginError, UsageError
from segbench.tracking import choose
from segbench.tracking.base import TRACKING, Tracker, means_of, values_of
from segbench.training import tracked
from segbench.training.run import execute
from segbench.training.stored import restore

KEPT = ("result.json", "cases.csv")


def files(run):
    return {name: (run.folder.path / name).read_bytes() for name in KEPT}


def log_of(run):
    """Return the sent values of every logged step: {step: values}."""
    return {line["step"]: values_of(line) for line in run.folder.log()}


class Notes(Tracker):
    """Keeps what it gets; ``held`` is what earlier attempts left."""

    made: list["Notes"] = []
    held = -1

    def __init__(self, run):
        super().__init__(run)
        self.lines = {}
        self.means = {}
        self.code = None
        self.made.append(self)

    @property
    def known_as(self):
        return self.run.known_as or "first"

    @property
    def last_step(self):
        return self.held

    def record(self, step, values):
        assert step not in self.lines
        self.lines[step] = values

    def result(self, step, values):
        self.means = values

    def close(self, code):
        self.code = code


@pytest.fixture
def notes(monkeypatch):
    """Every name stands for a tracker that keeps notes; returns those that were made."""
    monkeypatch.setattr(tracked, "open_tracker", lambda name, run: Notes(run))
    monkeypatch.setattr(Notes, "made", [])
    return Notes.made


def stop_at(step):
    def train(progress):
        if progress.step == step:
            signal.raise_signal(signal.SIGTERM)

    return train


def test_a_tracker_gets_the_log_and_the_result(lab, notes):
    run = lab.prepared("supervised")
    result = execute(run, lab.machine(log=("notes",)))
    (one,) = notes
    assert one.lines == log_of(run) and len(one.lines) == 6
    assert one.means == means_of(result["metrics"])
    assert one.means["test/tiny/ball/dice"] == pytest.approx(
        100 * result["metrics"][0]["columns"]["dice"]["mean"]
    )
    assert one.code == 0
    assert one.run.name == "supervised on tiny, seed 0"


def test_tracking_changes_neither_identity_nor_bytes(lab, notes, tmp_path):
    plain = type(lab)(tmp_path / "plain")
    without, with_notes = plain.prepared("supervised"), lab.prepared("supervised")
    execute(without, plain.machine())
    execute(with_notes, lab.machine(log=("notes",)))
    assert files(without) == files(with_notes)
    assert without.run_id == with_notes.run_id


def test_a_resumed_run_continues_and_sends_only_what_is_missing(lab, notes, monkeypatch):
    machine = lab.machine(log=("notes",))
    run = lab.prepared("supervised")
    from segbench.errors import Interrupted

    with pytest.raises(Interrupted):
        execute(run, machine, lab.reporter(train=stop_at(3)))
    assert notes[0].code == 143 and sorted(notes[0].lines) == [0, 1, 2]
    assert json.loads((run.folder.path / TRACKING).read_text()) == {"notes": "first"}
    monkeypatch.setattr(Notes, "held", 1)  # the server never got step 2
    execute(restore(run.folder, machine), machine)
    assert notes[1].run.known_as == "first"
    assert sorted(notes[1].lines) == [2, 3, 4, 5]
    execute(run, machine, restart=True)
    assert notes[2].run.known_as == "", "a run that is trained again is another one"


def test_a_tracker_that_fails_costs_one_warning(lab, notes, monkeypatch, tmp_path):
    def break_down(self, step, values):
        raise SystemExit("no connection")

    warnings = []
    run = lab.prepared("supervised")
    monkeypatch.setattr(Notes, "record", break_down)
    execute(run, lab.machine(log=("notes",)), lab.reporter(warn=warnings.append))
    mine = [text for text in warnings if "no connection" in text]
    assert len(mine) == 1 and "SystemExit" in mine[0]
    assert run.folder.state == "done"


def test_a_tracker_that_cannot_be_opened_costs_one_warning(lab, monkeypatch):
    def refuse(name, run):
        raise RuntimeError("not logged in")

    monkeypatch.setattr(tracked, "open_tracker", refuse)
    warnings = []
    run = lab.prepared("supervised")
    execute(run, lab.machine(log=("notes",)), lab.reporter(warn=warnings.append))
    assert [text for text in warnings if "not logged in" in text]
    assert run.folder.state == "done"


def test_values_that_trackers_cannot_take_are_left_out():
    line = {"step": 1, "seconds": 2.0, "phase": "a", "lr": 0.1, "a:b": 1.0, "c": float("nan")}
    assert values_of(line) == {"lr": 0.1, "loss/a_b": 1.0}


# -- the option ------------------------------------------------------------------------------------


def test_a_missing_package_is_an_error_before_any_work(lab, monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    done = lab.call("run", "supervised", "--dataset", "tiny", "--log", "wandb")
    assert done.returncode == PluginError.code
    assert "pip install 'segbench[wandb]'" in done.stderr
    assert not (lab.folder / "segbench-out").exists()


def test_a_folder_is_no_package(monkeypatch):
    monkeypatch.setattr(choose, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(PluginError):
        choose.chosen_trackers("wandb")


def test_an_unknown_tracker_names_the_known_ones():
    with pytest.raises(UsageError, match="Did you mean 'wandb'"):
        choose.chosen_trackers("wandbb")


def test_runs_of_a_suite_track_as_the_suite_does():
    argv = Machine(log=("tensorboard", "mlflow")).to_argv()
    assert argv[-2:] == ["--log", "tensorboard,mlflow"]


# -- real trackers, without a network --------------------------------------------------------------


def tracked_in_two_attempts(lab, name):
    """Train with a tracker, stop after step 3, resume and return the finished run."""
    from segbench.errors import Interrupted

    warnings = []
    machine = lab.machine(log=(name,))
    run = lab.prepared("supervised")
    with pytest.raises(Interrupted):
        execute(run, machine, lab.reporter(train=stop_at(3), warn=warnings.append))
    execute(restore(run.folder, machine), machine, lab.reporter(warn=warnings.append))
    assert not [text for text in warnings if name in text], warnings
    return run


def test_tensorboard_holds_the_log_and_the_result(lab):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked_in_two_attempts(lab, "tensorboard")
    events = EventAccumulator(str(run.folder.path / "tensorboard"))
    events.Reload()
    sent = {scalar.step: scalar.value for scalar in events.Scalars("loss/supervised")}
    log = {step: values["loss/supervised"] for step, values in log_of(run).items()}
    assert sent == pytest.approx(log) and len(log) == 6
    (dice,) = events.Scalars("test/tiny/ball/dice")
    means = means_of(run.folder.result()["metrics"])
    assert dice.value == pytest.approx(means["test/tiny/ball/dice"])


def test_mlflow_holds_the_log_and_the_result(lab, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (lab.folder / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tracked_in_two_attempts(lab, "mlflow")
    client = MlflowClient()
    experiment = client.get_experiment_by_name("segbench")
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["method"] == "supervised"
    history = client.get_metric_history(stored.info.run_id, "loss/supervised")
    sent = [(metric.step, metric.value) for metric in history]
    assert sent == [(step, values["loss/supervised"]) for step, values in log_of(run).items()]
    means = means_of(run.folder.result()["metrics"])
    assert means.items() <= stored.data.metrics.items()


def test_wandb_offline_keeps_the_run_in_a_folder(lab, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tracked_in_two_attempts(lab, "wandb")
    name = json.loads((run.folder.path / TRACKING).read_text())["wandb"]
    assert name.startswith(run.run_id)
    kept = sorted((lab.folder / "out" / "wandb").glob(f"offline-run-*-{name}/*.wandb"))
    assert len(kept) == 2, "one folder per attempt"
    content = kept[-1].read_bytes()
    assert b"loss/supervised" in content and b"test/tiny/ball/dice" in content
    assert "wandb" in sys.modules
