"""Every protocol that comes with segbench: complete, frozen, and fit for its backbone."""

import hashlib
import json
import statistics
from pathlib import Path

import pytest

from segbench import registry
from segbench.config import load_protocol, protocol_names
from segbench.config.protocol import SPEED_KEYS, Expected
from segbench.identity.run_id import LATER_KEYS
from segbench.results.published import published
from segbench.storage import json_bytes

ROOT = Path(__file__).resolve().parents[2]

# A changed protocol is another protocol: raise its version and enter the new digest. Old results
# keep their version.
FROZEN = {
    ("acdc", 1): "9c670478459f764b",
    ("acdc-3d", 1): "c75a386af0b94e37",
    ("acdc_admt", 2): "2469b26d0333715f",
    ("acdc_bcp", 1): "75402060c6702363",
    ("acdc_crossmatch", 1): "c1a57ab4398be526",
    ("acdc_mcnet", 1): "cc99f4a84ca072ea",
    ("acdc_sdcl", 1): "d6b9e1372b632f6c",
    ("acdc_ssnet", 1): "9fce0048df551642",
    ("acdc_unimatch", 2): "e492dbf557ea86fb",
    ("acdc_urpc", 1): "30fa7d30274d804e",
    ("acdc-mini", 2): "a00100086ac0158a",
    ("amos", 1): "05b7d20c04e4dbc7",
    ("brats2019", 1): "2bf26dcb043e632b",
    ("brats2019_cps", 1): "46f59b241a7489ab",
    ("brats2019_meanteacher", 1): "e18c0092f4518bcd",
    ("brats2019_urpc", 1): "b10390a70ba4bfed",
    ("default", 1): "93b03378a3672aca",
    ("heart-mini", 4): "a243b345819f9309",
    ("la", 1): "eade8a423abcff34",
    ("la-mini", 2): "606d69797a4524e9",
    ("la_admt", 2): "58daaeab5305c523",
    ("la_bcp", 1): "42f258ab5aa85a27",
    ("la_crossmatch", 1): "2048581d40c63efc",
    ("la_dtc", 1): "2ee612789149f6b5",
    ("la_mcf", 1): "071ab6ccead540e7",
    ("la_mcnet", 1): "2ab16b21e55b5b15",
    ("la_sdcl", 2): "cf438e328b1c69dd",
    ("la_ssnet", 1): "2089c47104eec3f4",
    ("msd", 1): "8b6a273518297d91",
    ("msd_thorax", 1): "71e29dfd4c3722bb",
    ("pancreas_ct", 1): "19219ba636d50576",
    ("pancreas_ct_admt", 2): "3ca5ed14594d1a3b",
    ("pancreas_ct_bcp", 1): "9ea0c2478457df62",
    ("pancreas_ct_mcnet", 2): "5f5bdac4fdfc8234",
    ("pancreas_ct_sdcl", 1): "c15eaa346c311d9a",
    ("phantom", 2): "bb4934a8a0c8adac",
    ("phantom", 3): "2b3eb994a5968ccf",
    ("phantom2d", 1): "eeebcf70c0a25b6d",
    ("phantom2d", 2): "42da5c1d59ce6cef",
    ("versemi", 1): "edadf49e0a52734f",
    ("versemi_published", 1): "02aa4985df32fd90",
}


def content_digest(protocol):
    described = {"title", "datasets", "expected", "published", "planned"}
    content = protocol.model_dump(mode="json", exclude=described)
    for key, default in LATER_KEYS.items():
        outer, inner = key.split(".")
        if content[outer][inner] == default:
            del content[outer][inner]
    for key in SPEED_KEYS:
        outer, inner = key.split(".")
        del content[outer][inner]
    return hashlib.sha256(json_bytes(content)).hexdigest()[:16]


@pytest.mark.parametrize("name", protocol_names())
def test_frozen(name):
    protocol = load_protocol(name)
    assert content_digest(protocol) == FROZEN[name, protocol.version], (
        "a value changed: raise the version"
    )


def test_phantom2d_differs_from_its_first_version_in_parameters_of_methods_only():
    """So the stored runs of version 1 are runs of version 2; pages name rows by version 2."""
    now = load_protocol("phantom2d")
    authors = {"unimatch": {"dice": "foreground"}, "ad_mt": {"dice": "foreground", "copies": 20}}
    methods = now.methods | authors
    del methods["crossmatch"], methods["uncl"]
    first = now.model_copy(update={"version": 1, "methods": methods})
    assert content_digest(first) == FROZEN["phantom2d", 1]


@pytest.mark.parametrize("name", protocol_names())
def test_complete(name):
    protocol = load_protocol(name)
    assert protocol.name == name and protocol.title and protocol.labeled
    assert protocol.selection == "last", "test labels never choose a checkpoint"
    backbone = registry.get("backbone", protocol.backbone.name).cls
    multiple = backbone.multiple(backbone.Params(**protocol.backbone.params), len(protocol.patch))
    assert not any(p % m for p, m in zip(protocol.patch, multiple, strict=True))


def test_phantom2d_expects_what_its_development_runs_reached():
    """The numbers are those of the runs that were trained with the protocol's own settings."""
    file = ROOT / "benchmarks" / "results" / "phantom2d-development.json"
    runs = [run for run in json.loads(file.read_text())["runs"] if not run["settings"]]

    def mean_dice(labeled):
        dice = []
        for run in runs:
            if run["method"] == "supervised" and run["labeled"] == labeled:
                dice.append(run["dice_at_quarters"][-1])
        return round(statistics.fmean(dice), 1)

    gains = []
    for run in runs:
        if run["labeled"] == 60:
            gains.append(run["dice_at_quarters"][3] - run["dice_at_quarters"][2])
    few_labels = [run["train_cpu_seconds"] for run in runs if run["labeled"] == 4]
    expected = load_protocol("phantom2d").expected
    assert expected.oracle == mean_dice(60)
    assert expected.last_quarter == pytest.approx(statistics.fmean(gains), abs=0.051)
    assert expected.supervised == mean_dice(4)
    assert expected.seconds == round(statistics.fmean(few_labels), 1)


def mean_seconds(suite, *labeled):
    """Return the processor seconds of a stored suite's runs with so many labels."""
    study = json.loads((ROOT / f"benchmarks/results/{suite}.json").read_text())
    seconds = []
    for run in study["runs"]:
        if run["labeled"] in labeled and run["unlabeled"] == "all":
            seconds.append(run["cost"]["cpu_seconds"])
    return round(statistics.fmean(seconds), 1)


def test_la_mini_expects_what_its_development_runs_reached():
    """The numbers are those of the runs that were trained with the protocol's own settings."""
    protocol = load_protocol("la-mini")
    (oracle,) = development_curves(protocol, "la", 64)
    (few_labels,) = development_curves(protocol, "la", 8)
    assert protocol.expected.oracle == oracle[-1]
    assert protocol.expected.last_quarter == pytest.approx(last_quarter([oracle]), abs=0.051)
    assert protocol.expected.supervised == few_labels[-1]
    assert protocol.expected.seconds == mean_seconds("la-mini", {"la": 8})


def development_curves(protocol, dataset, labeled):
    """Return Dice after each tenth of the steps, of supervised runs with a protocol's settings."""
    file = ROOT / "benchmarks" / "results" / "mini-development.json"
    factors = protocol.downsample
    if not isinstance(factors, int):
        factors = list(protocol.factors(dataset, len(protocol.patch)))
    wanted = {
        "method": "supervised",
        "dataset": dataset,
        "labeled": labeled,
        "steps": protocol.steps,
        "patch": list(protocol.patch),
        "downsample": factors,
        "optimizer": protocol.optim.name,
        "lr": protocol.optim.lr,
    }
    curves = []
    for run in json.loads(file.read_text())["runs"]:
        same = all(run[key] == value for key, value in wanted.items())
        foreground = run.get("crop.foreground", protocol.crop.foreground)
        if same and foreground == protocol.crop.foreground:
            ends = run.get("dice", {}).values()
            curves.append(run.get("dice_at_tenths") or [statistics.fmean(ends)])
    return curves


def end(curves):
    """Return the mean Dice at the end."""
    return statistics.fmean(curve[-1] for curve in curves)


def last_quarters(curves):
    """Return the smallest and the largest gain in the last quarter, as a protocol names them."""
    gains = sorted(last_quarter([curve]) for curve in curves)
    return f"gained {gains[0]:+.1f} to {gains[-1]:+.1f} in the last quarter"


def last_quarter(curves):
    """Return what the last quarter of the steps adds; Dice after 75 % is that of two tenths."""
    return end(curves) - statistics.fmean((curve[6] + curve[7]) / 2 for curve in curves)


def test_acdc_mini_expects_what_its_development_runs_reached():
    protocol = load_protocol("acdc-mini")
    oracle = development_curves(protocol, "acdc", 20)
    (few_labels,) = development_curves(protocol, "acdc", 7)
    assert len(oracle) == 3
    assert protocol.expected.oracle == pytest.approx(end(oracle), abs=0.051)
    assert protocol.expected.last_quarter == pytest.approx(last_quarter(oracle), abs=0.051)
    assert protocol.expected.supervised == few_labels[-1]
    assert protocol.expected.seconds == mean_seconds("acdc-mini", {"acdc": 7})
    assert f"three runs {last_quarters(oracle)}" in protocol.expected.data


def test_heart_mini_expects_what_its_development_runs_reached():
    """Dice are means of both data sets, each alone; of the last quarters, the larger one counts."""
    protocol = load_protocol("heart-mini")
    oracles = [
        development_curves(protocol, "la", 64),
        development_curves(protocol, "acdc", 20),
    ]
    few_labels = [
        development_curves(protocol, "la", 8),
        development_curves(protocol, "acdc", 8),
    ]
    assert protocol.expected.oracle == pytest.approx(statistics.fmean(map(end, oracles)), abs=0.051)
    assert protocol.expected.last_quarter == pytest.approx(
        max(map(last_quarter, oracles), key=abs), abs=0.005
    )
    assert protocol.expected.supervised == pytest.approx(
        statistics.fmean(map(end, few_labels)), abs=0.051
    )
    assert protocol.expected.seconds == mean_seconds("heart-mini", {"la": 8}, {"acdc": 8})


PHANTOM_FAMILY = "phantom_devl_"  # development images like those of version 2 of the data sets


def phantom_curves(protocol, labeled):
    """Return Dice after each tenth of the steps by task, of runs with a protocol's settings."""
    wanted = {
        "labeled": labeled,
        "steps": protocol.steps,
        "patch": list(protocol.patch),
        "downsample": list(protocol.downsample),
        "lr": protocol.optim.lr,
        "foreground": protocol.crop.foreground,
    }
    file = ROOT / "benchmarks" / "results" / "phantom-development.json"
    curves = {}
    for run in json.loads(file.read_text())["runs"]:
        same = all(run[key] == value for key, value in wanted.items())
        if same and run["dataset"].startswith(PHANTOM_FAMILY):
            task = run["dataset"].removeprefix(PHANTOM_FAMILY)
            curves.setdefault(task, []).append(run["dice_at_tenths"])
    return curves


def test_phantom_expects_what_its_development_runs_reached():
    """Dice are means over the four tasks; of the last quarters, the one furthest from 0 counts."""
    protocol = load_protocol("phantom")
    curves = {54: phantom_curves(protocol, 54), 4: phantom_curves(protocol, 4)}
    oracle = {task: end(found) for task, found in curves[54].items()}
    few_labels = {task: end(found) for task, found in curves[4].items()}
    quarters = {task: last_quarter(found) for task, found in curves[54].items()}
    worst = max(quarters.values(), key=abs)
    assert protocol.expected.oracle == pytest.approx(statistics.fmean(oracle.values()), abs=0.051)
    assert protocol.expected.supervised == pytest.approx(
        statistics.fmean(few_labels.values()), abs=0.051
    )
    assert protocol.expected.last_quarter == pytest.approx(worst, abs=0.005)
    assert protocol.expected.seconds == mean_seconds("lesion", {"phantom_ct_lesion": 4})
    said = " ".join(protocol.expected.data.split())
    assert len(quarters) == 4
    for task, gain in quarters.items():
        assert len(curves[54][task]) == len(curves[4][task]) == 3
        assert f"{gain:+.1f} ({task})" in said
        assert oracle[task] > few_labels[task] + 5
    every_run = [curve for found in curves[54].values() for curve in found]
    assert f"single runs {last_quarters(every_run)}" in said
    assert max(curve[4] - curve[-1] for curve in every_run) < 3


@pytest.mark.parametrize(
    ("name", "dataset", "labeled"), [("la-mini", "la", 8), ("acdc-mini", "acdc", 7)]
)
def test_no_stored_run_falls_after_half_of_the_steps(name, dataset, labeled):
    """On held-out training cases, one run of each method; on phantoms, test_convergence trains."""
    protocol = load_protocol(name)
    file = ROOT / "benchmarks" / "results" / "mini-development.json"
    wanted = (dataset, labeled, protocol.steps, protocol.backbone.name)
    methods = []
    changes = []
    for run in json.loads(file.read_text())["runs"]:
        settings = (run["dataset"], run["labeled"], run["steps"], run["backbone"])
        if settings == wanted and "dice_at_tenths" in run:
            methods.append(run["method"])
            changes.append(run["dice_at_tenths"][-1] - run["dice_at_tenths"][4])
    assert sorted(methods) == sorted(registry.names("method"))
    assert min(changes) > -3.05  # the curves are stored to a tenth


def test_with_all_labels_training_has_converged():
    """Where it was measured, the last quarter of a training changes Dice by less than one."""
    measured = {}
    for name in protocol_names():
        expected = load_protocol(name).expected
        if expected.oracle is not None and not expected.published:
            measured[name] = abs(expected.last_quarter) < 1
            assert expected.oracle > expected.supervised
    names = ["acdc-mini", "heart-mini", "la-mini", "phantom", "phantom2d"]
    assert measured == dict.fromkeys(names, True)


# How a protocol names the number of published values; it is silent about none.
NUMBER_WORDS = {0: "", 1: "one", 3: "three", 4: "four"}


@pytest.mark.parametrize(
    ("name", "few", "every"), [("la", 8, 80), ("acdc", 7, 70), ("pancreas_ct", 12, 62)]
)
def test_a_protocol_that_was_not_run_names_published_numbers(name, few, every):
    """They are the middle of all published ones of supervised training on the same test cases."""
    expected = load_protocol(name).expected
    found = {}
    for labeled in (few, every):
        rows = [row for row in published(name, labeled) if row["ours"] == "supervised"]
        dice = [row["dice"] for row in rows]
        found[labeled] = round(statistics.median(dice), 1) if dice else None
        assert NUMBER_WORDS[len(dice)] in expected.data
    assert expected.published
    assert expected.supervised == found[few]
    assert expected.oracle == found[every]
    assert (expected.last_quarter, expected.seconds) == (None, None)
    assert expected.summary().startswith("Not measured here. Published for supervised training: ")


def recipes_of_authors():
    """Return the protocols with a recipe of its authors, and the protocol whose cases they have."""
    found = []
    for name in protocol_names():
        published_for = load_protocol(name).published
        base = next(iter(published_for), None)
        if base in ("la", "acdc", "pancreas_ct") and name != base:
            found.append((name, base))
    return found


@pytest.mark.parametrize(("name", "base"), recipes_of_authors())
def test_a_recipe_of_authors_names_the_published_numbers_of_its_cases(name, base):
    expected = load_protocol(name).expected
    usual = load_protocol(base).expected
    values = ("oracle", "supervised", "published", "seconds", "last_quarter")
    assert [getattr(expected, key) for key in values] == [getattr(usual, key) for key in values]
    assert expected.data.replace(f" with the recipe of protocol {base}", "") == usual.data


def test_a_protocol_says_how_far_from_converged_it_is():
    said = load_protocol("phantom2d").expected.summary()
    assert "in the last quarter (converged)" in said
    falling = Expected(oracle=60.0, last_quarter=-2.0)
    assert "-2.0 of it in the last quarter (NOT converged)" in falling.summary()
    expected = Expected(oracle=60.0, last_quarter=4.0)
    assert expected.summary() == (
        "The oracle reached 60.0 % Dice, +4.0 of it in the last quarter (NOT converged)."
    )
    near_the_limit = Expected(oracle=60.0, last_quarter=0.98, data="two runs")
    assert near_the_limit.summary() == (
        "The oracle reached 60.0 % Dice, +0.98 of it in the last quarter (converged). "
        "Measured on two runs."
    )
    assert Expected().summary().startswith("Not known")
    assert Expected(published=True).summary().startswith("Not known")
    assert Expected(published=True, oracle=91.0).summary() == (
        "Not measured here. Published for supervised training: 91.0 % with all labels."
    )
