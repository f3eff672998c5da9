"""Measure a training step of the authors' code and of ours, on the same work.

    python benchmarks/speed/official.py --official DIR [METHOD ...]
        [--edge 48] [--rounds 3] [--out FILE.json]

DIR holds clones of the authors' repositories, by their names: UA-MT, BCP, SS-Net and so on. Their
unchanged scripts are executed, as by ``segbench verify-method``: with synthetic batches in place of
data sets, and on the CPU. Each side is one process with one thread. The sides alternate step by
step. A step is everything between two batches: forward and backward passes, optimizers, moving
averages, logs. Only the last training loop of a script is measured. All sides have the same number
of images and the networks of the publication.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for variable in THREADS:
    os.environ.setdefault(variable, "1")  # before torch starts its threads

import torch  # noqa: E402
from measured import save  # noqa: E402
from sides import Seconds, measure_in_turn, serve  # noqa: E402
from torch import Tensor  # noqa: E402

from segbench.contracts.method import Batch  # noqa: E402
from segbench.training.memory import keep_freed_memory  # noqa: E402
from segbench.training.step import StepSettings, TrainingStep  # noqa: E402
from segbench.verify import Description, authors, load_description  # noqa: E402
from segbench.verify.authors import SyntheticLoader, names_in  # noqa: E402
from segbench.verify.ours import Ours  # noqa: E402

NOTE = "CPU and wall seconds per step; ratio: the authors' code divided by the row"
METHODS = (
    "supervised",
    "mean_teacher",
    "ua_mt",
    "sassnet",
    "dtc",
    "urpc",
    "mc_net",
    "ss_net",
    "bcp",
    "cps",
    "mcf",
    "sdcl",
    "versemi",
)


def described(settings: dict[str, Any]) -> Description:
    """Return the description of a method's repository, with the patch to measure."""
    description = load_description(settings["method"])
    return description.model_copy(update={"small": (settings["edge"],) * 3})


# -- ours ------------------------------------------------------------------------------------------


def serve_ours(settings: dict[str, Any]) -> None:
    """Make a step of the last phase for every line of standard input."""
    keep_freed_memory()
    ours = Ours(settings["method"], described(settings))
    optimizer = ours.experiment.protocol.optim
    precision = StepSettings(optimizer, seed=0, precision=settings["precision"])
    step = TrainingStep(ours.method, ours.plan, precision)
    for stage in ours.plan[:-1]:
        step(stage.start, ours.batch(0, stage, wide=False))
    last = ours.plan[-1]
    batch: Batch = ours.batch(0, last, wide=False)
    made = 0

    def work() -> None:
        nonlocal made
        step(last.start + made, batch).report()
        made += 1

    serve(work)


# -- theirs ----------------------------------------------------------------------------------------


class TimedSession(authors.Session):
    """One run of a script that makes its steps on request and records nothing."""

    def prepare(self) -> None:
        """Replace what the script must not find."""
        super().prepare()
        authors.replace(Tensor, cuda=lambda tensor, *_, **__: tensor)

    def batches(self, loader: SyntheticLoader, frame: FrameType) -> Iterator[Any]:
        """Yield one batch in the first loops, and one per line of standard input in the last."""
        role = self.role(loader, frame)
        leads = self.leads(role)
        if leads:
            self.enter_part(names_in(frame))
        items = self.items(0, role)
        if self.part + 1 < len(self.description.parts):
            yield items
        elif not leads:
            while True:
                yield items
        else:
            for _ in sys.stdin:
                cpu = time.process_time()
                wall = time.perf_counter()
                yield items
                taken: Seconds = {
                    "cpu": time.process_time() - cpu,
                    "wall": time.perf_counter() - wall,
                }
                print(json.dumps(taken), file=ANSWERS, flush=True)
            sys.exit()

    def run(self) -> None:
        """Run the script until no more steps are asked for."""
        self.prepare()
        module = self.repository.run(self.script)
        if self.description.afterwards:
            function, *arguments = self.description.afterwards
            values = [module.__dict__[name] for name in arguments]
            module.__dict__[function](*values)


ANSWERS = sys.stdout  # the scripts print, too: their texts go to standard error


def serve_theirs(settings: dict[str, Any]) -> None:
    """Run the authors' script and make a step of its last loop for every line of standard input."""
    description = described(settings)
    ours = Ours(settings["method"], description)
    batch = ours.experiment.protocol.batch
    job = {
        "description": description.model_dump(mode="json"),
        "official": settings["official"],
        "patch": ours.method.setting.patch,
        "steps": 1,
        "lengths": [stage.steps for stage in ours.plan],
        "batch": [batch.labeled, batch.unlabeled],
        "sets": len(ours.experiment.datasets),
        "wide": False,
    }
    del ours
    session = TimedSession(job)
    authors.SESSION = session
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        work = Path(folder) / "repository" / "code"  # where scripts write their logs
        work.mkdir(parents=True)
        os.chdir(work)
        session.run()


# -- the comparison --------------------------------------------------------------------------------


def compare(method: str, official: Path, edge: int, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of one method: theirs, ours, and ours in bfloat16."""
    repository = load_description(method).repository.rpartition("/")[2]
    clone = official.resolve() / repository
    common = {"method": method, "edge": edge}
    sides = [
        {**common, "side": repository, "precision": "fp32", "official": str(clone)},
        {**common, "side": "segbench", "precision": "fp32"},
        {**common, "side": "segbench", "precision": "bf16"},
    ]
    rows: list[dict[str, Any]] = measure_in_turn(Path(__file__).resolve(), sides, rounds)
    for row in rows:
        row.pop("official", None)
    return rows


def main() -> None:
    """Measure, print a table and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", default=list(METHODS))
    parser.add_argument("--official", type=Path, required=True, help="folder of the clones")
    parser.add_argument("--edge", type=int, default=48, help="edge of the patch in voxels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'method':<14}{'side':<12}{'precision':<11}{'cpu s':>9}{'ratio':>8}")
    for method in chosen.methods:
        for row in compare(method, chosen.official, chosen.edge, chosen.rounds):
            rows.append(row)
            words = f"{row['method']:<14}{row['side']:<12}{row['precision']:<11}"
            print(f"{words}{row['cpu']:>9.3f}{row['ratio_cpu']:>8.2f}", flush=True)
        if chosen.out:  # after each method: the next one may need more memory than there is
            save(chosen.out, [{"edge": chosen.edge, "rounds": chosen.rounds}, *rows], NOTE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        settings = json.loads(sys.argv[2])
        torch.set_num_threads(1)
        (serve_theirs if "official" in settings else serve_ours)(settings)
    else:
        main()
