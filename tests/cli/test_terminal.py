"""What a person sees: progress, stops, colors, and lines that fit the terminal."""

import io
import json

import click
import pytest
from pseudo_terminal import Terminal

from segbench.cli import reporter as reporters
from segbench.cli.colors import paint, painted_beginning
from segbench.cli.main import cli
from segbench.cli.options import first_sentence
from segbench.cli.reporter import Bars, Lines, Pace
from segbench.cli.settings import Settings
from segbench.cli.terminal import wrapped
from segbench.errors import Interrupted
from segbench.suites import progress_file
from segbench.suites.progress_file import ProgressFile, Reached, read_progress
from segbench.training.reporter import StepReport


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "variables, stream, colored",
    [
        ({}, Tty(), True),
        ({"NO_COLOR": "1"}, Tty(), False),
        ({"TERM": "dumb"}, Tty(), False),
        ({}, io.StringIO(), False),
        ({"FORCE_COLOR": "1"}, io.StringIO(), True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, Tty(), False),
    ],
)
def test_colors_only_where_they_are_wanted(monkeypatch, variables, stream, colored):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = "\033[1;31merror\033[0m" if colored else "error"
    assert paint("error", "bold", "red", stream=stream) == shown


def test_only_the_word_that_says_it_is_colored(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert painted_beginning("warning: x") == "\033[33mwarning:\033[0m x"
    assert painted_beginning("12 runs") == "12 runs"


def test_words_are_never_broken(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    long_word = "phantom_ct_lesion-and-more"
    lines = wrapped(f"unlabeled cases of {long_word} are few", stream=io.StringIO())
    assert any(long_word in line for line in lines)
    assert "unlabeled" in lines[0] and max(map(len, lines)) == len(long_word) + 2


def groups(command, words=()):
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from groups(command.get_command(context, name), (*words, name))


def test_summaries_are_whole_sentences(lab, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words, command in groups(cli):
        if isinstance(command, click.Group):
            help_text = lab.call(*words, "--help").stdout
            assert "..." not in help_text.partition("Commands:")[2], words
    assert first_sentence("Rank runs\nby Dice. More.\n\nOther.") == "Rank runs by Dice"
    assert first_sentence("Show v1.5 of it.") == "Show v1.5 of it"


def steps(reporter, count, seconds, monkeypatch, total=6000):
    for step in range(1, count + 1):
        monkeypatch.setattr(reporters.time, "monotonic", lambda step=step: seconds * step)
        reporter.train(StepReport(step, total, "train", {"supervised": 0.5}, 0.01))


def test_the_remaining_time_is_said_once_it_was_measured(monkeypatch, capsys):
    steps(Lines(Settings(), device="cuda"), 2, 6.0, monkeypatch)
    assert "measured" not in capsys.readouterr().err
    steps(Lines(Settings(), device="cuda"), 9, 6.0, monkeypatch)
    shown = capsys.readouterr().err
    assert shown.count("measured: 6.00 s per step, about 9h59m for 5,996 steps") == 1
    assert "warning" not in shown


def test_a_long_training_on_a_cpu_is_warned_of(monkeypatch, capsys):
    steps(Lines(Settings(), device="cpu"), 9, 6.0, monkeypatch)
    shown = capsys.readouterr().err
    assert "warning: this training takes about 9h59m on a CPU" in shown and "--steps" in shown
    steps(Lines(Settings(), device="cpu"), 9, 1.0, monkeypatch)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("load", "threads", "advised"), [(21, 2, True), (21, 1, False), (2, 2, False)]
)
def test_a_busy_machine_is_told_to_use_one_thread(monkeypatch, capsys, load, threads, advised):
    monkeypatch.setattr(reporters.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(reporters.os, "cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    steps(Lines(Settings(), device="cpu"), 9, 6.0, monkeypatch)
    assert ("OMP_NUM_THREADS=1" in capsys.readouterr().err) is advised


def test_pace_is_unknown_before_the_second_step():
    pace = Pace()
    pace.note(41, 100.0)
    assert pace.seconds_per_step is None and pace.remaining(100) is None
    pace.note(43, 104.0)
    assert pace.seconds_per_step == 2.0 and pace.remaining(100) == 114.0


def test_a_long_first_step_is_an_estimate_until_there_are_more(monkeypatch, capsys):
    lines = Lines(Settings(), device="cuda")
    monkeypatch.setattr(reporters.time, "monotonic", lambda: 0.0)
    lines.schedule("train")
    steps(lines, 1, 60.0, monkeypatch)
    assert "measured: 60.00 s per step, about 99h59m for 5,999 steps" in capsys.readouterr().err
    for step, now in ((2, 61.0), (3, 62.0), (4, 63.0), (5, 64.0)):
        monkeypatch.setattr(reporters.time, "monotonic", lambda now=now: now)
        lines.train(StepReport(step, 6000, "train", {}, 0.01))
    shown = capsys.readouterr().err
    assert shown.count("measured: 1.00 s per step") == 1


def test_facts_that_do_not_fit_are_left_out_whole():
    assert reporters._fitting(["50%", "10s left", "supervised 0.123"], 15) == "50%  10s left"


def test_a_bar_shows_percent_time_pace_and_loss(monkeypatch):
    bars = Bars(Settings())
    for step, now in ((1, 10.0), (2, 12.0)):
        bars._pace.note(step, now)
    facts = bars._facts(StepReport(2, 10, "train", {"supervised": 0.5}, 0.01))
    assert facts == ["20%", "16s left", "2.00 s/step", "supervised 0.500", "lr 1.0e-02"]


def test_a_stop_is_heard_at_once(capfd):
    lines = Lines(Settings())
    lines.stopping("SIGINT")
    heard = capfd.readouterr().err
    assert heard.startswith("SIGINT: finishing this step") and "Ctrl-C again" in heard


def test_progress_is_noted_for_those_who_watch(tmp_path, monkeypatch):
    file = ProgressFile(tmp_path)
    assert read_progress(tmp_path) is None
    file.write("train", 5, 10, 2.5)
    file.write("train", 6, 10, 2.0)  # within the same second
    assert read_progress(tmp_path) == Reached("train", 5, 10, 2.5)
    monkeypatch.setattr(progress_file, "FRESH", -1.0)
    assert read_progress(tmp_path) is None, "left by a process that was killed"
    file.remove()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "progress.json").write_text('{"time": 1e99, "done": "x"}')
    assert read_progress(tmp_path) is None


TINY = ("run", "supervised", "--dataset", "tiny", "--steps", "2", "--seeds", "0-1")


@pytest.fixture
def tiny_run(lab, request):
    plugins = request.path.parents[1] / "plugins"
    return (*TINY, "--protocol", plugins / "tiny.yaml")


def test_several_runs_are_counted_and_summarized(lab, tiny_run):
    done = lab.call(*tiny_run)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("segbench run: supervised on tiny\n")
    assert "run 1 of 2: supervised on tiny" in done.stderr and "run 2 of 2" in done.stderr
    table = done.stdout.partition("\n\n")[2].splitlines()
    assert table[0].split()[:2] == ["method", "data"] and len(table) == 4
    assert [line.split()[4] for line in table[2:]] == ["0", "1"], "one line per seed"
    assert not list(lab.folder.rglob("progress.json"))
    one = lab.call(*tiny_run[:6], *tiny_run[8:])
    assert "run 1 of" not in one.stderr and "method" not in one.stdout


def test_a_stop_of_several_runs_says_the_way_back(lab, tiny_run, monkeypatch):
    from segbench.cli import training

    first = training.execute

    def stopped_in_the_second(run, *args):
        if run.experiment.seed == 1:
            raise Interrupted("SIGINT: stopped after step 1, saved", 130)
        return first(run, *args)

    monkeypatch.setattr(training, "execute", stopped_in_the_second)
    stopped = lab.call(*tiny_run)
    assert stopped.returncode == 130 and "error" not in stopped.stderr
    assert "to continue (1 of 2 runs done): repeat the command" in stopped.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_lists_of_runs_keep_what_tells_them_apart(lab, tiny_run, columns):
    lab.call(*tiny_run)
    runs = json.loads(lab.call("runs", "ls", "--json").stdout)["runs"]
    terminal = Terminal(lab.folder, columns, "runs", "ls")
    assert terminal.finish() == 0
    assert max(map(len, terminal.lines)) <= columns
    assert "\x1b[1mrun" in terminal.raw, "a bold header"
    for run in runs:
        row = next(line for line in terminal.lines if line.startswith(run["run_id"]))
        assert row.split()[:3] == [run["run_id"], "tiny", "supervised"]
        assert str(run["seed"]) in row.split()[3:6]
