"""The loop: phases and shares, schedules, players, guards, precision."""

import json

import pytest
import torch

from segbench import registry
from segbench.config.machine import Cadence
from segbench.contracts.method import Clock, Method, Optim, Phase, sigmoid_ramp
from segbench.errors import Interrupted, TrainingError, UsageError
from segbench.training import checkpoint, loop
from segbench.training.build import build
from segbench.training.plan import stage_of, stages
from segbench.training.run import execute


def test_shares_add_up_to_all_steps():
    for total in (2, 3, 7, 100, 6000):
        plan = stages([Phase("a", 0.1), Phase("b", 0.9)], total, 2, 2)
        assert [s.start for s in plan] == [0, plan[0].steps] and sum(s.steps for s in plan) == total
        assert min(s.steps for s in plan) >= 1
    assert (
        stage_of(plan, plan[1].start).phase.name == "b"
        and stage_of(plan, plan[1].start - 1).phase.name == "a"
    )


def test_places_of_unlabeled_items_go_to_labeled_ones():
    a, b, c = stages(
        [Phase("a", 0.2, unlabeled=0), Phase("b", 0.3), Phase("c", 0.5, labeled=4, unlabeled=4)],
        10,
        2,
        3,
    )
    assert [(s.labeled, s.unlabeled) for s in (a, b, c)] == [(5, 0), (2, 3), (4, 4)]


def test_schedule_runs_over_the_phases_that_share_an_optimizer():
    plan = stages(
        [Phase("a", 0.2), Phase("b", 0.3), Phase("c", 0.5, fresh_optimizer=True)], 100, 2, 2
    )
    assert [(s.origin, s.span) for s in plan] == [(0, 50), (0, 50), (50, 50)]


def test_unlabeled_items_that_are_not_there():
    with pytest.raises(UsageError, match="unlabeled"):
        stages([Phase("a", 0.5, unlabeled=0), Phase("b", 0.5)], 10, 2, 0)
    assert stages([Phase("a", unlabeled=0)], 10, 2, 0)[0].labeled == 2


@pytest.mark.parametrize(
    "phases, total", [([Phase("a", 0.5)], 10), ([Phase("a", 0.5), Phase("b", 0.5)], 1)]
)
def test_impossible_phases(phases, total):
    with pytest.raises(UsageError):
        stages(phases, total, 2, 2)


def test_step_schedule_is_the_literatures_at_6000_steps():
    optim = Optim(lr=0.01, schedule="step", milestones=(2500, 5000), reference=6000)
    rates = {t: optim.lr_at(t, 6000) for t in (0, 2499, 2500, 4999, 5000, 5999)}
    assert rates == pytest.approx(
        {0: 1e-2, 2499: 1e-2, 2500: 1e-3, 4999: 1e-3, 5000: 1e-4, 5999: 1e-4}
    )
    assert optim.lr_at(499, 1200) == pytest.approx(1e-2) and optim.lr_at(
        500, 1200
    ) == pytest.approx(1e-3)


def test_poly_schedule():
    assert Optim(lr=0.1, schedule="poly").lr_at(15000, 30000) == pytest.approx(0.05358867, abs=1e-8)


def test_ramp_is_the_literatures_staircase():
    expected = {
        0: 0.000674,
        149: 0.000674,
        150: 0.000862,
        1500: 0.006005,
        3000: 0.028650,
        4500: 0.073162,
        5999: 0.099688,
    }
    assert {t: round(0.1 * Clock(t, 6000).ramp(), 6) for t in expected} == expected  # UA-MT, P2
    assert sigmoid_ramp(40, 40) == 1.0 and sigmoid_ramp(5, 0) == 1.0


def test_generator_depends_on_seed_stream_and_step_only():
    def draw(stream="mask", own=False, **kw):
        clock = Clock(**{"step": 3, "total": 9, "seed": 1, **kw})
        return torch.rand(3, generator=clock.generator(stream, own)).tolist()

    assert (
        draw()
        == draw(total=99, phase="x", epoch=4)
        == draw(rank=1)
        == draw(own=True)
        != draw(own=True, rank=1)
    )
    assert draw() != draw(step=4) and draw() != draw(seed=2) and draw() != draw("box")


class Toy(Method):
    """y = a x with a player that learns b."""

    players = ("network", "critic")
    name = "toy"

    def __init__(self):
        super().__init__(Method.Params(), setting=type("S", (), {"classes": 2})())
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.frozen = torch.nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.critic = torch.nn.Linear(1, 1)


def test_players_share_the_parameters_out():
    toy = Toy()
    assert [id(p) for p in toy.trainable("network")] == [id(toy.weight)]
    assert {id(p) for p in toy.trainable("critic")} == {id(p) for p in toy.critic.parameters()}


@pytest.fixture
def diverging(lab, tmp_path):
    file = tmp_path / "diverging.py"
    file.write_text('''
import torch
from segbench import Method, method

@method("diverging")
class Diverging(Method):
    """Finite for three steps."""
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        value = self.network(batch.x).square().mean()
        return {"fine": value, "odd": value * (float("nan") if t.step == 3 else 1)}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
''')
    registry.add_file(file)
    return lab


@pytest.mark.parametrize("late", [0, 1])
def test_not_finite_loss_is_found_before_the_state_is_saved(diverging, monkeypatch, late):
    monkeypatch.setattr(loop, "steps_read_late", lambda device: late)
    run = diverging.prepared("diverging")
    with pytest.raises(TrainingError, match="not finite") as error:
        execute(run, diverging.machine(save_every=Cadence(steps=1, seconds=None)))
    assert "step 3" in error.value.details["where"] and "odd = nan" in error.value.details["found"]
    assert checkpoint.load(run.folder.path / "ckpt")[0] == 3
    assert (run.folder.path / "failed.json").exists() and run.folder.result() is None


def test_a_loss_that_is_not_finite_explains_what_fails_after_it(diverging, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "steps_read_late", lambda device: 1)
    text = (tmp_path / "diverging.py").read_text().replace("diverging", "fragile")
    refusal = "value = self.network(batch.x).square().mean()\n        assert t.step < 4"
    text = text.replace("value = self.network(batch.x).square().mean()", refusal)
    (tmp_path / "fragile.py").write_text(text)
    registry.add_file(tmp_path / "fragile.py")
    run = diverging.prepared("fragile")
    with pytest.raises(TrainingError, match="not finite"):
        execute(run, diverging.machine(save_every=Cadence(steps=100, seconds=None)))


@pytest.mark.parametrize("method", ["supervised", "sassnet"])
def test_losses_read_late_are_the_same(lab, monkeypatch, method):
    """The weights and the log do not depend on when the loss terms are read."""
    found = []
    for late in (0, 1):
        monkeypatch.setattr(loop, "steps_read_late", lambda device, late=late: late)
        steps = []
        reporter = lab.reporter(train=lambda outcome, steps=steps: steps.append(outcome))
        run = lab.prepared(method)
        result = execute(run, lab.machine(), reporter, restart=True)
        lines = []
        for line in (run.folder.path / "log.jsonl").read_text().splitlines():
            lines.append(
                {key: value for key, value in json.loads(line).items() if key != "seconds"}
            )
        found.append((result["weights_sha256"], lines, steps))
    assert found[0] == found[1]
    assert len(found[0][2]) == found[0][2][-1].total


@pytest.mark.parametrize(
    "method, precision",
    [
        *((m, "bf16") for m in registry.names("method")),
        ("mean_teacher", "fp16"),
        ("versemi", "fp16"),
    ],
)
def test_reduced_precision_trains(lab, method, precision):
    """All losses of all phases stay finite, or the run would end with an error."""
    run = lab.prepared(method, precision=precision)
    assert execute(run, lab.machine())["precision"] == precision


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dataset", ["tiny", "tiny_flat"])
@pytest.mark.parametrize("method", registry.names("method"))
def test_trains_on_a_gpu(lab, method, dataset, precision):
    machine = lab.machine()
    machine.device = "cuda"
    run = lab.prepared(method, dataset, machine, precision=precision)
    assert execute(run, machine)["cost"]["device"] == torch.cuda.get_device_name()


def test_batch_statistics_of_one_voxel_tell_what_helps(lab):
    run = lab.prepared(
        "supervised",
        overrides=["patch=4x4x4", "inference.stride=4x4x4", "batch.labeled=1", "batch.unlabeled=0"],
    )
    with pytest.raises(TrainingError, match="more than 1 value per channel") as error:
        execute(run, lab.machine())
    assert "two voxels at the bottleneck" in error.value.details["fix"]


def test_seed_decides_initial_weights(lab):
    from segbench.training import checkpoint

    first, same, other = (lab.prepared("supervised", seed=s) for s in (0, 0, 1))
    digests = [
        checkpoint.digest(build(r.experiment, r.stores).state_dict()) for r in (first, same, other)
    ]
    assert digests[0] == digests[1] != digests[2] and first.run_id == same.run_id != other.run_id


THAWING = '''
from segbench import Method, Phase, method

@method("thawing")
class Thawing(Method):
    """The second phase trains what the first one held."""
    def build(self, network):
        self.network = network(heads=(2,))
        for p in self.network.encoder.parameters():
            p.requires_grad_(False)
    def phases(self):
        return (Phase("held", 0.5), Phase("free", 0.5, fresh_optimizer=True))
    def start_phase(self, phase):
        self.network.encoder.requires_grad_(phase.name == "free")
    def optimizer(self, player, default, phase):
        factor = 0.5 if phase.name == "free" else 1.0
        return default.model_copy(update={"lr": default.lr * factor})
    def loss(self, batch, t):
        return {"labeled": (self.network(batch.x).softmax(1)[:, 1] - batch.y).square().mean()}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
'''


def test_what_a_phase_sets_free_is_trained_and_stays_so_after_a_stop(lab, tmp_path):
    (tmp_path / "thawing.py").write_text(THAWING)
    registry.add_file(tmp_path / "thawing.py")
    run = lab.prepared("thawing")
    start = {k: v.clone() for k, v in build(run.experiment, run.stores).state_dict().items()}
    straight = execute(run, lab.machine())["weights_sha256"]
    trained = checkpoint.load(run.folder.path / "ckpt")[1]["method"]
    key = "network.encoder.block_one.conv.0.weight"
    assert not torch.equal(start[key], trained[key])

    def stop(progress):
        if progress.step == 5:  # in the second phase
            raise Interrupted("stop", 130)

    every = Cadence(steps=1, seconds=None)
    with pytest.raises(Interrupted):
        execute(run, lab.machine(save_every=every), lab.reporter(train=stop), restart=True)
    assert execute(run, lab.machine())["weights_sha256"] == straight


def test_a_phase_without_labeled_items_is_refused():
    with pytest.raises(UsageError, match="0 labeled items"):
        stages([Phase("a", 1.0, labeled=0)], 10, 2, 2)


def test_changing_an_unused_optimizer_is_refused(lab):
    with pytest.raises(UsageError, match="uses its own optimizer") as error:
        lab.prepared("versemi", overrides=["optim.lr=0.5"])
    assert "optimizer=protocol" in str(error.value)
    lab.prepared("versemi", overrides=["optim.lr=0.5", "optimizer=protocol"])
    lab.prepared("sassnet", overrides=["optim.lr=0.5"])  # its critic alone has its own


def test_a_missing_file_of_a_plug_in_is_no_full_disk(lab, tmp_path):
    (tmp_path / "reading.py").write_text(
        THAWING.replace("thawing", "reading").replace(
            "def loss(self, batch, t):",
            "def loss(self, batch, t):\n        open('/nowhere/at/all')",
        )
    )
    registry.add_file(tmp_path / "reading.py")
    with pytest.raises(TrainingError, match="FileNotFoundError"):
        execute(lab.prepared("reading"), lab.machine())
