"""What a suite shows on a terminal and elsewhere, and what a stop says."""

import time
from types import SimpleNamespace

import pytest
from pseudo_terminal import Terminal

from segbench.cli import suite_view
from segbench.cli.settings import Settings
from segbench.cli.suite_view import SuiteView, reached, run_name
from segbench.suites.local import Outcome
from segbench.suites.progress_file import ProgressFile


@pytest.fixture
def prepared(lab):
    return [lab.prepared("supervised", seed=seed) for seed in range(2)]


def job(run, slot, seconds):
    return SimpleNamespace(run=run, slot=slot, began=time.monotonic() - seconds)


def test_outcomes_are_counted_and_a_stop_is_no_failure(prepared, capsys):
    view = SuiteView(Settings(), 7, lambda outcome: outcome.kind)
    codes = (0, 4, 130, -9, 6)
    for code in codes:
        view.ended(Outcome(prepared[0], code, 1.0))
    view.ended(Outcome(prepared[0], -9, 1.0, tried_again=True))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "[1/7] done",
        "[2/7] failed",
        "[3/7] stopped",
        "[4/7] killed",
        "busy",
        "killed",
    ]
    view.tick([job(prepared[1], 0, 5)])
    assert view.summary().startswith("1 done · 2 failed · 1 stopped · 1 running · 2 left · about")
    assert view.way_back() == ("repeat the command (1 done, 1 stopped, 3 left)")


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_table_shows_slot_run_step_and_time_left(prepared, monkeypatch, columns):
    monkeypatch.setattr(suite_view, "width", lambda stream: columns)
    view = SuiteView(Settings(), 2, str)
    prepared[1].folder.path.mkdir(parents=True)
    ProgressFile(prepared[1].folder.path).write("train", 3, 6, 65.0)
    view.tick([job(prepared[1], 1, 5), job(prepared[0], 0, 5)])
    lines = view.lines(time.monotonic())
    assert max(map(len, lines)) <= columns
    assert lines[2].split()[:5] == ["1", "supervised", "tiny", "2", "s0"]
    assert "starting" in lines[2] and "3/6" in lines[3] and "s1" in lines[3]
    assert ("1m05s" in lines[3]) is (columns > 40)


def test_names_of_runs_keep_their_ends():
    experiment = SimpleNamespace(
        method="versemi" * 10,
        datasets=("a", "b"),
        labeled={"a": 2, "b": 3},
        draw=7,
        fold=None,
        seed=3,
        without=(),
        unlabeled="all",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite_view, "label_of_experiment", lambda given: given.method)
        name = run_name(experiment)
    assert name.endswith("… a+b 5 d7 s3") and len(name) <= suite_view.LONGEST_NAME


def test_tests_are_named(tmp_path):
    ProgressFile(tmp_path).write("test", 3, 20, None)
    assert reached(tmp_path) == ("test 3/20", "")


SLOW = '''
import time
from segbench import Method, method

@method("slow")
class Slow(Method):
    """Takes its time."""

    def build(self, network):
        self.network = network()

    def loss(self, batch, t):
        time.sleep(0.2)
        return {"all": self.network(batch.x).square().mean()}

    def predict(self, image, source=0):
        return self.network(image).softmax(1)
'''


def test_a_suite_in_a_terminal_shows_its_runs_and_answers_control_c_at_once(lab, request):
    plugins = request.path.parents[1] / "plugins"
    (lab.folder / "slow.py").write_text(SLOW)
    (lab.folder / "mine.yaml").write_text(
        f"schema: 1\nname: mine\nprotocol: {plugins / 'tiny.yaml'}\n"
        "matrix: {method: [slow], dataset: [tiny], labeled: [2], seed: [0, 1, 2]}\n"
    )
    words = ("--plugin", str(plugins / "tiny.py"), "--plugin", "slow.py")
    words += ("bench", "run", "mine.yaml", "-j", "2", "-o", "steps=2000")
    terminal = Terminal(lab.folder, 80, *words)
    terminal.read_until("/2000")
    assert "slot" in terminal.text and "slow tiny 2 s0" in terminal.text
    assert "2 running" in terminal.text and "1 left" in terminal.text
    terminal.press_control_c()
    terminal.read_until("will finish the step and save", seconds=30)
    assert terminal.finish() == 130
    end = terminal.text[terminal.text.index("will finish") :]
    assert "FAILED" not in end and end.count(": stopped;") == 2
    assert "repeat the command (0 done, 2 stopped, 1 left)" in end
    assert max(map(len, terminal.lines)) <= 80
