"""The 2-D phantoms are reproducible, their families differ, and hard cases are as documented."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from segbench import Case, registry
from segbench.errors import DataError

GROUPS = ("phantom2d", "phantom2d_dev", "phantom2d_fresh")
HARD = (
    "phantom2d_kidney_a",
    "phantom2d_dev_kidney_a",
    "phantom2d_dev_kidney_b",
    "phantom2d_shift",
    "phantom2d_classes",
)
NAMES = tuple(f"{group}_{look}" for group in GROUPS for look in "ab") + HARD
TRAIN = 60

# Of the first and the last case: pixels of each class, 30th and 95th percentile of the image.
FROZEN = {
    "phantom2d_a": (((92,), -0.720, 1.915), ((82,), -0.807, 2.014)),
    "phantom2d_b": (((115,), -0.871, 1.705), ((95,), -0.961, 1.422)),
    "phantom2d_dev_a": (((97,), -0.947, 1.650), ((118,), -0.734, 2.046)),
    "phantom2d_dev_b": (((104,), -0.955, 1.652), ((103,), -0.901, 1.709)),
    "phantom2d_fresh_a": (((65,), -0.718, 1.689), ((111,), -0.834, 2.014)),
    "phantom2d_fresh_b": (((97,), -1.031, 1.480), ((112,), -0.998, 1.619)),
    "phantom2d_kidney_a": (((18,), -0.611, 2.499), ((36,), -0.857, 1.889)),
    "phantom2d_dev_kidney_a": (((27,), -0.844, 1.853), ((19,), -0.636, 2.404)),
    "phantom2d_dev_kidney_b": (((24,), -1.029, 1.361), ((16,), -0.802, 1.696)),
    "phantom2d_shift": (((101,), -0.679, 2.239), ((69,), -0.640, 2.273)),
    "phantom2d_classes": (((85, 29, 15), -0.879, 1.991), ((77, 20, 9), -0.684, 2.235)),
}


def make(name: str) -> Any:
    return registry.get("dataset", name).cls()


def pixels(case: Case, classes: int) -> list[int]:
    """Return the number of pixels of each class."""
    return np.bincount(case.label.ravel(), minlength=classes + 1)[1:].tolist()


def digest(name: str, index: int) -> str:
    data = make(name)
    case = data.load(data.find(None)[index])
    return hashlib.sha256(case.image.tobytes() + case.label.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def cases() -> dict[str, list[Case]]:
    """Return every case of every data set (about three seconds)."""
    loaded = {}
    for name in NAMES:
        data = make(name)
        loaded[name] = [data.load(raw) for raw in data.find(None)]
    return loaded


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_two_looks_of_one_target(group):
    members = registry.get("dataset", group).cls.members
    assert members == (f"{group}_a", f"{group}_b")
    assert [make(name).look for name in members] == ["a", "b"]
    assert [make(name).classes for name in members] == [("organ",), ("organ",)]


@pytest.mark.parametrize("name", NAMES)
def test_the_split_covers_the_cases_once(name):
    data = make(name)
    ids = [raw.id for raw in data.find(None)]
    split = data.split()
    assert split.train == tuple(ids[:TRAIN])
    assert split.test == tuple(ids[TRAIN:])
    assert len(set(ids)) == 2 * TRAIN
    assert data.labeled == 4
    assert data.embedded


@pytest.mark.parametrize("name", NAMES)
def test_cases_are_well_formed(cases, name):
    classes = len(make(name).classes)
    for case in cases[name]:
        assert case.image.shape == (1, 32, 32)
        assert case.image.dtype == np.float32
        assert case.label.shape == (32, 32)
        assert case.label.dtype == np.uint8
        assert case.spacing == (10.0, 10.0)
        assert case.image.mean(dtype=float) == pytest.approx(0, abs=1e-3)
        assert case.image.std(dtype=float) == pytest.approx(1, abs=1e-3)
        assert case.label.max() == classes
        assert min(pixels(case, classes)) > 0, case.id


def test_no_image_is_in_two_places(cases):
    """Train and test, looks, families and hard cases share no image and no organ."""
    images = set()
    labels = set()
    for members in cases.values():
        for case in members:
            images.add(case.image.tobytes())
            labels.add(case.label.tobytes())
    assert len(images) == len(NAMES) * 2 * TRAIN
    assert len(labels) == len(NAMES) * 2 * TRAIN


@pytest.mark.parametrize("name", NAMES)
def test_nothing_has_changed_unnoticed(cases, name):
    """Frozen to a precision that other versions of numpy and scipy keep.

    Changed on purpose? Raise ``Phantom2D.version``.
    """
    ends = (cases[name][0], cases[name][-1])
    for case, (sizes, low, high) in zip(ends, FROZEN[name], strict=True):
        assert pixels(case, len(sizes)) == pytest.approx(sizes, abs=1)
        assert np.percentile(case.image, (30, 95)) == pytest.approx((low, high), abs=0.02)


def test_another_process_with_other_threads_gives_the_same_bytes():
    code = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('t', sys.argv[1]); "
        "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); "
        "print(m.digest('phantom2d_b', 100), m.digest('phantom2d_shift', 100))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "5"}
    out = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == [digest("phantom2d_b", 100), digest("phantom2d_shift", 100)]


def organ_is_brighter_than_fat(name: str) -> float:
    """Return the share of training images in which the organ's mean is above that of the fat."""
    data = make(name)
    module = sys.modules[type(data).__module__]
    brighter = []
    for raw in data.find(None)[:TRAIN]:
        tissue, image = data.render(raw.where)
        organ = image[tissue == module.ORGAN].mean()
        fat = image[tissue == module.FAT].mean()
        brighter.append(organ > fat)
    return float(np.mean(brighter))


def test_the_looks_are_opposite():
    assert organ_is_brighter_than_fat("phantom2d_a") > 0.95
    assert organ_is_brighter_than_fat("phantom2d_b") < 0.05


def test_the_sibling_shows_the_organ_and_does_not_label_it(cases):
    data = make("phantom2d_kidney_a")
    module = sys.modules[type(data).__module__]
    assert data.look == make("phantom2d_a").look
    for raw in data.find(None):
        tissue, _ = data.render(raw.where)
        label = data.load(raw).label
        organ = np.isin(tissue, (module.ORGAN, module.LESION))
        assert organ.sum() > label.sum() > 0
        assert not label[organ].any()


def air_noise(data: Any, raw: Any) -> float:
    """Return the scatter of the image where there is only air."""
    module = sys.modules[type(data).__module__]
    tissue, image = data.render(raw.where)
    return float(image[tissue == module.AIR].std())


def test_only_the_test_images_of_the_shift_come_from_another_scanner():
    noise = {}
    for name in ("phantom2d_a", "phantom2d_shift"):
        data = make(name)
        scatter = [air_noise(data, raw) for raw in data.find(None)]
        noise[name] = (np.mean(scatter[:TRAIN]), np.mean(scatter[TRAIN:]))
    usual_train, usual_test = noise["phantom2d_a"]
    shift_train, shift_test = noise["phantom2d_shift"]
    assert usual_test == pytest.approx(usual_train, rel=0.15)
    assert shift_train == pytest.approx(usual_train, rel=0.15)
    assert shift_test > 1.3 * shift_train


def test_the_classes_have_very_different_sizes(cases):
    sizes = [pixels(case, 3) for case in cases["phantom2d_classes"]]
    organ, kidney, aorta = np.median(sizes, axis=0)
    assert organ > 3 * kidney
    assert kidney > 2 * aorta


def test_a_source_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no source folder"):
        make("phantom2d_a").find(tmp_path)
