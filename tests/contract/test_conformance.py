"""The conformance suite for data sets and backbones: good ones pass, and each fault is found."""

import json

import pytest

from segbench import registry
from segbench.conformance import backbone_trials, dataset_trials

DATASET = '''
import numpy as np
from segbench import Case, Dataset, RawCase, Split, dataset

@dataset("{name}")
class Mine(Dataset):
    """Small noise."""
    title = "Mine"
    modality = "CT"
    classes = ("a", "b")
    license = "none"
    protocol = "phantom"
    labeled = 2
    embedded = True
    {facts}

    def group(self, case):
        return {group}

    def split(self):
        train, test = ("a1", "a2", "a3"), ("b1", "b2")
        {split}
        return Split(train, test, "made up")

    def find(self, source):
        raw = [RawCase(name, number) for number, name in enumerate(("a1", "a2", "a3", "b1", "b2"))]
        {find}
        return raw

    def load(self, raw):
        label = np.zeros((6, 7, 8), np.uint8)
        label[1:3] = 1
        label[4:] = 2
        image = np.zeros((1, 6, 7, 8), np.float32)
        spacing = (1.0, 1.0, 1.0)
        {load}
        return Case(raw.id, image, label, spacing)
'''
DATASET_FAULTS = {
    "good": ({}, None),
    "no_title": ({"facts": "title = ''"}, "facts"),
    "twins": ({"facts": "classes = ('a', 'a')"}, "facts"),
    "files": ({"facts": "embedded = False"}, "facts"),
    "flat": ({"facts": "dims = 2; protocol = 'phantom'"}, "protocol"),
    "shared_case": ({"split": "test = ('a1', 'b2')"}, "split"),
    "shared_patient": ({"group": "'p' + case[1:]"}, "split"),
    "shuffled": (
        {
            "split": "self.calls = type(self).calls = getattr(type(self), 'calls', 0) + 1; "
            "train = train[self.calls % 3 :] + train[: self.calls % 3]"
        },
        "split",
    ),
    "greedy": ({"facts": "labeled = 9"}, "split"),
    "lost": ({"find": "raw = raw[1:]"}, "found cases"),
    "unsendable": ({"find": "raw[0] = RawCase('a1', lambda: 0)"}, "found cases"),
    "double": ({"load": "image = image.astype(float)"}, "loaded cases"),
    "no_channel": ({"load": "image = image[0]"}, "loaded cases"),
    "nan": ({"load": "image[0, 0, 0, 0] = np.nan"}, "loaded cases"),
    "other_grid": ({"load": "label = label[:, :, :-1]"}, "loaded cases"),
    "third_value": ({"load": "label[5] = 3"}, "loaded cases"),
    "signed": ({"load": "label = label.astype(np.int16)"}, "loaded cases"),
    "short_spacing": ({"load": "spacing = (1.0, 1.0)"}, "loaded cases"),
    "random": ({"load": "image += np.random.default_rng().random(image.shape)"}, "loaded cases"),
    "no_label": ({"load": "label = None"}, "labels"),
    "empty": ({"load": "label[:] = 0"}, "labels"),
}
BACKBONE = '''
import torch
from torch import nn
from segbench import Backbone, BackboneParams, Field, backbone
from segbench.errors import UsageError

@backbone("{name}")
class Mine(Backbone):
    """One convolution per head."""
    class Params(BackboneParams):
        width: int = Field(4, {field})
    provides = frozenset({provides})

    def __init__(self, params, channels, dims, heads, decoders=("transposed",), side_outputs=False):
        super().__init__(params, channels, dims, heads, decoders, side_outputs)
        if {refused}:
            raise UsageError("not provided", fix="leave it out")
        layer = nn.Conv3d if dims == 3 else nn.Conv2d
        self.first = layer(channels, params.width, 3, padding=1)
        self.heads = nn.ModuleList(layer(params.width, classes, 1) for classes in heads)
        self.channels = (params.width,)
        self.strides = ((1,) * dims,)
        self.width = params.width
        {init}

    def encode(self, image):
        return [self.first(image)]

    def decode(self, pyramid, decoder=0):
        return list(pyramid)

    def head(self, features, head=0):
        return self.heads[head](features)

    def forward(self, image):
        x = self.first(image)
        outputs = tuple(head(x) for head in self.heads)
        {forward}
        return outputs[0] if len(outputs) == 1 else outputs

    @classmethod
    def multiple(cls, params, dims):
        return {multiple}
'''
BACKBONE_FAULTS = {
    "good": ({}, None),
    "no_text": ({"field": "ge=1"}, "documented"),
    "no_range": ({"field": "description='channels'"}, "documented"),
    "odd_word": ({"provides": "{'heads', 'features', 'magic'}"}, "documented"),
    "tuple": ({"forward": "return outputs"}, "logits"),
    "small": ({"forward": "outputs = tuple(o[..., 1:] for o in outputs)"}, "logits"),
    "nan": ({"forward": "outputs = tuple(o / 0 for o in outputs)"}, "logits"),
    "unused": ({"init": "self.spare = nn.Linear(2, 2)"}, "gradients"),
    "cut": ({"forward": "outputs = (self.heads[0](x.detach()),)"}, "gradients"),
    "noisy": (
        {"forward": "outputs = tuple(o + torch.rand_like(o) for o in outputs)"},
        "determinism",
    ),
    "hidden": (
        {
            "init": "self.shift = torch.rand(1).item()",
            "forward": "outputs = tuple(o + self.shift + self.count() for o in outputs)",
        },
        "state",
    ),
    "silent": ({"refused": "len(decoders) > 1"}, "options"),
    "liar": ({"provides": "{'heads', 'decoders', 'features'}"}, "options"),
    "other_head": ({"forward": "outputs = tuple(2 * o for o in outputs)"}, "features"),
    "any_size": ({"multiple": "(4,) * dims"}, "other sizes"),
    "one_number": ({"multiple": "(1,)"}, "other sizes"),
}


def failures(checks):
    failed = []
    for what, check in checks:
        try:
            check()
        except Exception:  # a check may meet any error of a plug-in
            failed.append(what)
    return failed


def add(folder, template, name, defaults, parts):
    file = folder / f"{name}.py"
    file.write_text(template.format(name=name, **{**defaults, **parts}))
    registry.add_file(file)
    return name


@pytest.mark.parametrize("fault", DATASET_FAULTS)
def test_faults_of_a_data_set_are_found(tmp_path, fault):
    parts, culprit = DATASET_FAULTS[fault]
    defaults = {"facts": "pass", "group": "case", "split": "pass", "find": "pass", "load": "pass"}
    name = add(tmp_path, DATASET, f"data_{fault}", defaults, parts)
    failed = failures(dataset_trials(name, tmp_path))
    assert failed == [] if culprit is None else culprit in failed


@pytest.mark.parametrize("fault", BACKBONE_FAULTS)
def test_faults_of_a_backbone_are_found(tmp_path, fault):
    parts, culprit = BACKBONE_FAULTS[fault]
    defaults = {
        "field": "ge=1, description='channels'",
        "provides": "{'heads', 'features'}",
        "refused": "len(decoders) > 1 or side_outputs",
        "init": "pass",
        "forward": "pass",
        "multiple": "(1,) * dims",
    }
    name = add(tmp_path, BACKBONE, f"net_{fault}", defaults, parts)
    failed = [what.partition(" (")[0] for what in failures(backbone_trials(name))]
    assert failed == [] if culprit is None else culprit in failed


@pytest.mark.parametrize("name", ["phantom", "phantom2d_classes", "la", "acdc"])
def test_data_sets_pass(name):
    if registry.get("dataset", name).cls.members:
        name = registry.get("dataset", name).cls.members[0]
    assert failures(dataset_trials(name)) == []


@pytest.mark.parametrize("name", ["vnet", "unet3d"])
def test_backbones_pass(name):
    assert failures(backbone_trials(name)) == []


def test_a_name_of_several_kinds_and_groups_are_refused(lab):
    (lab.folder / "pair.py").write_text(
        "from segbench import Dataset, Method, dataset, method\n"
        "@method('pair')\nclass A(Method): pass\n@dataset('pair')\nclass B(Dataset): pass\n"
    )
    both = lab.call("--plugin", lab.folder / "pair.py", "test", "pair")
    assert both.returncode == 2 and "--kind method" in both.stderr
    group = lab.call("test", "phantom2d")
    assert group.returncode == 2 and "segbench test phantom2d_a" in group.stderr
    family = lab.call("test", "folder")
    assert family.returncode == 2 and "folder:PATH" in family.stderr
    assert lab.call("test", "versmi").returncode == 2
    assert "Did you mean 'versemi'" in lab.call("test", "versmi").stderr


def test_all_plugins_of_a_file_are_tested(lab):
    text = DATASET.format(
        name="both_data", facts="pass", group="case", split="pass", find="pass", load="pass"
    ) + BACKBONE.format(
        name="both_net",
        field="ge=1, description='channels'",
        provides="{'heads', 'features'}",
        refused="len(decoders) > 1 or side_outputs",
        init="pass",
        forward="pass",
        multiple="(1,) * dims",
    )
    (lab.folder / "both.py").write_text(text)
    tested = lab.call("test", lab.folder / "both.py", "--json")
    assert tested.returncode == 0, tested.stderr
    checks = json.loads(tested.stdout)["checks"]
    assert {"dataset", "backbone"} <= {key for check in checks for key in check}
    one = lab.call("test", lab.folder / "both.py", "--kind", "dataset", "--json")
    assert len(json.loads(one.stdout)["checks"]) == 6


# -- segbench new ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dataset", "backbone", "protocol", "suite"])
def test_each_printed_next_step_works(lab, kind):
    written = lab.call("new", kind, f"my_{kind}")
    assert written.returncode == 0, written.stderr
    assert lab.call("new", kind, f"my_{kind}").returncode == 2
    steps = [line.removeprefix("next: ") for line in written.stderr.splitlines() if "next:" in line]
    assert steps
    for step in steps:
        words = step.split()
        assert words[0] == "segbench"
        if words[1:3] == ["bench", "run"]:
            # The whole suite takes a minute; one step of one replicate shows that it starts.
            file = lab.folder / f"my_{kind}.yaml"
            short = (lab.folder / "short.yaml").resolve()
            protocol = lab.call("new", "protocol", "short")
            assert protocol.returncode == 0
            text = (
                short.read_text().replace("steps: 200", "steps: 1").replace("32, 32, 32", "32, 32")
            )
            short.write_text(text.replace("16, 16, 16", "16, 16"))
            suite = file.read_text().replace("protocol: phantom2d ", f"protocol: {short} ")
            file.write_text(suite.replace("replicates: 3", "replicates: 1"))
        done = lab.call(*words[1:])
        assert done.returncode == 0, done.stderr


def test_new_refuses_taken_names_and_other_words(lab):
    for kind, name in (("dataset", "la"), ("backbone", "vnet"), ("protocol", "phantom")):
        taken = lab.call("new", kind, name)
        assert taken.returncode == 2 and "already" in taken.stderr
    assert lab.call("new", "suite", "No-Name").returncode == 2
    written = lab.call("new", "suite", "mine", "--to", lab.folder / "deep" / "er", "--json")
    document = json.loads(written.stdout)
    assert document["files"] == [str(lab.folder / "deep" / "er" / "mine.yaml")]
    assert len(document["next"]) == 2
