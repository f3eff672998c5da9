"""torchrun: processes that share every batch train what one process trains, also after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segbench import registry
from segbench.errors import UsageError
from segbench.training import checkpoint
from segbench.training.distributed import World

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "tests/plugins"
# Instance normalization and no dropout: what a process's share decides is then nothing but the mean
# over the batch.
PLAIN = ("-o", "backbone.norm=instance", "-o", "backbone.dropout=0")


def torchrun(folder, *args, processes=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "segbench.cli.main",
        "--plugin",
        str(PLUGINS / "tiny.py"),
        *map(str, args),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def run_args(method, *more):
    return (
        "run",
        method,
        "--dataset",
        "tiny",
        "--protocol",
        PLUGINS / "tiny.yaml",
        "--device",
        "cpu",
        "--json",
        *more,
    )


def weights(lab, document):
    return checkpoint.load(lab.folder / document["dir"] / "ckpt")[1]["method"]


VOXELWISE = """
from segbench import Method, method
from segbench.nn.losses import cross_entropy

@method("voxelwise")
class Voxelwise(Method):
    def build(self, network):
        self.network = network()
    def loss(self, batch, t):
        return {"labeled": cross_entropy(self.network(batch.x), batch.y)}
    def predict(self, image, source=0):
        return self.network(image).softmax(1)
"""


def test_two_processes_train_what_one_trains(lab):
    """A mean over voxels is a mean of means, so both agree (Dice over a batch would not)."""
    (lab.folder / "voxelwise.py").write_text(VOXELWISE)
    asked = ("--plugin", lab.folder / "voxelwise.py", *run_args("voxelwise", *PLAIN))
    one = json.loads(lab.call(*asked).stdout)
    done = torchrun(lab.folder, *asked)
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)  # one document: only the first process speaks
    assert two["run_id"] != one["run_id"]  # never taken for the same numbers
    ours, theirs = weights(lab, one), weights(lab, two)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5, msg=key)
    log = (lab.folder / two["dir"] / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(6))

    alone = lab.call("resume", two["run_id"])
    assert alone.returncode == 2 and "began with 2 processes" in alone.stderr
    assert lab.call("evaluate", two["run_id"]).returncode == 0  # only training needs them


@pytest.mark.slow
@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_trains_in_two_processes(lab, method):
    done = torchrun(lab.folder, *run_args(method))
    assert done.returncode == 0, done.stderr
    straight = json.loads(done.stdout)
    assert straight["status"] == "done"
    other = lab.folder / "other"
    other.mkdir()
    again = json.loads(torchrun(other, *run_args(method)).stdout)
    first, second = (
        json.loads((f / straight["dir"] / "result.json").read_text()) for f in (lab.folder, other)
    )
    assert (
        again["run_id"] == straight["run_id"]
        and first["weights_sha256"] == second["weights_sha256"]
    )


def test_shares():
    assert [list(World(r, 2).share(range(4, 8))) for r in range(2)] == [[4, 5], [6, 7]]
    assert list(World().share(range(3))) == [0, 1, 2]
    with pytest.raises(UsageError, match="2 processes cannot share 3 items"):
        World(0, 2).share(range(3))
