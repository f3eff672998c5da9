"""Every registered method, third-party ones too, against the contract: any classes, channels, dimensions, batch split."""

import pytest
import torch

from segbench import registry
from segbench.config.overrides import protocol_keys
from segbench.contracts.method import Batch, Optim, Setting, Source
from segbench.training.loop import make_optimizer
from segbench.training.plan import clock, stages
from segbench.training.run import network_factory

METHODS = registry.names("method")
SMALL = {"width": 4, "depth": 3}
PATCH = {2: (16, 16), 3: (16, 16, 16)}


def built(name, dims=3, classes=2, channels=1, sources=1, **params):
    cls = registry.get("method", name).cls
    kinds = tuple(f"class{i}" for i in range(1, classes))
    setting = Setting(tuple(Source(f"set{i}", kinds) for i in range(sources)), channels, PATCH[dims], 8)
    backbone = registry.get("backbone", "vnet").cls
    network = {**backbone.Params().model_dump(), **cls.backbone_defaults.get("vnet", {}), **SMALL}
    torch.manual_seed(0)
    method = cls(cls.Params(**params), setting)
    method.build(network_factory("vnet", network, setting, cls.needs))
    return method.train()


def batch_for(method, labeled, unlabeled, seed=0):
    draw = torch.Generator().manual_seed(seed)
    setting = method.setting
    x = torch.randn(labeled + unlabeled, setting.channels, *setting.patch, generator=draw)
    # Blobs, so that every class has voxels in every item.
    y = torch.zeros(labeled, *setting.patch, dtype=torch.int64)
    for value in range(1, setting.classes):
        y[:, 3 * value: 3 * value + 4, 4:11] = value
    task = torch.arange(labeled + unlabeled) % len(setting.sources)
    return Batch(x[:labeled], y, x[labeled:], task)


def run_all_phases(method, labeled=2, unlabeled=2):
    """Two steps of every phase as the engine makes them; yields the terms and the gradients of each update."""
    plan = stages(method.phases(), 8, labeled, unlabeled)
    optimizers = {p: make_optimizer(method.optimizer(p, Optim(lr=0.01), plan[0].phase), method.trainable(p))
                  for p in method.players}
    for stage in plan:
        with torch.no_grad():
            method.start_phase(stage.phase)
        for step in range(stage.start, min(stage.start + 2, stage.start + stage.steps)):
            t, batch = clock(stage, step, 8, 0, 0), batch_for(method, stage.labeled, stage.unlabeled, step)
            torch.manual_seed(step)
            for i, player in enumerate(method.players):
                method.train()
                terms = (method.loss if i == 0 else getattr(method, f"loss_{player}"))(batch, t)
                optimizers[player].zero_grad(set_to_none=True)
                torch.stack([v.float() for v in terms.values()]).sum().backward()
                gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
                yield stage, player, terms, gradients
                optimizers[player].step()
            with torch.no_grad():
                method.after_step(t)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("classes", [2, 4])
def test_terms_are_finite_scalars_and_predictions_are_probabilities(name, dims, classes):
    method = built(name, dims, classes, channels=2)
    for _, _, terms, _ in run_all_phases(method):
        for key, value in terms.items():
            assert value.shape == () and torch.isfinite(value), key
    method.eval()
    with torch.no_grad():
        p = method.predict(torch.randn(3, 2, *PATCH[dims]), 0)
    assert p.shape == (3, classes, *PATCH[dims]) and p.min() >= 0
    assert torch.isfinite(p).all()
    if classes == 2:
        assert torch.allclose(p.sum(1), torch.ones_like(p[:, 0]), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("labeled, unlabeled", [(1, 1), (1, 3), (3, 2), (4, 4)])
def test_any_batch_split(name, labeled, unlabeled):
    for _, _, terms, _ in run_all_phases(built(name), labeled, unlabeled):
        assert all(torch.isfinite(v) for v in terms.values())


@pytest.mark.parametrize("name", METHODS)
def test_gradient_reaches_every_trainable_parameter_and_nothing_else(name):
    method = built(name)
    reached, frozen = set(), {n for n, p in method.named_parameters() if not p.requires_grad}
    for _, player, _, gradients in run_all_phases(method):
        mine = {id(p) for p in method.trainable(player)}
        reached |= {n for n, p in method.named_parameters() if n in gradients and id(p) in mine}
        assert not frozen & set(gradients)
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    missing = {n for n in trainable - reached if not n.startswith(method.dormant or ("-",))}
    assert not missing


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_has_one_player(name):
    method = built(name)
    owned = [id(p) for player in method.players for p in method.trainable(player)]
    assert len(owned) == len(set(owned)) == sum(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_a_function_of_state_seed_and_batch(name):
    first, second = ([{k: v.item() for k, v in terms.items()} for _, _, terms, _ in run_all_phases(built(name))]
                     for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_is_all_state(name):
    """A method built anew and loaded from the state of a trained one makes the same next step."""
    trained, fresh = built(name), built(name)
    list(run_all_phases(trained))
    fresh.load_state_dict(trained.state_dict())
    before = {k for k in vars(fresh) if not k.startswith("_")}
    plan = stages(trained.phases(), 8, 2, 2)[-1]
    t = clock(plan, 7, 8, 0, 0)
    terms = []
    for method in (trained, fresh):
        torch.manual_seed(5)
        method.train()
        terms.append({k: v.item() for k, v in method.loss(batch_for(method, plan.labeled, plan.unlabeled), t).items()})
    assert terms[0] == terms[1]
    assert {k for k in vars(fresh) if not k.startswith("_")} == before, "an attribute appeared during a step"


@pytest.mark.parametrize("name", METHODS)
def test_batch_is_not_changed(name):
    method = built(name)
    plan = stages(method.phases(), 8, 2, 2)[-1]
    batch = batch_for(method, plan.labeled, plan.unlabeled)
    copies = [v.clone() for v in (batch.x, batch.y, batch.u, batch.task)]
    method.loss(batch, clock(plan, plan.start, 8, 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(copies, (batch.x, batch.y, batch.u, batch.task), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_documented_and_ranged(name):
    cls = registry.get("method", name).cls
    taken = {key.partition(".")[0] for key in protocol_keys()} - {"optim"}
    for key, field in cls.Params.model_fields.items():
        assert field.description, key
        assert key not in taken, f"'{key}' is a key of the protocol"
        if field.annotation in (int, float):
            assert any(hasattr(m, a) for m in field.metadata for a in ("ge", "gt", "le", "lt")), f"'{key}' has no range"
    cls.Params()  # defaults are valid


@pytest.mark.parametrize("name", METHODS)
def test_docstring_tells_source_and_divergences(name):
    import sys
    text = sys.modules[registry.get("method", name).cls.__module__].__doc__
    assert "Paper" in text and "Official code" in text and "Here" in text


@pytest.mark.parametrize("name", [m for m in METHODS if registry.get("method", m).cls.joint])
def test_joint_methods_take_several_data_sets(name):
    method = built(name, classes=3, sources=3)
    for _, _, terms, _ in run_all_phases(method, 3, 3):
        assert all(torch.isfinite(v) for v in terms.values())
    method.eval()
    with torch.no_grad():
        image = torch.randn(1, 1, *PATCH[3])
        answers = [method.predict(image, task) for task in range(3)]
    assert all(a.shape == (1, 3, *PATCH[3]) for a in answers)
    assert not torch.equal(answers[0], answers[1])
