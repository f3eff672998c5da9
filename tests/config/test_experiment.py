"""Resolution with made-up plug-ins: precedence, overrides, data sets, counts, and identity."""

import itertools
import json

import pytest

import segbench
from segbench import registry
from segbench.config import Experiment, resolve
from segbench.errors import PluginError, UsageError
from segbench.identity.run_id import run_id, science

PLUGINS = """
from typing import Literal
from segbench import Backbone, BackboneParams, Dataset, Field, Method, MethodParams, Split
from segbench import backbone, dataset, method

@method("fake_solo")
class Solo(Method):
    class Params(MethodParams):
        decay: float = Field(0.99, ge=0, lt=1, description="of the average")
        weight: float = Field(1, ge=0, description="a default written as a whole number")
        kind: Literal["soft", "hard"] = "soft"
        widths: tuple[int, ...] = (1, 2)
    backbone_defaults = {"fake_net": {"norm": "instance"}}

@method("fake_joint")
class Joint(Method):
    joint = True

@method("fake_needy")
class Needy(Method):
    needs = frozenset({"side_outputs"})

@method("fake_clash")
class Clash(Method):
    class Params(MethodParams):
        steps: int = 1

class Net(Backbone):
    class Params(BackboneParams):
        width: int = Field(16, ge=1)
        norm: Literal["batch", "instance"] = "batch"
        rate: float = 0.5
    provides = frozenset({"heads"})

    @classmethod
    def multiple(cls, params, dims):
        return (8,) * dims

@backbone("fake_net")
class FakeNet(Net):
    pass

@backbone("fake_other")
class Other(Net):
    pass

class Some(Dataset):
    protocol = "PROTOCOL"
    labeled = 3

    def split(self):
        return Split(train=tuple(f"c{i}" for i in range(25)), test=("t",))

@dataset("fake_a")
class A(Some):
    pass

@dataset("fake_b")
class B(Some):
    labeled = 0

@dataset("fake_la")
class C(Some):
    protocol = "la"

@dataset("fake_flat")
class Flat(Some):
    dims = 2

@dataset("fake_many")
class Many(Dataset):
    members = ("fake_a", "fake_b")
    protocol = "PROTOCOL"
    labeled = 5
"""
PROTOCOL = """name: small
steps: 600
patch: [32, 32, 32]
optim: {lr: 0.02, schedule: step, milestones: [300], reference: 600}
inference: {stride: [16, 16, 16]}
backbone: {name: fake_net, params: {width: 8}}
labeled: [7]
"""


@pytest.fixture(autouse=True, scope="module")
def protocol(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    file = folder / "small.yaml"
    file.write_text(PROTOCOL)
    (folder / "fake.py").write_text(PLUGINS.replace("PROTOCOL", str(file)))
    with registry.isolated():
        registry.add_file(folder / "fake.py")
        yield file


def solo(*overrides: str, dataset="fake_a", **more) -> Experiment:
    (experiment,) = resolve("fake_solo", dataset=dataset, overrides=overrides, **more).experiments
    return experiment


def test_everything_has_a_value_and_an_origin(protocol):
    resolved = resolve("fake-solo", dataset="fake_a")
    (e,) = resolved.experiments
    assert (e.method, e.backbone, e.seed) == ("fake_solo", "fake_net", 0)
    assert (e.datasets, e.labeled) == (("fake_a",), {"fake_a": 3})
    assert e.params == {"decay": 0.99, "weight": 1.0, "kind": "soft", "widths": [1, 2]}
    assert e.backbone_params == {"width": 8, "norm": "instance", "rate": 0.5}
    assert (e.protocol.name, e.protocol.steps, e.modified, e.precision) == (
        "small",
        600,
        (),
        "fp32",
    )
    assert resolved.sources.keys() == resolved.values.keys()
    assert {
        key: resolved.sources[key]
        for key in (
            "steps",
            "optim.lr",
            "optim.momentum",
            "decay",
            "backbone",
            "seed",
            "backbone.width",
            "backbone.norm",
            "backbone.rate",
            "protocol",
            "labeled.fake_a",
        )
    } == {
        "steps": f"{protocol}:2",
        "optim.lr": f"{protocol}:4",
        "optim.momentum": "default",
        "decay": "method fake_solo",
        "backbone": f"{protocol}:6",
        "seed": "default",
        "backbone.width": f"{protocol}:6",
        "backbone.norm": "method fake_solo",
        "backbone.rate": "default",
        "protocol": "data set fake_a",
        "labeled.fake_a": "data set fake_a",
    }


# Each source, lowest first: its name, how it speaks, and the value then in force.
STEPS = [
    ("protocol", {}, 600),
    ("suite", {"suite": {"steps": 11}}, 11),
    ("--steps", {"steps": 12}, 12),
    ("-o", {"overrides": ["steps=13"]}, 13),
]


@pytest.mark.parametrize(
    ("low", "high"), list(itertools.combinations(STEPS, 2)), ids=lambda s: s[0]
)
def test_a_protocol_key_follows_precedence(low, high):
    resolved = resolve("fake_solo", dataset="fake_a", **low[1], **high[1])
    assert resolved.experiments[0].protocol.steps == resolved.values["steps"] == high[2]
    assert resolved.sources["steps"] == high[0]
    assert resolved.experiments[0].modified == ("steps",)


NORMS = [
    ("default", "backbone: {name: fake_net}", "fake_joint", {}, "batch"),
    (
        "PROTOCOL:6",
        "backbone: {name: fake_net, params: {norm: batch, rate: 0.25}}",
        "fake_joint",
        {},
        "batch",
    ),
    ("method fake_solo", "", "fake_solo", {}, "instance"),
    ("suite", "", "", {"suite": {"backbone": {"norm": "batch"}}}, "batch"),
    ("-o", "", "", {"overrides": ["backbone.norm=instance"]}, "instance"),
]


@pytest.mark.parametrize(
    ("low", "high"), list(itertools.combinations(NORMS, 2)), ids=lambda s: s[0]
)
def test_a_backbone_key_follows_precedence(low, high, tmp_path):
    text = high[1] or low[1] or NORMS[0][1]
    file = tmp_path / "small.yaml"
    file.write_text(PROTOCOL.replace("backbone: {name: fake_net, params: {width: 8}}", text))
    method = "fake_solo" if "fake_solo" in (low[2], high[2]) else "fake_joint"
    resolved = resolve(method, dataset="fake_a", protocol=file, **low[3], **high[3])
    assert resolved.experiments[0].backbone_params["norm"] == high[4]
    assert resolved.sources["backbone.norm"] == high[0].replace("PROTOCOL", str(file))


DECAYS = [
    ("method fake_solo", {}, 0.99),
    ("suite.yaml:14", {"suite": {"decay": 0.1}}, 0.1),
    ("-o", {"overrides": ["decay=0.2"]}, 0.2),
]


@pytest.mark.parametrize(
    ("low", "high"), list(itertools.combinations(DECAYS, 2)), ids=lambda s: s[0]
)
def test_a_method_key_follows_precedence(low, high):
    resolved = resolve(
        "fake_solo", dataset="fake_a", suite_where={"decay": "suite.yaml:14"}, **low[1], **high[1]
    )
    assert (
        resolved.experiments[0].params["decay"] == high[2] and resolved.sources["decay"] == high[0]
    )
    assert (
        resolved.experiments[0].modified == ()
    )  # a method's own parameters are no part of the protocol


def test_labeled_counts_follow_precedence(protocol):
    assert solo(dataset="fake_b").labeled == {"fake_b": 7}  # the protocol's
    assert solo(dataset="fake_a").labeled == {"fake_a": 3}  # the data set's
    assert solo(dataset="fake_a", labeled=4).labeled == {"fake_a": 4}
    assert resolve("fake_solo", dataset="fake_b").sources["labeled.fake_b"] == "protocol small"
    assert (
        resolve("fake_solo", dataset="fake_b", labeled="4").sources["labeled.fake_b"] == "--labeled"
    )


def test_no_number_of_labeled_cases_at_all(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(PROTOCOL.replace("labeled: [7]", ""))
    with pytest.raises(UsageError, match="no default number"):
        solo(dataset="fake_b", protocol=file)


def test_the_protocol_is_the_data_set_s_unless_named(protocol):
    assert solo(dataset="fake_la", backbone="fake_net", labeled=1).protocol.name == "la"
    resolved = resolve("fake_solo", dataset="fake_la", protocol=protocol)
    assert (
        resolved.experiments[0].protocol.name == "small"
        and resolved.sources["protocol"] == "--protocol"
    )


def test_another_backbone_does_not_take_the_protocol_s_parameters():
    resolved = resolve("fake_solo", dataset="fake_a", backbone="fake-other")
    assert resolved.experiments[0].backbone == "fake_other"
    assert resolved.experiments[0].backbone_params == {"width": 16, "norm": "batch", "rate": 0.5}
    assert resolved.sources["backbone"] == "--backbone" and resolved.experiments[0].modified == ()


def test_what_differs_from_the_protocol_is_named():
    e = solo(
        "optim.lr=0.1",
        "patch=16x16x16",
        "crop.pad=3",
        "backbone.width=4",
        "inference.batch=9",
        "decay=0.5",
        precision="bf16",
    )
    assert e.modified == ("patch", "optim.lr", "precision", "backbone.width")
    assert (e.precision, e.protocol.precision, e.protocol.patch) == ("bf16", "bf16", (16, 16, 16))
    assert solo("steps=600").modified == ()  # the same value is no change


def test_milestones_keep_the_protocol_s_length():
    optim = solo(steps=60).protocol.optim
    assert (
        optim.reference == 600
        and optim.lr_at(29, 60) == 0.02
        and optim.lr_at(30, 60) == pytest.approx(0.002)
    )


def test_lists_and_floats_take_their_declared_types():
    e = solo("widths=4,", "weight=2", "optim.betas=0.5,0.9")
    assert (
        e.params["widths"] == [4]
        and repr(e.params["weight"]) == "2.0"
        and e.protocol.optim.betas == (0.5, 0.9)
    )
    assert solo(dataset=["fake_a"]).datasets == ("fake_a",)


WRONG = [
    (
        "decai=1",
        r"unknown parameter 'decai' of method 'fake_solo'. "
        r"Did you mean 'decay' \(float in \[0, 1\), default",
    ),
    ("lr=0.1", r"Did you mean 'optim.lr' \(float > 0, default 0.01\)"),
    ("pathc=8,8,8", r"Did you mean 'patch' \(list of int\)"),
    ("backbone.witdh=8", r"Did you mean 'backbone.width' \(int ≥ 1, default 16\)"),
    ("zzzzzz=1", r"unknown parameter 'zzzzzz' of method 'fake_solo'. \(-o\)"),
    ("optim.lr=abc", r"optim.lr: expected float > 0, got 'abc' \(-o\)"),
    ("optim.lr=0", r"optim.lr: expected float > 0, got 0 \(-o\)"),
    ("decay=1", r"decay: expected float in \[0, 1\), got 1 \(-o\)"),
    ("decay=05", r"got '05'; a number has no leading zero"),
    ("decay=true", r"decay: expected float in \[0, 1\), got True"),
    ("decay=.nan", r"not a finite number"),
    ("kind=firm", r"kind: expected one of soft, hard, got 'firm' \(-o\)"),
    ("steps=010", r"steps: expected int .*, got '010'; a number has no leading zero"),
    ("steps=1.5", r"steps: expected int"),
    ("crop.last_offset=no", r"crop.last_offset: expected true or false, got 'no'"),
    ("backbone.width=0", r"backbone.width: expected int ≥ 1, got 0 \(-o\)"),
    ("inference.stride=64,64,64", r"inference.stride: expected 3 numbers .* \(-o\)"),
    ("patch=20x32x32", r"the patch does not fit backbone 'fake_net'"),
    ("patch=32x32", r"inference.stride: expected 2 numbers"),
    ("decay", r"expected key=value, got 'decay'"),
    ("=3", r"expected key=value"),
    ("seed=3", r"'seed' is no parameter"),
    ("labeled=3", r"'labeled' is no parameter"),
    ("name=x", r"unknown parameter 'name'"),
    ("version=2", r"unknown parameter 'version'"),
]


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_wrong_overrides(override, message):
    with pytest.raises(UsageError, match=message) as caught:
        solo(override)
    assert caught.value.code == 2


def test_a_key_twice_is_an_error():
    with pytest.raises(UsageError, match=r"'decay' is given twice \(-o\)"):
        solo("decay=0.5", "decay=0.5")


def test_errors_of_a_suite_name_its_line():
    where = {"optim": "suite.yaml:9", "decai": "suite.yaml:10"}
    with pytest.raises(UsageError, match=r"optim.lr: expected float > 0, got 'x' \(suite.yaml:9\)"):
        solo(suite={"optim": {"lr": "x"}}, suite_where=where)
    with pytest.raises(UsageError, match=r"unknown parameter 'decai'.*\(suite.yaml:10\)"):
        solo(suite={"decai": 1}, suite_where=where)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_refused_from_python_too(value):
    with pytest.raises(UsageError, match="decay: expected float"):
        resolve("fake_solo", dataset="fake_a", overrides={"decay": value})


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "1", True])
def test_a_seed_outside_its_range(seed):
    with pytest.raises(
        UsageError, match=r"seed: expected int in \[0, 4294967295\], got .* \(--seed\)"
    ):
        solo(seed=seed)


def test_the_ends_of_the_seed_s_range():
    assert [solo(seed=seed).seed for seed in (0, 2**32 - 1)] == [0, 2**32 - 1]


@pytest.mark.parametrize(
    ("asked", "size", "count"),
    [
        ("5%", 80, 4),
        ("10%", 80, 8),
        ("20%", 80, 16),
        ("10%", 62, 6),
        ("20%", 62, 12),
        ("10%", 30, 3),
        ("20%", 30, 6),
        ("10%", 50, 5),
        ("20%", 50, 10),
        ("5%", 70, 3),
        ("10%", 70, 7),
        ("20%", 70, 14),  # the counts of the literature
        ("10%", 25, 2),
        ("2.5%", 100, 2),
        ("1%", 20, 1),
        ("100%", 9, 9),
        ("8", 8, 8),
        (1, 9, 1),
        ("0.1%", 50, 1),
        ("12.5%", 4, 1),
        ("33.3333333333%", 3, 1),
        ("66.6666666667%", 3, 2),
        ("7%", 100, 7),
        ("29%", 100, 29),
    ],
)
def test_labeled_percent_is_rounded_down(asked, size, count):
    assert solo(labeled=asked, train_sizes={"fake_a": size}).labeled == {"fake_a": count}
    assert solo(labeled=asked, train_sizes=lambda name: size).labeled == {"fake_a": count}


@pytest.mark.parametrize("asked", ["0", 0, -1, "x", "0%", "101%", "1.5", "%", "1e1", True, "-5%"])
def test_wrong_labeled_counts(asked):
    with pytest.raises(
        UsageError, match=r"labeled: expected a number ≥ 1, a percentage .* \(--labeled\)"
    ):
        solo(labeled=asked)


def test_more_labeled_than_training_cases():
    with pytest.raises(
        UsageError, match=r"labeled: 26 asked for, but 'fake_a' has 25 training cases \(--labeled\)"
    ):
        solo(labeled=26)  # without sizes the split's own list counts
    with pytest.raises(
        UsageError, match=r"labeled: 3 asked for, but 'fake_a' has 2 .* \(data set fake_a\)"
    ):
        solo(train_sizes={"fake_a": 2})


SIZES = [(26, 20), (26, 19), (26, 21), (27, 20), (27, 21)]  # training patients, with a label


@pytest.mark.parametrize(
    ("asked", "fold", "count"),
    [("10%", 3, 2), ("50%", 3, 13), ("50%", 0, 13), ("all", 0, 26), ("all", 3, 27), (26, 3, 26)],
)
def test_folds_have_equal_labeled_counts_except_for_all(asked, fold, count):
    found = solo(labeled=asked, fold=fold, fold_sizes=lambda name: SIZES)
    assert found.labeled == {"fake_a": count} and found.fold == fold


def test_a_count_that_the_smallest_fold_does_not_have_is_refused():
    with pytest.raises(UsageError, match="labeled: 27 asked for, but 'fake_a' has 26"):
        solo(labeled=27, fold=3, fold_sizes=lambda name: SIZES)


def test_a_published_test_list_is_not_cross_validated():
    with pytest.raises(UsageError, match="'acdc' has a published test list") as caught:
        resolve("supervised", dataset="acdc", fold=0)
    assert "--fold" in caught.value.details["fix"]
    assert solo(fold=None).fold is None


def test_fold_is_set_with_its_flag():
    with pytest.raises(UsageError, match="'fold' is no parameter"):
        solo("fold=1")


def test_several_data_sets_give_one_experiment_each_or_one_joint():
    single = resolve("fake_solo", dataset="fake_a,fake_b", labeled="20%")
    assert [e.datasets for e in single.experiments] == [("fake_a",), ("fake_b",)]
    assert [e.labeled for e in single.experiments] == [{"fake_a": 5}, {"fake_b": 5}]
    (joint,) = resolve("fake_joint", dataset=["fake_b", "fake-a"], labeled="20%").experiments
    assert joint.datasets == ("fake_b", "fake_a") and joint.labeled == {"fake_b": 5, "fake_a": 5}


def test_a_group_stands_for_its_members_and_chooses_for_them():
    (e,) = resolve("fake_joint", dataset="fake_many").experiments
    assert e.datasets == ("fake_a", "fake_b") and e.labeled == {"fake_a": 5, "fake_b": 5}


def test_data_sets_that_cannot_go_together(protocol):
    with pytest.raises(UsageError, match="different protocols") as caught:
        resolve("fake_solo", dataset="fake_a,fake_la")
    assert "--protocol" in caught.value.details["fix"]
    assert len(resolve("fake_solo", dataset="fake_a,fake_la", protocol=protocol).experiments) == 2
    with pytest.raises(UsageError, match="'fake_a' is named twice"):
        resolve("fake_joint", dataset="fake_many,fake_a")
    with pytest.raises(UsageError, match="no data set"):
        resolve("fake_joint", dataset=",")


def test_a_protocol_made_for_data_sets_together_is_theirs(tmp_path, monkeypatch, protocol):
    folder = tmp_path / "benchmarks" / "protocols"
    folder.mkdir(parents=True)
    text = PROTOCOL.replace("name: small", "name: both")
    (folder / "both.yaml").write_text(
        text + "datasets: [fake_a, fake_la]\ndownsample: {fake_la: [2, 2, 4]}\n"
    )
    monkeypatch.setattr("segbench.__path__", [*segbench.__path__, str(tmp_path)])
    resolved = resolve("fake_solo", dataset="fake_la,fake_a")
    assert [e.protocol.name for e in resolved.experiments] == ["both", "both"]
    assert (
        resolved.sources["protocol"] == "data sets fake_la, fake_a"
        and not resolved.experiments[0].modified
    )
    both = resolved.experiments[0].protocol
    assert (both.factors("fake_la", 3), both.factors("fake_a", 3)) == ((2, 2, 4), (1, 1, 1))
    halved = resolve("fake_solo", dataset="fake_la,fake_a", overrides=["downsample=2"]).experiments[
        0
    ]
    assert halved.modified == ("downsample",) and halved.protocol.factors("fake_a", 3) == (2, 2, 2)
    assert resolve("fake_solo", dataset="fake_a").experiments[0].protocol.name == "small"
    (folder / "more.yaml").write_text(
        text.replace("name: both", "name: more") + "datasets: [fake_a, fake_la]\n"
    )
    with pytest.raises(UsageError, match="different protocols") as caught:
        resolve("fake_solo", dataset="fake_la,fake_a")
    assert caught.value.details["expected"].startswith("one of both, more")
    for wrong, message in (("[2, 2]", "expected 3 factors"), ("[2, 2, 9]", "downsample")):
        file = tmp_path / "wrong.yaml"
        file.write_text(
            PROTOCOL.replace("name: small", "name: wrong") + f"downsample: {{fake_a: {wrong}}}\n"
        )
        with pytest.raises(UsageError, match=message):
            solo(protocol=file)


def test_what_does_not_fit_together_is_said_before_anything_is_loaded():
    with pytest.raises(UsageError, match="has 2 spatial axes, the patch 3"):
        solo(dataset="fake_flat")
    with pytest.raises(UsageError, match="needs a backbone with side_outputs"):
        resolve("fake_needy", dataset="fake_a")
    with pytest.raises(PluginError, match="parameter 'steps' of method 'fake_clash'"):
        resolve("fake_clash", dataset="fake_a")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"method": "fake_sol"}, r"unknown method 'fake_sol'. Did you mean 'fake_solo'"),
        ({"dataset": "fake_c"}, r"unknown dataset 'fake_c'"),
        ({"backbone": "fake_nte"}, r"Did you mean 'fake_net'"),
        ({"protocol": "al"}, r"unknown protocol 'al'"),
        ({"precision": "fp8"}, r"precision: expected .* \(--precision\)"),
        ({"steps": 0}, r"steps: expected int .*, got 0 \(--steps\)"),
        ({"draw": -1}, r"draw: expected int .* \(--draw\)"),
    ],
)
def test_unknown_names_and_wrong_flags(choice, message):
    with pytest.raises(UsageError, match=message):
        resolve(**{"method": "fake_solo", "dataset": "fake_a", **choice})


# Identity

PRINTS, SPLITS, SOURCES = (
    {"fake_a": "f1", "fake_b": "f2"},
    {"fake_a": "s1", "fake_b": "s2"},
    {"method": "m1"},
)


def identity(experiment: Experiment, prints=PRINTS, splits=SPLITS, sources=SOURCES) -> str:
    return run_id(science(experiment, prints, splits, sources))


def test_an_identity_is_sixteen_hexadecimal_digits():
    assert len(identity(solo())) == 16 and int(identity(solo()), 16) >= 0


@pytest.mark.parametrize(
    "same",
    [
        {"overrides": ["decay=0.99"]},
        {"overrides": ["weight=1"]},
        {"overrides": ["weight=1.0"]},
        {"overrides": ["optim.lr=2e-2"]},
        {"overrides": ["widths=[1,2]"]},
        {"overrides": ["backbone.rate=.5"]},
        {"seed": 0},
        {"steps": 600},
        {"labeled": 3},
        {"labeled": "12%"},
        {"backbone": "fake-net"},
        {"precision": "fp32"},
        {"overrides": ["inference.batch=1"]},
        {"suite": {"kind": "soft"}},
        {"overrides": {"kind": "soft", "decay": 0.99}},
    ],
    ids=str,
)
def test_saying_a_default_does_not_change_the_identity(same):
    assert identity(resolve("fake_solo", dataset="fake_a", **same).experiments[0]) == identity(
        solo()
    )


def test_whatever_changes_numbers_changes_the_identity():
    changes = [
        solo(),
        solo("decay=0.5"),
        solo("kind=hard"),
        solo("widths=2,1"),
        solo("backbone.width=9"),
        solo(seed=1),
        solo(steps=601),
        solo("optim.lr=0.1"),
        solo("inference.stride=8,8,8"),
        solo("crop.pad=1"),
        solo(labeled=4),
        solo(draw=1),
        solo(draw=2),
        solo(precision="bf16"),
        solo(backbone="fake_other"),
        solo("largest_component=true"),
        solo(dataset="fake_b", labeled=3),
        resolve("fake_joint", dataset="fake_a").experiments[0],
    ]
    ids = [identity(e) for e in changes]
    ids += [
        identity(solo(), prints={"fake_a": "other"}),
        identity(solo(), splits={"fake_a": "other"}),
        identity(solo(), sources={"method": "m2"}),
        identity(solo(), sources={"method": "m1", "backbone": "b"}),
    ]
    assert len(set(ids)) == len(ids)


def test_the_order_of_data_sets_matters_and_that_of_keys_does_not():
    one, other = (
        resolve("fake_joint", dataset=names, labeled=3).experiments[0]
        for names in ("fake_a,fake_b", "fake_b,fake_a")
    )
    assert identity(one) != identity(other)
    plain = science(solo(), PRINTS, SPLITS, {"a": "1", "b": "2"})
    assert run_id(dict(reversed(plain.items()))) == run_id(plain)
    assert run_id(science(solo(), PRINTS, SPLITS, {"b": "2", "a": "1"})) == run_id(plain)


def test_titles_and_machines_are_no_part_of_it(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(PROTOCOL + "title: another title\n")
    assert identity(solo(protocol=file)) == identity(solo())
    text = json.dumps(science(solo(), PRINTS, SPLITS, SOURCES))
    assert not {"root", "workers", "device", "threads", str(tmp_path)} & set(text.split('"'))


def test_another_draw_is_another_run():
    (first,) = resolve("supervised", dataset="la", seed=1).experiments
    (other,) = resolve("supervised", dataset="la", seed=1, draw=2).experiments
    ids = []
    for experiment in (first, first.model_copy(update={"draw": 0}), other):
        names = experiment.datasets
        content = science(experiment, dict.fromkeys(names, "f"), dict.fromkeys(names, "s"), {})
        ids.append(run_id(content))
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_an_identity_refuses_nan_and_a_missing_fingerprint():
    with pytest.raises(ValueError, match="JSON"):
        run_id({"a": float("nan")})
    with pytest.raises(KeyError):
        science(solo(), {}, SPLITS, SOURCES)


def test_an_experiment_survives_its_json():
    e = solo("optim.lr=0.1", "widths=3,4")
    again = Experiment.model_validate_json(e.model_dump_json())
    assert again == e and identity(again) == identity(e)
