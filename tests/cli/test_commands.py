"""The program as a process: commands, exit codes, JSON, help."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
RUN = ("run", "supervised", "--dataset", "tiny", "--protocol", PLUGINS / "tiny.yaml")


def test_run_leaderboard_evaluate_resume(lab):
    first = lab.cli(*RUN, "--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert {"status", "run_id", "dir", "metrics"} <= set(document) and document["status"] == "done"
    assert sorted(p.name for p in (lab.folder / document["dir"]).iterdir() if p.name != "lock") == [
        "attempts.jsonl",
        "cases.csv",
        "ckpt",
        "config.yaml",
        "data.json",
        "log.jsonl",
        "manifest.json",
        "result.json",
        "stores.json",
    ]

    again = lab.cli("--json", *RUN)
    assert json.loads(again.stdout)["cached"] is True

    board = lab.cli("leaderboard", "--dataset", "tiny")
    assert "supervised" in board.stdout and "1 seed: not ranked" in board.stdout
    for kind in ("csv", "json", "md", "latex"):
        assert "supervised" in lab.call("leaderboard", "--format", kind).stdout

    same = lab.cli("evaluate", document["run_id"], "--json")
    assert json.loads(same.stdout)["identical"] is True, same.stderr
    assert lab.call("resume", document["run_id"]).returncode == 0
    assert lab.call("resume", "--all").returncode == 0


def test_global_options_before_and_after_the_verb(lab):
    for args in (
        ("--root", "here", "leaderboard", "--json"),
        ("leaderboard", "--root", "here", "--json"),
    ):
        assert json.loads(lab.call(*args).stdout)["boards"] == []


def test_interrupted_run_says_how_to_go_on(lab):
    command = [
        sys.executable,
        "-m",
        "segbench.cli.main",
        "--plugin",
        str(PLUGINS / "tiny.py"),
        *map(str, RUN),
        "--steps",
        "100000",
    ]
    path = os.pathsep.join([str(PLUGINS.parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        cwd=lab.folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        for _ in range(600):
            if next(lab.folder.glob("segbench-out/runs/*/*/*/log.jsonl"), None) is not None:
                break
            time.sleep(0.1)
        busy = lab.cli(*RUN, "--steps", "100000")
        assert busy.returncode == 6 and "busy" in busy.stderr
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert re.search(r"segbench resume [0-9a-f]{8}", error), error


def test_resume_refuses_when_the_code_changed(lab):
    (lab.folder / "mine.py").write_text(METHOD.format(weight=1.0))
    mine = ("--plugin", lab.folder / "mine.py")
    done = lab.cli(*mine, "run", "mine", *RUN[2:], "--json")
    assert done.returncode == 0, done.stderr
    folder = lab.folder / json.loads(done.stdout)["dir"]
    (folder / "result.json").unlink()
    (lab.folder / "mine.py").write_text(
        METHOD.format(weight=1.0) + "\n# a comment changes nothing\n"
    )
    assert lab.cli("resume", folder).returncode == 0
    (folder / "result.json").unlink()
    (lab.folder / "mine.py").write_text(METHOD.format(weight=2.0))
    changed = lab.cli("resume", folder)
    assert changed.returncode == 2 and "sources" in changed.stderr


METHOD = '''
from segbench import Method, method
from segbench.nn.losses import dice_ce

@method("mine")
class Mine(Method):
    """Mine."""
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        return {{"supervised": {weight} * dice_ce(self.network(batch.x), batch.y)}}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
'''


@pytest.mark.parametrize(
    "args, code, says",
    [
        (("run", "versmi"), 2, "Did you mean 'versemi'?"),
        (("run", "mean_teacher", "-o", "dekay=0.9"), 2, "decay"),
        (("run", "mean_teacher", "-o", "decay=2"), 2, "decay"),
        (("run", "mean_teacher", "-o", "decay=abc"), 2, "decay"),
        (("run", "supervised", "--dataset", "phantm"), 2, "Did you mean"),
        (("run", "supervised", "--backbone", "vent"), 2, "Did you mean 'vnet'?"),
        (("run", "supervised", "--dataset", "tiny", "--protocol", "lla"), 2, "Did you mean 'la'?"),
        (("run", "supervised", "--seeds", "x"), 2, "--seeds"),
        (("run", "supervised", "--seed", "-1"), 2, "seed"),
        (("run", "supervised", "--replicates", "3", "--draw", "1"), 2, "--draw"),
        (("run", "supervised", "--replicates", "3", "--seeds", "0-2"), 2, "--seeds"),
        (("run", "supervised", "--labeled", "99"), 2, "60 training cases"),
        (("run", "supervised", "--dataset", "la"), 3, "data prepare la"),
        (("run", "supervised", "--device", "cuda:7"), 7, "device"),
        (("run", "supervised", "-o", "patch=30x30x30"), 2, "multiple"),
        (("rnu",), 2, "Did you mean 'run'?"),
        (("run",), 2, "METHOD"),
        (("run", "supervised", "--device", "cda"), 2, "cuda:N"),
        (("resume", "deadbeef"), 2, "no run"),
        (("evaluate", "deadbeef"), 2, "no run"),
        (("--plugin", "nowhere.py", "list"), 2, "no such plug-in"),
    ],
)
def test_errors_name_the_thing_and_have_their_code(lab, args, code, says):
    result = lab.call(*args)
    assert result.returncode == code, result.stderr
    assert says in result.stderr and "Traceback" not in result.stderr and result.stdout == ""
    as_json = json.loads(lab.call(*args, "--json").stdout)
    assert as_json["status"] == "error" and as_json["code"] == code


def test_windows_is_refused_at_once(lab, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Windows")
    refused = lab.call("--help")
    assert refused.returncode == 7 and refused.stdout == ""
    for part in ("does not run on Windows", "found", "expected", "WSL", "fix", "(exit 7)"):
        assert part in refused.stderr


def test_the_program_starts_without_modules_that_only_posix_has(lab):
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "import segbench.cli.main, segbench.cli.training, segbench.storage, segbench.training.cost"
    )
    path = os.pathsep.join([str(PLUGINS.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert started.returncode == 0, started.stderr


def test_dry_run_writes_nothing(lab):
    plan = lab.call(*RUN, "--seeds", "0-1", "--dry-run", "--json")
    assert [r["state"] for r in json.loads(plan.stdout)["runs"]] == ["to do", "to do"]
    assert not (lab.folder / "segbench-out").exists()


def test_a_replicate_has_a_draw_and_a_seed_of_its_own(lab):
    plan = lab.call(*RUN, "--replicates", "3", "--dry-run")
    assert re.findall(r"-(?:d\d-)?s\d(?=-)", plan.stdout) == ["-s0", "-d1-s1", "-d2-s2"]


def test_several_runs_are_one_document(lab):
    document = json.loads(lab.call(*RUN, "--seeds", "0-1", "--steps", "2", "--json").stdout)
    assert {"status", "run_id", "dir", "metrics"} <= set(document) and len(document["runs"]) == 2
    assert document["runs"][0]["run_id"] == document["run_id"] != document["runs"][1]["run_id"]


def test_config_show_sources(lab):
    document = json.loads(
        lab.call("config", "show", "mean_teacher", *RUN[2:], "-o", "decay=0.9", "--json").stdout
    )
    assert document["sources"]["decay"] == "-o" and document["experiment"]["params"]["decay"] == 0.9
    text = lab.call(
        "config", "show", "mean_teacher", *RUN[2:], "-o", "decay=0.9", "--sources"
    ).stdout
    assert re.search(r"decay +0.9 +-o", text) and re.search(
        r"data_root +segbench-data +default", text
    )
    marked = lab.call("config", "show", "run", "mean_teacher", *RUN[2:], "--steps", "3").stdout
    assert re.search(r"steps \* +3", marked)


def test_list_and_describe(lab):
    document = json.loads(lab.call("list", "methods", "--json").stdout)
    assert {"supervised", "mean_teacher", "versemi"} <= {m["name"] for m in document["methods"]}
    described = json.loads(lab.call("describe", "method", "versemi", "--json").stdout)
    assert all(p["meaning"] for p in described["parameters"])
    assert "80" in lab.call("describe", "dataset", "la").stdout
    assert lab.call("describe", "protocol", "la").returncode == 0


def test_broken_plugin_stays_visible(lab):
    (lab.folder / "methods").mkdir()
    (lab.folder / "methods" / "broken.py").write_text(
        "from segbench import method\nimport nowhere_to_be_found\n"
    )
    listed = lab.cli("list", "methods", SEGBENCH_PATH=str(lab.folder))
    assert listed.returncode == 0 and "nowhere_to_be_found" in listed.stdout
    chosen = lab.cli("run", "broken", SEGBENCH_PATH=str(lab.folder))
    assert chosen.returncode == 7 and "nowhere_to_be_found" in chosen.stderr


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "40"}, {"NO_COLOR": "1"}]
)
def test_poor_terminals(lab, env):
    lab.call(*RUN)
    board = lab.cli("leaderboard", **env)
    assert board.returncode == 0 and "\x1b" not in board.stdout and "supervised" in board.stdout
    assert all(len(line) <= int(env.get("COLUMNS", 999)) for line in board.stdout.splitlines())


def test_closed_pipe_is_quiet(lab):
    path = os.pathsep.join([str(PLUGINS.parents[1]), os.environ.get("PYTHONPATH", "")])
    program = f"{sys.executable} -m segbench.cli.main"
    command = f"{program} describe protocol la | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=lab.folder,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert result.returncode == 141 and result.stderr == ""


def test_help_imports_nothing_heavy(lab):
    code = (
        "import sys; from segbench.cli.main import run; run(['--help']); run(['run', '--help']);"
        "heavy = ('torch', 'pydantic', 'numpy', 'scipy', 'monai', 'timm', 'rich');"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=lab.folder,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PLUGINS.parents[1])},
    )
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "run",
        "resume",
        "evaluate",
        "leaderboard",
        "compare",
        "runs",
        "cite",
        "list",
        "describe",
        "data",
        "config",
        "doctor",
    ],
)
def test_every_command_has_help(lab, command):
    assert lab.call(command, "--help").returncode == 0


def test_doctor(lab):
    document = json.loads(lab.call("doctor", "--json").stdout)
    assert any("torch" in c["what"] for c in document["checks"])
