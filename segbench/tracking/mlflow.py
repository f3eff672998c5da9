"""MLflow. MLFLOW_TRACKING_URI decides where records go, MLFLOW_EXPERIMENT_NAME to which experiment.

A resumed run continues the run of its first attempt and sends what is missing there.
"""

from __future__ import annotations

import os
import time
from typing import Any

from segbench.config.schema import flatten
from segbench.storage import lock
from segbench.tracking.base import FIRST_STOP_CODE, PROJECT, TrackedRun, Tracker

MOST_PARAMS = 100  # in one call
LONGEST_PARAM = 500  # characters
LOCK_WAIT = 60.0  # seconds
# A training must not wait long for a server: MLflow's own values add up to many minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MLflow(Tracker):
    """One run of an experiment of MLflow."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        # Runs of a suite that start together would create the database or experiment twice.
        with lock(run.root / "mlflow.lock", wait=LOCK_WAIT):
            self._client: Any = MlflowClient()
            self._id = self._continued() or self._created()

    @property
    def known_as(self) -> str:
        """The id of the run."""
        return self._id

    @property
    def last_step(self) -> int:
        """The last step of earlier attempts."""
        sent = self._client.get_metric_history(self._id, "lr")
        return max((metric.step for metric in sent), default=-1)

    def record(self, step: int, values: dict[str, float]) -> None:
        """Send the values of a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def result(self, step: int, values: dict[str, float]) -> None:
        """Send the means over the test cases at the last step."""
        self.record(step, values)

    def close(self, code: int) -> None:
        """End the attempt."""
        status = "FINISHED" if code == 0 else "FAILED"
        self._client.set_terminated(self._id, "KILLED" if code >= FIRST_STOP_CODE else status)

    def _continued(self) -> str:
        """Continue the run of an earlier attempt; return its id, empty if there is none."""
        from mlflow.exceptions import MlflowException

        if not self.run.known_as:
            return ""
        try:
            self._client.update_run(self.run.known_as, status="RUNNING")
        except MlflowException:  # it is in another store, or was deleted
            return ""
        return self.run.known_as

    def _created(self) -> str:
        """Create a run with the settings as parameters; return its id."""
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        tags = {"segbench.run_id": self.run.run_id, "segbench.datasets": self.run.group}
        created = self._client.create_run(experiment, tags=tags, run_name=self.run.name)
        params = []
        for key, value in flatten(self.run.settings).items():
            params.append(Param(key, str(value)[:LONGEST_PARAM]))
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(created.info.run_id, params=params[start : start + MOST_PARAMS])
        return str(created.info.run_id)
