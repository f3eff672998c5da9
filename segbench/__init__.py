"""segbench: honest benchmarks for semi-supervised medical image segmentation.

Everything that a plug-in, a program or a notebook needs is importable from here; torch is imported
only when one of those names is used, so that ``segbench --help`` stays fast.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; "as" marks a name as public
    from segbench.api.boards import compare as compare
    from segbench.api.boards import leaderboard as leaderboard
    from segbench.api.catalog import list_backbones as list_backbones
    from segbench.api.catalog import list_datasets as list_datasets
    from segbench.api.catalog import list_methods as list_methods
    from segbench.api.catalog import list_protocols as list_protocols
    from segbench.api.catalog import list_runs as list_runs
    from segbench.api.catalog import open_dataset as open_dataset
    from segbench.api.evaluation import Evaluation as Evaluation
    from segbench.api.evaluation import evaluate as evaluate
    from segbench.api.machine import SegbenchWarning as SegbenchWarning
    from segbench.api.models import Model as Model
    from segbench.api.models import load_model as load_model
    from segbench.api.runs import Run as Run
    from segbench.api.runs import load as load
    from segbench.api.runs import run as run
    from segbench.api.table import Table as Table
    from segbench.contracts.backbone import Backbone as Backbone
    from segbench.contracts.dataset import Archive as Archive
    from segbench.contracts.dataset import Case as Case
    from segbench.contracts.dataset import Dataset as Dataset
    from segbench.contracts.dataset import RawCase as RawCase
    from segbench.contracts.dataset import Split as Split
    from segbench.contracts.method import Batch as Batch
    from segbench.contracts.method import Clock as Clock
    from segbench.contracts.method import Field as Field
    from segbench.contracts.method import Method as Method
    from segbench.contracts.method import Phase as Phase
    from segbench.contracts.optim import Optim as Optim
    from segbench.contracts.params import BackboneParams as BackboneParams
    from segbench.contracts.params import MethodParams as MethodParams
    from segbench.errors import SegbenchError as SegbenchError
    from segbench.registry import backbone as backbone
    from segbench.registry import dataset as dataset
    from segbench.registry import method as method
    from segbench.training.reporter import Reporter as Reporter

__version__ = "0.1.0"

# The plug-in folders lie beside this package in a checkout (an installed wheel holds them inside
# it) and users add folders of the same shape with SEGBENCH_PATH. They carry no __init__.py, so the
# parts merge into one namespace.
_root = Path(__file__).resolve().parents[1]
if (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
__path__.extend(
    os.path.abspath(p) for p in os.environ.get("SEGBENCH_PATH", "").split(os.pathsep) if p
)

_PUBLIC = {
    "Method": "segbench.contracts.method",
    "MethodParams": "segbench.contracts.params",
    "Field": "segbench.contracts.method",
    "Batch": "segbench.contracts.method",
    "Clock": "segbench.contracts.method",
    "Phase": "segbench.contracts.method",
    "Optim": "segbench.contracts.optim",
    "Backbone": "segbench.contracts.backbone",
    "BackboneParams": "segbench.contracts.params",
    "Dataset": "segbench.contracts.dataset",
    "Archive": "segbench.contracts.dataset",
    "Case": "segbench.contracts.dataset",
    "RawCase": "segbench.contracts.dataset",
    "Split": "segbench.contracts.dataset",
    "method": "segbench.registry",
    "backbone": "segbench.registry",
    "dataset": "segbench.registry",
    "run": "segbench.api.runs",
    "load": "segbench.api.runs",
    "Run": "segbench.api.runs",
    "load_model": "segbench.api.models",
    "Model": "segbench.api.models",
    "evaluate": "segbench.api.evaluation",
    "Evaluation": "segbench.api.evaluation",
    "leaderboard": "segbench.api.boards",
    "compare": "segbench.api.boards",
    "open_dataset": "segbench.api.catalog",
    "list_methods": "segbench.api.catalog",
    "list_datasets": "segbench.api.catalog",
    "list_backbones": "segbench.api.catalog",
    "list_protocols": "segbench.api.catalog",
    "list_runs": "segbench.api.catalog",
    "Table": "segbench.api.table",
    "Reporter": "segbench.training.reporter",
    "SegbenchError": "segbench.errors",
    "SegbenchWarning": "segbench.api.machine",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'segbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Return the public names, which notebooks and editors complete."""
    return sorted(__all__)
