"""Finished runs made of numbers: nothing is trained."""

import hashlib
import json

import numpy as np

from segbench.config import resolve
from segbench.evaluation.case_rows import cases_csv, summarize
from segbench.identity.run_id import run_id, science
from segbench.results.rundir import SCHEMA, RunDir, run_folder
from segbench.storage import atomic_write, json_bytes

VOXELS = 1000


def row(case, dice, dataset="tiny"):
    """Return a record of a case as the evaluation writes it; ``dice`` 0 is an empty prediction."""
    common = round(dice * VOXELS)
    status = "ok" if common else "empty_prediction"
    distance = (1 - dice) * 20 + 1 if common else None
    surface = {f"{m}_{u}": distance for u in ("vox", "mm") for m in ("hd95", "asd", "assd")}
    return {
        "dataset": dataset,
        "case": case,
        "class": "ball",
        "status": status,
        "dice": common / VOXELS,
        "jaccard": common / (2 * VOXELS - common),
        **surface,
        "pred_voxels": VOXELS if common else 0,
        "ref_voxels": VOXELS,
        "shape": [20, 20, 20],
        "spacing": [1.0, 1.0, 1.0],
        "prediction": "0" * 32,
    }


class Study:
    """A folder of runs."""

    row = staticmethod(row)

    def __init__(self, root, plugins):
        self.root, self.plugins = root, plugins

    def add(  # noqa: PLR0913 (one argument per property of a run)
        self,
        method,
        seed,
        dice=(),
        cases=None,
        labeled=2,
        fingerprint="f" * 64,
        change=None,
        overrides=(),
        rows=None,
        draw=0,
        fold=None,
        science_change=(),
        dataset="tiny",
        unlabeled="all",
    ):
        """Write a finished run with one Dice value per case.

        ``change`` edits the result before it is written.
        """
        (experiment,) = resolve(
            method,
            dataset=dataset,
            unlabeled=unlabeled,
            protocol=self.plugins / "tiny.yaml",
            seed=seed,
            labeled=labeled,
            overrides=list(overrides),
        ).experiments
        splits = {dataset: "5" * 64}
        folds = None
        if fold is not None:
            experiment = experiment.model_copy(update={"fold": fold})
            splits = {dataset: str(fold) * 64}
            folds = {dataset: {"count": 5, "lists": "9" * 64, "train": 5}}
        content = science(
            experiment,
            {dataset: fingerprint},
            splits,
            {"method": "m", "backbone": "b"},
            folds=folds,
        )
        content |= ({"draw": draw} if draw else {}) | dict(science_change)
        identity = run_id(content)
        run = run_folder(self.root, experiment, {dataset: 6}, identity)
        run.write_config(identity, experiment, content, [])
        rows = rows or [
            row(c, d, dataset)
            for c, d in zip(cases or [f"case{i}" for i in range(len(dice))], dice, strict=True)
        ]
        table = cases_csv(rows)
        result = {
            "schema": SCHEMA,
            "status": "done",
            "run_id": identity,
            "method": method,
            "backbone": experiment.backbone,
            "datasets": [dataset],
            "labeled": {dataset: labeled},
            "unlabeled": unlabeled,
            "train": {dataset: 6},
            "partial": [],
            "seed": seed,
            "precision": "fp32",
            "selection": "last",
            "test_evaluations": 1,
            "protocol": {"name": "tiny", "version": 1, "modified": list(experiment.modified)},
            "protocol_sha256": hashlib.sha256(json_bytes(content["protocol"])).hexdigest(),
            "changed_params": {},
            "without": [],
            "fingerprints": {dataset: fingerprint},
            "splits": splits,
            "science": content,
            "metrics": summarize(rows, "worst_distance"),
            "steps": 6,
            "weights_sha256": "",
            "cases_sha256": hashlib.sha256(table).hexdigest(),
        }
        result = json.loads(json_bytes(result))
        if change:
            change(result)
        atomic_write(run.path / "cases.csv", table)
        run.write_json("result.json", result)
        run.write_json("manifest.json", {"train_seconds": 60.0})
        return RunDir(run.path)

    def rewrite(self, run, text):
        """Replace the case table and its digest."""
        (run.path / "cases.csv").write_text(text)
        result = json.loads((run.path / "result.json").read_text())
        result["cases_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        run.write_json("result.json", result)

    def methods(self, cases=12, noise=0.004, **means):
        """Add three seeds of methods with these mean Dice values on the same cases."""
        rng = np.random.default_rng(0)
        case = rng.normal(0, 0.03, cases)
        for name, mean in means.items():
            for seed in range(3):
                self.add(name, seed, np.clip(mean + case + rng.normal(0, noise, cases), 0.001, 1))
