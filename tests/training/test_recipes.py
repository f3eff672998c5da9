"""The recipes of authors as protocols: rate, ramp and batches at every step, from their formulas.

The expected sequences are computed here from what the authors' scripts do, not from the engine.
"""

import math

import pytest
import torch

from segbench import registry
from segbench.cli.options import ScienceOptions
from segbench.config import load_protocol, protocol_names, resolve
from segbench.config.protocol import published_recipes
from segbench.conformance.methods import Drill, Trial
from segbench.contracts.method import Clock, Setting, Source
from segbench.contracts.optim import Optim
from segbench.errors import UsageError
from segbench.identity.run_id import protocol_content
from segbench.training.announce import schedule_text, warn_of_single_items
from segbench.training.plan import clock, stage_of, stages

LA = Setting((Source("la", ("left_atrium",)),), 1, (112, 112, 80))
PANCREAS = Setting((Source("pancreas_ct_mcnet", ("pancreas",)),), 1, (96, 96, 96))
PANCREAS_A = Setting((Source("pancreas_ct", ("pancreas",)),), 1, (96, 96, 96))
ACDC = Setting(
    (Source("acdc", ("right_ventricle", "myocardium", "left_ventricle")),), 1, (256, 256)
)
BRATS = Setting((Source("brats2019", ("whole tumor",)),), 1, (96, 96, 96))
FOUR = tuple(Source(name, ("target",)) for name in ("pancreas_ct", "la", "msd_spleen", "msd_lung"))


def setting_of(protocol):
    """Return the data set of a recipe for one data set."""
    ((datasets, _),) = load_protocol(protocol).published.items()
    settings = (LA, PANCREAS, PANCREAS_A, ACDC, BRATS)
    return {setting.sources[0].name: setting for setting in settings}[datasets]


def made(method, protocol, setting=LA):
    """Return a method without networks and its plan, as ``training_plan`` makes it."""
    datasets = ",".join(source.name for source in setting.sources)
    sizes = {
        "acdc": 70,
        "brats2019": 250,
        "pancreas_ct": 62,
        "pancreas_ct_mcnet": 61,
        "la": 80,
        "msd_spleen": 30,
        "msd_lung": 50,
    }
    (experiment,) = resolve(
        method, dataset=datasets, protocol=protocol, labeled=8, train_sizes=sizes
    ).experiments
    cls = registry.get("method", method).cls
    built = cls(cls.Params(**experiment.params), setting)
    batch = experiment.protocol.batch
    total = experiment.protocol.steps * len(setting.sources)
    plan = stages(built.phases(), total, batch.labeled, batch.unlabeled, batch.fill)
    return built, plan, experiment.protocol.optim


def rates(method, plan, default, player="network"):
    """Return a player's learning rate of each step as the engine sets it."""
    found = []
    for step in range(plan[-1].start + plan[-1].steps):
        stage = stage_of(plan, step)
        first = next(other for other in plan if other.start == stage.origin)
        spec = method.optimizer(player, default, first.phase)
        found.append(spec.lr_at(step - stage.origin, stage.span))
    return found


def compositions(plan):
    found = []
    for stage in plan:
        found += [(stage.labeled, stage.unlabeled)] * stage.steps
    return found


def stepped(steps, every=2500):
    """Return 0.01, divided by 10 whenever the number of completed steps is a multiple of 2500."""
    return [0.01 * 0.1 ** (step // every) for step in range(steps)]


def poly(rate, steps, length):
    """Return the rate times (1 - completed steps / length)^0.9."""
    return [rate * (1 - step / length) ** 0.9 for step in range(steps)]


def late(rate, steps):
    """Return the rates of code that sets the rate after each step with the number of that step."""
    rates = [rate]
    for step in range(steps - 1):
        rates.append(rate * (1 - step / steps) ** 0.9)
    return rates


# MCF divides by 10 after the steps 2500 and 5000 counted from 0, that is one step later.
MCF = [0.01, *stepped(5999)]
# AD-MT, UniMatch, CrossMatch (2-D) and URPC set the rate after each step with its number.
ADMT = late(0.01, 15000)

EXPECTED = {
    ("supervised", "la"): (stepped(6000), [(4, 0)] * 6000),
    ("mean_teacher", "la"): (stepped(6000), [(2, 2)] * 6000),
    ("sassnet", "la"): (stepped(6000), [(2, 2)] * 6000),
    ("mc_net", "pancreas_ct_mcnet"): ([0.01] * 15000, [(2, 2)] * 15000),
    ("ad_mt", "pancreas_ct_admt"): (ADMT, [(2, 2)] * 15000),
    ("bcp", "pancreas_ct_bcp"): ([1e-3] * 6800, [(4, 0)] * 1800 + [(4, 4)] * 5000),
    ("sdcl", "pancreas_ct_sdcl"): ([1e-3] * 11055, [(4, 0)] * 3030 + [(4, 4)] * 8025),
    ("bcp", "acdc_bcp"): ([0.01] * 40000, [(12, 0)] * 10000 + [(12, 12)] * 30000),
    ("mc_net", "acdc_mcnet"): ([0.01] * 30000, [(12, 12)] * 30000),
    ("ss_net", "acdc_ssnet"): ([0.01] * 30000, [(12, 12)] * 30000),
    ("ad_mt", "acdc_admt"): (late(0.01, 30000), [(12, 12)] * 30000),
    ("unimatch", "acdc_unimatch"): (late(0.01, 29400), [(12, 12)] * 29400),
    ("crossmatch", "acdc_crossmatch"): (late(0.01, 29400), [(12, 12)] * 29400),
    ("sdcl", "acdc_sdcl"): ([1e-3] * 56500, [(24, 0)] * 11300 + [(24, 24)] * 45200),
    ("urpc", "brats2019_urpc"): (late(0.1, 30000), [(2, 2)] * 30000),
    ("urpc", "acdc_urpc"): (late(0.01, 30000), [(12, 12)] * 30000),
    ("mean_teacher", "brats2019_meanteacher"): (late(0.1, 30000), [(2, 2)] * 30000),
    ("cps", "brats2019_cps"): (poly(0.1, 30000, 30000), [(2, 2)] * 30000),
    ("mcf", "la_mcf"): (MCF, [(2, 2)] * 6000),
    ("ad_mt", "la_admt"): (ADMT, [(2, 2)] * 15000),
    ("sdcl", "la_sdcl"): ([1e-3] * 14200, [(4, 0)] * 3200 + [(4, 4)] * 11000),
    ("crossmatch", "la_crossmatch"): (poly(1e-3, 14001, 17000), [(2, 2)] * 14001),
    ("mc_net", "la_mcnet"): ([0.01] * 15000, [(2, 2)] * 15000),
    ("ss_net", "la_ssnet"): (stepped(15000), [(2, 2)] * 15000),
    ("dtc", "la_dtc"): (stepped(6000), [(2, 2)] * 6000),
    ("ua_mt", "la"): (stepped(6000), [(2, 2)] * 6000),
    ("bcp", "la_bcp"): (
        [0.01] * 2000 + stepped(15000),
        [(4, 0)] * 2000 + [(4, 4)] * 15000,
    ),
}


@pytest.mark.parametrize(("name", "protocol"), list(EXPECTED))
def test_rate_and_batches_at_every_step(name, protocol):
    expected_rates, expected_batches = EXPECTED[name, protocol]
    method, plan, default = made(name, protocol, setting_of(protocol))
    assert compositions(plan) == expected_batches
    assert rates(method, plan, default) == pytest.approx(expected_rates, rel=1e-12)


def test_every_published_recipe_is_tested():
    declared = set()
    for name in protocol_names():
        for methods in load_protocol(name).published.values():
            declared.update((method, name) for method in methods)
    assert declared - {("versemi", "versemi_published")} == set(EXPECTED)


def test_the_critic_of_sassnet_at_every_step():
    method, plan, default = made("sassnet", "la")
    assert method.players == ("network", "critic")
    assert set(rates(method, plan, default, "critic")) == {1e-4}
    adam = method.optimizer("critic", default, plan[0].phase)
    assert (adam.name, adam.betas, adam.weight_decay) == ("adam", (0.9, 0.99), 0)


def test_optimizers_of_the_recipes_with_adam():
    for name, protocol, algorithm, decay in (
        ("sdcl", "la_sdcl", "adam", 0),
        ("sdcl", "pancreas_ct_sdcl", "adam", 0),
        ("sdcl", "acdc_sdcl", "adam", 0),
        ("bcp", "pancreas_ct_bcp", "adam", 0),
        ("crossmatch", "la_crossmatch", "adamw", 1e-4),
    ):
        method, plan, default = made(name, protocol, setting_of(protocol))
        spec = method.optimizer("network", default, plan[-1].phase)
        assert (spec.name, spec.betas, spec.weight_decay) == (algorithm, (0.9, 0.999), decay)


def test_threshold_of_crossmatch_at_every_step():
    """The code computes it after each step with the number of that step, so it is one step late."""
    method, plan, _ = made("crossmatch", "la_crossmatch")
    for step in range(plan[-1].steps):
        found = method.threshold(clock(plan[0], step, 14001, 0, 0))
        ramp = math.exp(-5 * (1 - step / 17000) ** 2)
        assert found == pytest.approx((0.75 + 0.25 * ramp) * math.log(2), rel=1e-9)


def test_the_recipe_of_crossmatch_for_slices():
    """SGD with Nesterov momentum, and a constant threshold."""
    method, plan, default = made("crossmatch", "acdc_crossmatch", ACDC)
    spec = method.optimizer("network", default, plan[0].phase)
    assert (spec.name, spec.momentum, spec.weight_decay) == ("nesterov", 0.9, 1e-4)
    thresholds = {method.threshold(clock(plan[0], step, 29400, 0, 0)) for step in range(29400)}
    assert thresholds == {0.95}


def test_versemi_at_every_step():
    setting = Setting(FOUR, 1, (96, 96, 96))
    method, plan, default = made("versemi", "versemi_published", setting)
    assert compositions(plan) == [(8, 0)] * 27000 + [(8, 8)] * 22000
    assert set(rates(method, plan, default)) == {1e-3}
    adam = method.optimizer("network", default, plan[0].phase)
    assert (adam.name, adam.betas, adam.weight_decay) == ("adam", (0.5, 0.999), 0)


def authors_ramp(position, stairs=40):
    """The ramp of the authors' scripts: 40 stairs of 150 steps, other numbers for slices."""
    stair = min(position // 150, stairs)
    return math.exp(-5 * (1 - stair / stairs) ** 2)


@pytest.mark.parametrize(("first", "share", "total"), [(1, 0.4, 15000), (1, 1, 6000), (0, 1, 6000)])
def test_ramp_at_every_step(first, share, total):
    """MC-Net and SS-Net count steps from 1, UA-MT and DTC from 0."""
    for step in range(total):
        found = Clock(step, total).ramp(40, share=share, first=first)
        assert found == pytest.approx(authors_ramp(step + first), rel=1e-12)


# The number that the authors' scripts give to the first step; all other recipes have no ramp.
# MC-Net and SS-Net compute the ramp after the step was counted, the others before.
FIRST_OF_RAMP = {
    ("mean_teacher", "la"): 0,
    ("ua_mt", "la"): 0,
    ("sassnet", "la"): 0,
    ("dtc", "la_dtc"): 0,
    ("mcf", "la_mcf"): 0,
    ("ad_mt", "la_admt"): 0,
    ("mc_net", "la_mcnet"): 1,
    ("mc_net", "pancreas_ct_mcnet"): 1,
    ("ss_net", "la_ssnet"): 1,
    ("ad_mt", "pancreas_ct_admt"): 0,
    ("ad_mt", "acdc_admt"): 0,
    ("mc_net", "acdc_mcnet"): 1,
    ("ss_net", "acdc_ssnet"): 0,
    ("urpc", "brats2019_urpc"): 0,
    ("urpc", "acdc_urpc"): 0,
    ("mean_teacher", "brats2019_meanteacher"): 0,
    ("cps", "brats2019_cps"): 0,
}
# Stairs of the ramp, where they are not 40 (--consistency_rampup).
STAIRS = {
    "acdc_admt": 50,
    "acdc_mcnet": 200,
    "acdc_ssnet": 200,
    "acdc_urpc": 200,
    "brats2019_urpc": 400,
    "brats2019_meanteacher": 200,
    "brats2019_cps": 200,
}


@pytest.mark.parametrize(("name", "protocol"), list(EXPECTED))
def test_ramp_of_a_recipe_at_every_step(name, protocol, monkeypatch):
    """The loss asks for the ramp with arguments that give the authors' stairs of 150 steps."""
    method, plan, _ = made(name, protocol, setting_of(protocol))
    asked = []
    ramp = Clock.ramp

    def recorded(t, *args, **kwargs):
        if (args, kwargs) not in asked:
            asked.append((args, kwargs))
        return ramp(t, *args, **kwargs)

    monkeypatch.setattr(Clock, "ramp", recorded)
    Drill(Trial(name, settings=method.p.model_dump())).run()
    if (name, protocol) not in FIRST_OF_RAMP:
        assert asked == []
        return
    ((args, kwargs),) = asked
    total = plan[-1].start + plan[-1].steps
    for step in range(total):
        position = step + FIRST_OF_RAMP[name, protocol]
        expected = authors_ramp(position, STAIRS.get(protocol, 40))
        assert ramp(Clock(step, total), *args, **kwargs) == pytest.approx(expected, rel=1e-12)


def test_sum_of_rate_and_ramp_tells_the_recipes_apart():
    """The audit's numbers: 113.0 with MC-Net's own recipe, 2.70 in protocol la."""

    def weighted(protocol):
        method, plan, default = made("mc_net", protocol)
        total = plan[-1].steps
        share = method.p.ramp_share
        sums = 0.0
        for step, rate in enumerate(rates(method, plan, default)):
            sums += rate * clock(plan[0], step, total, 0, 0).ramp(40, share=share, first=1)
        return sums

    assert weighted("la_mcnet") == pytest.approx(113.0, abs=0.05)
    assert weighted("la") == pytest.approx(2.70, abs=0.005)


def test_places_of_unlabeled_images_are_filled_by_default():
    method, _, _ = made("bcp", "la_bcp")
    filled = stages(method.phases(), 17, 4, 4)
    empty = stages(method.phases(), 17, 4, 4, fill=False)
    assert [(stage.labeled, stage.unlabeled) for stage in filled] == [(8, 0), (4, 4)]
    assert [(stage.labeled, stage.unlabeled) for stage in empty] == [(4, 0), (4, 4)]
    assert load_protocol("phantom2d").batch.fill


def test_every_recipe_names_methods_that_it_fits():
    recipes = {}
    for name in protocol_names():
        for datasets, methods in load_protocol(name).published.items():
            for method in methods:
                assert (datasets, method) not in recipes, "two recipes for one method"
                recipes[datasets, method] = name
                registry.get("method", method)
    assert published_recipes("la")["bcp"] == "la_bcp"
    assert published_recipes("msd_lung,la,msd_spleen,pancreas_ct") == {
        "versemi": "versemi_published"
    }
    assert published_recipes("phantom2d_a") == {}


def test_scaled_and_absolute_milestones():
    scaled = Optim(schedule="step", milestones=(2500, 5000), reference=6000)
    absolute = scaled.model_copy(update={"scale_milestones": False})
    assert scaled.drops(15000) == [6250, 12500]
    assert absolute.drops(15000) == [2500, 5000]
    assert scaled.lr_at(6249, 15000) == 0.01
    assert scaled.lr_at(6250, 15000) == pytest.approx(0.001)
    assert absolute.lr_at(2499, 15000) == 0.01
    assert absolute.lr_at(2500, 15000) == pytest.approx(0.001)
    assert Optim(schedule="poly").drops(100) == []


def test_the_start_of_a_run_shows_where_the_rate_drops():
    def text(name, protocol):
        method, plan, default = made(name, protocol)
        return schedule_text(plan, method, default)

    assert text("bcp", "la_bcp") == (
        "pretrain (2,000 steps, batch 4 + 0): constant rate 0.01 · "
        "self_train (15,000 steps, batch 4 + 4): rate 0.01, divided by 10 after step "
        "4,500, 7,000, 9,500, 12,000, 14,500"
    )
    assert text("ua_mt", "la") == (
        "train (6,000 steps, batch 2 + 2): rate 0.01, divided by 10 after step 2,500, 5,000"
    )
    assert text("supervised", "phantom2d").endswith("rate 0.05, falling to 0")
    assert text("crossmatch", "la_crossmatch") == (
        "train (14,001 steps, batch 2 + 2): rate 0.001, falling to 0.00021"
    )


class Normalizing(torch.nn.Module):
    name = "normalizing"

    def __init__(self):
        super().__init__()
        self.maps = torch.nn.BatchNorm2d(3)
        self.rows = torch.nn.BatchNorm1d(3)


def test_a_pass_of_one_image_through_batch_normalization_is_pointed_out_once():
    network = Normalizing()
    warnings = []
    warn_of_single_items(network, warnings.append)
    network.maps(torch.randn(2, 3, 4, 4))
    network.rows(torch.randn(5, 3))
    network.maps.eval()(torch.randn(1, 3, 4, 4))
    assert warnings == []
    network.maps.train()
    network.maps(torch.randn(1, 3, 4, 4))
    network.maps(torch.randn(1, 3, 4, 4))
    assert len(warnings) == 1 and "holds one image" in warnings[0]


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("cps", {}, "no recipe of the authors of cps is known for la"),
        ("dtc", {"as_published": "acdc"}, "no recipe of the authors of dtc is known for acdc"),
        ("bpc", {}, "unknown method 'bpc'. Did you mean 'bcp'"),
        ("bcp", {"as_published": "laa"}, "unknown dataset 'laa'. Did you mean 'la'"),
        ("bcp", {"protocol": "la"}, "--as-published names data set and protocol"),
        ("bcp", {"dataset": "acdc"}, "--as-published names data set and protocol"),
    ],
)
def test_as_published_refuses(method, options, text):
    science = ScienceOptions(**{"as_published": "la", **options})
    with pytest.raises(UsageError, match=text):
        science.for_method(method)


def test_as_published_resolves_to_the_recipe():
    science = ScienceOptions(as_published="la", steps=100)
    chosen = science.for_method("bcp")
    assert (chosen.dataset, chosen.protocol, chosen.steps) == ("la", "la_bcp", 100)
    assert ScienceOptions(dataset="la").for_method("cps") == ScienceOptions(dataset="la")
    assert science.for_method("ua-mt").protocol == "la", "names accept - for _"


def test_as_published_names_the_recipes_of_a_method():
    with pytest.raises(UsageError) as error:
        ScienceOptions(as_published="la").for_method("versemi")
    four = "pancreas_ct,la,msd_spleen,msd_lung"
    assert error.value.details["found"] == f"recipes of versemi: versemi_published for {four}"
    assert error.value.details["fix"] == f"segbench run versemi --as-published {four}"
    with pytest.raises(UsageError) as error:
        ScienceOptions(as_published="la").for_method("fixmatch")
    assert error.value.details["fix"].startswith("segbench run fixmatch --dataset la,")


def test_a_recipe_is_part_of_the_identity():
    def content(protocol):
        return protocol_content(load_protocol(protocol))

    assert content("la_bcp")["batch"] == {"labeled": 4, "unlabeled": 4, "fill": False}
    assert content("la_ssnet")["optim"]["scale_milestones"] is False
    assert "fill" not in content("la")["batch"], "earlier runs keep their identity"
    assert "published" not in content("la")
