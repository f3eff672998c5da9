"""Suites are planned and executed; finished runs are skipped and failed ones stop nothing."""

import json
from pathlib import Path

import pytest

from segbench.errors import UsageError
from segbench.suites.suite import choices, expand, find_suite, load_suite

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
SUITE = f"""
schema: 1
name: mine
protocol: {PLUGINS / "tiny.yaml"}
matrix:
  method: [supervised, mean_teacher, broken_method]
  dataset: [tiny]
  labeled: [2, 3]
params:
  mean_teacher: {{decay: 0.9}}
exclude:
  - {{method: broken_method, labeled: 3}}
"""
BROKEN = '''
from segbench import Method, method

@method("broken_method")
class Broken(Method):
    """Fails at once."""
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        raise RuntimeError("as it was meant to")
'''


def test_a_failing_run_does_not_stop_the_rest_and_repeating_is_safe(lab):
    (lab.folder / "mine.yaml").write_text(SUITE)
    (lab.folder / "broken_method.py").write_text(BROKEN)
    plugin = ("--plugin", "broken_method.py")
    assert "one mark per run: . to do" in lab.cli(*plugin, "bench", "plan", "mine.yaml").stdout
    plan = json.loads(lab.cli(*plugin, "bench", "plan", "mine.yaml", "--json").stdout)
    assert plan["counts"]["to do"] == 5 and not (lab.folder / "segbench-out").exists()

    first = lab.cli(*plugin, "bench", "run", "mine.yaml", "-j", "2", "--leak-meter")
    assert first.returncode == 5, first.stderr
    assert "as it was meant to" in first.stderr and first.stderr.count("Dice") == 4

    measured = list((lab.folder / "segbench-out/runs").rglob("leak.json"))
    assert len(measured) == 4 and all(json.loads(m.read_bytes())["gap"] >= 0 for m in measured)
    status = json.loads(lab.cli(*plugin, "bench", "status", "mine.yaml", "--json").stdout)
    assert {state: n for state, n in status["counts"].items() if n} == {"done": 4, "failed": 1}
    assert status["remaining_seconds"] is None  # no run of the broken method has finished
    again = lab.cli(*plugin, "bench", "run", "mine.yaml")
    assert again.returncode == 5 and "4 already done" in again.stderr

    assert "MB freed" in lab.cli("runs", "prune", "--weights", "--yes").stdout
    assert not list((lab.folder / "segbench-out/runs").rglob("*.st"))
    board = lab.call("leaderboard", "--json")
    labels = [r["method"] for b in json.loads(board.stdout)["boards"] for r in b["rows"]]
    assert sorted(labels) == ["mean_teacher[decay=0.9]"] * 2 + ["supervised"] * 2


@pytest.mark.parametrize(
    "text, says",
    [
        ("schema: 1\nname: x\nmatrix: {method: [supervised], dataset: [tiny], sede: [1]}", "seed"),
        ("schema: 2\nname: x\nmatrix: {method: [supervised], dataset: [tiny]}", "schema"),
        ("schema: 1\nname: x\nmatrix: {method: [], dataset: [tiny]}", "method"),
        (
            "schema: 1\nname: x\nmatrix: {method: [supervised], dataset: [tiny]}\n"
            "params: {versemi: {}}",
            "versemi",
        ),
        (
            "schema: 1\nname: x\nmatrix: {method: [supervised], dataset: [tiny]}\n"
            "exclude: [{sede: 1}]",
            "seed",
        ),
    ],
)
def test_a_wrong_suite_names_its_place(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=says) as error:
        load_suite(tmp_path / "x.yaml")
    assert "x.yaml" in str(error.value)


def test_wrong_parameter_names_the_line(lab):
    (lab.folder / "x.yaml").write_text(
        "schema: 1\nname: x\nprotocol: la\nmatrix:\n  method: [mean_teacher]\n"
        "  dataset: [la]\nparams:\n  mean_teacher:\n    decay: 3\n"
    )
    with pytest.raises(UsageError, match=r"decay.*x\.yaml:9"):
        suite, document = load_suite(lab.folder / "x.yaml")
        expand(suite, document, next(choices(suite)), lambda name: 80)


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_method_entry_has_parameters_in_brackets(lab):
    text = SUITE.replace(
        "supervised, mean_teacher", 'supervised, "mean_teacher[weight=0,decay=0.8]"'
    )
    text = text.replace("broken_method]", "mean_teacher]").partition("exclude")[0]
    (lab.folder / "mine.yaml").write_text(text)
    suite, document = load_suite(lab.folder / "mine.yaml")
    found = {}
    for choice in choices(suite):
        (experiment,) = expand(suite, document, choice, lambda name: 6)
        found[choice.method] = (experiment.method, experiment.params)
    assert found["mean_teacher[weight=0,decay=0.8]"][0] == "mean_teacher"
    changed = found["mean_teacher[weight=0,decay=0.8]"][1]
    assert (changed["weight"], changed["decay"]) == (0, 0.8)
    usual = found["mean_teacher"][1]
    assert usual["weight"] != 0 and usual["decay"] == 0.9  # of the suite's params


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("mean_teacher[decay=0.8", "a name with parameters"),
        ("mean_teacher[decay]", "expected key=value"),
        ("mean_teacher[decya=0.8]", "decay"),
    ],
)
def test_a_wrong_method_entry_names_its_line(lab, entry, message):
    text = SUITE.replace("supervised, mean_teacher, broken_method", f'mean_teacher, "{entry}"')
    (lab.folder / "mine.yaml").write_text(text.partition("exclude")[0])
    suite, document = load_suite(lab.folder / "mine.yaml")
    with pytest.raises(UsageError, match=message) as error:
        for choice in choices(suite):
            expand(suite, document, choice, lambda name: 6)
    assert "mine.yaml:6" in str(error.value)


FILES = sorted([*BENCHMARKS.glob("*.yaml"), *BENCHMARKS.glob("development/*.yaml")])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_suites_that_come_with_segbench_can_be_planned(file):
    suite, document = load_suite(file)
    assert suite.name == file.stem
    assert all(expand(suite, document, choice, lambda name: 80) for choice in choices(suite))


def test_runs_that_cannot_start_are_reported_and_the_others_run(lab):
    text = (
        SUITE.replace(", broken_method]", "]")
        .replace("[tiny]", "[la, tiny]")
        .replace("[2, 3]", "[10%]")
    )
    (lab.folder / "part.yaml").write_text(text.partition("exclude")[0])
    result = lab.cli("bench", "run", "part.yaml", "--json")
    assert result.returncode == 5 and "2 runs of the suite cannot start:" in result.stderr
    assert "segbench data prepare la" in result.stderr and "2 of 4 runs failed" in result.stderr, (
        result.stderr
    )
    assert json.loads(result.stdout)["counts"]["done"] == 2
    (lab.folder / "none.yaml").write_text(
        text.replace("[la, tiny]", "[la]").partition("exclude")[0]
    )
    assert lab.call("bench", "run", "none.yaml").returncode == 3


def test_a_suite_file_that_is_not_there_is_no_built_in_one():
    assert find_suite("benchmarks/phantom.yaml").is_file()
    with pytest.raises(UsageError, match="no such suite file"):
        find_suite("mylab/phantom.yaml")


REPLICATES = """schema: 1
name: replicates
protocol: {protocol}
matrix: {{method: [supervised, mean_teacher], dataset: [tiny]}}
replicates: 2
reference: supervised
"""


def test_replicates_and_reference_rows(lab):
    suite_file = lab.folder / "replicates.yaml"
    suite_file.write_text(REPLICATES.format(protocol=PLUGINS / "tiny.yaml"))
    suite, document = load_suite(suite_file)
    found = [expand(suite, document, choice, lambda name: 6)[0] for choice in choices(suite)]
    rows = [(e.method, e.draw, e.seed, e.labeled["tiny"], e.unlabeled) for e in found]
    assert rows == [
        ("supervised", 0, 0, 2, "all"),
        ("mean_teacher", 0, 0, 2, "all"),
        ("supervised", 0, 0, 6, "all"),
        ("mean_teacher", 0, 0, 2, "labeled"),
        ("supervised", 1, 1, 2, "all"),
        ("mean_teacher", 1, 1, 2, "all"),
        ("supervised", 1, 1, 6, "all"),
        ("mean_teacher", 1, 1, 2, "labeled"),
    ]


def test_the_strong_form_of_a_suite_is_a_column_of_its_own(lab):
    text = REPLICATES.format(protocol=PLUGINS / "tiny.yaml")
    text = text.replace("[tiny]}", "[tiny], augment: [default, strong]}")
    (lab.folder / "replicates.yaml").write_text(text)
    suite, document = load_suite(lab.folder / "replicates.yaml")
    found: dict = {"mirror": [], "strong": []}
    for choice in choices(suite):
        (experiment,) = expand(suite, document, choice, lambda name: 6)
        found[experiment.protocol.augment].append(
            (experiment.method, experiment.draw, experiment.labeled["tiny"], experiment.unlabeled)
        )
        assert experiment.modified == (() if choice.augment == "default" else ("augment",))
    assert len(found["strong"]) == 8 and found["strong"] == found["mirror"]  # references too

    shown = lab.call("bench", "plan", "replicates.yaml").stdout
    assert shown.startswith("16 runs") and "tiny 2 vnet  " in shown and "vnet +strong" in shown
    plan = ("bench", "plan", "replicates.yaml", "-o", "augment=strong", "--json")
    runs = json.loads(lab.call(*plan).stdout)["runs"]
    assert len(runs) == 8  # -o is for all runs, so that both forms are the same


def test_a_suite_changes_the_protocol_of_all_its_runs(lab):
    text = REPLICATES.format(protocol=PLUGINS / "tiny.yaml")
    file = lab.folder / "replicates.yaml"
    file.write_text(text + "overrides:\n  steps: 3\n  optim: {lr: 0.01}\n  optim.momentum: 0.5\n")
    suite, document = load_suite(file)
    for choice in choices(suite):
        (experiment,) = expand(suite, document, choice, lambda name: 6)
        protocol = experiment.protocol
        assert (protocol.steps, protocol.optim.lr, protocol.optim.momentum) == (3, 0.01, 0.5)
        assert set(experiment.modified) == {"steps", "optim.lr", "optim.momentum"}
    file.write_text(text + "overrides:\n  stepps: 3\n")
    suite, document = load_suite(file)
    with pytest.raises(UsageError, match=r"stepps.*steps.*replicates\.yaml:\d+"):
        expand(suite, document, next(iter(choices(suite))), lambda name: 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("augment: [strongest]", "augment"),
        ("augment: [turn]", "augment turn and crop zoom are for slices"),
    ],
)
def test_a_wrong_augmentation_of_a_suite_is_refused(lab, change, message):
    text = REPLICATES.format(protocol=PLUGINS / "tiny.yaml")
    (lab.folder / "replicates.yaml").write_text(text.replace("[tiny]}", f"[tiny], {change}}}"))
    result = lab.call("bench", "plan", "replicates.yaml")
    assert result.returncode == 2 and message in result.stderr
    wrong = lab.call("bench", "plan", "demo", "-o", "augmentt=strong")
    assert wrong.returncode == 2 and "Did you mean 'augment'" in wrong.stderr


def test_replicates_exclude_draws_and_seeds(tmp_path):
    suite_file = tmp_path / "both.yaml"
    text = REPLICATES.format(protocol="tiny").replace("name: replicates", "name: both")
    suite_file.write_text(text.replace("dataset: [tiny]", "dataset: [tiny], seed: [0, 1]"))
    with pytest.raises(UsageError, match="leave draw and seed out"):
        load_suite(suite_file)


def test_without_unlabeled_images_no_other_image_is_read(lab, monkeypatch):
    from segbench.data.sampling.batches import TrainingData
    from segbench.training.run import execute

    seen = []
    real = TrainingData.__init__

    def spy(self, stores, *args, **kwargs):
        seen.append({name: store.train for name, store in stores.items()})
        real(self, stores, *args, **kwargs)

    monkeypatch.setattr(TrainingData, "__init__", spy)
    run = lab.prepared("mean_teacher", steps=2, unlabeled="labeled")
    result = execute(run, lab.machine())
    assert seen == [{"tiny": ("case0", "case1")}]
    assert result["unlabeled"] == "labeled"
    assert run.run_id != lab.prepared("mean_teacher", steps=2).run_id


def test_the_remaining_time_is_estimated(lab):
    text = SUITE.replace(", broken_method]", "]").partition("exclude")[0]
    protocol = (PLUGINS / "tiny.yaml").read_text().replace("name: tiny", "name: timed")
    (lab.folder / "timed.yaml").write_text(f"{protocol}\nexpected: {{seconds: 90}}\n")
    (lab.folder / "mine.yaml").write_text(text.replace(str(PLUGINS / "tiny.yaml"), "timed.yaml"))
    before = lab.call("bench", "plan", "mine.yaml")
    assert "4 runs: 4 to do" in before.stdout, before.stderr
    assert "about 6 minutes of one CPU core or GPU are left" in before.stdout

    options = ("--dataset", "tiny", "--protocol", "timed.yaml", "--labeled", "2")
    trained = lab.call("run", "mean_teacher", *options, "-o", "decay=0.9", "--json")
    assert trained.returncode == 0, trained.stderr
    plan = json.loads(lab.call("bench", "plan", "mine.yaml", "--json").stdout)
    assert plan["counts"]["done"] == 1
    folder = json.loads(trained.stdout)["dir"]
    manifest = json.loads((lab.folder / folder / "manifest.json").read_bytes())
    measured = manifest["train_seconds"] + manifest["evaluation_seconds"]
    assert plan["remaining_seconds"] == pytest.approx(2 * 90 + measured)


KILLED = '''
import os, signal
from segbench import Method, method

@method("killed_method")
class Killed(Method):
    """Ends its process without a word."""
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        os.kill(os.getpid(), signal.SIGKILL)
'''


def test_a_killed_run_ends_no_other_and_forks_change_no_number(lab, monkeypatch):
    """Runs of a suite are forked off one process; a run in an interpreter of its own is equal."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (lab.folder / "killed_method.py").write_text(KILLED)
    text = SUITE.replace(
        "[supervised, mean_teacher, broken_method]", "[killed_method, mean_teacher]"
    )
    text = text.replace("[2, 3]", "[2]").partition("exclude")[0]
    (lab.folder / "mine.yaml").write_text(text)
    suite = lab.cli("--plugin", "killed_method.py", "bench", "run", "mine.yaml", "--json")
    assert suite.returncode == 5
    states = [run["state"] for run in json.loads(suite.stdout)["runs"]]
    assert states == ["failed", "done"]
    assert suite.stderr.count("killed by SIGKILL; it is tried again") == 2
    failure = "FAILED (killed by SIGKILL 3 times in a row (out of memory?))"
    assert failure in " ".join(suite.stderr.split())

    forked = lab.folder / json.loads(suite.stdout)["runs"][1]["dir"]
    assert "Dice" in (forked / "console.log").read_text()
    options = ("--dataset", "tiny", "--protocol", PLUGINS / "tiny.yaml", "--labeled", "2")
    alone = lab.cli("--root", "alone", "run", "mean_teacher", *options, "-o", "decay=0.9", "--json")
    folder = lab.folder / json.loads(alone.stdout)["dir"]
    for name in ("weights_sha256", "cases_sha256", "run_id"):
        results = [json.loads((run / "result.json").read_bytes()) for run in (forked, folder)]
        assert results[0][name] == results[1][name]


def test_folds_are_an_axis_of_a_suite(lab):
    text = SUITE.replace("labeled: [2, 3]", "fold: [0, 1, 4]").partition("params")[0]
    (lab.folder / "mine.yaml").write_text(text.replace(", broken_method", ""))
    suite, document = load_suite(lab.folder / "mine.yaml")
    found = []
    for choice in choices(suite):
        (experiment,) = expand(
            suite, document, choice, lambda name: 6, fold_sizes=lambda name: [(6, 6)] * 5
        )
        found.append((experiment.fold, experiment.method))
    methods = ("supervised", "mean_teacher")
    assert found == [(fold, method) for fold in (0, 1, 4) for method in methods]
