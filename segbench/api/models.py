"""Trained networks of model files and of a hub."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segbench import registry
from segbench.api.hub import is_address, pull
from segbench.api.machine import add_plugins, settings, warn, with_device
from segbench.api.predicting import predict_scan, source_index
from segbench.api.scores import metric_table
from segbench.api.table import Table
from segbench.config import Machine
from segbench.evaluation.new_scans import Prediction, Predictor
from segbench.training.model_file import ModelFile, built_method, changed_sources, read_model

if TYPE_CHECKING:
    import numpy as np

    from segbench.contracts.method import Method


class Model:
    """A trained network of a model file: all that is needed to predict, without a run or data.

    Attributes:
        id: identity of the run that trained it, 16 hexadecimal digits.
        method: the name of the method.
        datasets: the names of the data sets it was trained on; several in joint training.
        card: what it is, what it was trained on and what it is not for, in Markdown.
    """

    def __init__(self, content: ModelFile, machine: Machine, plugins: Iterable[str] = ()) -> None:
        self.id: str = content.info["run_id"]
        self.method: str = content.experiment.method
        self.datasets: list[str] = list(content.experiment.datasets)
        self.card: str = content.card
        self._content = content
        self._machine = machine
        self._plugins = tuple(plugins)
        self._method: Method | None = None
        self._predictors: dict[int, Predictor] = {}

    def __repr__(self) -> str:
        return f"Model({self.id[:8]}: {self.method} on {'+'.join(self.datasets)})"

    @property
    def metrics(self) -> Table:
        """The means over the test cases of the run, one row per data set and class."""
        return metric_table(self._content.info["metrics"])

    @property
    def warnings(self) -> list[str]:
        """One line per plug-in whose source here is not the one it was trained with."""
        with registry.isolated():
            add_plugins(self._plugins)
            return changed_sources(self._content)

    def predictor(self, dataset: str | None = None) -> Predictor:
        """Return the trained network, ready to predict scans.

        Args:
            dataset: the data set whose classes to segment; needed if there are several.

        Raises:
            UsageError: there are several data sets, or not this one.
            PluginError: its method or network is a plug-in that is not available here.
            IntegrityError: the weights do not fit the method and network of this version.
        """
        source = source_index(self.datasets, dataset)
        if source not in self._predictors:
            machine = with_device(self._machine)
            with registry.isolated():
                add_plugins(self._plugins)
                if self._method is None:
                    self._method = built_method(self._content, machine.device)
                self._predictors[source] = Predictor(
                    self._method,
                    self._content.experiment,
                    self._content.stores[source],
                    source,
                    machine.device,
                )
        return self._predictors[source]

    def predict(
        self,
        scan: str | Path | np.ndarray[Any, Any],
        dataset: str | None = None,
        affine: np.ndarray[Any, Any] | None = None,
        prepared: bool = False,
    ) -> Prediction:
        """Segment one scan; arguments and result are those of ``Run.predict``.

        Raises:
            DataError: the scan cannot be read, or is not what the network was trained on.
            UsageError: the path holds several scans, or see ``predictor``.
        """
        return predict_scan(self.predictor(dataset), scan, affine, prepared)


def load_model(
    source: str | Path, device: str | None = None, plugins: Iterable[str | Path] = ()
) -> Model:
    """Return the trained network of a model file or of a hub. Nothing in the file is executed.

    A ``SegbenchWarning`` is issued for each plug-in whose source has changed since the training.

    Args:
        source: a file or folder that ``segbench runs export RUN --weights`` wrote, or the address
            of a model on a hub, ``hub:OWNER/NAME``.
        device: for predictions: "auto", "cpu", "cuda", "cuda:N" or "mps" [auto].
        plugins: plug-in files that it needs, as with ``--plugin``.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is not a model, or is damaged.
        PluginError: its method or network is a plug-in that is not available here, or the hub
            cannot be reached.
    """
    machine = settings(device=device)
    path = pull(str(source)) if is_address(source) else Path(source).expanduser()
    content = read_model(path)
    files = [str(Path(file).expanduser()) for file in plugins]
    model = Model(content, machine, files)
    for warning in model.warnings:
        warn(warning)
    return model
