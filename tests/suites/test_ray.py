"""Suites on a real Ray cluster: two nodes on loopback.

With SEGBENCH_RECORD=FOLDER, what was seen is written there as ``cluster-events-ray.json``.
"""

import importlib.metadata
import os
import signal
from pathlib import Path

import pytest
from gated_suite import PLUGINS, GatedSuite, Records

from segbench import registry

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.2"  # Ray replaces 127.0.0.1 by an address that others can reach
NODE = {"node_ip_address": HOST, "include_dashboard": False, "object_store_memory": 80 * 2**20}
EVENTS = (
    "running when canceled; submitted again; worker killed -9",
    "running when canceled; submitted again; node killed -9",
    "waiting when canceled; submitted again",
    "waiting when canceled; submitted again",
)


def parent(pid):
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


@pytest.fixture
def ray(suite, monkeypatch):  # nodes inherit the variable that names the gate of the suite
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'segbench[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the nodes
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own choice is 15
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **NODE)
        options = {"_node_ip_address": HOST, "log_to_driver": False, "namespace": "segbench"}
        ray.init(address=cluster.address, **options)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def suite(lab, monkeypatch):
    registry.add_file(PLUGINS / "gated.py")
    return GatedSuite(lab, monkeypatch, range(4), options=("--engine", "ray"))


def test_runs_survive_a_cancel_and_the_loss_of_a_worker_and_of_a_node(suite, ray):
    records = Records()
    assert len(suite.submit()) == 4
    assert suite.submit() == []
    for seed in (0, 1):
        suite.waiting(seed)
    assert suite.states() == ["running", "running", "queued", "queued"]
    assert len(suite.cancel()) == 4
    suite.wait_for_states("stopped", "stopped", "to do", "to do")
    assert suite.cancel() == []

    assert len(suite.submit()) == 4
    first = suite.waiting(0)
    second = suite.waiting(1)
    os.kill(parent(first.pid), signal.SIGKILL)  # the worker
    worker = parent(second.pid)
    for pid in (parent(worker), worker, second.pid):  # all that ran on the node
        os.kill(pid, signal.SIGKILL)
    ray.add_node(num_cpus=3, **NODE)  # the others take processors, too
    suite.open()
    suite.wait_until_done(0, 1, 2, 3)
    for seed, event in enumerate(EVENTS):
        records.check(suite, seed, event)
    for seed in (0, 1):
        # The process of a run whose worker dies may be asked to stop, and then it saves first.
        events = [event for event in suite.events(seed) if event != 143]
        assert events == ["start", "start", "start", 0]
    records.write("ray", f"Ray {importlib.metadata.version('ray')}")
