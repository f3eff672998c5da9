"""The quick protocol: methods converge, and unsupervised terms do not break them.

Trained on the development family of the phantoms, which no reported number uses.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "methods"
METHODS = sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
# The weights of all terms without labels, by method. bcp, sdcl and versemi show unlabeled images in
# labeled terms too, so that no weight takes them out.
WEIGHTS = {
    **dict.fromkeys(METHODS, ("weight=0",)),
    "uncl": ("weight=0", "uncertainty_weight=0"),
    "unimatch": ("image_weight=0", "feature_weight=0"),
}
WEIGHTED = [name for name in METHODS if name not in ("supervised", "bcp", "sdcl", "versemi")]
DATASET = "phantom2d_dev_a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("convergence")


def train(folder, method, *options, draw=1):
    """Return the test Dice in percent after every tenth of the training."""
    from segbench.cli.main import run

    root = folder / "-".join([method, str(draw), *options]).replace("/", "_")
    places = ["--root", str(root), "--data-root", str(folder / "data"), "--quiet"]
    replicate = ["--draw", str(draw), "--seed", str(draw)]
    words = ["run", method, "--dataset", DATASET, *replicate, "--leak-meter"]
    assert run([*words, *options, *places]) == 0
    (leak,) = root.glob("runs/**/leak.json")
    return [row["test"] for row in json.loads(leak.read_text())["checkpoints"]]


def test_the_oracle_has_converged(folder):
    curve = train(folder, "supervised", "--labeled", "54")  # the leak meter holds six cases out
    assert curve[-1] > 80
    assert curve[-1] - curve[7] < 1  # the last fifth


@pytest.mark.parametrize("method", METHODS)
def test_no_method_falls_after_half_time(folder, method):
    """In the mean of three runs: rounding alone moves a single run by 1 to 3 Dice."""
    curves = [train(folder, method, draw=draw) for draw in (1, 2, 3)]
    falls = [curve[4] - curve[-1] for curve in curves]
    assert sum(falls) / len(falls) < 3


@pytest.mark.parametrize("method", WEIGHTED)
def test_without_its_weight_a_method_is_supervised_training(folder, method):
    supervised = train(folder, "supervised")[-1]
    options = [word for weight in WEIGHTS[method] for word in ("-o", weight)]
    alone = train(folder, method, *options)[-1]
    assert abs(alone - supervised) < 6
