"""Joint data sets that look alike and label different things are named."""

import json
import statistics

import pytest
from conftest import ROOT

from segbench.data.look_alike import MEASURED_COST, look_alike_warnings
from segbench.data.open import open_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    return lambda name: open_store(name, root)


def test_one_look_with_two_targets(store):
    (warning,) = look_alike_warnings([store("phantom2d_a"), store("phantom2d_kidney_a")])
    assert "'phantom2d_a' and 'phantom2d_kidney_a' look alike" in warning
    assert "(organ; kidney)" in warning


@pytest.mark.parametrize(
    "pair",
    [
        ("phantom2d_a", "phantom2d_b"),  # two looks, one target
        ("phantom2d_a", "phantom2d_shift"),  # one look, one target
        ("phantom2d_b", "phantom2d_kidney_a"),  # two looks, two targets
    ],
)
def test_other_pairs_give_no_warning(store, pair):
    assert not look_alike_warnings([store(name) for name in pair])


def test_data_sets_of_other_modalities_are_not_compared(store, monkeypatch):
    from segbench import registry

    cls = registry.get("dataset", "phantom2d_kidney_a").cls
    monkeypatch.setattr(cls, "modality", "CT")
    assert not look_alike_warnings([store("phantom2d_a"), store("phantom2d_kidney_a")])


def test_a_dry_run_shows_the_warning(tmp_path, capsys):
    from segbench.cli.main import run

    places = ["--root", str(tmp_path / "out"), "--data-root", str(tmp_path / "data")]
    words = ["run", "versemi", "--dataset", "phantom2d_a,phantom2d_kidney_a", "--dry-run"]
    assert run([*words, *places]) == 0
    assert "look alike but label different things" in capsys.readouterr().err


def test_the_cost_in_the_warning_is_that_of_the_stored_runs(store):
    runs = json.loads((ROOT / "benchmarks/results/joint.json").read_bytes())["runs"]

    def mean_dice(names, dataset, labeled):
        found = []
        for run in runs:
            kind = (run["method"], run["datasets"], run["unlabeled"])
            if kind != ("versemi", names, "all") or run["labeled"][dataset] != labeled:
                continue
            cases = run["cases"]
            owner = cases["dataset"]
            owners = [owner] * len(cases["dice"]) if isinstance(owner, str) else owner
            scores = [d for d, name in zip(cases["dice"], owners, strict=True) if name == dataset]
            found.append(100 * statistics.fmean(scores))
        assert len(found) == 5
        return statistics.fmean(found)

    pair = ["phantom2d_a", "phantom2d_kidney_a"]

    def losses(labeled):
        alone = [mean_dice([name], name, labeled) for name in pair]
        together = [mean_dice(pair, name, labeled) for name in pair]
        organ, kidneys = (round(one - both) for one, both in zip(alone, together, strict=True))
        return f"{organ} and {kidneys} Dice"

    measured = f"{losses(4)} with few labels, {losses(60)} with all"
    assert measured == MEASURED_COST
    (warning,) = look_alike_warnings([store(name) for name in pair])
    assert MEASURED_COST in warning
