"""A real SLURM with two nodes on loopback, from Debian's packages, up in a second."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from gated_suite import wait_for

ROOT = Path(__file__).resolve().parents[1]
SAVES_STATE = 6  # seconds within which the controller writes a change to its disk
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
PACKAGES = "slurmctld slurmd slurm-client munge"
# cred_expire: a requeued job waits as long as its credential lives. KillWait, GraceTime: so long
# may a run save. Everything listens on loopback.
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
KillWait=8
MinJobAge=3600
JobRequeue=1
MaxArraySize=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 GraceTime=8
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
"""


def missing() -> str:
    """Return why there can be no SLURM here; empty if there can."""
    places = f"{os.environ['PATH']}:/usr/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=places) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install {PACKAGES}"
    return "needs root" if os.getuid() else ""


def call(*words: str) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def children(pid: int) -> list[int]:
    """Return the processes below a process."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    below = [int(word) for word in found.stdout.split()]
    return below + [lower for child in below for lower in children(child)]


def job_processes(member: int) -> list[int]:
    """Return the processes of the job of a process: SLURM's own, one per step, and all below."""
    pid = member
    while "slurmstepd" not in Path(f"/proc/{pid}/comm").read_text():
        status = Path(f"/proc/{pid}/stat").read_text()
        pid = int(status.rpartition(")")[2].split()[1])
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # slurmstepd: [JOB.STEP]
    job = re.search(r"\[(\d+)\.", os.fsdecode(b" ".join(words)))
    assert job is not None
    found = call("pgrep", "-f", rf"^slurmstepd: \[{job.group(1)}\.")
    steps = [int(word) for word in found.split()]
    return steps + [below for step in steps for below in children(step)]


class SlurmCluster:
    """The controller and two nodes. Changes the environment of this process until it is closed.

    Args:
        folder: new, of all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._before = dict(os.environ)
        for name in ("state", "n1", "n2", "munge"):
            (folder / name).mkdir(mode=0o700)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(folder=folder, host=host, ports=_free_ports(3))
        (folder / "slurm.conf").write_text(text)
        os.environ["PATH"] += ":/usr/sbin"
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        os.environ["PYTHONPATH"] = str(ROOT)  # a job inherits the environment of sbatch
        os.environ["OMP_NUM_THREADS"] = "1"
        files = {"key-file": key, "socket": "munge.sock", "pid-file": "munged.pid"}
        files |= {"log-file": "munged.log", "seed-file": "munge/seed"}
        call("munged", "--force", *(f"--{name}={folder / file}" for name, file in files.items()))
        self.start_controller()
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self._node_states() == ["idle", "idle"])

    def start_controller(self) -> None:
        call("slurmctld")

    def kill_controller(self) -> None:
        """Kill the controller when the present jobs are in its saved state.

        A controller that has forgotten a job gives its number to another one, and the node that has
        seen the number is drained.
        """
        time.sleep(SAVES_STATE)
        os.kill(self._pid("slurmctld.pid"), signal.SIGKILL)

    def start_node(self, node: str) -> None:
        call("slurmd", "-N", node)

    def kill_node(self, node: str, member: int) -> None:
        """Kill a node and all that runs on it, and have SLURM know at once.

        Args:
            member: the process of a run there.
        """
        for pid in [self._pid(f"slurmd.{node}.pid"), *job_processes(member)]:
            os.kill(pid, signal.SIGKILL)
        call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=killed")

    def _pid(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def empty(self) -> None:
        """End all jobs, and wait for the nodes; one that SLURM drained is taken back."""
        call("scancel", "--user=root")
        wait_for(lambda: not call("squeue", "-h").strip())
        for node, state in zip(("n1", "n2"), self._node_states(), strict=True):
            if state.startswith("drain"):
                call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_for(lambda: self._node_states() == ["idle", "idle"])

    def _node_states(self) -> list[str]:
        return call("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split()

    def close(self) -> None:
        """End everything. Jobs that have not ended yet would wait for a lost controller."""
        subprocess.run(["scancel", "--user=root"], capture_output=True)
        with suppress(AssertionError):
            wait_for(lambda: not call("squeue", "-h").strip(), patience=30)
        for name in ("slurmd.n1.pid", "slurmd.n2.pid", "slurmctld.pid", "munged.pid"):
            if (self.folder / name).exists():
                os.kill(self._pid(name), signal.SIGTERM)
        os.environ.clear()
        os.environ.update(self._before)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
