"""Draws of the labeled cases: which they are, and that runs and tables keep them apart."""

import json
from pathlib import Path

from segbench.data.open import derived
from segbench.data.sampling.splits import with_draw

PROTOCOL = Path(__file__).resolve().parents[1] / "plugins" / "tiny.yaml"


def test_draw_0_is_the_published_list(toy):
    toy.fill(6)
    store = toy.prepare()
    assert with_draw(store, 0) is store


def test_a_draw_is_a_shuffle_that_depends_on_its_number_and_the_ids_alone(toy):
    toy.fill(12)
    store = toy.prepare()
    orders = [with_draw(store, k).train for k in range(6)]
    assert len(set(orders)) == 6 and all(sorted(o) == sorted(store.train) for o in orders)
    assert (
        with_draw(store, 1).test == store.test
        and with_draw(store, 1).fingerprint == store.fingerprint
    )
    # From sha256sum of "1 c0", "1 c1", ...: an order that moved would silently change what "draw 1"
    # means.
    assert with_draw(derived(store, 2), 1).train == orders[1]
    assert orders[1][:4] == ("c0", "c3", "c6", "c1")
    toy.split([f"c{i}" for i in range(12) if i != 3], ["c12", "c13"])
    assert with_draw(toy.prepare(), 1).train == tuple(i for i in orders[1] if i != "c3")


def test_patients_stay_together_and_unlabeled_cases_come_last(toy):
    names = [f"p{i}_{frame}" for i in range(6) for frame in "ab"]
    for i, name in enumerate([*names, "q_a"]):
        toy.case(name, i, **({"label": None} if name.startswith("p0") else {}))
    toy.split(names, ["q_a"])
    store = toy.prepare()
    for k in range(1, 5):
        order = with_draw(store, k).train
        assert set(order[-2:]) == {"p0_a", "p0_b"}
        assert [order[i : i + 2] for i in range(0, 12, 2)] == [
            (f"{a[:2]}_a", f"{a[:2]}_b") for a in order[::2]
        ]


def test_runs_train_on_their_draws_and_share_a_table(lab):
    from segbench.data.sampling.batches import TrainingData

    runs = [lab.prepared("supervised", labeled=2, draw=k) for k in (0, 1)]
    assert runs[0].run_id != runs[1].run_id and "-d1-s0-" in runs[1].folder.path.name
    store = runs[1].stores[0]
    labeled = {}
    for k in (0, 1):
        view = with_draw(store, k)
        data = TrainingData({store.name: view}, {store.name: 2}, runs[1].experiment.protocol, 0)
        labeled[k] = set(data.cases(0, 0, 2, 0))
        assert labeled[k] == {f"tiny/{case}" for case in view.train[:2]}
    assert labeled[0] != labeled[1]
    for draw in ("0", "1"):
        done = lab.call(
            "run",
            "supervised",
            "--dataset",
            "tiny",
            "--protocol",
            PROTOCOL,
            "--draw",
            draw,
            "--json",
        )
        assert done.returncode == 0, done.stderr
    boards = json.loads(lab.call("leaderboard", "--format", "json").stdout)["boards"]
    assert [board["draws"] for board in boards] == [[0, 1]]  # draws are replicates of one row
    weights = {
        json.loads(f.read_text())["weights_sha256"]
        for f in lab.folder.glob("segbench-out/runs/*/*/*/result.json")
    }
    assert len(weights) == 2


def test_a_suite_may_name_draws(lab):
    (lab.folder / "s.yaml").write_text(
        f"schema: 1\nname: s\nprotocol: {PROTOCOL}\n"
        "matrix: {method: [supervised], dataset: [tiny], draw: [0, 3]}\n"
    )
    shown = lab.call("bench", "plan", "s.yaml", "--json")
    assert shown.returncode == 0, shown.stderr
    assert "2of6-s0" in shown.stdout and "2of6-d3-s0" in shown.stdout, shown.stdout
