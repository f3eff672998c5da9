"""A trained network as one file, which is all that predicting on another machine needs.

A model file is a zip of these files; a folder that holds them is read as well:

``README.md``          the card: data, license, scores, citation, and what it is not for
``config.yaml``        the resolved experiment: method, network, protocol, and their digests
``data.json``          facts of the training images, such as spacings and gray values; no names
``model.safetensors``  the state of the method
``model.json``         sha256 of the other files, run, digest of the weights, scores

Nothing in it is a path, a pickle or code. Each file is read into memory, within limits, and
compared with its digest before it is used. A method or network that is a plug-in is named with the
digest of its source; the plug-in itself is not included.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from segbench import __version__, registry
from segbench.config import Experiment, dump_yaml
from segbench.config.yaml import parse_yaml
from segbench.contracts.method import Method
from segbench.data.sampling.folds import with_fold
from segbench.data.store.copies import anonymous, read_copies
from segbench.data.store.store import Store, parse_store, store_document
from segbench.errors import (
    IntegrityError,
    PluginError,
    SegbenchError,
    TrainingError,
    UsageError,
    failures_of_plugin,
)
from segbench.identity.sources import loaded_digest
from segbench.results.model_card import model_card, plugin_files
from segbench.results.predictions import BROKEN, DATE
from segbench.results.rundir import RunDir, plain
from segbench.storage import atomic_write, json_bytes
from segbench.text import first_few
from segbench.training import checkpoint
from segbench.training.build import build
from segbench.training.memory import keep_freed_memory
from segbench.training.placement import to_device
from segbench.training.stored import read_experiment

SCHEMA = "segbench.model/1"
INDEX = "model.json"
CARD = "README.md"
CONFIG = "config.yaml"
DATA = "data.json"
WEIGHTS = "model.safetensors"
MAX_INDEX_BYTES = 10**7
FILES = {  # the most bytes that each may have
    CARD: 10**6,
    CONFIG: 10**6,
    DATA: 10**8,
    WEIGHTS: 16 * 10**9,
}
WRITTEN_BY = "a file written by: segbench runs export RUN --weights"


@dataclass(frozen=True)
class ModelFile:
    """The checked content of a model file."""

    path: Path
    info: dict[str, Any]  # of model.json
    experiment: Experiment
    stores: list[Store]  # facts of the training images; their voxels cannot be read
    sources: dict[str, str]  # digests of the source of the plug-ins
    card: str
    state: dict[str, Any] = field(repr=False)  # of the method


# -- writing ---------------------------------------------------------------------------------------


def write_model(run: RunDir, out: Path) -> list[str]:
    """Write the weights of a finished run to one file; return the names of the files in it.

    Raises:
        IntegrityError: the run is not finished or was changed, has no weights, or is too old to
            have kept the facts of its data.
    """
    contents = model_contents(run)

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                info = zipfile.ZipInfo(name, DATE)
                stored = name == WEIGHTS
                info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
                archive.writestr(info, content)

    atomic_write(out, write)
    return list(contents)


def model_contents(run: RunDir) -> dict[str, bytes]:
    """Return the files of a model by name.

    Raises:
        IntegrityError: see ``write_model``.
    """
    run.cases()  # raises unless it is finished and intact
    result = run.result()
    assert result is not None
    state = _stored_state(run, result)
    config = run.config()
    stores = _anonymous_stores(run, result)
    facts = {store.name: store_document(store) for store in stores}
    contents = {
        CARD: model_card(run, result, stores).encode(),
        CONFIG: dump_yaml({**config, "plugins": []}).encode(),
        DATA: json_bytes(facts),
        WEIGHTS: _weights_bytes(state),
    }
    info = {
        "schema": SCHEMA,
        "segbench": run.manifest().get("segbench", __version__),
        "run_id": result["run_id"],
        "weights_sha256": result["weights_sha256"],
        "plugins": plugin_files(run),
        "metrics": plain(result["metrics"]),
        "files": {name: _sha256(content) for name, content in contents.items()},
    }
    return {INDEX: json_bytes(info), **contents}


def _stored_state(run: RunDir, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a run's method.

    Raises:
        IntegrityError: there are no weights, or they are not those of the result.
    """
    folder = run.path / "ckpt"
    found = checkpoint.load(folder)
    if found is None:
        raise IntegrityError(
            "the run has no weights",
            where=folder,
            expected="the weights that training leaves; an imported run and a pruned one have none",
            fix="export it where it was trained",
        )
    state: dict[str, Any] = found.state["method"]
    _require_digest(state, str(result["weights_sha256"]), folder)
    return state


def _require_digest(state: Mapping[str, Any], expected: str, where: Path) -> None:
    digest = checkpoint.digest(state)
    if digest != expected:
        raise IntegrityError(
            "the weights are not those of the result",
            where=where,
            found=digest[:16],
            expected=expected[:16],
        )


def _anonymous_stores(run: RunDir, result: Mapping[str, Any]) -> list[Store]:
    """Return the facts of the images that a run was trained on."""
    stores = read_copies(run.path, result["datasets"])
    if stores is None:
        raise IntegrityError(
            "the run was trained by an older version, which kept no facts of its data",
            where=run.path,
            expected="stores.json",
            fix="train it again with this version",
        )
    fold = result["science"].get("fold")
    if fold is not None:
        stores = [with_fold(store, fold) for store in stores]
    return [anonymous(store) for store in stores]


def _weights_bytes(state: Mapping[str, Any]) -> bytes:
    """Return a safetensors file with the tensors by their names in the state.

    Its metadata holds the order of the names and all values that are no tensors.
    """
    tensors: dict[str, Tensor] = {}
    tree = checkpoint.pack(state, tensors)
    named = {name.removeprefix("."): tensor for name, tensor in tensors.items()}
    return bytes(save_tensors(named, {"format": "pt", "tree": json.dumps(tree)}))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- reading ---------------------------------------------------------------------------------------


def is_model(path: Path) -> bool:
    """Return whether a path looks like a model: a zip file, or a folder with ``model.json``.

    A zip file may have any name, and one that does not exist is called so by its ending.
    """
    is_zip = path.suffix.lower() == ".zip" or (path.is_file() and zipfile.is_zipfile(path))
    return is_zip or (path / INDEX).is_file()


def read_model(path: Path) -> ModelFile:
    """Return the checked content of a model file or folder.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is not a model, is damaged, or has another schema.
    """
    if not path.exists():
        raise UsageError(f"no model file '{path}'", expected=WRITTEN_BY)
    try:
        contents = _read_folder(path) if path.is_dir() else _read_zip(path)
        info = json.loads(contents.pop(INDEX))
        if info["schema"] != SCHEMA:
            raise IntegrityError(
                f"models of schema {info['schema']} need another segbench",
                where=path,
                expected=SCHEMA,
                fix="pip install -U segbench",
            )
        digests = {name: _sha256(content) for name, content in contents.items()}
        if info["files"] != digests:
            raise ValueError(f"digests that differ from those in {INDEX}")
        config = parse_yaml(contents[CONFIG].decode(), CONFIG)
        experiment = read_experiment(config["experiment"], path)
        facts = json.loads(contents[DATA])
        stores = [parse_store(path, facts[name]) for name in experiment.datasets]
        state = _state_of(contents[WEIGHTS])
        sources = dict(config["science"]["sources"])
        card = contents[CARD].decode()
    except (UsageError, SafetensorError, AttributeError, RecursionError, *BROKEN) as error:
        raise IntegrityError(
            "the model file is incomplete or damaged", where=path, found=error, expected=WRITTEN_BY
        ) from error
    _require_digest(state, str(info.get("weights_sha256")), path)
    return ModelFile(path, info, experiment, stores, sources, card, state)


def _read_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        if sorted(names) != sorted([INDEX, *FILES]):
            raise ValueError(f"files {first_few(map(repr, names))}")
        contents = {}
        for name in names:
            with archive.open(name) as file:
                contents[name] = _limited(name, file)
    return contents


def _read_folder(path: Path) -> dict[str, bytes]:
    contents = {}
    for name in (INDEX, *FILES):
        with (path / name).open("rb") as file:
            contents[name] = _limited(name, file)
    return contents


def _limited(name: str, file: Any) -> bytes:
    most = FILES.get(name, MAX_INDEX_BYTES)
    content: bytes = file.read(most + 1)  # the size in a zip's directory may be false
    if len(content) > most:
        raise ValueError(f"{name} of more than {most} bytes")
    return content


def _state_of(content: bytes) -> dict[str, Any]:
    tensors = load_tensors(content)
    # A safetensors file begins with the length of its JSON header in 8 bytes.
    size = int.from_bytes(content[:8], "little")
    tree = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["tree"])
    state = checkpoint.unpack(tree, {f".{name}": tensor for name, tensor in tensors.items()})
    return dict(state)


# -- using -----------------------------------------------------------------------------------------


def changed_sources(model: ModelFile) -> list[str]:
    """Return a warning for each plug-in whose source here is not the one of the training.

    Raises:
        PluginError: a plug-in is not available here.
    """
    warnings = []
    for kind, digest in model.sources.items():
        group, _, other = kind.partition(" ")
        name = other or getattr(model.experiment, group)
        _require_plugin(model, group, name)
        here = loaded_digest(group, name)
        if here != digest:
            warnings.append(
                f"the source of {group} '{name}' is not that of the training (digest {here[:16]}, "
                f"there {digest[:16]}): predictions may differ from the published ones"
            )
    return warnings


def _require_plugin(model: ModelFile, kind: str, name: str) -> None:
    try:
        registry.get(kind, name)
    except UsageError as error:
        files = model.info.get("plugins", [])
        raise PluginError(
            f"the model needs the {kind} '{name}', which is not available here",
            where=model.path,
            found=f"it was trained with the plug-in files {', '.join(files)}" if files else None,
            expected=f"a {kind} of this name",
            fix=f"--plugin {files[0] if files else 'FILE'}, with the file from the author",
        ) from error


def built_method(model: ModelFile, device: str) -> Method:
    """Return the method of a model with its weights, on the device, ready to predict.

    Raises:
        PluginError: a plug-in is not available here.
        IntegrityError: the weights do not fit the method and network of this version.
    """
    experiment = model.experiment
    _require_plugin(model, "method", experiment.method)
    _require_plugin(model, "backbone", experiment.backbone)
    keep_freed_memory()
    try:
        with failures_of_plugin(experiment.method, "set-up"):
            method = build(experiment, model.stores, fresh=False)
    except TrainingError:
        raise
    except SegbenchError as error:
        raise _does_not_fit(model, str(error)) from error
    _require_shapes(model, method)
    method.load_state_dict(model.state)
    return to_device(method, device).eval()


def _require_shapes(model: ModelFile, method: Method) -> None:
    """Raise IntegrityError unless the weights have the names and shapes of the method's state."""
    wanted = {name: _shape(value) for name, value in method.state_dict().items()}
    found = {name: _shape(value) for name, value in model.state.items()}
    problems = []
    for name in dict.fromkeys([*wanted, *found]):
        if name not in found:
            problems.append(f"{name} is missing")
        elif name not in wanted:
            problems.append(f"{name} is not known here")
        elif wanted[name] != found[name]:
            problems.append(f"{name} has shape {found[name]}, expected {wanted[name]}")
    if problems:
        raise _does_not_fit(model, first_few(problems, 3))


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "1" if isinstance(value, Tensor) else "no tensor"


def _does_not_fit(model: ModelFile, found: str) -> IntegrityError:
    experiment = model.experiment
    version = model.info.get("segbench")
    return IntegrityError(
        f"the weights do not fit method '{experiment.method}' and backbone "
        f"'{experiment.backbone}' of this version",
        where=model.path,
        found=found,
        expected=f"the code that they were trained with: segbench {version}",
        fix=f"pip install segbench=={version}, or --plugin FILE with the plug-in of the training",
    )
