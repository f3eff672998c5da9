"""The phantoms are the same for everybody, have what they promise, and no threshold solves them."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from segbench import registry
from segbench.errors import DataError

NAMES = ("phantom_ct_organ", "phantom_ct_lesion", "phantom_mr_organ", "phantom_mr_lesion")

# Of the first and the last case: shape, voxels of the target, 30th and 95th percentile of the
# image.
FROZEN = {
    "phantom_ct_organ": (((48, 41, 39), 6131, -0.752, 1.828), ((54, 50, 44), 6319, -0.578, 1.951)),
    "phantom_ct_lesion": (((49, 44, 43), 2431, -0.581, 1.920), ((46, 40, 40), 1670, -0.549, 2.023)),
    "phantom_mr_organ": (((54, 52, 39), 9483, -0.787, 2.005), ((47, 40, 36), 2334, -0.923, 1.530)),
    "phantom_mr_lesion": (((49, 42, 40), 1929, -0.885, 1.801), ((54, 41, 34), 1096, -0.908, 1.635)),
}


def make(name):
    return registry.get("dataset", name).cls()


def digest(name: str, index: int) -> str:
    data = make(name)
    case = data.load(data.find(None)[index])
    return hashlib.sha256(case.image.tobytes() + case.label.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def cases():
    """Every case of every phantom, by data set (about ten seconds)."""
    return {name: [make(name).load(raw) for raw in make(name).find(None)] for name in NAMES}


def test_the_group_names_its_members():
    group = registry.get("dataset", "phantom").cls
    assert group.members == NAMES and group.embedded
    assert all(registry.get("dataset", name).cls.embedded for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_split_covers_the_cases_once(name):
    split, ids = make(name).split(), [raw.id for raw in make(name).find(None)]
    assert (len(split.train), len(split.test)) == (60, 20)
    assert sorted(split.train + split.test) == sorted(set(ids))
    assert split.train == tuple(ids[:60])  # the prefix is the labeled set
    assert 0 < make(name).labeled < 60


def test_cases_are_well_formed(cases):
    for name, members in cases.items():
        for case in members:
            size = case.label.shape
            assert case.image.shape == (1, *size) and case.image.dtype == np.float32, case.id
            assert case.label.dtype == np.uint8 and set(np.unique(case.label)) == {0, 1}, case.id
            assert 44 <= size[0] <= 56 and 40 <= size[1] <= 52 and 34 <= size[2] <= 44, case.id
            assert case.spacing == (1.5, 1.5, 1.5)
            assert np.isfinite(case.image).all()
            assert case.image.mean(dtype=float) == pytest.approx(0, abs=1e-3)
            assert case.image.std(dtype=float) == pytest.approx(1, abs=1e-3)
        assert len({case.label.shape for case in members}) > 10, name
        assert len({case.label.tobytes() for case in members}) == 80, name


def test_targets_have_their_sizes(cases):
    for name, members in cases.items():
        voxels = [int(case.label.sum()) for case in members]
        low, high = (2000, 15000) if name.endswith("organ") else (700, 5000)
        assert low <= min(voxels) and max(voxels) <= high, (name, voxels)


def test_the_same_process_repeats_itself():
    assert digest("phantom_mr_lesion", 3) == digest("phantom_mr_lesion", 3)
    assert digest("phantom_mr_lesion", 3) != digest("phantom_mr_lesion", 4)
    assert digest("phantom_mr_lesion", 3) != digest("phantom_mr_organ", 3)


def test_another_process_with_other_threads_gives_the_same_bytes():
    code = (
        "import importlib.util, sys; s = importlib.util.spec_from_file_location('t', sys.argv[1]); "
        "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); "
        "print(m.digest('phantom_mr_organ', 25), m.digest('phantom_ct_lesion', 7))"
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "PYTHONHASHSEED": "5",
    }
    out = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.split() == [digest("phantom_mr_organ", 25), digest("phantom_ct_lesion", 7)]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_has_changed_unnoticed(cases, name):
    """The tolerance allows for other versions of numpy and scipy.

    Raise ``Phantom.version`` after an intended change.
    """
    first, last = cases[name][0], cases[name][-1]
    for case, (shape, voxels, low, high) in zip((first, last), FROZEN[name], strict=True):
        assert case.label.shape == shape
        assert int(case.label.sum()) == pytest.approx(voxels, rel=0.01)
        assert np.percentile(case.image, (30, 95)) == pytest.approx((low, high), abs=0.02)


def test_no_intensity_band_finds_a_target(cases):
    """Even the best intensity range of each case, chosen with its label, stays below Dice 0.6."""
    for name, members in cases.items():
        assert (
            np.mean([best_band(case.image.ravel(), case.label.ravel() > 0) for case in members])
            < 0.6
        ), name


def best_band(image: np.ndarray, label: np.ndarray, bins: int = 40) -> float:
    edges = np.quantile(image, np.linspace(0, 1, bins + 1))
    where = np.clip(np.searchsorted(edges, image, side="right") - 1, 0, bins - 1)
    inside = np.concatenate([[0], np.bincount(where[label], minlength=bins).cumsum()])
    total = np.concatenate([[0], np.bincount(where, minlength=bins).cumsum()])
    return max(
        2 * (inside[j] - inside[i]) / (total[j] - total[i] + inside[-1])
        for i in range(bins)
        for j in range(i + 1, bins + 1)
    )


def test_best_band_finds_what_a_band_can_find():
    image = np.linspace(0, 1, 4000)
    assert best_band(image, (image > 0.25) & (image < 0.5)) > 0.95


@pytest.mark.parametrize("name", ["phantom_ct_lesion", "phantom_mr_lesion"])
def test_the_organ_is_there_where_only_lesions_are_annotated(name):
    """The organ surrounds the lesions, has its usual size, and is visible in the image."""
    data = make(name)
    module = sys.modules[type(data).__module__]
    for raw in data.find(None)[:5]:
        tissue, image = data.render(raw.where)
        case = data.load(raw)
        organ = np.isin(tissue, module.IN_ORGAN)
        assert organ.sum() > 2000 and not case.label[~organ].any()
        assert organ.sum() > 1.2 * case.label.sum()
        air, inside = image[tissue == module.AIR], image[tissue == module.ORGAN]
        assert inside.mean() > air.mean() + 2 * air.std()


@pytest.mark.parametrize("name", NAMES)
def test_look_alikes_share_the_target_s_intensities(name):
    """The means of tissues that touch the organ are within 2 standard deviations of its mean."""
    data = make(name)
    module = sys.modules[type(data).__module__]
    twins = 0
    for raw in data.find(None)[:8]:
        tissue, image = data.render(raw.where)
        own = image[np.isin(tissue, data.target)]
        others = [
            image[tissue == t]
            for t in np.unique(tissue)
            if t not in (module.AIR, *data.target) and (tissue == t).sum() > 50
        ]
        twins += sum(
            abs(float(np.median(o)) - float(np.median(own))) < 2 * float(own.std()) for o in others
        )
        assert np.isin(tissue, (module.STOMACH, module.SPLEEN)).any()
    assert twins >= 8  # on average one or more of the same brightness in every case


def test_a_source_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="no source folder"):
        make("phantom_ct_organ").find(tmp_path)
