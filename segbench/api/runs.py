"""Train a method, and work with finished runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench import registry
from segbench.api.inline import write_plugin
from segbench.api.machine import add_plugins, settings, warn, with_device
from segbench.api.predicting import predict_scan, source_index
from segbench.api.scores import case_table, metric_table
from segbench.api.table import Table
from segbench.config import Machine, resolve
from segbench.data.open import case_counters, open_store
from segbench.data.store.store import Store
from segbench.errors import UsageError
from segbench.evaluation.new_scans import Prediction, Predictor
from segbench.results.facts import mean_dice
from segbench.results.rundir import RunDir
from segbench.tracking.choose import chosen_trackers
from segbench.training.planned import planner
from segbench.training.reload import trained
from segbench.training.reporter import Reporter, StepReport
from segbench.training.run import execute
from segbench.training.setup import prepare
from segbench.training.stored import finished_run, restore

if TYPE_CHECKING:
    import numpy as np

    from segbench.training.setup import Prepared

LOG = logging.getLogger("segbench")
LOG_INTERVAL = 10.0  # seconds between two lines about one training


class Run:
    """A finished run: its settings, its scores, and its trained network for predictions.

    Attributes:
        id: the run's identity, 16 hexadecimal digits.
        folder: its directory, whose files are described in the reference of files.
        method: the name of the method.
        datasets: the names of its data sets; several in joint training.
        seed: the seed of the training.
        labeled: the number of labeled training cases of each data set.
        result: everything that ``result.json`` holds.
    """

    def __init__(self, folder: RunDir, result: dict[str, Any], machine: Machine) -> None:
        self.result = result
        self.id: str = result["run_id"]
        self.folder = folder.path
        self.method: str = result["method"]
        self.datasets: list[str] = result["datasets"]
        self.seed: int = result["seed"]
        self.labeled: dict[str, int] = result["labeled"]
        self._folder = folder
        self._machine = machine
        self._predictors: dict[int, Predictor] = {}

    def __repr__(self) -> str:
        data = "+".join(self.datasets)
        dice = self.dice
        shown = "–" if dice is None else f"{dice:.2f}"
        return f"Run({self.id[:8]}: {self.method} on {data}, seed {self.seed}, Dice {shown})"

    @property
    def dice(self) -> float | None:
        """The mean Dice in percent over classes and data sets; None if one is not defined."""
        return mean_dice(self.result["metrics"])

    @property
    def metrics(self) -> Table:
        """The means over the test cases, one row per data set and class.

        Dice and Jaccard are percent; hd95 and asd have the unit of the column ``unit``.
        """
        return metric_table(self.result["metrics"])

    @property
    def cases(self) -> Table:
        """The scores of every test case, one row per case and class, in the units of ``metrics``.

        Raises:
            IntegrityError: the stored table was changed.
        """
        return case_table(self._folder.cases(self.result))

    @property
    def log(self) -> Table:
        """The training log: step, phase, learning rate, seconds and loss terms."""
        return Table(self._folder.log())

    def predictor(self, dataset: str | None = None) -> Predictor:
        """Return the trained network, ready to predict scans.

        Args:
            dataset: the data set whose classes to segment; needed if the run has several.

        Raises:
            UsageError: the run has several data sets, or not this one; or its code has changed.
            IntegrityError: its weights are missing or not those of the result.
        """
        source = source_index(self.datasets, dataset)
        if source not in self._predictors:
            machine = with_device(self._machine)
            with registry.isolated():
                run = restore(self._folder, self._machine, needs_voxels=False)
                method, _ = trained(run, self.result, machine.device)
                predictor = Predictor(
                    method, run.experiment, run.stores[source], source, machine.device
                )
            self._predictors[source] = predictor
        return self._predictors[source]

    def predict(
        self,
        scan: str | Path | np.ndarray[Any, Any],
        dataset: str | None = None,
        affine: np.ndarray[Any, Any] | None = None,
        prepared: bool = False,
    ) -> Prediction:
        """Segment one scan. The run folder is enough for it; the prepared data are not needed.

        Args:
            scan: a file, a folder of DICOM slices, or an array of gray values: (C, X, Y, Z), or
                (X, Y, Z) of one channel; (C, X, Y) or (X, Y) for a two-dimensional data set.
            dataset: the data set whose classes to segment; needed if the run has several.
            affine: of an array: (4, 4) voxel to mm, right-anterior-superior. Without it the axes
                are used as they are.
            prepared: whether an array was prepared as the training cases were, such as
                ``store.image(case)`` of ``open_dataset``.

        Returns:
            A prediction with ``label`` (*S), ``probabilities`` (K, *S; background first),
            ``affine`` and ``warnings``; ``save(FILE)`` writes the label map.

        Raises:
            DataError: the scan cannot be read, or is not what the run was trained on.
            UsageError: the path holds several scans, or see ``predictor``.
        """
        return predict_scan(self.predictor(dataset), scan, affine, prepared)


class LoggedReporter(Reporter):
    """Writes the progress to Python's logger ``segbench``, and issues warnings."""

    def __init__(self) -> None:
        self._last_line = time.monotonic()

    def start(self, run: Prepared) -> None:
        """Log which run starts."""
        experiment = run.experiment
        data = "+".join(experiment.datasets)
        LOG.info("%s on %s, seed %s: %s", experiment.method, data, experiment.seed, run.folder.path)

    def train(self, report: StepReport) -> None:
        """Log the state of the training every ten seconds."""
        now = time.monotonic()
        if report.step == report.total or now - self._last_line >= LOG_INTERVAL:
            self._last_line = now
            terms = ", ".join(f"{name} {value:.3f}" for name, value in report.terms.items())
            LOG.info("step %s of %s: %s", report.step, report.total, terms)

    def evaluate(self, done: int, total: int, case: str) -> None:
        """Log the end of an evaluation."""
        if done == total:
            LOG.info("%s cases evaluated", total)

    def warn(self, text: str) -> None:
        """Issue a warning."""
        warn(text)


def run(  # noqa: PLR0913 (one argument per choice)
    method: str | type,
    dataset: str | Sequence[str],
    *,
    labeled: int | str | None = None,
    draw: int = 0,
    fold: int | None = None,
    unlabeled: str = "all",
    backbone: str | None = None,
    protocol: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    precision: str | None = None,
    params: Mapping[str, Any] | None = None,
    plugins: Iterable[str | Path] = (),
    root: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
    restart: bool = False,
    log: str = "",
    reporter: Reporter | None = None,
) -> Run:
    """Train a method on a data set, evaluate it on the test cases and return the finished run.

    It does what ``segbench run`` does, with the same identity: a finished run is returned at once,
    and one that was interrupted continues from its last checkpoint. Progress goes to Python's
    logger ``segbench`` (level INFO), warnings are issued as ``SegbenchWarning``.

    Args:
        method: the name of a method, or a class derived from ``segbench.Method``. A class may be
            defined in a notebook cell: its source, with everything of the notebook that it uses, is
            written below the folder of the results and enters the identity of the run.
        dataset: the name of a data set, or several for a method that trains jointly.
        labeled: number of labeled training cases, such as 8, "10%" or "all" [the data set's].
        draw: which cases are labeled: 0 the first of the list, others at random.
        fold: of a cross-validation: test the patients of this fold and train on the others, as
            ``--fold`` does.
        unlabeled: "all", or "labeled" to train without unlabeled images.
        backbone: the network [the protocol's].
        protocol: name or file [the data set's].
        seed: seed of everything random.
        steps: training steps; this modifies the protocol.
        precision: "fp32", "tf32", "bf16" or "fp16" [the protocol's].
        params: parameters of the method, ``backbone.NAME`` and keys of the protocol, as with
            ``-o``.
        plugins: plug-in files, as with ``--plugin``.
        root: folder of the results [SEGBENCH_ROOT, else segbench-out].
        data_root: folder of the prepared data [SEGBENCH_DATA_ROOT, else segbench-data].
        device: "auto", "cpu", "cuda", "cuda:N" or "mps" [auto].
        restart: delete an earlier run with the same settings and retrain.
        log: trackers that get the training log while it is written, such as "wandb,tensorboard".
        reporter: an object that is called with the progress, see ``segbench.Reporter``.

    Raises:
        UsageError: an unknown name, a wrong value, choices that do not fit together, or a class
            whose source cannot be found.
        DataError: the data are missing, damaged or leak.
        TrainingError: the training failed.
        BusyError: another process is writing this run.
        Interrupted: a signal stopped the run after a checkpoint; calling again continues it.
    """
    machine = settings(root, data_root, device)
    trackers = chosen_trackers(log) if log else ()
    files = list(add_plugins(plugins))
    if not isinstance(method, str):
        method, file = _as_plugin(method, machine.root)
        files += add_plugins(file)
    machine = with_device(machine).model_copy(update={"plugins": tuple(files), "log": trackers})

    def opened(name: str) -> Store:
        return open_store(name, machine.data_root)

    experiments = resolve(
        method,
        dataset=dataset,
        labeled=labeled,
        draw=draw,
        fold=fold,
        unlabeled=unlabeled,
        backbone=backbone,
        protocol=protocol,
        seed=seed,
        steps=steps,
        precision=precision,
        overrides=params or {},
        **case_counters(opened),
        plan=planner(opened, lambda: machine.device, warn),
    ).experiments
    if len(experiments) != 1:
        names = [experiment.datasets[0] for experiment in experiments]
        raise UsageError(
            f"'{method}' trains on one data set at a time",
            found=", ".join(names),
            expected="one data set, or a method that trains jointly",
            fix=f"for name in {names}: segbench.run({method!r}, name)",
        )
    ready = prepare(experiments[0], machine)
    result = execute(ready, machine, reporter or LoggedReporter(), restart)
    return Run(ready.folder, result, machine)


def _as_plugin(method: type, root: Path) -> tuple[str, list[Path]]:
    """Return the name of a method class, and its file if the class is no plug-in."""
    name = vars(method).get("name") if isinstance(method, type) else None
    is_known = isinstance(name, str) and ("method", name) in registry.catalog()
    if is_known and registry.get("method", str(name)).cls is method:
        return str(name), []
    name, file = write_plugin(method, root)
    return name, [file]


def load(
    run: str | Path,
    root: str | Path | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> Run:
    """Return a finished run.

    Args:
        run: its id or the first digits of it, its folder, or the name of a method with one run.
        root: folder of the results [SEGBENCH_ROOT, else segbench-out].
        data_root: folder of the prepared data [SEGBENCH_DATA_ROOT, else segbench-data].
        device: for predictions: "auto", "cpu", "cuda", "cuda:N" or "mps" [auto].

    Raises:
        UsageError: no run fits, several do, or it is not finished.
        IntegrityError: its result was changed.
    """
    machine = settings(root, data_root, device)
    folder, result = finished_run(machine.root, str(run))
    return Run(folder, result, machine)
