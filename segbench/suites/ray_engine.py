"""Hand the runs of a suite to a Ray cluster that is already up, such as one of KubeRay.

Each run gets a detached actor, which outlives the command that submits it. An actor that waits for
free processors or GPUs is the queue. When its worker process or its node is lost, Ray starts the
actor again on another node, where the run continues from its checkpoint.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from segbench.config import Machine
from segbench.errors import PluginError
from segbench.results.states import JOB
from segbench.suites.engines import Cluster, Submission, gpus_of, member_command, refuse_keys
from segbench.suites.ray_actor import Runner
from segbench.training.setup import Prepared

NAMESPACE = "segbench"
NOT_FOR_RAY = ("time", "at_once", "setup", "slurm")  # keys of the file of --cluster
STOP_WAIT = 10.0  # seconds in which an actor that runs answers


class RayEngine:
    """Actors of Ray, one per run.

    Raises:
        UsageError: the file of --cluster has keys that mean nothing to Ray.
    """

    def __init__(self, cluster: Cluster, machine: Machine) -> None:
        why = "Ray has no such setting"
        refuse_keys(cluster, NOT_FOR_RAY, why, "gpus, cpus, tries and methods")
        self.cluster = cluster
        self.machine = machine

    def submit(self, runs: Sequence[Prepared], dry_run: bool) -> Submission:
        """Create an actor for each run; with ``dry_run``, say what each asks for."""
        submission = Submission([], [])
        for run in runs:
            wanted = self.cluster.of(run.experiment.method)
            gpus = gpus_of(wanted, self.machine)
            command = " ".join(member_command(run, self.machine))
            submission.texts.append(f"cpus={wanted.cpus} gpus={gpus} {command}")
        if dry_run or not runs:
            return submission
        actor_class = connected().remote(Runner)
        for run in runs:
            submission.jobs.append(self._create(actor_class, run))
        return submission

    def _create(self, actor_class: Any, run: Prepared) -> str:
        wanted = self.cluster.of(run.experiment.method)
        job = f"{run.run_id[:12]}-{secrets.token_hex(4)}"
        folder = str(run.folder.path.resolve())
        run.folder.write_json(JOB, {"engine": "ray", "job": job})
        placed = actor_class.options(
            name=job,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=wanted.cpus,
            num_gpus=gpus_of(wanted, self.machine),
            max_restarts=-1,
        )
        placed.remote(folder, self.cluster.tries, self.machine.to_argv())
        (run.folder.path / "failed.json").unlink(missing_ok=True)  # it has a new job now
        return job

    def cancel(self, jobs: Sequence[str]) -> None:
        """Stop runs; remove actors that still wait."""
        ray = connected()
        answers = {}
        for job in jobs:
            try:
                actor = ray.get_actor(job, namespace=NAMESPACE)
            except ValueError:  # it has ended meanwhile
                continue
            answers[actor.stop.remote()] = actor
        if not answers:
            return
        _, waiting = ray.wait(list(answers), num_returns=len(answers), timeout=STOP_WAIT)
        for answer in waiting:
            ray.kill(answers[answer])


def ray_jobs() -> Collection[str]:
    """Return the names of all actors that wait or run.

    Raises:
        PluginError: there is no cluster.
    """
    connected()
    from ray.util import list_named_actors

    found = list_named_actors(all_namespaces=True)
    return {actor["name"] for actor in found if actor["namespace"] == NAMESPACE}


def connected() -> Any:
    """Return the module ray, connected to the cluster that RAY_ADDRESS names, or to that here.

    Raises:
        PluginError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise PluginError(
            "--engine ray needs the package ray", fix="pip install 'segbench[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PluginError(
            "no Ray cluster can be reached",
            found=str(error).partition("\n")[0],
            expected="RAY_ADDRESS=HOST:PORT, or a node of the cluster on this machine",
            fix="ray start --head, and ray start --address HOST:PORT on the other nodes",
        ) from error
    return ray
