"""Checkpoints that survive a kill at any instruction and detect a flipped bit.

A checkpoint is one safetensors file (tensors, plus the rest of the state as JSON in its metadata)
named after its step and the start of its sha256. It is written as a temporary file in the same
folder, synced, renamed, the folder synced, and only then listed in ``last.json``; older files are
removed after that. Opening a checkpoint executes no code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from segbench.errors import IntegrityError, TrainingError
from segbench.storage import atomic_write

SCHEMA = "segbench.checkpoint/1"
NAME = re.compile(r"ck-(\d{8})-([0-9a-f]{16})\.st")


class Checkpoint(NamedTuple):
    """The newest usable checkpoint of a folder."""

    step: int  # completed steps
    state: Any
    header: dict[str, Any]
    warnings: list[str]  # about newer checkpoints that are damaged


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Return a nested state as JSON types, its tensors moved to ``tensors``.

    Raises:
        TypeError: the state holds something other than tensors and plain Python values.
    """
    if isinstance(state, Tensor):
        tensors[path] = state.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(state, Mapping):
        items = [[key, pack(value, tensors, f"{path}.{key}")] for key, value in state.items()]
        return {"$dict": items}
    if isinstance(state, (tuple, list)):
        items = [pack(value, tensors, f"{path}.{index}") for index, value in enumerate(state)]
        return {"$tuple": items} if isinstance(state, tuple) else items
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise TypeError(
        f"the state at '{path}' has type {type(state).__name__}, which a checkpoint cannot hold; "
        "keep it as a buffer (register_buffer) or a plain number"
    )


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the state that ``pack`` took apart."""
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$tuple" in tree:
        return tuple(unpack(value, tensors) for value in tree["$tuple"])
    return {key: unpack(value, tensors) for key, value in tree["$dict"]}


def digest(state: Any) -> str:
    """Return the sha256 of a nested state; it is the same if all bits are equal."""
    tensors: dict[str, Tensor] = {}
    tree = pack(state, tensors)
    total = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(name.encode() + str(tensor.dtype).encode())
        if tensor.numel():
            total.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save(folder: Path, step: int, state: Any, header: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the state after ``step`` steps and return its file; keep the ``keep`` newest ones.

    Raises:
        TrainingError: a tensor of the state is not finite; such a state is never stored.
        StorageError: the disk is full or not writable; older checkpoints are intact.
    """
    tensors: dict[str, Tensor] = {}
    tree = pack(state, tensors)
    _require_finite(tensors, step)
    meta = {
        "schema": SCHEMA,
        "step": str(step),
        "tree": json.dumps(tree),
        "header": json.dumps(dict(header)),
    }
    data = save_tensors(tensors, meta)
    sha = hashlib.sha256(data).hexdigest()
    file = folder / f"ck-{step:08d}-{sha[:16]}.st"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, data)

    # List the file, then remove those that are not listed any more.
    listed = [{"file": file.name, "step": step, "bytes": len(data), "sha256": sha}]
    for entry in _listed(folder):
        is_same_step = entry["file"] == file.name or entry.get("step") == step
        if len(listed) < keep and not is_same_step and (folder / entry["file"]).exists():
            listed.append(entry)
    atomic_write(folder / "last.json", json.dumps(listed, indent=1).encode())
    kept = {entry["file"] for entry in listed}
    for old in folder.iterdir():
        if NAME.fullmatch(old.name) and old.name not in kept:
            old.unlink(missing_ok=True)
    return file


def _require_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(
                "the state is not finite, so it is not saved",
                where=f"after step {step}",
                found=name,
                fix="lower the learning rate, or use --precision fp32",
            )


def load(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is not damaged; None if there never was one.

    Raises:
        IntegrityError: there are checkpoints, but all are damaged.
    """
    warnings: list[str] = []
    candidates = _candidates(folder)
    for file, sha in candidates:
        try:
            step, state, header = _read(file, sha)
        except IntegrityError as error:
            warnings.append(
                f"checkpoint {file.name} cannot be used ({error.what}); trying the one before"
            )
        else:
            return Checkpoint(step, state, header, warnings)
    if candidates:
        raise IntegrityError(
            "no usable checkpoint",
            where=folder,
            found="; ".join(warnings),
            fix="add --restart to train from the beginning",
        )
    return None


def files(folder: Path) -> list[Path]:
    """Return all checkpoint files of a folder, in the order of their steps."""
    found = [file for file in folder.glob("*.st") if NAME.fullmatch(file.name)]
    return sorted(found, key=lambda file: file.name)


def read(file: Path) -> tuple[int, Any, dict[str, Any]]:
    """Return (step, state, header) of one file.

    Raises:
        IntegrityError: the file is damaged.
    """
    return _read(file, _sha_in_name(file))


def _sha_in_name(file: Path) -> str:
    return file.stem.rsplit("-", 1)[1]


def _listed(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of ``last.json``, newest first; empty if the file is lost."""
    try:
        entries = json.loads((folder / "last.json").read_text())
        return [entry for entry in entries if NAME.fullmatch(entry["file"])]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _candidates(folder: Path) -> list[tuple[Path, str]]:
    """Return the checkpoints, newest first, with what is known of their sha256.

    The order is by step, never by time stamps. Of two files of one step the one listed first is
    newer.
    """
    if not folder.is_dir():
        return []
    listed = {entry["file"]: str(entry["sha256"]) for entry in _listed(folder)}
    oldest_first = list(reversed(listed))

    def age(file: Path) -> tuple[str, int]:
        step = file.name[: len("ck-00000000")]
        position = oldest_first.index(file.name) if file.name in listed else -1
        return step, position

    found = [file for file in folder.iterdir() if NAME.fullmatch(file.name)]
    found.sort(key=age, reverse=True)
    return [(file, listed.get(file.name, _sha_in_name(file))) for file in found]


def _read(file: Path, sha: str) -> tuple[int, Any, dict[str, Any]]:
    """Read a file whose sha256 begins with ``sha``."""
    data = file.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if not found.startswith(sha):
        raise IntegrityError(f"sha256 is {found[:16]}, expected {sha[:16]}", where=file)
    try:
        tensors = load_tensors(data)
        # A safetensors file begins with the length of its JSON header in 8 bytes.
        size = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + size])["__metadata__"]
        if meta["schema"] != SCHEMA:
            raise IntegrityError(
                f"schema {meta['schema']}, expected {SCHEMA}",
                where=file,
                fix="use the segbench version that wrote it",
            )
        state = unpack(json.loads(meta["tree"]), tensors)
        return int(meta["step"]), state, json.loads(meta["header"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError(f"not a checkpoint: {error}", where=file) from error
