"""Suites on a real SLURM: two nodes on loopback, from Debian's packages, up in a second."""

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from segbench.results.attempts import ATTEMPTS, read_lease
from segbench.suites.engines import slurm_jobs
from segbench.training.run import execute

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONFIGURATION = """
ClusterName=segbench
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
MinJobAge=3600
JobRequeue=1
MaxArraySize=3
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SUITE = """
schema: 1
name: mine
protocol: long.yaml
matrix: {method: [supervised], dataset: [tiny], seed: [0, 1, 2, 3]}
"""
STEPS = 150  # some seconds
PATIENCE = 240.0  # seconds


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def call(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    before = dict(os.environ)
    os.environ["PATH"] += ":/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        os.environ.update(before)
        pytest.skip(
            f"needs root, and {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client"
        )
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "n1", "n2", "munge"):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    text = CONFIGURATION.format(folder=folder, host=host, ports=free_ports(3))
    (folder / "slurm.conf").write_text(text)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = str(ROOT)  # a job inherits the environment of sbatch
    munge = {"key-file": key, "socket": folder / "munge.sock", "pid-file": folder / "munged.pid"}
    munge |= {"log-file": folder / "munged.log", "seed-file": folder / "munge" / "seed"}
    call("munged", "--force", *(f"--{name}={value}" for name, value in munge.items()))
    call("slurmctld")
    for node in ("n1", "n2"):
        call("slurmd", "-N", node)
    try:
        wait_for(lambda: call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])
        yield folder
        call("scancel", "--user=root")
    finally:
        for file in [*folder.glob("slurmd.*.pid"), folder / "slurmctld.pid", folder / "munged.pid"]:
            if file.exists():
                os.kill(int(file.read_text()), 15)
        os.environ.clear()
        os.environ.update(before)


def wait_for(reached):
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture
def suite(lab, slurm):
    (lab.folder / "mine.yaml").write_text(SUITE)
    protocol = (PLUGINS / "tiny.yaml").read_text().replace("name: tiny", "name: long")
    (lab.folder / "long.yaml").write_text(protocol.replace("steps: 6", f"steps: {STEPS}"))
    (lab.folder / "cluster.yaml").write_text("schema: 1\ngpus: 0\nwarn: 60\n")
    return lab


def segbench(lab, *words):
    command = ("--plugin", str(PLUGINS / "tiny.py"), "--json", *words)
    done = lab.call(*command)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def submit(lab):
    return segbench(
        lab, "bench", "submit", "mine.yaml", "--cluster", "cluster.yaml", "--device", "cpu"
    )


def states(lab):
    return [run["state"] for run in segbench(lab, "bench", "status", "mine.yaml")["runs"]]


def folders(lab):
    return sorted(file.parent for file in (lab.folder / "segbench-out/runs").glob("*/*/*/job.json"))


def history_of(folder):
    """Return the kinds of events of a run, an end as its exit code."""
    events = map(json.loads, (folder / ATTEMPTS).read_text().splitlines())
    return [event.get("code", event["event"]) for event in events]


def test_a_suite_runs_to_its_end_although_jobs_are_killed_and_requeued(suite, tmp_path):
    """The array is longer than SLURM's limit of 3; a member is killed, another one requeued."""
    first = submit(suite)
    assert first["submitted"] == 4 and len(first["texts"]) == 2
    assert submit(suite)["submitted"] == 0

    signaled = []

    def has_signaled_both():
        for folder in folders(suite):
            lease = read_lease(folder)
            if (
                lease is None
                or lease.stage != "training"
                or len(signaled) == 2
                or folder in signaled
            ):
                continue
            if signaled:
                call("scontrol", "requeue", lease.job)
            else:
                os.kill(lease.pid, 9)
            signaled.append(folder)
        return len(signaled) == 2

    wait_for(has_signaled_both)
    wait_for(lambda: set(states(suite)) == {"done"})
    killed, requeued = (history_of(folder) for folder in signaled)
    assert "killed" in killed and killed.count("start") == 2
    assert 143 in requeued and requeued.count("start") == 2

    other = type(suite)(tmp_path / "straight")
    for seed, folder in enumerate(folders(suite)):
        run = other.prepared("supervised", seed=seed, protocol=suite.folder / "long.yaml")
        expected = execute(run, other.machine())
        found = json.loads((folder / "result.json").read_bytes())
        for name in ("weights_sha256", "cases_sha256"):
            assert found[name] == expected[name]


def test_canceled_jobs_are_not_lost_for_the_next_submission(suite):
    first = submit(suite)
    assert segbench(suite, "bench", "cancel", "mine.yaml")["jobs"]

    def is_empty():
        slurm_jobs.cache_clear()
        return not set(first["jobs"]) & set(slurm_jobs())

    wait_for(is_empty)
    assert not {"queued", "running", "failed"} & set(states(suite))
