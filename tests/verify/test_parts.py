"""The parts of verify-method: draws, smaller patches, schedules of scripts, replaced libraries."""

from __future__ import annotations

import ast
import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segbench.verify import libraries
from segbench.verify.draws import EqualDraws
from segbench.verify.examples import example_batch
from segbench.verify.sampling import Replay, composition
from segbench.verify.source import (
    Repository,
    ScheduleStatements,
    SmallerPatch,
    parsed,
    strides_in,
    value_of,
)


def test_draws_of_different_kinds_may_come_in_any_order():
    images = torch.ones(2, 4, 3, 3, 3, dtype=torch.float64)
    found = []
    for noise_first in (True, False):
        with EqualDraws(wide=True) as draws:
            draws.begin(5)
            noise = torch.randn_like(images) if noise_first else None
            dropped = F.dropout3d(images, 0.5, training=True)
            noise = torch.randn_like(images) if noise is None else noise
            found.append((noise, dropped))
            draws.begin(6)
            assert not torch.equal(torch.randn_like(images), noise)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert 0 < (found[0][1] == 0).sum() < images.numel()


def test_a_batch_is_the_same_however_many_loaders_asked_for_it():
    """A script may ask for labeled and unlabeled items one after the other, ours does at once."""
    with EqualDraws(wide=True) as draws:
        draws.begin(2)
        first, _ = example_batch(3, (4, 4, 4), labeled=2, unlabeled=2)
        second, _ = example_batch(3, (4, 4, 4), labeled=2, unlabeled=2)
    assert torch.equal(first.x, second.x) and torch.equal(first.u, second.u)
    other, _ = example_batch(4, (4, 4, 4), labeled=2, unlabeled=2)
    assert not torch.equal(first.u, other.u)


def test_labels_of_several_classes():
    batch, hidden = example_batch(3, (16, 16), labeled=2, unlabeled=2, classes=4)
    for labels in (*batch.y, *hidden):
        assert labels.unique().tolist() == [0, 1, 2, 3]
    same, _ = example_batch(3, (16, 16), labeled=2, unlabeled=2)
    assert torch.equal(same.y > 0, batch.y > 0)


def test_dropout_does_not_depend_on_the_layout_in_memory():
    image = torch.ones(2, 4, 6, 6)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        with EqualDraws(wide=False) as draws:
            draws.begin(1)
            found.append(F.dropout(image.to(memory_format=layout), 0.5, training=True))
    assert torch.equal(found[0], found[1]) and found[0].unique().tolist() == [0, 2]


def test_eval_mode_makes_no_draw():
    image = torch.ones(1, 8, 2, 2, 2)
    with EqualDraws(wide=False) as draws:
        assert torch.equal(F.dropout3d(image, 0.5, training=False), image)
        assert not draws.counts


def test_nothing_is_dropped_where_a_description_says_so():
    image = torch.ones(1, 8, 2, 2, 2)
    with EqualDraws(wide=False, dropout=False) as draws:
        assert torch.equal(F.dropout3d(image, 0.5, training=True), image)
        assert not draws.counts


def test_boxes_are_equal_whether_drawn_by_box_or_by_axis():
    with EqualDraws(wide=False) as draws:
        draws.begin(1)
        by_box = [[draws.integer(0, high) for high in (10, 20, 30)] for _ in range(4)]
        draws.begin(1)
        by_axis = [torch.randint(high, (4,)) for high in (10, 20, 30)]
    assert torch.stack(by_axis, 1).tolist() == by_box


def test_boxes_of_slices_are_equal_whether_drawn_by_box_or_by_axis():
    with EqualDraws(wide=False, axes=2) as draws:
        draws.begin(1)
        by_box = [[draws.integer(0, high) for high in (10, 20)] for _ in range(4)]
        draws.begin(1)
        by_axis = [torch.randint(high, (4,)) for high in (10, 20)]
    assert torch.stack(by_axis, 1).tolist() == by_box


def test_wide_draws_and_requests_are_in_double_precision():
    with EqualDraws(wide=True):
        assert torch.rand(3).dtype == torch.float64
        assert torch.ones(2, dtype=torch.int64).float().dtype == torch.float64
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float64
        assert torch.ones(1).cuda().device.type == "cpu"
    assert torch.zeros(2).dtype == torch.float32, "the usual type is back"


def test_a_smaller_patch_replaces_sizes_and_nothing_else():
    source = (
        "x = f([n, 2, 112, 112, 80]) + g(T, 112, 112, 80) + (7, 7, 5) + range(16, 80) + 112 - w"
    )
    tree = ast.parse(source)
    small = ast.unparse(SmallerPatch((112, 112, 80), (32, 48, 16)).visit(tree))
    assert "[n, 2, 32, 48, 16]" in small and "g(T, 32, 48, 16)" in small
    assert "(2, 3, 1)" in small and "range(16, 80)" in small


def test_a_smaller_patch_of_slices():
    tree = ast.parse("x = f([256, 256]) + g(256, 256, 3) + (256, 128)")
    small = ast.unparse(SmallerPatch((256, 256), (32, 48)).visit(tree))
    assert small == "x = f([32, 48]) + g(32, 48, 3) + (256, 128)"


def test_an_edge_that_a_box_is_subtracted_from_is_smaller():
    tree = SmallerPatch((112, 112, 80), (32, 32, 16)).visit(ast.parse("r(0, 112 - x) + 80 - y"))
    assert ast.unparse(tree).startswith("r(0, 32 - x)")


LOOP = """
for epoch in range(3):
    for batch in loader:
        output = model(batch)
        weight = ramp(number // 10)
        loss = weight * output
        loss.backward()
        optimizer.step()
        number += 1
        if number % 2 == 0:
            rate = base * 0.5 ** (number // 2)
            for group in optimizer.param_groups:
                group["lr"] = rate
        if number > 10:
            print(loss)
        else:
            bound = number
        if number > 5:
            break
"""


def test_only_what_sets_the_schedule_is_executed(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(LOOP)
    chosen = ScheduleStatements(parsed(file), 3, ["weight", "bound"], ["optimizer.step"])
    text = "\n".join(map(ast.unparse, chosen.statements()))
    assert "model" not in text and "loss" not in text and "break" not in text

    class Optimizer:
        param_groups = [{"lr": 1.0}]
        rates = []

        def step(self):
            self.rates.append(self.param_groups[0]["lr"])

    module = ModuleType("schedule")
    names = {"ramp": lambda n: 10 * n, "number": 8, "base": 1.0, "optimizer": Optimizer()}
    module.__dict__.update(names)
    weights = []
    for _ in range(4):
        chosen.loader(file).exec_module(module)
        weights.append(module.weight)
    assert weights == [0, 0, 10, 10]
    assert module.bound == 10  # set in an else
    assert Optimizer.rates == [1.0, 1.0, 0.5**5, 0.5**5]


def test_expressions_are_sums_and_products_only():
    names = {"a": 2.0, "args": ModuleType("args"), "b": 3}
    names["args"].beta = 0.5
    assert value_of("args.beta * (a + b) * 0.1", names) == pytest.approx(0.25)
    with pytest.raises(NameError, match="no variable 'c'"):
        value_of("a * c", names)
    with pytest.raises(ValueError, match="not a sum or product"):
        value_of("open(a)", names)


def test_strides_are_those_of_the_call_with_the_patch(tmp_path):
    file = tmp_path / "test.py"
    file.write_text(
        "f(patch_size=(96, 96, 96), stride_xy=16, stride_z=16)\n"
        "f(patch_size=(112, 112, 80), stride_xy=18, stride_z=4)\n"
    )
    assert strides_in(file, (112, 112, 80)) == (18, 4)
    assert strides_in(file, (64, 64, 64)) is None


def test_replaced_functions():
    mask = np.zeros((5, 5, 5), bool)
    mask[1:4, 1:4, :3] = True
    boundary = libraries.inner_boundaries(mask)
    assert boundary[1, 1, 0] and boundary[2, 2, 2]
    assert not boundary[2, 2, 0], "the face of the volume is no boundary"
    diagonal = np.eye(3, dtype=bool)[..., None]
    assert libraries.label_components(diagonal).max() == 1


@pytest.fixture
def own_modules():
    """Let a test import other modules; afterwards, exactly those of before are there again."""
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in libraries.ALWAYS:
            del sys.modules[name]
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.usefixtures("own_modules")
def test_missing_libraries_can_be_imported_by_the_repository_only(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "script_of_a_repository.py").write_text(
        "import no_such_library.part as part\nfrom medpy import metric\n"
        "score = metric.binary.dc(1, 2)\n"
    )
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    libraries.install(folder)
    sys.meta_path.insert(0, Repository(folder, (112, 112, 80), (32, 32, 16)))
    script = importlib.import_module("script_of_a_repository")
    assert script.score == 0
    with pytest.raises(ImportError, match="install no_such_library"):
        script.part.function()
    with pytest.raises(ImportError):
        importlib.import_module("another_missing_library")


def test_draws_that_are_replayed_must_have_the_same_ranges():
    replayed = Replay([(0, 4, 3), (0, 10, 7)])
    assert replayed.integers(4) == 3 and replayed.fits
    replayed.integers(11)
    assert not replayed.fits and not replayed.left


def test_epochs_are_compared_by_their_composition():
    mine = composition([[0, 1, 5, 6], [2, 3, 7, 8]], labeled=4)
    assert mine == composition([[3, 0, 9, 4], [1, 2, 4, 5]], labeled=4)
    assert mine != composition([[3, 0, 9, 4], [1, 1, 4, 5]], labeled=4)
    assert mine != composition([[3, 9, 0, 4], [1, 2, 4, 5]], labeled=4)
