"""Protocol files: the built-in ones, the user's own, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from segbench.config.protocol import Protocol, load_protocol, protocol_names, read_protocol
from segbench.config.schema import describe, leaves
from segbench.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
SMALL = "steps: 10\npatch: [32, 32]\ninference: {stride: [16, 16]}\n"


@pytest.fixture
def mine(tmp_path):
    def write(text: str, name: str = "mine") -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("name", protocol_names())
def test_every_built_in_protocol_loads(name):
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.title and protocol.version >= 1


def test_the_left_atrium_protocol_is_the_literature_s():
    la = load_protocol("la")
    assert (la.steps, la.patch, la.inference.stride) == (6000, (112, 112, 80), (18, 18, 4))
    assert (la.batch.labeled, la.batch.unlabeled, la.labeled) == (2, 2, (8, 16))
    assert (la.crop.labeled, la.crop.unlabeled, la.crop.pad, la.crop.last_offset) == (
        "random",
        "random",
        3,
        False,
    )
    assert (la.optim.name, la.optim.lr, la.optim.momentum, la.optim.weight_decay) == (
        "sgd",
        0.01,
        0.9,
        1e-4,
    )
    rates = [la.optim.lr_at(step, 6000) for step in (0, 2499, 2500, 4999, 5000, 5999)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
    assert (la.augment, la.downsample, la.selection, la.largest_component) == (
        "mirror",
        1,
        "last",
        False,
    )
    assert (la.precision, la.policy, la.backbone.name, la.backbone.params) == (
        "fp32",
        "worst_distance",
        "vnet",
        {},
    )


def test_milestones_scale_with_the_length():
    optim = load_protocol("la").optim
    assert optim.lr_at(249, 600) == pytest.approx(0.01) and optim.lr_at(250, 600) == pytest.approx(
        0.001
    )


def test_every_key_is_described_and_ranged():
    for key, field in leaves(Protocol).items():
        assert describe(field) and field.description, key


def test_a_file_of_one_s_own(mine):
    file = mine("name: mine\n" + SMALL + "optim:\n  lr: 1e-3\n")
    protocol, sources = read_protocol(file)
    assert protocol.optim.lr == 0.001 and protocol.patch == (32, 32)
    assert sources["optim.lr"] == f"{file}:6" and sources["steps"] == f"{file}:2"
    assert sources["optim.momentum"] == "default" and sources["inference.batch"] == "default"
    assert read_protocol("la")[1]["optim.lr"] == "protocol la"


def test_a_protocol_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_protocol("la").steps = 1


def test_unknown_names_are_guessed():
    with pytest.raises(UsageError, match=r"unknown protocol 'la-mni'. Did you mean 'la-mini'\?"):
        load_protocol("la-mni")
    assert load_protocol("la_mini") == load_protocol("la-mini")
    with pytest.raises(UsageError, match="cannot read"):
        load_protocol("./nowhere.yaml")


WRONG = [
    ("steps: 10", r"patch: missing"),
    (SMALL + "color: red", r"unknown key 'color'. Known keys: .*patch.*"),
    (
        SMALL + "dowsample: 2",
        r"unknown key 'dowsample'. Did you mean 'downsample' \(int .* or mapping, default 1\)\?",
    ),
    (SMALL + "crop: {pads: 1}", r"unknown key 'crop.pads'. Did you mean 'pad' "),
    (SMALL + "optim: {lr: abc}", r"optim.lr: expected float > 0, got 'abc' \(.*mine.yaml:5:13\)"),
    (SMALL + "optim: {lr: 0}", r"optim.lr: expected float > 0, got 0 "),
    (SMALL + "optim: {lr: '0.1'}", r"optim.lr: expected float > 0, got '0.1' "),
    (SMALL + "version: 01", r"version: expected int ≥ 1, got '01'; a number has no leading zero"),
    (SMALL + "largest_component: no", r"largest_component: expected true or false, got 'no'"),
    (SMALL + "batch: {labeled: 2.0}", r"batch.labeled: expected int in \[1, 1024\], got 2.0"),
    (SMALL + "batch: {labeled: true}", r"batch.labeled: expected int in \[1, 1024\], got True"),
    (SMALL + "batch: 3", r"batch: expected mapping, got 3"),
    (SMALL + "selection: best", r"selection: expected one of last, validation, got 'best'"),
    (SMALL + "precision: fp8", r"precision: expected one of fp32, tf32, bf16, fp16, got 'fp8'"),
    (SMALL + "labeled: [0]", r"labeled: expected counts ≥ 1"),
    (SMALL + "labeled: 8", r"labeled: expected list of int, got 8"),
    (SMALL + "optim: {schedule: step}", r"optim.milestones: a step schedule needs"),
    (SMALL + "optim: {milestones: [5, 3], reference: 10}", r"optim.milestones: expected rising"),
    (SMALL + "optim: {milestones: [50], reference: 10}", r"optim.milestones: expected rising"),
    (SMALL + "optim: {betas: [0.9, 1.5]}", r"optim.betas: expected numbers in"),
    ("steps: 9\npatch: [32]\ninference: {stride: [16]}", r"patch: expected two or three edges"),
    (
        "steps: 9\npatch: [8, 8]\ninference: {stride: [16, 8]}",
        r"inference.stride: expected 2 numbers from 1 to",
    ),
    ("steps: 9\npatch: [8, 8]\ninference: {stride: [4]}", r"inference.stride: expected 2 numbers"),
    (
        "steps: 9\npatch: [8, 8]\ninference: {stride: [4, 4]}\ndownsample: 2",
        r"downsample: expected two factors in plane .* write \[2, 2\]",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text[-30:] for text, _ in WRONG])
def test_wrong_values_are_named_with_their_place(mine, text, message):
    with pytest.raises(UsageError, match=message):
        load_protocol(mine("name: mine\n" + text))


def test_a_name_must_be_the_file_s_stem(mine):
    with pytest.raises(UsageError, match="file's stem"):
        load_protocol(mine("name: la\n" + SMALL))


def test_a_changed_copy_cannot_bear_a_built_in_name(mine):
    original = (ROOT / "benchmarks/protocols/la.yaml").read_text()
    assert load_protocol(mine(original, "la")) == load_protocol("la")
    with pytest.raises(UsageError, match="name of another protocol"):
        load_protocol(mine(original.replace("steps: 6000", "steps: 7000"), "la"))


def test_a_user_s_folder_adds_protocols_but_replaces_none(tmp_path):
    folder = tmp_path / "benchmarks/protocols"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine\n" + SMALL)
    code = (
        "from segbench.config import *; print(*protocol_names()); "
        "print(load_protocol('mine').steps)"
    )
    run = {
        "env": {"SEGBENCH_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        "capture_output": True,
        "text": True,
    }
    names, steps = subprocess.run([sys.executable, "-c", code], **run).stdout.splitlines()
    assert {"la", "mine"} <= set(names.split()) and steps == "10"
    (folder / "la.yaml").write_text("name: la\n" + SMALL)
    assert (
        "protocol 'la' exists twice" in subprocess.run([sys.executable, "-c", code], **run).stderr
    )


def test_configuration_imports_no_torch():
    code = (
        "import sys, segbench.config as c; c.load_protocol('la'); c.machine_settings({})\n"
        "import segbench; segbench.Optim; segbench.MethodParams; segbench.BackboneParams\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
