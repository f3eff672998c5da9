"""A signal at any time of a run loses nothing, also if it comes twice, as schedulers send it."""

import multiprocessing
import os
import signal
import time

import pytest
import torch._dynamo  # noqa: F401  (the first optimizer imports it: once here, not in every child)

from segbench.config.machine import Cadence
from segbench.errors import Interrupted
from segbench.training import checkpoint
from segbench.training import loop as training_loop
from segbench.training.reporter import Reporter
from segbench.training.run import execute
from segbench.training.signals import StopRequest, exit_at_once
from segbench.training.watch import WatchedReporter

SAVING = 0.25  # seconds that a checkpoint takes in these tests
PAIRS = [("SIGUSR1", 0.0005), ("SIGUSR1", 0.1), ("SIGTERM", 0.003), ("SIGTERM", 0.1)]
PAIRS += [("SIGUSR2", 0.02), ("SIGHUP", 0.02)]
KEPT = ("result.json", "cases.csv")


def files(run):
    return {name: (run.folder.path / name).read_bytes() for name in KEPT}


class Child:
    """A run in a process of its own, which waits at a stage until it is to go on."""

    def __init__(self, lab, run, hooks, before=None):
        context = multiprocessing.get_context("fork")
        self.here, self.there = context.Pipe()
        self.process = context.Process(target=self._work, args=(lab, run, hooks, before))
        self.process.start()

    def _work(self, lab, run, hooks, before):
        reached = []

        def hook(name):
            def call(*_):
                if name not in reached:  # only once
                    reached.append(name)
                    self.there.send(name)
                    self.there.recv()

            return call

        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would spare it
        exit_at_once()
        slow = checkpoint.save

        def slow_save(*args, **kwargs):
            time.sleep(SAVING)
            return slow(*args, **kwargs)

        training_loop.checkpoint.save = slow_save
        if before is not None:
            before(hook("before"))
        reporter = lab.reporter(**{name: hook(name) for name in hooks})
        try:
            execute(run, lab.machine(save_every=Cadence(seconds=None)), reporter)
        except Interrupted as error:
            os._exit(error.code)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)

    def send_at(self, stage, *numbers, gap=0.0):
        """Send signals when a stage is reached; return the exit code."""
        assert self.here.poll(60)
        assert self.here.recv() == stage
        os.kill(self.process.pid, numbers[0])
        self.here.send("go on")
        for number in numbers[1:]:
            time.sleep(gap)
            os.kill(self.process.pid, number)
        self.process.join(60)
        return self.process.exitcode


@pytest.fixture
def straight(lab, tmp_path):
    """The files of a run that was never stopped."""
    other = type(lab)(tmp_path / "straight")
    run = other.prepared("supervised")
    execute(run, other.machine())
    return files(run)


@pytest.mark.parametrize(("name", "gap"), PAIRS)
def test_a_second_signal_does_not_kill_a_run_that_is_saving(lab, name, gap):
    number = getattr(signal, name)
    run = lab.prepared("supervised")
    code = Child(lab, run, ["train"]).send_at("train", number, number, gap=gap)
    expected = {"SIGTERM": 143, "SIGHUP": 129}.get(name, 75)
    assert code == expected
    assert checkpoint.load(run.folder.path / "ckpt").step == 1


def test_different_signals_save_once_with_the_code_of_the_first(lab, straight):
    run = lab.prepared("supervised")
    child = Child(lab, run, ["train"])
    assert child.send_at("train", signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, gap=0.02) == 75
    assert checkpoint.load(run.folder.path / "ckpt").step == 1
    execute(run, lab.machine())
    assert files(run) == straight


def test_the_second_interrupt_ends_at_once(lab):
    run = lab.prepared("supervised")
    child = Child(lab, run, ["train"])
    assert child.send_at("train", signal.SIGINT, signal.SIGINT, gap=SAVING / 2) == 130
    assert checkpoint.load(run.folder.path / "ckpt") is None


@pytest.mark.parametrize("stage", ["start", "check", "schedule"])
def test_a_signal_before_the_training_ends_the_run_as_stopped(lab, stage):
    run = lab.prepared("supervised")
    assert Child(lab, run, [stage]).send_at(stage, signal.SIGUSR1) == 75
    assert not (run.folder.path / "failed.json").exists()
    assert checkpoint.load(run.folder.path / "ckpt") is None


def test_a_signal_between_two_test_cases_keeps_those_that_are_scored(lab, straight):
    run = lab.prepared("supervised")
    child = Child(lab, run, ["evaluate"])
    assert child.send_at("evaluate", signal.SIGTERM, signal.SIGTERM, gap=0.003) == 143
    assert len((run.folder.path / "evaluation.jsonl").read_text().splitlines()) == 1
    assert not (run.folder.path / "failed.json").exists()
    scored = []
    execute(run, lab.machine(), lab.reporter(evaluate=lambda *what: scored.append(what)))
    assert len(scored) == 2
    assert files(run) == straight


def test_a_signal_in_the_selection_is_no_failure(lab):
    choices = {"labeled": 3, "overrides": ["selection=validation"]}
    run = lab.prepared("supervised", **choices)
    assert Child(lab, run, ["evaluate"]).send_at("evaluate", signal.SIGUSR2) == 75
    assert (run.folder.path / "validation.jsonl").exists()
    assert not (run.folder.path / "failed.json").exists()
    execute(run, lab.machine())
    assert run.folder.result() is not None


def test_a_signal_outside_of_a_run_ends_the_process_with_the_code_of_a_stop(lab):
    def importing(pause):
        pause()
        time.sleep(30)

    run = lab.prepared("supervised")
    assert Child(lab, run, [], importing).send_at("before", signal.SIGUSR1) == 75


def test_the_display_hears_of_a_stop_at_once_and_once():
    heard = []
    display = Reporter()
    display.stopping = heard.append
    with StopRequest() as stop:
        WatchedReporter(display, stop, alone=True)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["SIGTERM"] and stop.code == 143
