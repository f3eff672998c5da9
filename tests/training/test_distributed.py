"""Processes that share every batch train what one process trains, also after a kill."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from segbench import registry
from segbench.errors import Interrupted, PeerLost, UsageError
from segbench.evaluation.test_set import evaluate
from segbench.results.attempts import history
from segbench.results.states import state_of
from segbench.training import checkpoint, distributed
from segbench.training.build import build
from segbench.training.distributed import World
from segbench.training.gradients import averaged, buckets_of
from segbench.training.run import execute
from segbench.training.step import TrainingStep

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
    assert done.stderr.count("segbench run:") == 1
    assert two["run_id"] != one["run_id"]  # never taken for the same numbers
    ours, theirs = weights(lab, one), weights(lab, two)
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5, msg=key)
    log = (lab.folder / two["dir"] / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(6))

    alone = lab.call("resume", two["run_id"])
    assert alone.returncode == 0 and "cached" in alone.stderr
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


# -- without torchrun: forked processes, which need not import torch again -------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


def _child(rank, port, function, answers):
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    distributed.join.cache_clear()
    try:
        answer = function(distributed.join("cpu"))
    except Interrupted as error:
        answer = error.code, str(error)
    answers.send(answer)
    answers.recv()  # an end would be a loss for the other process
    os._exit(0)


def together(function):
    """Call a function in two processes; return what it returned, None where it was killed."""
    context = multiprocessing.get_context("fork")
    port = free_port()
    pipes = [context.Pipe() for _ in range(2)]
    children = []
    for rank in range(2):
        place = (rank, port, function, pipes[rank][1])
        children.append(context.Process(target=_child, args=place))
        children[rank].start()
    answers = []
    for child, (here, _) in zip(children, pipes, strict=True):
        while not here.poll(0.1) and child.is_alive():
            pass
        answers.append(here.recv() if here.poll() else None)
    for child in children:
        child.kill()
        child.join()
    return answers


@pytest.mark.parametrize("most", [1, 50, 10_000])
def test_gradients_become_means_whatever_the_buckets_hold(most):
    def work(world):
        torch.manual_seed(0)
        layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(4)])
        image = torch.full((2, 3), 1.0 + world.rank)
        used = layers[:3] if world.rank else layers[1:3]  # nothing uses the last one
        with averaged(layers.parameters(), world, most):
            for layer in used:
                image = layer(image)
            image.sum().backward()
        gradients = [parameter.grad for parameter in layers.parameters()]
        return [None if gradient is None else gradient.tolist() for gradient in gradients]

    assert len(buckets_of(torch.nn.Linear(3, 3).parameters(), most)) == (2 if most == 1 else 1)
    first, second = together(work)
    assert first == second
    mine, theirs = work(World(0)), work(World(1))
    for found, own, other in zip(first, mine, theirs, strict=True):
        if own is None and other is None:
            assert found is None
            continue
        parts = [torch.tensor(part) for part in (own, other) if part is not None]
        torch.testing.assert_close(torch.tensor(found), torch.stack(parts).sum(0) / 2)


def shared_run(lab):
    run = lab.prepared("supervised")
    run.experiment = run.experiment.model_copy(update={"processes": 2})
    return run


def trained(run, lab, before=None, after=None):
    """Train in two processes, with calls before and after every step; return their answers."""
    real = TrainingStep.__call__

    def train(world):
        def step(self, number, batch):
            if before is not None:
                before(world.rank, number)
            made = real(self, number, batch)
            if after is not None:
                after(world.rank, number)
            return made

        TrainingStep.__call__ = step  # in a child
        return execute(run, lab.machine())["run_id"]

    return together(train)


def test_a_lost_process_is_no_failure_and_the_run_continues_to_the_same_bytes(lab, tmp_path):
    def kill(rank, number):
        if rank == 1 and number == 3:
            os.kill(os.getpid(), 9)

    run = shared_run(lab)
    (code, text), killed = trained(run, lab, before=kill)
    assert killed is None
    assert code == PeerLost.code and "another process of this training was lost" in text
    assert run.folder.state == "half-done"
    assert not (run.folder.path / "failed.json").exists()
    trained(run, lab)
    resumed = run.folder.result()

    run.folder = type(run.folder)(tmp_path / "straight" / run.folder.path.name)
    trained(run, lab)
    straight = run.folder.result()
    for name in ("weights_sha256", "cases_sha256", "metrics"):
        assert resumed[name] == straight[name]


def test_all_processes_stop_after_the_same_step(lab):
    """Only the second one gets the signal; both end, and the first has saved."""

    def stop(rank, number):
        if rank == 1 and number == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    run = shared_run(lab)
    for code, text in trained(run, lab, after=stop):
        assert code == 75 and "stopped after step 3" in text
    assert checkpoint.load(run.folder.path / "ckpt").step == 3


def test_shared_test_cases_give_the_rows_of_one_process(lab, tmp_path):
    run = lab.prepared("supervised")
    method = build(run.experiment, run.stores)
    inference = run.inference(method, "cpu")

    def score(world):
        own = tmp_path / str(world.rank)
        return evaluate(inference, run.stores, own, "stamp", peers=world), own.exists()

    alone = evaluate(inference, run.stores, tmp_path / "alone", "stamp")
    (first, has_file), (second, has_other_file) = together(score)
    assert first == alone and second == alone
    assert has_file and not has_other_file
    assert (tmp_path / "0").read_bytes() == (tmp_path / "alone").read_bytes()


def second_process(folder):
    """Return the id of the process with rank 1 that works on a run; None if there is none."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes()
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if str(folder).encode() in command and b"RANK=1" in environment:
            return int(place.name)
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_run_starts_its_processes_again_when_one_is_killed(lab, tmp_path):
    protocol = (PLUGINS / "tiny.yaml").read_text().replace("steps: 6", "steps: 60")
    (lab.folder / "long.yaml").write_text(protocol.replace("name: tiny", "name: long"))
    command = [sys.executable, "-m", "segbench.cli.main", "--plugin", PLUGINS / "tiny.py"]
    command += ["run", "supervised", "--dataset", "tiny", "--protocol", "long.yaml", "--json"]
    command += ["--device", "cpu", "--processes", "2", "--save-every", "5"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=lab.folder, env=env, text=True, **pipes) as process:
        folder = None
        while process.poll() is None and folder is None:
            found = list(lab.folder.glob("segbench-out/runs/*/*/*/ckpt/*.st"))
            folder = found[0].parents[1] if found else None
            time.sleep(0.05)
        os.kill(second_process(folder.relative_to(lab.folder)), 9)
        states = set()
        while process.poll() is None:
            states.add(state_of(folder))
            time.sleep(0.05)
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert "the job starts again (2 of 3)" in err
    assert json.loads(out)["status"] == "done"
    assert "failed" not in states
    assert history(folder).starts == 2

    run = lab.prepared("supervised", protocol=lab.folder / "long.yaml")
    run.experiment = run.experiment.model_copy(update={"processes": 2})
    run.folder = type(run.folder)(tmp_path / "straight" / run.folder.path.name)
    trained(run, lab)
    found = json.loads((folder / "result.json").read_bytes())
    for name in ("weights_sha256", "cases_sha256"):
        assert found[name] == run.folder.result()[name]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--gpus", "2", "--processes", "2"), 2, "one of them"),
        (("--gpus", "2", "--device", "cpu"), 2, "--processes N --device cpu"),
        (("--gpus", "1000"), 7, "--device cpu"),
    ],
)
def test_options_that_cannot_be(lab, options, code, says):
    found = lab.call("run", "supervised", "--dataset", "tiny", *options)
    assert found.returncode == code and says in found.stderr


def test_the_number_of_processes_is_part_of_the_identity(lab):
    plans = []
    for processes in ("1", "2"):
        planned = lab.call(*run_args("supervised", "--dry-run", "--processes", processes))
        plans.append(json.loads(planned.stdout)["runs"][0]["run_id"])
    assert plans[0] != plans[1]
