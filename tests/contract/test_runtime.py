"""A plug-in that breaks the contract ends its run with exit code 4 before results are written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_folders import save

from segbench import registry
from segbench.conformance import Trial
from segbench.contracts.method import Clock, Method, Setting, Source
from segbench.errors import TrainingError
from segbench.evaluation.checks import require_probabilities, require_shape
from segbench.training.loss_checks import PATIENCE, GradientWatch

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
DATA = {
    2: ("--dataset", "tiny_flat", "--protocol", PLUGINS / "tiny_flat.yaml"),
    3: ("--dataset", "tiny", "--protocol", PLUGINS / "tiny.yaml"),
}
TEMPLATE = '''
import sys
import numpy as np
import torch
from segbench import Method, method
from segbench.nn.losses import dice_ce
{top}

@method("{name}")
class Mine(Method):
    """One part of it is replaced."""
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        logits = self.network(batch.x)
        loss = dice_ce(logits, batch.y)
        {loss}
        return {{"supervised": loss}}
    def predict(self, image, source=0):
        logits = self.network(image)
        {predict}
        return logits.softmax(1)
'''


def write(folder, name, **parts):
    """Write a method that is right but for the given parts; return its file."""
    file = folder / f"{name}.py"
    fill = {part: parts.get(part, "pass") for part in ("top", "loss", "predict")}
    file.write_text(TEMPLATE.format(name=name, **fill))
    return file


def run(lab, name, dims, *options, **parts):
    file = write(lab.folder, name, **parts)
    return lab.call("--plugin", file, "run", name, *DATA[dims], *options)


def assert_no_number(lab):
    """No result was written, and the board has no row."""
    assert not list(lab.folder.glob("segbench-out/runs/*/*/*/result.json"))
    assert json.loads(lab.call("leaderboard", "--json").stdout)["boards"] == []


# -- predict ---------------------------------------------------------------------------------------

PREDICT = {
    "argmax": ("return logits.argmax(1)", 3, "class numbers"),
    "argmax_flat": ("return logits.argmax(1, keepdim=True)", 2, "class numbers"),
    "sigmoid": ("return logits[:, :1].sigmoid()", 2, "sigmoid"),
    "logits": ("return logits", 3, "softmax"),
    "logits_flat": ("return logits", 2, "softmax"),
    "small": ("return logits.softmax(1)[:, :, 1:-1]", 3, "another size"),
    "array": ("return logits.softmax(1).numpy()", 2, "ndarray"),
    "late": (
        "return logits.softmax(1) if len(image) == 1 else logits.argmax(1)",
        2,
        "class numbers",
    ),
}


@pytest.mark.parametrize("fault", PREDICT)
def test_a_wrong_prediction_ends_the_run(lab, fault):
    predict, dims, says = PREDICT[fault]
    ended = run(lab, fault, dims, predict=predict)
    assert ended.returncode == 4, ended.stderr
    assert says in ended.stderr and "expected" in ended.stderr and "Traceback" not in ended.stderr
    assert_no_number(lab)


def test_a_wrong_prediction_ends_the_run_after_its_first_step(lab):
    run(lab, "early", 2, predict="return logits")
    (log,) = lab.folder.glob("segbench-out/runs/*/*/*/log.jsonl")
    assert len(log.read_text().splitlines()) <= 1
    (failed,) = lab.folder.glob("segbench-out/runs/*/*/*/failed.json")
    assert json.loads(failed.read_text())["code"] == 4


WINDOWS = torch.zeros(2, 1, 4, 4)
UNIFORM = torch.full((2, 3, 4, 4), 1 / 3)
METHOD = Method(Method.Params(), Setting((Source("set", ("a", "b")),), 1, (4, 4)))
METHOD.name = "mine"


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (None, "NoneType"),
        ((UNIFORM, UNIFORM), "tuple"),
        (UNIFORM[:1], "shape (1, 3, 4, 4)"),
        (UNIFORM[:, :2], "shape (2, 2, 4, 4)"),
        (UNIFORM[..., None], "shape (2, 3, 4, 4, 1)"),
        (UNIFORM.transpose(1, 3), "shape (2, 4, 4, 3)"),
        ((UNIFORM > 0).long(), "torch.int64"),
        (UNIFORM.to("meta"), "meta"),
    ],
)
def test_other_things_than_one_channel_per_class_are_refused(output, says):
    with pytest.raises(TrainingError) as error:
        require_shape(output, WINDOWS, METHOD, 0)
    assert says in error.value.details["found"]
    assert error.value.details["fix"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p * float("nan"), "not finite"),
        (lambda p: p / 0, "not finite"),
        (lambda p: p.log(), "values from"),
        (lambda p: p * 255, "values from"),
        (lambda p: p / 3, "sums"),
        (lambda p: p + 0.01, "sums"),
        (lambda p: torch.rand(p.shape), "sums"),
    ],
)
def test_other_numbers_than_probabilities_are_refused(change, says):
    with pytest.raises(TrainingError) as error:
        require_probabilities(change(UNIFORM), METHOD)
    assert says in error.value.details["found"]


def test_probabilities_are_accepted_in_any_precision():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        require_probabilities(logits.softmax(1).to(dtype), METHOD)
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), 3).movedim(-1, 1)
    require_probabilities(one_hot.float(), METHOD)
    # One question per class, as in VerSemi: the background is what the surest class leaves.
    each = logits.sigmoid()
    each[:, 0] = 1 - each[:, 1:].amax(1)
    require_probabilities(each, METHOD)


# -- loss ------------------------------------------------------------------------------------------

LOSS = {
    "empty": ("return {}", 3, "has no term"),
    "empty_flat": ("return {}", 2, "has no term"),
    "nothing": ("return None", 2, "NoneType"),
    "bare": ("return loss", 2, "Tensor"),
    "number": ("return {'supervised': float(loss)}", 2, "float"),
    "cut": ("loss = loss.detach()", 2, "has no gradient"),
    "hard": ("loss = dice_ce(logits.detach(), batch.y)", 3, "has no gradient"),
    "zero": ("loss = 0 * loss", 2, "has no gradient"),
    "nan": ("loss = loss * float('nan')", 2, "check the loss itself"),
    "infinite": ("loss = loss / 0", 3, "check the loss itself"),
    "column": ("return {'step': loss}", 2, "cannot have"),
    "later": ("return {'supervised': loss} if t.step < 3 else {}", 2, "step 3"),
}


@pytest.mark.parametrize("fault", LOSS)
def test_a_wrong_loss_ends_the_run(lab, fault):
    loss, dims, says = LOSS[fault]
    ended = run(lab, fault, dims, loss=loss)
    assert ended.returncode == 4, ended.stderr
    assert says in ended.stderr and "Traceback" not in ended.stderr
    assert_no_number(lab)


def test_an_ablation_of_the_only_term_is_a_failure(lab):
    file = write(lab.folder, "only")
    ended = lab.call("--plugin", file, "ablate", "only", *DATA[2], "--json")
    assert ended.returncode == 5, ended.stderr
    assert [row["without"] for row in json.loads(ended.stdout)["rows"]] == [None]


def test_a_gradient_may_be_zero_in_some_steps():
    method = Trial("supervised").make()
    parameters = list(method.parameters())
    watch = GradientWatch()

    def look(step, value, total=100):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, value)
        clock = Clock(step, total, phase_total=total)
        count = watch.count(parameters, method, "network", clock)
        if count is not None:
            watch.look(float(count), method.name, "network", clock)

    for step in range(PATIENCE - 1):
        look(step, 0.0)
    look(PATIENCE - 1, 1.0)
    for step in range(PATIENCE, 3 * PATIENCE):
        look(step, 0.0)

    watch = GradientWatch()
    with pytest.raises(TrainingError, match="no gradient"):
        for step in range(3):
            look(step, 0.0, total=3)


def test_a_loss_of_parameters_that_are_not_trained_is_refused(lab):
    ended = run(
        lab,
        "other",
        2,
        loss="self.network.requires_grad_(False); batch.x.requires_grad_(True); "
        "loss = dice_ce(self.network(batch.x), batch.y)",
    )
    assert ended.returncode == 4 and "other parameters only" in ended.stderr, ended.stderr


# -- sys.exit --------------------------------------------------------------------------------------


EXITS = [
    ("top", "0"),
    ("top", ""),
    ("predict", "0"),
    ("loss", "0"),
    ("loss", "3"),
    ("loss", "'no'"),
]


@pytest.mark.parametrize(("part", "code"), EXITS)
def test_a_plugin_that_exits_is_a_failure(lab, part, code):
    name = f"quits_{part}"
    ended = run(lab, name, 2, **{part: f"sys.exit({code})"})
    assert ended.returncode == (7 if part == "top" else 4), ended.stderr
    assert "SystemExit" in ended.stderr and "Traceback" not in ended.stderr
    assert_no_number(lab)


@pytest.mark.parametrize("part", ["top", "loss"])
def test_a_plugin_that_is_interrupted_stops_the_program(lab, part):
    assert run(lab, "stops", 2, **{part: "raise KeyboardInterrupt"}).returncode == 130


def test_exit_in_a_setting_or_in_the_networks_is_a_failure(lab):
    file = write(lab.folder, "builds")
    text = file.read_text().replace("self.network = network()", "sys.exit(0)")
    file.write_text(text)
    ended = lab.call("--plugin", file, "run", "builds", *DATA[2])
    assert ended.returncode == 4 and "SystemExit" in ended.stderr, ended.stderr


def test_exit_is_a_failed_check(lab):
    file = write(lab.folder, "tested", loss="sys.exit(0)")
    tested = lab.call("test", file, "--json")
    assert tested.returncode == 7 and "SystemExit" in json.loads(tested.stdout)["found"]
    stopped = write(lab.folder, "halted", loss="raise KeyboardInterrupt")
    assert lab.call("test", stopped).returncode == 130


LATER = {  # what a trained method does when it predicts again
    "exits": ("import sys; sys.exit(0)", "SystemExit(0)"),
    "argmax": ("return logits.argmax(1)", "class numbers"),
    "logits": ("return logits", "softmax"),
    "fails": ("raise ValueError('its own fault')", "its own fault"),
    "imports": ("import notthere", "No module named 'notthere'"),
    "is_not_finite": ("return logits.softmax(1) * float('nan')", "not finite"),
}


def test_a_fault_that_comes_later_is_no_fault_of_the_scan(lab, monkeypatch):
    cases = "".join(
        f"if os.environ.get('FAULT') == {name!r}: {text}\n        "
        for name, (text, _) in LATER.items()
    )
    trained = run(lab, "later", 3, "--steps", "1", top="import os", predict=cases + "pass")
    assert trained.returncode == 0, trained.stderr
    (folder,) = lab.folder.glob("segbench-out/runs/*/later/*")
    draw = np.random.default_rng(0)
    save(lab.folder / "scan.nii.gz", draw.normal(size=(18, 17, 16)).astype(np.float32))
    plugin = ("--plugin", lab.folder / "later.py")
    for name, (_, says) in LATER.items():
        monkeypatch.setenv("FAULT", name)
        ended = lab.call(*plugin, "predict", folder, "scan.nii.gz", "-o", "out")
        assert ended.returncode == 4 and says in ended.stderr, (name, ended.stderr)
        assert "convert" not in ended.stderr and "predict" in ended.stderr
        assert not list((lab.folder / "out").iterdir())
        again = lab.call(*plugin, "evaluate", folder)
        assert again.returncode == 4, (name, again.stderr)
        assert says in again.stderr


@pytest.mark.parametrize("call", ["sys.exit(0)", "import os; os._exit(0)"])
def test_exit_is_a_failed_run_of_a_suite(lab, call):
    file = write(lab.folder, "leaves", loss=call)
    suite = lab.folder / "suite.yaml"
    suite.write_text(
        f"schema: 1\nname: suite\nprotocol: {PLUGINS / 'tiny_flat.yaml'}\n"
        "matrix: {method: [leaves, supervised], dataset: [tiny_flat]}\n"
    )
    ended = lab.cli("--plugin", file, "bench", "run", suite, "--json")
    assert ended.returncode == 5, ended.stderr
    document = json.loads(ended.stdout)
    assert document["counts"]["done"] == 1 and "leaves" in document["found"]


QUITTER = """
import sys
import numpy as np
from segbench import Case, Dataset, RawCase, Split, dataset

@dataset("quitter")
class Quitter(Dataset):
    title = "t"
    modality = "none"
    classes = ("ball",)
    license = "none"
    protocol = "phantom2d"
    labeled = 2
    embedded = True
    dims = 2

    def split(self):
        {split}
        return Split(("a1", "a2", "a3"), ("b1",), "made up")

    def find(self, source):
        {find}
        return [RawCase(name, number) for number, name in enumerate(("a1", "a2", "a3", "b1"))]

    def load(self, raw):
        {load}
        label = np.zeros((32, 32), np.uint8)
        label[5:15, 5:15] = raw.where
        return Case(raw.id, label[None].astype(np.float32), label, (1.0, 1.0))
"""


@pytest.mark.parametrize("part", ["split", "find", "load"])
def test_a_data_set_that_exits_is_a_failure_of_every_command(lab, part):
    parts = {"split": "pass", "find": "pass", "load": "pass", part: "sys.exit(0)"}
    file = lab.folder / "quitter.py"
    file.write_text(QUITTER.format(**parts))
    suite = lab.folder / "suite.yaml"
    suite.write_text(
        f"schema: 1\nname: suite\nprotocol: {PLUGINS / 'tiny_flat.yaml'}\n"
        "matrix: {method: [supervised], dataset: [quitter, tiny_flat]}\n"
    )
    places = ["--data-root", "data", "--root", "out"]
    wrong_case = part == "load"
    for command, code in (
        (("data", "check", "quitter"), 3 if wrong_case else 4),
        (("data", "prepare", "quitter"), 3 if wrong_case else 4),
        (("run", "supervised", "--dataset", "quitter", "--steps", "1"), 3 if wrong_case else 4),
        (("test", file), 7),
        (("bench", "run", suite), 5),
    ):
        with registry.isolated():
            if command[0] == "test":
                ended = lab.call(*command)
            else:
                ended = lab.call("--plugin", file, *command, *places)
        assert ended.returncode == code, (command, ended.stderr)
        assert "SystemExit" in ended.stdout + ended.stderr
        if command[0] == "bench":
            assert "1 done" in ended.stdout + ended.stderr or " ok" in ended.stdout


@pytest.mark.parametrize("part", ["__init__", "forward"])
def test_a_backbone_that_exits_is_a_failure_of_every_command(lab, part):
    file = lab.folder / "leaver.py"
    made = lab.call("new", "backbone", "leaver", "--to", lab.folder)
    assert made.returncode == 0, made.stderr
    written = file.read_text()
    head, body = written.split(f"    def {part}(", 1)
    signature, rest = body.split(":\n", 1)
    file.write_text(f"{head}    def {part}({signature}:\n        raise SystemExit(0)\n{rest}")
    for command, code in (
        (("run", "supervised", "--backbone", "leaver", *DATA[2]), 4),
        (("test", file), 7),
    ):
        with registry.isolated():
            given = [] if command[0] == "test" else ["--plugin", file]
            ended = lab.call(*given, *command)
        assert ended.returncode == code, (command, ended.stderr)
        assert "SystemExit" in ended.stdout + ended.stderr
