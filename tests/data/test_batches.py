"""Two-stream batches: composition, reproducibility, hidden labels, and broken workers and files."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from segbench.contracts.method import Batch
from segbench.data.sampling.batches import TrainingData, rng
from segbench.data.sampling.loader import loader
from segbench.errors import DataError, TrainingError, UsageError


class Canary:
    """A store on disk that refuses what training must not touch.

    Image values identify the case: 1000 source + number + 1.
    """

    def __init__(
        self,
        root: Path,
        name: str = "toy",
        train: int = 7,
        labeled: int = 4,
        source: int = 0,
        channels: int = 1,
        shape: tuple[int, ...] = (12, 11, 9),
    ) -> None:
        self.root, self.name, self.channels, self.classes = root / name, name, channels, ("organ",)
        self.train = tuple(f"{name}-case{i}" for i in range(train))
        self.test = tuple(f"{name}-hidden{i}" for i in range(3))
        self.labeled = self.train[:labeled]
        self.root.mkdir(parents=True)
        for i, case in enumerate((*self.train, *self.test)):
            np.save(
                self.root / f"{case}.image.npy",
                np.full((channels, *shape), 1000 * source + i + 1, np.float32),
            )
            np.save(self.root / f"{case}.label.npy", np.full(shape, i, np.uint8))

    def image(self, case: str) -> np.ndarray:
        assert case in self.train, "an image of the test split was asked for"
        return np.load(self.root / f"{case}.image.npy", mmap_mode="r")

    def pad(self, case: str) -> tuple[float, ...]:
        return ()

    def label(self, case: str) -> np.ndarray:
        assert case in self.labeled, "a label that training must not see was asked for"
        return np.load(self.root / f"{case}.label.npy", mmap_mode="r")


def protocol(**changes: Any) -> SimpleNamespace:
    crop = SimpleNamespace(
        labeled="random", unlabeled="random", pad=3, last_offset=False, foreground=0
    )
    fields = {"patch": (8, 6, 4), "crop": crop, "augment": "mirror", "sampling": "proportional"}
    return SimpleNamespace(**{**fields, **changes})


def ids(images: torch.Tensor) -> list[int]:
    """Numbers of the cases in a batch of constant images."""
    return [int(item.max()) - 1 for item in images]


def digest(batch: Batch) -> list[bytes]:
    return [t.numpy().tobytes() for t in (batch.x, batch.y, batch.u, batch.source)]


@pytest.fixture
def store(tmp_path: Path) -> Canary:
    return Canary(tmp_path)


@pytest.fixture
def data(store: Canary) -> TrainingData:
    return TrainingData({"toy": store}, {"toy": 4}, protocol(), 0)


# Composition.


def test_shapes_and_types(data: TrainingData) -> None:
    batch = data.batch(0, 0, 3, 2)
    assert [tuple(t.shape) for t in (batch.x, batch.y, batch.u, batch.source)] == [
        (3, 1, 8, 6, 4),
        (3, 8, 6, 4),
        (2, 1, 8, 6, 4),
        (5,),
    ]
    assert [t.dtype for t in (batch.x, batch.y, batch.u, batch.source)] == [
        torch.float32,
        torch.int64,
        torch.float32,
        torch.int64,
    ]
    assert data.batch(0, 0, 2, 0).u.shape == (0, 1, 8, 6, 4)


def test_label_belongs_to_image(data: TrainingData) -> None:
    for step in range(10):
        batch = data.batch(0, step, 2, 2)
        assert [int(y.max()) for y in batch.y] == ids(batch.x)


def test_two_dimensions(tmp_path: Path) -> None:
    data = TrainingData(
        {"flat": Canary(tmp_path, "flat", shape=(12, 11))}, {"flat": 4}, protocol(patch=(8, 6)), 0
    )
    batch = data.batch(0, 0, 2, 1)
    assert (batch.x.shape, batch.y.shape, batch.u.shape) == ((2, 1, 8, 6), (2, 8, 6), (1, 1, 8, 6))


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_share_of_labeled_patches_holds_foreground(tmp_path: Path, share: float) -> None:
    store = Canary(tmp_path, shape=(40, 40, 40), labeled=4)
    for case in store.train:
        label = np.zeros((40, 40, 40), np.uint8)
        if case != store.train[0]:  # nothing to find in one of four
            label[3, 30, 20] = 1
        np.save(store.root / f"{case}.label.npy", label)
    rules = protocol()
    rules.crop.foreground = share
    data = TrainingData({"toy": store}, {"toy": 4}, rules, 0)
    hits = [bool(y.any()) for step in range(300) for y in data.batch(0, step, 2, 0).y]
    assert abs(np.mean(hits) - 0.75 * share) < 0.07


def test_slices_of_volumes_are_cases(tmp_path: Path) -> None:
    store = Canary(tmp_path, shape=(12, 11, 3))
    for case in store.train:  # every slice its own value, in image and label
        for kind, value in (("image", 100.0), ("label", 10)):
            array = np.load(store.root / f"{case}.{kind}.npy")
            np.save(
                store.root / f"{case}.{kind}.npy",
                array + (value * np.arange(3)).astype(array.dtype),
            )
    data = TrainingData({"toy": store}, {"toy": 4}, protocol(patch=(8, 6)), 0)
    assert data.steps_per_epoch(2) == 6  # 4 cases of 3 slices
    seen = set()
    for step in range(6):
        batch = data.batch(0, step, 2, 2)
        assert batch.x.shape == (2, 1, 8, 6)
        for image, label in zip(batch.x, batch.y, strict=True):
            case, plane = int(image.max()) % 100 - 1, int(image.max()) // 100
            assert set(label.unique().tolist()) == {case + 10 * plane}
            seen.add((case, plane))
        assert all(int(u.max()) % 100 > 4 for u in batch.u)
    assert len(seen) == 12
    assert data.cases(0, 0, 1, 0)[0].startswith("toy/toy-case") and "[" in data.cases(0, 0, 1, 0)[0]


def test_zoomed_slices_fill_the_patch(tmp_path: Path) -> None:
    store = Canary(tmp_path, shape=(12, 7, 3))
    zoom = SimpleNamespace(labeled="zoom", unlabeled="zoom", pad=0, last_offset=False, foreground=0)
    data = TrainingData({"toy": store}, {"toy": 4}, protocol(patch=(16, 16), crop=zoom), 0)
    batch = data.batch(0, 0, 2, 2)
    assert (batch.x.amin((1, 2, 3)) == batch.x.amax((1, 2, 3))).all()
    assert batch.x.shape == (2, 1, 16, 16)


def test_epoch_is_one_pass_over_labeled_cases(data: TrainingData) -> None:
    passes = [
        [case for i in range(2) for case in ids(data.batch(0, 2 * e + i, 2, 2).x)] for e in range(8)
    ]
    assert all(sorted(p) == [0, 1, 2, 3] for p in passes)
    assert len({tuple(p) for p in passes}) > 1  # a fresh permutation each
    assert [data.epoch(s, 2) for s in range(5)] == [0, 0, 1, 1, 2]


def test_remainder_is_dropped(data: TrainingData) -> None:
    assert [data.epoch(s, 3) for s in range(3)] == [
        0,
        1,
        2,
    ]  # 4 labeled cases: one group of 3 an epoch
    assert all(len(set(ids(data.batch(0, s, 3, 1).x))) == 3 for s in range(10))


@pytest.mark.parametrize(("n", "steps"), [(8, 4), (16, 8), (6, 3), (12, 6)])
def test_steps_per_epoch_of_la(tmp_path: Path, n: int, steps: int) -> None:
    store = Canary(tmp_path, train=18, labeled=n)
    assert TrainingData({"toy": store}, {"toy": n}, protocol(), 0).steps_per_epoch(2) == steps


def test_unlabeled_chain_restarts_with_the_epoch(data: TrainingData) -> None:
    """Three unlabeled cases, two per step, two steps per epoch: one permutation and a bit more."""
    firsts = set()
    for epoch in range(12):
        shown = [case for i in range(2) for case in ids(data.batch(0, 2 * epoch + i, 2, 2).u)]
        assert sorted(shown[:3]) == [4, 5, 6]
        firsts.add(tuple(shown[:3]))
    assert len(firsts) > 2


def test_more_places_than_labeled_cases(data: TrainingData) -> None:
    data.check(2, 2)
    assert data.warnings == [] and not data.repeats_labeled
    batches = list(loader(data, [(0, s, 6, 1) for s in range(5)], 0))
    for batch in batches:
        assert sorted(ids(batch.x)[:4]) == [0, 1, 2, 3] and len(set(ids(batch.x)[4:])) == 2
    assert data.repeats_labeled and data.warnings == [
        "4 labeled cases for 6 places in a batch: cases repeat"
    ]
    assert data.epoch(3, 6) == 3


def test_nothing_unlabeled_left(tmp_path: Path) -> None:
    store = Canary(tmp_path, labeled=7)
    data = TrainingData({"toy": store}, {"toy": 7}, protocol(), 0)
    list(loader(data, [(0, 0, 4, 0)], 0))
    assert data.warnings == []  # a method without an unlabeled stream has nothing to be warned of
    batch = next(loader(data, [(0, 0, 2, 2)], 0))
    assert set(ids(batch.u)) <= set(range(7))
    assert len(data.warnings) == 1 and "every training case is labeled" in data.warnings[0]


def test_volume_smaller_than_the_patch(data: TrainingData, store: Canary) -> None:
    small = TrainingData({"toy": store}, {"toy": 4}, protocol(patch=(16, 16, 16)), 0)
    batch = small.batch(0, 0, 2, 2)
    assert batch.x.shape == (2, 1, 16, 16, 16) and batch.x.min() == 0 and batch.x.max() > 0


def test_center_crop_of_unlabeled(tmp_path: Path) -> None:
    store = Canary(tmp_path)
    coordinates = np.arange(12 * 11 * 9, dtype=np.float32).reshape(1, 12, 11, 9)
    for case in store.train:
        np.save(store.root / f"{case}.image.npy", coordinates)
    crop = SimpleNamespace(
        labeled="random", unlabeled="center", pad=1, last_offset=False, foreground=0
    )
    data = TrainingData({"toy": store}, {"toy": 4}, protocol(crop=crop, augment="none"), 0)
    batches = [data.batch(0, s, 2, 2) for s in range(10)]
    expected = torch.from_numpy(
        coordinates[:, 2:10, 2:8, 2:6]
    )  # (11 - 6) / 2 and (9 - 4) / 2 are rounded to even
    assert all(torch.equal(u, expected) for b in batches for u in b.u)
    assert len({x.numpy().tobytes() for b in batches for x in b.x}) > 10


# Several data sets.


def _joint(tmp_path: Path, sampling: str) -> TrainingData:
    stores = {
        "a": Canary(tmp_path, "a", train=20, labeled=12, source=0),
        "b": Canary(tmp_path, "b", train=6, labeled=4, source=1, channels=2),
    }
    return TrainingData(stores, {"a": 12, "b": 4}, protocol(sampling=sampling), 0)


def test_proportional(tmp_path: Path) -> None:
    data = _joint(tmp_path, "proportional")
    batches = [data.batch(0, s, 4, 2) for s in range(4)]  # one epoch over 16 labeled cases
    sources = torch.cat([b.source[:4] for b in batches])
    assert Counter(sources.tolist()) == {0: 12, 1: 4}
    for b in batches:
        assert [i // 1000 for i in ids(torch.cat([b.x, b.u]))] == b.source.tolist()
        assert b.x.shape[1] == 2
        assert all((item[1] == 0).all() for item, t in zip(b.x, b.source, strict=False) if t == 0)
        assert all((item[1] > 0).any() for item, t in zip(b.x, b.source, strict=False) if t == 1)


def test_balanced(tmp_path: Path) -> None:
    data = _joint(tmp_path, "balanced")
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(100):
        batch = data.batch(0, step, 4, 2)
        for case, source in zip(ids(batch.x), batch.source.tolist(), strict=False):
            seen[source].append(case % 1000)
            assert case // 1000 == source
    assert abs(len(seen[1]) - 200) < 50  # five standard deviations of 400 even draws
    assert set(seen[0]) == set(range(12)) and set(seen[1]) == set(range(4))
    epoch = [
        (case, t)
        for s in range(4)
        for case, t in zip(
            ids(data.batch(0, s, 4, 2).x), data.batch(0, s, 4, 2).source.tolist(), strict=False
        )
    ]
    own = [case for case, t in epoch if t == 0]
    assert len(set(own)) == min(
        len(own), 12
    )  # the next case, not any: none comes twice before all came once


# Purity.


def test_rng_depends_on_its_key_only() -> None:
    assert rng(1, "a", np.int64(3)).integers(2**62) == rng(1, "a", 3).integers(2**62)
    keys = [(1, "a", 3), (1, "a", 4), (2, "a", 3), (1, "b", 3), (1, "a"), ("1", "a", 3)]
    assert len({int(rng(*key).integers(2**62)) for key in keys}) == len(keys)


def test_batch_is_a_pure_function(store: Canary, data: TrainingData) -> None:
    first = [digest(data.batch(0, s, 2, 2)) for s in range(6)]
    np.random.seed(1)
    torch.manual_seed(1)
    backwards = [digest(data.batch(0, s, 2, 2)) for s in reversed(range(6))][::-1]
    again = TrainingData({"toy": store}, {"toy": 4}, protocol(), 0)
    assert first == backwards == [digest(again.batch(0, s, 2, 2)) for s in range(6)]
    other_seed = TrainingData({"toy": store}, {"toy": 4}, protocol(), 1)
    assert first != [digest(other_seed.batch(0, s, 2, 2)) for s in range(6)]
    assert first != [digest(data.batch(1, s, 2, 2)) for s in range(6)]


@pytest.mark.parametrize(("workers", "context"), [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_worker_count_changes_nothing(data: TrainingData, workers: int, context: str) -> None:
    plan = [(phase, s, 2, 2) for phase in range(2) for s in range(4)]
    expected = [digest(data.batch(*step)) for step in plan]
    state, handler = torch.get_rng_state(), signal.getsignal(signal.SIGCHLD)
    assert [digest(b) for b in loader(data, iter(plan), 0)] == expected
    assert [digest(b) for b in loader(data, iter(plan), workers, context=context)] == expected
    assert torch.equal(state, torch.get_rng_state())
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_plan_is_read_as_needed(data: TrainingData) -> None:
    def infinite_steps() -> Any:
        step = 0
        while True:
            yield 0, step, 2, 1
            step += 1

    for workers in (0, 1):
        batches = loader(data, infinite_steps(), workers)
        assert [digest(next(batches)) for _ in range(3)] == [
            digest(data.batch(0, s, 2, 1)) for s in range(3)
        ]
        batches.close()
    assert not multiprocessing.active_children()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("segbench")]


# What training cannot see.


def _reachable(start: object) -> list[object]:
    seen, todo = {id(start): start}, [start]
    while todo:
        for other in gc.get_referents(todo.pop()):
            if (
                id(other) not in seen
                and not isinstance(other, (type, type(os)))
                and not callable(other)
            ):
                seen[id(other)] = other
                todo.append(other)
    return list(seen.values())


def test_test_split_and_other_labels_are_out_of_reach(store: Canary, data: TrainingData) -> None:
    for step in range(20):
        data.batch(0, step, 2, 2)  # the canary store would have raised
    everything = _reachable(data)
    assert not any(isinstance(o, Canary) for o in everything)
    texts = [o for o in everything if isinstance(o, str)]
    assert not [t for t in texts if "hidden" in t]
    labels = {Path(t).name for t in texts if t.endswith(".label.npy")}
    assert labels == {f"{case}.label.npy" for case in store.labeled}
    assert b"hidden" not in pickle.dumps(data) and b"case6.label" not in pickle.dumps(data)


def test_canary_is_alive(store: Canary) -> None:
    """With one more labeled case, or a test case in the training list, reading raises the error."""
    with pytest.raises(AssertionError, match="must not see"):
        TrainingData({"toy": store}, {"toy": 5}, protocol(), 0)


def test_garbage_in_hidden_files_changes_nothing(store: Canary, data: TrainingData) -> None:
    before = [digest(data.batch(0, s, 2, 2)) for s in range(4)]
    for case in (*store.test, *store.train[4:]):
        (store.root / f"{case}.label.npy").write_bytes(b"garbage")
    for case in store.test:
        (store.root / f"{case}.image.npy").write_bytes(b"garbage")
    again = TrainingData({"toy": store}, {"toy": 4}, protocol(), 0)
    assert [digest(again.batch(0, s, 2, 2)) for s in range(4)] == before


# Errors.


@pytest.mark.parametrize("labeled", [{"toy": 0}, {"toy": 8}, {}])
def test_impossible_number_of_labeled_cases(store: Canary, labeled: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="toy cannot have"):
        TrainingData({"toy": store}, labeled, protocol(), 0)


def test_patch_of_wrong_dimension(store: Canary) -> None:
    with pytest.raises(UsageError, match="patch has 1 axes"):
        TrainingData({"toy": store}, {"toy": 4}, protocol(patch=(8,)), 0)


def test_image_and_label_of_different_shape(store: Canary) -> None:
    np.save(store.root / "toy-case1.label.npy", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="differ in shape") as caught:
        TrainingData({"toy": store}, {"toy": 4}, protocol(), 0)
    assert "toy-case1" in str(caught.value)


def test_broken_at_start(store: Canary) -> None:
    (store.root / "toy-case5.image.npy").write_bytes(b"<html>")
    with pytest.raises(DataError, match="toy-case5"):
        TrainingData({"toy": store}, {"toy": 4}, protocol(), 0)


def test_batch_needs_labeled_items(data: TrainingData) -> None:
    with pytest.raises(UsageError, match="labeled items"):
        data.batch(0, 0, 0, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_surfaces_as_it_is(store: Canary, data: TrainingData, workers: int) -> None:
    (store.root / "toy-case2.image.npy").write_bytes(b"short")
    with pytest.raises(DataError) as caught:
        list(loader(data, [(0, s, 2, 2) for s in range(2)], workers))
    error = caught.value
    assert "toy-case2" in error.what and "Traceback" not in str(error)
    assert str(error.details["where"]).endswith("toy-case2.image.npy")
    assert error.details["fix"] == "segbench data check toy"


class Sick(TrainingData):
    """Kills its worker at step 3 as long as files in ``times`` are left, or sleeps there."""

    flags: Path
    sleeps = False

    def batch(self, phase: int, step: int, labeled: int, unlabeled: int) -> Batch:
        left = list(self.flags.iterdir())
        if step == 3 and left:
            left[0].unlink()
            if self.sleeps:
                signal.pause()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(phase, step, labeled, unlabeled)


def _sick(store: Canary, tmp_path: Path, times: int) -> Sick:
    data = Sick({"toy": store}, {"toy": 4}, protocol(), 0)
    data.flags = tmp_path / "flags"
    data.flags.mkdir()
    for i in range(times):
        (data.flags / str(i)).touch()
    return data


def test_dead_worker_is_replaced_once(store: Canary, tmp_path: Path, data: TrainingData) -> None:
    plan = [(0, s, 2, 2) for s in range(8)]
    sick = _sick(store, tmp_path, 1)
    assert [digest(b) for b in loader(sick, plan, 2, context="fork")] == [
        digest(data.batch(*s)) for s in plan
    ]
    assert len(sick.warnings) == 1 and "killed by SIGKILL" in sick.warnings[0]


def test_worker_that_dies_again_is_named(store: Canary, tmp_path: Path) -> None:
    sick, got = _sick(store, tmp_path, 5), []
    with pytest.raises(TrainingError, match="died twice") as caught:
        for batch in loader(sick, [(0, s, 2, 2) for s in range(8)], 1, context="fork"):
            got.append(batch)
    assert len(got) <= 3  # a finished batch that was not handed over yet is lost with its worker
    assert caught.value.details["where"] == f"step {len(got)} of phase 0"
    assert "killed by SIGKILL" in str(caught.value) and "--workers" in str(caught.value)


def test_hanging_read_names_the_cases(store: Canary, tmp_path: Path) -> None:
    sick = _sick(store, tmp_path, 1)
    sick.sleeps = True
    with pytest.raises(DataError, match="no batch for 2 seconds") as caught:
        list(loader(sick, [(0, s, 2, 2) for s in range(5)], 1, context="fork", timeout=2))
    assert all(case in str(caught.value) for case in sick.cases(0, 3, 2, 2))


def test_workers_outlive_signals_to_the_group(store: Canary) -> None:
    class Hit(TrainingData):
        def batch(self, phase: int, step: int, labeled: int, unlabeled: int) -> Batch:
            for name in (
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGUSR1,
                signal.SIGUSR2,
                signal.SIGHUP,
            ):
                os.kill(os.getpid(), name)
            return super().batch(phase, step, labeled, unlabeled)

    hit = Hit({"toy": store}, {"toy": 4}, protocol(), 0)
    assert len(list(loader(hit, [(0, s, 2, 2) for s in range(3)], 1, context="fork"))) == 3
    assert hit.warnings == []
